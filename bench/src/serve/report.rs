//! A run in words and tables.

use std::fmt::Write;

use super::{level::Measured, sweep};
use crate::load::{
    Ended,
    summary::Summary,
    tally::{Spread, Targets},
};

/// Lag of the event loop above which the load generator was busy, in milliseconds, and its share of a core.
const LAG_MS: f64 = 10.0;
const BUSY: f64 = 0.8;
/// Lateness of sending that is worth a word, in milliseconds.
const LATE_MS: f64 = 5.0;
/// Share of what is offered below which a server did not keep up.
const KEPT_UP: f64 = 0.9;

/// A level on one line.
pub(super) fn line(measured: &Measured) -> String {
    let summary = &measured.summary;
    let millis = |spread: Option<Spread>| {
        spread.map_or("-".into(), |spread| format!("{} / {} ms", time(spread.p50), time(spread.p99)))
    };
    format!(
        "{}: {} requests/s, {} tok/s, first token {}, end to end {} (p50 / p99), {} failed",
        measured.level,
        rate(summary.rates.requests),
        rate(summary.rates.output_tokens),
        millis(summary.ttft_ms),
        millis(summary.e2e_ms),
        summary.failed
    )
}

/// Three significant digits, as far as they are behind the point.
fn time(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn rate(value: Option<f64>) -> String {
    value.map_or("unknown".into(), |value| if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") })
}

/// Everything about a level, as Markdown.
pub(super) fn level(measured: &Measured, num_prompts: Option<usize>) -> anyhow::Result<String> {
    let mut text = String::new();
    figures(&mut text, measured)?;
    times(&mut text, &measured.summary)?;
    failures(&mut text, measured)?;
    for note in notes(measured, num_prompts) {
        writeln!(text, "- {note}")?;
    }
    Ok(text)
}

fn figures(text: &mut String, measured: &Measured) -> anyhow::Result<()> {
    let Measured { summary, gained, cost, .. } = measured;
    writeln!(text, "| | |\n|---|---|")?;
    let mut row = |name: &str, value: String| writeln!(text, "| {name} | {value} |");
    let aside = if summary.interrupted > 0 { format!(", {} interrupted", summary.interrupted) } else { String::new() };
    row("requests", format!("{} sent, {} answered, {} failed{aside}", summary.sent, summary.ok, summary.failed))?;
    row("length of the run", format!("{:.2} s", summary.window_s))?;
    row("requests/s", rate(summary.rates.requests))?;
    row("output tokens/s", rate(summary.rates.output_tokens))?;
    row("tokens/s with prompts", rate(summary.rates.total_tokens))?;
    if summary.ok > 0 && summary.tokens.answers_without == 0 {
        let mean = |count: u64| count as f64 / summary.ok as f64;
        let cached = summary.tokens.cached.map_or(String::new(), |count| {
            format!(", {:.0} % of them from a cache", 100.0 * count as f64 / summary.tokens.prompt.max(1) as f64)
        });
        row(
            "prompt tokens",
            format!("{} ({:.1} a request{cached})", summary.tokens.prompt, mean(summary.tokens.prompt)),
        )?;
        row(
            "output tokens",
            format!("{} ({:.1} a request)", summary.tokens.completion, mean(summary.tokens.completion)),
        )?;
    }
    row("requests on their way", rate(summary.mean_in_flight))?;
    if let Some(tokens) = summary.events.tokens_per_event() {
        row("tokens per event", format!("{tokens:.2} ({} events)", summary.events.count))?;
    }
    if let Some(passes) = &summary.passes {
        let forward = passes.tokens_per_forward.map_or("unknown".into(), |mean| format!("{mean:.2}"));
        row("tokens per forward pass", format!("{forward} ({} passes)", passes.forward_passes))?;
    }
    if let Some(diffusion) = &gained.diffusion {
        let each = diffusion.tokens_per_step.map_or("unknown".into(), |mean| format!("{mean:.2}"));
        row("tokens per denoising step", format!("{each} ({} steps)", diffusion.denoising_steps))?;
    }
    match &gained.energy {
        None => {}
        Some(Err(reason)) => row("energy", format!("unknown: {reason}"))?,
        Some(Ok(joules)) => {
            let each = |joules: f64| match summary.tokens.completion {
                0 => String::new(),
                tokens => format!(" ({:.4} J a token)", joules / tokens as f64),
            };
            row("energy of the requests", format!("{:.2} J{}", joules.requests, each(joules.requests)))?;
            row("energy with the idle machine", format!("{:.2} J{}", joules.total, each(joules.total)))?;
        }
    }
    if let Some(joules) = summary.request_joules {
        row("energy, request by request", format!("{joules:.2} J"))?;
    }
    if let Some(goodput) = &summary.goodput {
        let Targets { ttft_ms, tpot_ms, e2e_ms } = goodput.targets;
        let named = [("ttft", ttft_ms), ("tpot", tpot_ms), ("e2e", e2e_ms)];
        let targets: Vec<String> =
            named.iter().filter_map(|(name, most)| most.map(|most| format!("{name} {most} ms"))).collect();
        let good = format!(
            "{} requests/s ({} of {}; {})",
            rate(goodput.per_second),
            goodput.good,
            summary.sent,
            targets.join(", ")
        );
        row("goodput", good)?;
    }
    let per_event = cost
        .cpu_s_per_1000_events
        .map_or(String::new(), |seconds| format!(", {:.1} ms of processor for 1000 events", seconds * 1000.0));
    row("this load generator", format!("{:.1} % of a core{per_event}", cost.cores * 100.0))?;
    Ok(())
}

fn times(text: &mut String, summary: &Summary) -> anyhow::Result<()> {
    writeln!(
        text,
        "\n| milliseconds | mean | min | p50 | p90 | p95 | p99 | max | n |\n|---|---|---|---|---|---|---|---|---|"
    )?;
    let rows = [
        ("time to first token (TTFT)", summary.ttft_ms),
        ("time per output token (TPOT)", summary.tpot_ms),
        ("between events (ITL)", summary.event_gap_ms),
        ("the same, for each token of the event", summary.token_gap_ms),
        ("end to end", summary.e2e_ms),
        ("end to end, for each token", summary.e2e_per_token_ms),
        ("end to end, corrected for waiting clients", summary.e2e_corrected_ms),
        ("TTFT from the moment of sending", summary.ttft_from_send_ms.filter(|_| summary.late_ms.is_some())),
        ("end to end from the moment of sending", summary.e2e_from_send_ms.filter(|_| summary.late_ms.is_some())),
        ("sent late by", summary.late_ms),
        ("until a failure was known", summary.failed_after_ms),
    ];
    for (name, spread) in rows {
        let Some(Spread { count, mean, min, p50, p90, p95, p99, max }) = spread else { continue };
        let [mean, min, p50, p90, p95, p99, max] = [mean, min, p50, p90, p95, p99, max].map(time);
        writeln!(text, "| {name} | {mean} | {min} | {p50} | {p90} | {p95} | {p99} | {max} | {count} |")?;
    }
    writeln!(text)?;
    Ok(())
}

fn failures(text: &mut String, measured: &Measured) -> anyhow::Result<()> {
    let summary = &measured.summary;
    if summary.failures.is_empty() {
        return Ok(());
    }
    writeln!(text, "| failures | kind | cause |\n|---|---|---|")?;
    for failure in &summary.failures {
        writeln!(text, "| {} | {} | {} |", failure.count, failure.kind.name(), failure.message.replace('|', "\\|"))?;
    }
    writeln!(text)?;
    Ok(())
}

/// What a reader must know to read the figures right.
fn notes(measured: &Measured, num_prompts: Option<usize>) -> Vec<String> {
    let Measured { summary, cost, .. } = measured;
    let mut notes = Vec::new();
    match &measured.ended {
        Ended::Done => {}
        Ended::Interrupted => {
            notes.push("The run was interrupted; the figures are of what was answered before.".into())
        }
        Ended::GaveUp { failures, last } => {
            notes.push(format!("Given up after {failures} failures in a row. The last: {last}."));
        }
    }
    if measured.warmup_failures > 0 {
        notes.push(format!("{} requests of the warm-up failed.", measured.warmup_failures));
    }
    if summary.failed > 0 {
        notes.push("Times are of answers only: failed requests are in none but \"until a failure was known\".".into());
    }
    if summary.tokens.answers_without > 0 {
        notes.push(format!(
            "{} answers had no `usage`, so tokens are unknown; they are not guessed.",
            summary.tokens.answers_without
        ));
    }
    if let Some((offered, got)) = measured.offered.zip(summary.rates.requests)
        && got < KEPT_UP * offered
    {
        notes.push(format!(
            "The server did not keep up: {offered:.2} requests/s were offered and {got:.2} answered. Times grow with the \
             length of such a run and mean little."
        ));
    }
    let lag = cost.loop_lag_ms.map_or(0.0, |lag| lag.p99);
    if lag > LAG_MS || cost.cores > BUSY {
        notes.push(format!(
            "The load generator was busy: {:.0} % of a core, its event loop up to {lag:.1} ms late (p99). Times may be too \
             long by as much.",
            cost.cores * 100.0
        ));
    }
    if let Some(late) = summary.late_ms.filter(|late| late.p99 > LATE_MS) {
        notes.push(format!("Requests were sent late (p99 {:.1} ms). TTFT and end to end contain that.", late.p99));
    }
    if let Some(tokens) = summary.events.tokens_per_event().filter(|tokens| *tokens > 1.5) {
        notes.push(format!(
            "An event brings {tokens:.1} tokens on average: the time between events is that of several tokens, and TPOT \
             and \"for each token\" are what compares with servers that send them one by one."
        ));
    }
    if summary.events.single > 0 {
        notes.push(format!("{} answers came in a single event and have no TPOT.", summary.events.single));
    }
    if summary.events.bundled * 5 > summary.events.count {
        notes.push(format!(
            "{} of {} events arrived within 0.1 ms of the one before them: the server, or the way, sends in bursts.",
            summary.events.bundled, summary.events.count
        ));
    }
    if let Some(count) = num_prompts.filter(|count| measured.asked_so_far > *count as u64) {
        notes.push(format!(
            "{} requests had {count} prompts (warm-up and other levels included), so the server may reuse what it \
             computed; --numbered prevents that.",
            measured.asked_so_far
        ));
    }
    if summary.passes.as_ref().and_then(|passes| passes.tokens_per_forward).is_some_and(|mean| mean < 1.2) {
        notes.push(
            "Hardly more than one token in a forward pass: on these prompts this is a server that decodes one by one. `leapfrog \
             bench strategies` shows what other strategies give."
                .into(),
        );
    }
    notes
}

/// A sweep as a table, with its knee.
pub(super) fn sweep(levels: &[Measured]) -> anyhow::Result<String> {
    let by_tokens = sweep::by_tokens(levels);
    let mut text = String::from(
        "| load | requests/s | output tokens/s | TTFT p50 | p99 | TPOT p50 | p99 | end to end p50 | p99 | goodput/s | failed \
         |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for measured in levels {
        let summary = &measured.summary;
        let pair = |spread: Option<Spread>| {
            spread.map_or("- | -".into(), |spread| format!("{} | {}", time(spread.p50), time(spread.p99)))
        };
        let good = summary.goodput.map_or("-".into(), |goodput| rate(goodput.per_second));
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {good} | {} |",
            measured.level,
            rate(summary.rates.requests),
            rate(summary.rates.output_tokens),
            pair(summary.ttft_ms),
            pair(summary.tpot_ms),
            pair(summary.e2e_ms),
            summary.failed
        )?;
    }
    let points: Vec<_> = levels.iter().filter_map(|level| Some((level, level.point(by_tokens)?))).collect();
    let unit = if by_tokens { "output tokens/s" } else { "requests/s" };
    text.push('\n');
    let knee = sweep::knee(&points.iter().map(|(_, point)| *point).collect::<Vec<_>>());
    if let Some((level, point)) = points.iter().find(|(_, point)| Some(*point) == knee) {
        writeln!(
            text,
            "- Knee: {}, {:.1} {unit} at {:.1} ms end to end on average (most throughput for its time, Kleinrock's \"power\").",
            level.level, point.throughput, point.latency_ms
        )?;
        if points.len() > 1 && points.last().map(|(_, last)| *last) == knee {
            writeln!(text, "- It is the last level: more load may give more. `--sweep` goes on by itself.")?;
        }
    }
    let most = points.iter().max_by(|(_, a), (_, b)| a.throughput.total_cmp(&b.throughput));
    if let Some((level, point)) = most {
        writeln!(text, "- Most throughput: {:.1} {unit} at {}.", point.throughput, level.level)?;
    }
    let is_good = |level: &&Measured| {
        let good = level.summary.goodput.map(|goodput| goodput.good as f64 / level.summary.sent.max(1) as f64);
        good.is_some_and(|share| share >= 0.99)
    };
    if levels.iter().any(|level| level.summary.goodput.is_some()) {
        match levels.iter().rfind(is_good) {
            Some(level) => {
                writeln!(text, "- Most load at which 99 % of the requests met the targets: {}.", level.level)?
            }
            None => writeln!(text, "- At no level did 99 % of the requests meet the targets.")?,
        }
    }
    Ok(text)
}
