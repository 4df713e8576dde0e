//! `report.md` over all arms, and its plots.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    files::Frame,
    measure::{Paired, fit, paired},
    outcome::Outcome,
    session::Shot,
};
use crate::{
    plot::{Captions, Point, Scale, Series, bars, scatter},
    stats::Estimate,
};

const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];

/// Comparisons of every further arm with the first.
pub(super) fn comparisons(outcomes: &[Outcome<'_>], seed: u64) -> Vec<Paired> {
    let Some((first, others)) = outcomes.split_first() else { return Vec::new() };
    let pairs = |other: &Outcome<'_>| {
        let both = other.units.iter().zip(&first.units);
        let both: Vec<_> = both.filter_map(|(ours, theirs)| Some(((*ours)?, (*theirs)?))).collect();
        paired(&both, seed)
    };
    others.iter().map(pairs).collect()
}

/// The text; `plots` are names of files beside it.
pub(super) fn markdown(frame: &Frame<'_>, outcomes: &[Outcome<'_>], plots: &[&str]) -> Result<String, std::fmt::Error> {
    let session = frame.session;
    let args = session.args;
    let mut text = String::from("# Accuracy per watt of each strategy on this machine\n\n");
    let basis = match &frame.basis {
        Some(basis) => format!("**{basis}**. Energy of a query: {}", frame.method.name()),
        None => "none, energy was not measured".into(),
    };
    writeln!(
        text,
        "Basis: {basis}. Concurrency {}, {} repeats, {} runs, preset {}, seed {}.\n",
        args.concurrency,
        session.repeats,
        args.runs,
        args.preset.name(),
        args.seed
    )?;
    table(&mut text, frame, outcomes)?;
    compared(&mut text, frame, outcomes)?;
    for plot in plots {
        writeln!(text, "\n![{plot}]({plot})")?;
    }
    text.push_str("\n## What was asked\n\n| data set | queries | SHA-256 of the file |\n|---|---|---|\n");
    for set in frame.sets {
        writeln!(
            text,
            "| {} ({}) | {} | {} |",
            set.name,
            set.title,
            set.items.len(),
            set.sha256.as_deref().unwrap_or("-")
        )?;
    }
    text.push_str("\n## How answers ended\n\n");
    text.push_str("| strategy | right | wrong | of these without an answer in them | cut by the budget | requests failed | grader failed | energy unknown |\n|---|---|---|---|---|---|---|---|\n");
    for (arm, outcome) in session.arms.iter().zip(outcomes) {
        let c = outcome.counts;
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            arm.name, c.correct, c.incorrect, c.unextracted, c.cut, c.request_failed, c.grader_failed, c.without_energy
        )?;
    }
    text.push_str("\n## Machine\n\n");
    writeln!(text, "Hardware label `{}`, server `{}`.", frame.label, session.client.api())?;
    writeln!(text, "Idle power on the basis: {}.", watts(frame.rest.idle_watts))?;
    if !frame.warnings.is_empty() {
        text.push_str("\n## Warnings\n\n");
        for warning in frame.warnings {
            writeln!(text, "- {warning}")?;
        }
    }
    text.push_str(NOTES);
    Ok(text)
}

const NOTES: &str = "\n## What the columns mean\n\n\
- IPW is accuracy over the mean of the queries' own average powers, IPJ accuracy over mean energy of a query: ratios of \
means. Power and energy are gross, idle power included, on the basis named above; other bases do not compare.\n\
- Accuracy: Wilson's interval. IPW, IPJ and differences: percentiles of 10 000 resamples of queries; differences of accuracy: Agresti and Min where answers are right or wrong. Energy on one machine \
carries the error of its sensor besides, which no interval here shows.\n\
- An answer from which nothing can be read counts as wrong. A dash is unknown, not zero.\n";

fn watts(value: Option<f64>) -> String {
    value.map_or("unknown".into(), |value| format!("{value:.2} W"))
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value != 0.0 && value.abs() < 0.01 => format!("{value:.3e}"),
        Some(value) => format!("{value:.4}"),
    }
}

