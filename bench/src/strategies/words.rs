//! The advice in plain language.

use super::{
    advice::{Advice, Loss, Rule, advise, is_faster, judged, loss},
    catalogue::Contender,
    row::Row,
};
use crate::stats::{Estimate, Summary};

/// Strategies of which nothing can be told that get a line each; the others share one.
const MOST_UNTOLD: usize = 3;

/// A ratio with its range.
pub(super) fn times(speed_up: Summary) -> String {
    format!("{:.2} ({:.2} to {:.2})", speed_up.median, speed_up.min, speed_up.max)
}

/// Points with their interval.
pub(super) fn points(difference: Estimate) -> String {
    let Estimate { value, low, high } = difference.times(100.0);
    format!("{value:+.1} ({low:+.1} to {high:+.1})")
}

/// How many requests run at a time, and what that is good for.
fn occasion(batch: usize, is_largest: bool) -> String {
    match (batch, is_largest) {
        (1, _) => "one request at a time, a person waiting".into(),
        (batch, true) => format!("{batch} requests at a time, throughput"),
        (batch, false) => format!("{batch} requests at a time"),
    }
}

/// What to use for one model at one batch size, as a list in Markdown.
pub(super) fn recommendation(rows: &[Row], rule: Rule, is_largest: bool) -> String {
    let Some(baseline) = rows.iter().find(|row| row.is_baseline) else { return String::new() };
    let advice = advise(rows, rule);
    let head = format!("**{}, {}:**", baseline.model, occasion(baseline.batch, is_largest));
    let mut lines = vec![match advice.best {
        Some(best) => format!("{head} use `{}`. {}", best.strategy, praise(best, baseline, rule)),
        None => format!("{head} {}", stay(rows, baseline, (&advice, rule))),
    }];
    let than = if advice.best.is_some() { "faster still" } else { "faster" };
    for row in &advice.worse {
        let lost = judged(row).difference.map(points).unwrap_or_default();
        let of = if row.right.is_some() { "points of accuracy" } else { "points of texts that are the baseline's" };
        lines.push(format!(
            "`{}` is {than}, {} times the baseline, and loses too much: {lost} {of}.",
            row.strategy,
            times(row.speed_up)
        ));
    }
    lines.extend(advice.untold.iter().take(MOST_UNTOLD).map(|(row, needed)| untold(row, *needed, (than, rule))));
    if let [others @ .., (last, _)] = &advice.untold[MOST_UNTOLD.min(advice.untold.len())..] {
        let names: Vec<String> = others.iter().map(|(row, _)| format!("`{}`, ", row.strategy)).collect();
        lines.push(format!("Nor can it be told of {}`{}`, which are {than} as well.", names.concat(), last.strategy));
    }
    lines.join("\n  - ")
}

/// Why the best one is the best, which option it is, and what it costs.
fn praise(best: &Row, baseline: &Row, rule: Rule) -> String {
    let mut text = format!(
        "Send `\"decoding\": {}`: {} times as fast as `{}` over {} rounds, {:.2} tokens per forward.",
        best.decoding,
        times(best.speed_up),
        baseline.strategy,
        best.speed_up.runs,
        best.tokens_per_forward
    );
    if Contender::is_default(&best.strategy) {
        text.push_str(" It is what happens if a request says nothing of decoding.");
    }
    let same = best.same.share;
    let num_same = best.num_prompts - best.same.only_theirs;
    text.push_str(&match (best.right.and_then(|right| right.difference), num_same == best.num_prompts) {
        (_, true) => format!(" You give up nothing that shows: all {num_same} texts are the baseline's."),
        (Some(difference), false) => format!(
            " You give up the baseline's wording in {} of {} answers; accuracy differs by {} points, which is within the \
             margin of {} points.",
            best.same.only_theirs,
            best.num_prompts,
            points(difference),
            rule.margin * 100.0
        ),
        (None, false) => format!(
            " You give up the baseline's wording in {:.1} % of the answers; nothing judges which are better.",
            (1.0 - same.value) * 100.0
        ),
    });
    if best.exact_cache == Some(false) {
        text.push_str(" Its KV cache is approximate.");
    }
    if let Some((ours, theirs)) = best.joules_per_token.zip(baseline.joules_per_token) {
        text.push_str(&format!(" A token costs {:.2} times the baseline's joules.", ours / theirs));
    }
    text
}