fn range(estimate: Option<Estimate>) -> String {
    estimate.map_or("-".into(), |e| {
        format!("{} ({} to {})", figure(Some(e.value)), figure(Some(e.low)), figure(Some(e.high)))
    })
}

fn table(text: &mut String, frame: &Frame<'_>, outcomes: &[Outcome<'_>]) -> std::fmt::Result {
    text.push_str(
        "| strategy | model | basis | accuracy (95 %) | mean W | mean J | IPW, 1/W (95 %) | IPJ, 1/J (95 %) | J/token | TTFT p50, s | \
         request p50, s | tokens/s |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (arm, outcome) in frame.session.arms.iter().zip(outcomes) {
        let figures = outcome.efficiency;
        let ratio = |interval: Option<Estimate>, value: Option<f64>| {
            if interval.is_some() { range(interval) } else { figure(value) }
        };
        let ttft =
            outcome.percentiles(|shot| shot.reply.as_ref().ok().and_then(|reply| reply.ttft).into_iter().collect());
        let times =
            outcome.percentiles(|shot| shot.reply.as_ref().map(|reply| vec![reply.seconds]).unwrap_or_default());
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            arm.name,
            arm.model,
            frame.basis.as_deref().unwrap_or("-"),
            range(outcome.accuracy),
            figure(figures.map(|figures| figures.mean_watts)),
            figure(figures.map(|figures| figures.mean_joules)),
            ratio(outcome.ipw, figures.and_then(|figures| figures.intelligence_per_watt)),
            ratio(outcome.ipj, figures.and_then(|figures| figures.intelligence_per_joule)),
            figure(figures.and_then(|figures| figures.joules_per_output_token)),
            figure(ttft["p50"].as_f64()),
            figure(times["p50"].as_f64()),
            figure(outcome.tokens_per_second(|shot| Some(shot.reply.as_ref().ok()?.seconds))),
        )?;
    }
    for (arm, outcome) in frame.session.arms.iter().zip(outcomes) {
        if let Some(reason) = &outcome.reason {
            writeln!(text, "\nNo IPW of {}: {reason}.", arm.name)?;
        }
        if let Some(some) = outcome.subset {
            writeln!(
                text,
                "On its {} queries with known energy alone: accuracy {}, IPW {}, IPJ {}.",
                some.n,
                figure(Some(some.accuracy)),
                figure(some.intelligence_per_watt),
                figure(some.intelligence_per_joule)
            )?;
        }
    }
    Ok(())
}

fn compared(text: &mut String, frame: &Frame<'_>, outcomes: &[Outcome<'_>]) -> std::fmt::Result {
    let (Some(first), true) = (frame.session.arms.first(), outcomes.len() > 1) else { return Ok(()) };
    writeln!(
        text,
        "\n## Against {}, on the same queries\n\n| strategy | queries | accuracy | J a query | s a query | IPW | IPJ | IPJ, times |\n\
         |---|---|---|---|---|---|---|---|",
        first.name
    )?;
    let rows = comparisons(outcomes, frame.session.args.seed);
    for (arm, pair) in frame.session.arms.iter().skip(1).zip(rows) {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            arm.name,
            pair.n,
            range(pair.accuracy_difference),
            range(pair.joules_difference),
            range(pair.seconds_difference),
            range(pair.ipw_difference),
            range(pair.ipj_difference),
            range(pair.ipj_ratio)
        )?;
    }
    Ok(())
}

/// Names and contents of the plots; without energy none.
pub(super) fn plots(
    frame: &Frame<'_>,
    outcomes: &[Outcome<'_>],
) -> Result<Vec<(&'static str, String)>, std::fmt::Error> {
    if outcomes.iter().all(|outcome| outcome.efficiency.is_none()) {
        return Ok(Vec::new());
    }
    let named = || frame.session.arms.iter().zip(outcomes).enumerate();
    let colour = |index: usize| COLOURS[index % COLOURS.len()];
    let accuracy = named().filter_map(|(index, (arm, outcome))| {
        let (figures, share) = (outcome.efficiency?, outcome.accuracy?);
        let label =
            format!("{}: {} J, accuracy {}", arm.name, figure(Some(figures.mean_joules)), range(outcome.accuracy));
        let point = Point { x: figures.mean_joules, y: share.value, low: share.low, high: share.high, label };
        Some(Series { name: arm.name.clone(), colour: colour(index), joined: false, points: vec![point] })
    });
    let accuracy: Vec<Series> = accuracy.collect();
    let per_watt = named().filter_map(|(index, (arm, outcome))| Some((arm.name.as_str(), colour(index), outcome.ipw?)));
    let per_joule =
        named().filter_map(|(index, (arm, outcome))| Some((arm.name.as_str(), colour(index), outcome.ipj?)));
    let (per_watt, per_joule): (Vec<_>, Vec<_>) = (per_watt.collect(), per_joule.collect());
    let mut energy = Vec::new();
    for (index, (arm, outcome)) in named() {
        energy.extend(cloud(frame, &arm.name, colour(index), outcome));
    }
    let basis = frame.basis.as_deref().unwrap_or("unknown");
    let captions = |title, x, y| Captions { title, x: (x, Scale::Linear), y: (y, Scale::Linear) };
    let title = |what: &str| format!("{what} (basis {basis})");
    Ok(vec![
        (
            "accuracy.svg",
            scatter(&captions(&title("Accuracy against energy"), "joules per query", "accuracy"), &accuracy)?,
        ),
        ("ipw.svg", bars(&title("Accuracy per watt"), "IPW, 1/W", &per_watt)?),
        ("ipj.svg", bars(&title("Accuracy per joule"), "IPJ, 1/J", &per_joule)?),
        ("energy.svg", scatter(&captions(&title("Energy of answers"), "output tokens", "joules"), &energy)?),
    ])
}

/// Energy against output tokens, and the line through it.
fn cloud(frame: &Frame<'_>, name: &str, colour: &'static str, outcome: &Outcome<'_>) -> Vec<Series> {
    let place = |shot: &Shot| {
        let tokens = shot.reply.as_ref().ok()?.completion_tokens? as f64;
        Some((tokens, shot.joules(frame.method).ok()?))
    };
    let places: Vec<(f64, f64)> = outcome.shots.iter().filter_map(|shot| place(shot)).collect();
    let point = |(x, y): (f64, f64)| Point { x, y, low: y, high: y, label: format!("{name}: {x} tokens, {y:.3} J") };
    let mut series =
        vec![Series { name: name.into(), colour, joined: false, points: places.iter().copied().map(point).collect() }];
    let line = fit(&places);
    if let (Some(slope), Some(intercept)) = (line.slope, line.intercept) {
        let ends = places.iter().fold((f64::INFINITY, 0.0f64), |(low, high), (x, _)| (low.min(*x), high.max(*x)));
        let end = |x: f64| point((x, intercept + slope * x));
        let caption = format!("{name}: {} J/token", figure(Some(slope)));
        series.push(Series { name: caption, colour, joined: true, points: vec![end(ends.0), end(ends.1)] });
    }
    series
}

/// `comparison.json`: the numbers behind the tables that are of more than one arm.
pub(super) fn comparison(frame: &Frame<'_>, outcomes: &[Outcome<'_>]) -> Value {
    let arms = &frame.session.arms;
    let rows = comparisons(outcomes, frame.session.args.seed);
    let rows: Vec<Value> =
        arms.iter().skip(1).zip(rows).map(|(arm, pair)| json!({"strategy": arm.name, "difference": pair})).collect();
    json!({"against": arms.first().map(|arm| arm.name.as_str()), "basis": frame.basis, "strategies": rows})
}