/// Why nothing beats the baseline.
fn stay(rows: &[Row], baseline: &Row, (advice, rule): (&Advice<'_>, Rule)) -> String {
    let option = format!("`\"decoding\": {}`", baseline.decoding);
    if baseline.speed_up.runs < 2 {
        return format!(
            "one round shows no spread, so nothing can be advised; run `--rounds 3` or more. Until then: {option}."
        );
    }
    let mut text = match (advice.untold.is_empty(), advice.worse.is_empty()) {
        (false, _) => {
            format!("too few problems to tell. Until more are measured, stay with `{}`: {option}.", baseline.strategy)
        }
        (true, false) => {
            format!("use `{}`: {option}. What is faster answers worse.", baseline.strategy)
        }
        (true, true) => format!("use `{}`: {option}. Nothing here is faster beyond the spread.", baseline.strategy),
    };
    let candidate = rows.iter().max_by(|a, b| a.speed_up.median.total_cmp(&b.speed_up.median));
    let is_hopeful = |row: &&Row| row.speed_up.median >= 1.0 + rule.least_gain && !is_faster(row.speed_up, rule);
    if let Some(candidate) = candidate.filter(is_hopeful) {
        text.push_str(&format!(
            " `{}` came out highest, {} times the baseline, and more rounds on a quiet machine may tell.",
            candidate.strategy,
            times(candidate.speed_up)
        ));
    }
    let default = rows.iter().find(|row| Contender::is_default(&row.strategy));
    if let Some(default) = default.filter(|default| default.speed_up.median < 1.0) {
        text.push_str(&format!(
            " The default, `{}`, reaches {} times its speed.",
            default.strategy,
            times(default.speed_up)
        ));
    }
    text
}

fn untold(row: &Row, needed: Option<usize>, (than, rule): (&str, Rule)) -> String {
    let what = if row.right.is_some() { "its accuracy" } else { "the share of texts that are the baseline's" };
    let margin = rule.margin * 100.0;
    let difference = judged(row).difference.map(points).unwrap_or_default();
    let more = match needed {
        Some(needed) => format!("about {} would do if it goes on like this", needed.next_multiple_of(10)),
        None => "so far it is outside, so more would rather show that it is worse".into(),
    };
    format!(
        "`{}` is {than}, {} times the baseline, but {} prompts are too few to tell whether {what} stays within {margin} \
         points ({difference}); {more}.",
        row.strategy,
        times(row.speed_up),
        row.num_prompts
    )
}

/// A baseline whose own speed changes this much between rounds says that something else does.
const UNSTEADY: f64 = 1.3;

/// What the reader should doubt: a baseline that is not steady.
pub(super) fn unsteady(rows: &[Row]) -> Option<String> {
    let baseline = rows.iter().find(|row| row.is_baseline)?;
    let Summary { min, max, .. } = baseline.tokens_per_second;
    (max > UNSTEADY * min).then(|| {
        format!(
            "{}, {} at a time: the baseline's own speed went from {min:.0} to {max:.0} tokens per second between rounds. \
             Other load, or turns too short to measure: quiet the machine, or raise `--problems` and `--rounds`.",
            baseline.model, baseline.batch
        )
    })
}

/// Where tokens per forward do not become speed, and why.
pub(super) fn warnings(rows: &[Row]) -> Vec<String> {
    let Some(baseline) = rows.iter().find(|row| row.is_baseline) else { return Vec::new() };
    let warn = |row: &Row| loss(row, baseline).map(|loss| warning(row, baseline, loss));
    rows.iter().filter(|row| !row.is_baseline).filter_map(warn).collect()
}

/// The engine's own times of a pass; `None` if it has not measured them.
pub(super) fn pass_times(model: &str, pass_millis: &[(usize, f64)]) -> Option<String> {
    let times: Vec<String> = pass_millis.iter().map(|(rows, millis)| format!("{rows}: {millis:.2}")).collect();
    (!times.is_empty()).then(|| {
        format!(
            "{model}, as the engine measured it at its start, milliseconds of a pass by its rows, those of all requests \
             together: {}.",
            times.join(", ")
        )
    })
}

fn warning(row: &Row, baseline: &Row, Loss { tokens, speed, pass }: Loss) -> String {
    let head = format!(
        "{}, `{}`, {} at a time: {tokens:.2} times the tokens per forward of `{}`, but {speed:.2} times its speed.",
        row.model, row.strategy, row.batch, baseline.strategy
    );
    match pass > 1.1 {
        true => format!(
            "{head} A pass that scores {:.1} rows for a request takes {:.2} ms, {pass:.2} times one that scores {:.1} \
             ({:.2} ms).",
            row.rows_per_pass, row.pass_ms, baseline.rows_per_pass, baseline.pass_ms
        ),
        false => format!(
            "{head} Its passes take about as long as the baseline's ({:.2} and {:.2} ms), so the time goes elsewhere: to \
             waiting for others, or to the last requests of a turn, which run alone.",
            row.pass_ms, baseline.pass_ms
        ),
    }
}
