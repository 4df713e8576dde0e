//! How linear, softmax and local linear attention compare: tables and plots of what `leapfrog-zoo lab` and
//! `leapfrog-zoo stream` wrote.

use std::{collections::BTreeSet, fs, path::PathBuf, str::FromStr};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use zoo::lab::{Contender, Estimator, LabRun, Problem, SPAN, StreamSettings, Tuned};

use crate::{
    hardware::Hardware,
    plot::{Captions, Point, Scale, Series, scatter},
    report,
    stats::{Estimate, student},
};

/// Arguments of `mixers`.
#[derive(Debug, Args)]
pub(crate) struct MixersArgs {
    /// What `leapfrog-zoo lab` wrote: a JSON line for each run, all with the same settings.
    #[arg(long)]
    runs: PathBuf,
    /// What `leapfrog-zoo stream` wrote; any number of files.
    #[arg(long, value_delimiter = ',')]
    streams: Vec<PathBuf>,
    /// Loss curves of a model: its name, `=`, and the folders of its stages among the trainer's runs, with commas.
    #[arg(long)]
    curves: Vec<Curve>,
    /// Folder for `summary.md`, `raw.json` and the plots.
    #[arg(long)]
    out: PathBuf,
}

/// Where the loss curve of a model lies.
#[derive(Debug, Clone)]
struct Curve {
    name: String,
    stages: Vec<PathBuf>,
}

impl FromStr for Curve {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, stages) = text.split_once('=').context("a curve is written NAME=FOLDER,FOLDER")?;
        Ok(Self { name: name.into(), stages: stages.split(',').map(PathBuf::from).collect() })
    }
}

impl Curve {
    /// Steps from the start of the first stage, and losses there.
    fn points(&self) -> anyhow::Result<Vec<(f64, f64)>> {
        let (mut points, mut before) = (Vec::new(), 0.0);
        for stage in &self.stages {
            let path = stage.join("log.csv");
            let name = || path.display().to_string();
            let text = fs::read_to_string(&path).with_context(name)?;
            let mut last = before;
            for line in text.lines().skip(1) {
                let mut cells = line.split(',').map(str::parse::<f64>);
                let (Some(step), Some(loss)) = (cells.next(), cells.next()) else {
                    bail!("{}: a line without step and loss: {line}", path.display());
                };
                last = before + step.with_context(name)?;
                points.push((last, loss.with_context(name)?));
            }
            before = last;
        }
        ensure!(!points.is_empty(), "the curve of {} is empty", self.name);
        Ok(points)
    }
}

/// Loss by step of all models, on a scale of powers of two.
fn curves_plot(curves: &[Curve]) -> anyhow::Result<String> {
    let mut series = Vec::new();
    for (curve, colour) in curves.iter().zip(COLOURS.into_iter().rev().cycle()) {
        let points = curve.points()?.into_iter().map(|(x, y)| {
            let label = format!("{}, step {x}: {y:.4}", curve.name);
            Point { x, y, low: y, high: y, label }
        });
        series.push(Series { name: curve.name.clone(), colour, joined: true, points: points.collect() });
    }
    let captions = Captions {
        title: "Training",
        x: ("steps", Scale::Linear),
        y: ("loss of the answers, nats", Scale::Powers(2.0)),
    };
    Ok(scatter(&captions, &series)?)
}

/// A file of `leapfrog-zoo stream`.
#[derive(Debug, Serialize, Deserialize)]
struct Streams {
    settings: StreamSettings,
    estimators: Vec<Tuned>,
}

impl Streams {
    /// Refuses errors that do not cover the streams of the settings.
    fn check(&self) -> anyhow::Result<()> {
        let StreamSettings { segments, segment_len, test, .. } = self.settings;
        let is_whole = segment_len > 0 && segment_len.is_multiple_of(SPAN);
        ensure!(is_whole, "a segment of {segment_len} pairs is not a multiple of {SPAN}");
        let estimators: Vec<Estimator> = self.estimators.iter().map(|tuned| tuned.estimator).collect();
        ensure!(estimators == Estimator::ALL, "the estimators are {estimators:?}, not {:?}", Estimator::ALL);
        for Tuned { estimator, errors, .. } in &self.estimators {
            ensure!(errors.len() == test && test > 0, "{estimator}: {} streams, not {test}", errors.len());
            let is_covered = |errors: &Vec<f64>| Some(errors.len()) == segments.checked_mul(segment_len / SPAN);
            ensure!(
                segments > 0 && errors.iter().all(is_covered),
                "{estimator}: a stream is not {segments} segments of {segment_len} pairs long"
            );
        }
        Ok(())
    }
}

/// Refuses runs that would make a table say more than was done: under several settings, the same one twice, some seeds
/// for one contender and others for another, or other figures.
fn comparable(runs: &[LabRun]) -> anyhow::Result<()> {
    ensure!(!runs.is_empty(), "no run");
    ensure!(
        runs.windows(2).all(|pair| pair[0].settings == pair[1].settings),
        "runs with different settings, which cannot be compared"
    );
    for problem in Problem::ALL {
        let of_problem = || runs.iter().filter(|run| run.problem == problem);
        let names = |run: &LabRun| run.figures.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let first = of_problem().next().map(names);
        ensure!(of_problem().all(|run| Some(names(run)) == first), "runs of {problem} with different figures");
        let seeds = |contender| {
            let mut seeds: Vec<u64> =
                of_problem().filter(|run| run.contender == contender).map(|run| run.seed).collect();
            seeds.sort_unstable();
            seeds
        };
        let all = Contender::ALL.map(|contender| (contender, seeds(contender)));
        for (contender, seeds) in &all {
            let num_unique = seeds.iter().collect::<BTreeSet<_>>().len();
            ensure!(num_unique == seeds.len(), "{problem}, {contender}: a seed stands there twice");
        }
        let mut present = all.iter().filter(|(_, seeds)| !seeds.is_empty());
        if let Some((contender, seeds)) = present.next()
            && let Some((other, others)) = present.find(|(_, others)| others != seeds)
        {
            bail!("{problem}: {contender} has the seeds {seeds:?} and {other} {others:?}, which cannot be compared");
        }
    }
    Ok(())
}

pub(crate) fn run(args: &MixersArgs) -> anyhow::Result<()> {
    let name = args.runs.display().to_string();
    let lines = fs::read_to_string(&args.runs).with_context(|| name.clone())?;
    let runs: Vec<LabRun> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(name)?;
    comparable(&runs).with_context(|| args.runs.display().to_string())?;
    let mut streams = Vec::new();
    for path in &args.streams {
        let name = || path.display().to_string();
        let read: Streams = serde_json::from_str(&fs::read_to_string(path).with_context(name)?).with_context(name)?;
        read.check().with_context(name)?;
        streams.push(read);
    }
    let hardware = Hardware::read();
    let mut text = format!(
        "# Linear, softmax and local linear attention\n\nReported at commit {} on {} ({} cores). Intervals are 95 %, over seeds \
         or streams (Student).\n",
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores
    );
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    for problem in Problem::ALL {
        let runs: Vec<&LabRun> = runs.iter().filter(|run| run.problem == problem).collect();
        if runs.is_empty() {
            text.push_str(&format!("\n## {problem}\n\nNot run.\n"));
            continue;
        }
        text.push_str(&trained(problem, &runs));
        save(args, &format!("{problem}.svg"), &trained_plot(problem, &runs)?)?;
    }
    for (index, streams) in streams.iter().enumerate() {
        text.push_str(&streamed(streams));
        save(args, &format!("stream-{index}.svg"), &stream_plot(streams)?)?;
    }
    if !args.curves.is_empty() {
        save(args, "training.svg", &curves_plot(&args.curves)?)?;
    }
    println!("{text}");
    report::save(&args.out, &text, &serde_json::json!({ "hardware": hardware, "runs": runs, "streams": streams }))
}

fn save(args: &MixersArgs, name: &str, text: &str) -> anyhow::Result<()> {
    let path = args.out.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())
}

/// A figure of every run of a contender, by seed.
fn figures(runs: &[&LabRun], contender: Contender, figure: &str) -> Vec<(u64, f64)> {
    let own = runs.iter().filter(|run| run.contender == contender);
    own.filter_map(|run| Some((run.seed, run.figures.iter().find(|(name, _)| name == figure)?.1))).collect()
}

fn estimate(values: &[(u64, f64)]) -> Option<Estimate> {
    student(&values.iter().map(|(_, value)| *value).collect::<Vec<_>>())
}

/// `contender` less softmax attention, seed by seed.
fn difference(runs: &[&LabRun], contender: Contender, figure: &str) -> Option<Estimate> {
    let others = figures(runs, Contender::Softmax, figure);
    let pairs = figures(runs, contender, figure).into_iter().filter_map(|(seed, value)| {
        let (_, other) = others.iter().find(|(of, _)| *of == seed)?;
        Some(value - other)
    });
    student(&pairs.collect::<Vec<_>>())
}

fn write(estimate: Option<Estimate>) -> String {
    estimate.map_or("-".into(), |Estimate { value, low, high }| format!("{value:.3} ({low:.3} to {high:.3})"))
}

fn trained(problem: Problem, runs: &[&LabRun]) -> String {
    let settings = runs[0].settings;
    let about = match problem {
        Problem::Recall => "Share of values named rightly, by number of pairs (higher is better).",
        Problem::Regression => {
            "Mean squared error relative to the variance of the values (lower is better): of all rows, and of the 16 that \
             have so many points before them, or more."
        }
    };
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut text = format!(
        "\n## {problem}\n\n{about} {} steps of {} rows, peak learning rate {}, examined on {} unseen sequences; a run of each \
         with the seeds {seeds:?}, with the same data for all in the same order.\n\n| figure |",
        settings.steps, settings.rows, settings.learning_rate, settings.sequences
    );
    for contender in Contender::ALL {
        text.push_str(&format!(" {contender} |"));
    }
    text.push_str(" local linear less softmax |\n|---|---|---|---|---|\n");
    let names = runs[0].figures.iter().map(|(name, _)| name.as_str());
    for name in names {
        text.push_str(&format!("| {} |", name.replace('_', " ")));
        for contender in Contender::ALL {
            text.push_str(&format!(" {} |", write(estimate(&figures(runs, contender, name)))));
        }
        text.push_str(&format!(" {} |\n", write(difference(runs, Contender::Lla, name))));
    }
    text.push_str("| parameters |");
    for contender in Contender::ALL {
        let parameters = runs.iter().find(|run| run.contender == contender).map(|run| run.parameters.to_string());
        text.push_str(&format!(" {} |", parameters.unwrap_or("-".into())));
    }
    text.push_str(" |\n| seconds of the fastest run, one thread |");
    for contender in Contender::ALL {
        let seconds = runs.iter().filter(|run| run.contender == contender).map(|run| run.seconds);
        let least = seconds.min_by(f64::total_cmp);
        text.push_str(&format!(" {} |", least.map_or("-".into(), |seconds| format!("{seconds:.0}"))));
    }
    text.push_str(" |\n");
    text
}

const COLOURS: [&str; 4] = ["#777777", "#1f77b4", "#ff7f0e", "#d62728"];

/// The figures of each contender by the number in their names.
fn trained_plot(problem: Problem, runs: &[&LabRun]) -> anyhow::Result<String> {
    let (title, x, y) = match problem {
        Problem::Recall => ("Associative recall", "pairs", "share of values named rightly"),
        Problem::Regression => ("In-context regression", "points before, at least", "relative squared error"),
    };
    let mut series = Vec::new();
    for (contender, colour) in Contender::ALL.into_iter().zip([COLOURS[0], COLOURS[2], COLOURS[3]]) {
        let mut points = Vec::new();
        for (name, _) in &runs[0].figures {
            let Some(at) = name.split('_').nth(1).and_then(|number| number.parse::<f64>().ok()) else { continue };
            if let Some(Estimate { value, low, high }) = estimate(&figures(runs, contender, name)) {
                // A single run has no interval to draw.
                let (low, high) = if low.is_finite() { (low, high) } else { (value, value) };
                points.push(Point { x: at, y: value, low, high, label: format!("{contender}, {at}: {value:.3}") });
            }
        }
        series.push(Series { name: contender.to_string(), colour, joined: true, points });
    }
    let scale = if problem == Problem::Recall { Scale::Powers(2.0) } else { Scale::Linear };
    Ok(scatter(&Captions { title, x: (x, scale), y: (y, Scale::Linear) }, &series)?)
}

/// Mean error of each stream over some spans.
fn means(tuned: &Tuned, spans: std::ops::Range<usize>) -> Vec<f64> {
    let count = spans.len() as f64;
    tuned.errors.iter().map(|errors| errors[spans.clone()].iter().sum::<f64>() / count).collect()
}

fn streamed(Streams { settings, estimators }: &Streams) -> String {
    let StreamSettings { dim, segments, segment_len, spread, noise, validation, test } = *settings;
    let (len, spans) = (segments * segment_len / SPAN, segment_len / SPAN);
    let mut text = format!(
        "\n## Test-time regression, keys {spread} wide around the centre of their segment\n\nNothing is trained: each estimator \
         names the value of the next key from the pairs before it. {segments} segments of {segment_len} pairs, each with a \
         linear map and a region of keys of its own; keys of {dim} features on the sphere; noise {noise}. Scale and ridge \
         are the best of a grid on {validation} streams; squared errors, relative to the mean square of the values, on {test} \
         others.\n\n| estimator | scale | ridge | all |"
    );
    for segment in 1..=segments {
        text.push_str(&format!(" segment {segment} |"));
    }
    text.push_str(&format!("\n|---|---|---|---|{}\n", "---|".repeat(segments)));
    for tuned in estimators {
        let scale = match tuned.estimator {
            Estimator::LinearAttention => "-".into(),
            _ => tuned.scale.to_string(),
        };
        let ridge = match tuned.estimator {
            Estimator::LinearAttention | Estimator::LocalConstant => "-".into(),
            Estimator::GlobalLinear | Estimator::LocalLinear => tuned.ridge.to_string(),
        };
        text.push_str(&format!(
            "| {} | {scale} | {ridge} | {} |",
            tuned.estimator,
            write(student(&means(tuned, 0..len)))
        ));
        for segment in 0..segments {
            let part = segment * spans..(segment + 1) * spans;
            text.push_str(&format!(" {} |", write(student(&means(tuned, part)))));
        }
        text.push('\n');
    }
    let best_first = {
        let mut order: Vec<(f64, String)> = estimators
            .iter()
            .map(|tuned| {
                (student(&means(tuned, 0..len)).map_or(f64::NAN, |all| all.value), tuned.estimator.to_string())
            })
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ")
    };
    text.push_str(&format!("\nBest first: {best_first}.\n"));
    text
}

fn stream_plot(Streams { settings, estimators }: &Streams) -> anyhow::Result<String> {
    let len = settings.segments * settings.segment_len;
    let series = estimators.iter().zip(COLOURS).map(|(tuned, colour)| {
        let points = (0..len / SPAN).filter_map(|span| {
            let Estimate { value, low, high } = student(&means(tuned, span..span + 1))?;
            let (low, high) = if low.is_finite() { (low, high) } else { (value, value) };
            let x = ((span * SPAN) + SPAN / 2) as f64;
            Some(Point { x, y: value, low, high, label: format!("{}, {x}: {value:.3}", tuned.estimator) })
        });
        Series { name: tuned.estimator.to_string(), colour, joined: true, points: points.collect() }
    });
    let title = format!("Test-time regression, a new region and map every {} pairs", settings.segment_len);
    let (x, y) = (("pairs before", Scale::Linear), ("relative squared error", Scale::Linear));
    Ok(scatter(&Captions { title: &title, x, y }, &series.collect::<Vec<_>>())?)
}

#[cfg(test)]
mod tests {
    use zoo::lab::LabSettings;

    use super::*;

    fn runs(seeds: &[u64]) -> Vec<LabRun> {
        let settings = LabSettings { steps: 5, rows: 64, learning_rate: 1e-3, sequences: 2 };
        let one = |contender: Contender, seed: u64| LabRun {
            problem: Problem::Regression,
            contender,
            seed,
            settings,
            parameters: 7,
            seconds: 1.0,
            // Local linear attention is 0.25 better, whatever the seed.
            figures: vec![("error".into(), seed as f64 - if contender == Contender::Lla { 0.25 } else { 0.0 })],
            losses: vec![1.0],
        };
        Contender::ALL.iter().flat_map(|contender| seeds.iter().map(|seed| one(*contender, *seed))).collect()
    }

    #[track_caller]
    fn refused(edit: impl FnOnce(&mut Vec<LabRun>), cause: &str) {
        let mut runs = runs(&[1, 2, 3]);
        edit(&mut runs);
        let message = comparable(&runs).unwrap_err().to_string();
        assert!(message.contains(cause), "{message}");
    }

    #[test]
    fn runs_that_cannot_be_compared_are_refused() {
        comparable(&runs(&[1, 2, 3])).unwrap();
        // A contender that was left out has no seeds to compare.
        comparable(&runs(&[1, 2])[..4]).unwrap();
        refused(Vec::clear, "no run");
        refused(|runs| runs[4].settings.steps = 6, "different settings");
        refused(|runs| runs.extend(runs.clone()), "a seed stands there twice");
        refused(|runs| drop(runs.pop()), "has the seeds [1, 2, 3] and local linear attention [1, 2]");
        refused(|runs| runs[8].seed = 4, "has the seeds [1, 2, 3] and local linear attention [1, 2, 4]");
        refused(|runs| runs[5].figures[0].0 = "other".into(), "different figures");
    }

    #[test]
    fn differences_are_taken_seed_by_seed() {
        let runs = runs(&[1, 2, 9]);
        let text = trained(Problem::Regression, &runs.iter().collect::<Vec<_>>());
        assert!(text.contains("the seeds [1, 2, 9]"), "{text}");
        let row = text.lines().find(|line| line.starts_with("| error |")).unwrap();
        // The spread of the seeds cancels.
        assert!(row.ends_with("| -0.250 (-0.250 to -0.250) |"), "{row}");
        assert!(row.contains("| 4.000 (") && row.contains("| 3.750 ("), "{row}");
    }

    #[test]
    fn streams_that_do_not_cover_their_segments_are_refused() {
        type Edit = fn(&mut Streams);
        let streams = |edit: Edit| {
            let tuned = |estimator| Tuned { estimator, scale: 1.0, ridge: 1.0, errors: vec![vec![0.5, 0.25]; 3] };
            let settings = StreamSettings { segments: 2, segment_len: SPAN, test: 3, ..StreamSettings::default() };
            let mut streams = Streams { settings, estimators: Estimator::ALL.map(tuned).into() };
            edit(&mut streams);
            streams
        };
        let usual = streams(|_| ());
        usual.check().unwrap();
        let text = streamed(&usual);
        let all = "0.375 (0.375 to 0.375) | 0.500 (0.500 to 0.500) | 0.250 (0.250 to 0.250) |";
        assert_eq!(text.matches(all).count(), Estimator::ALL.len(), "{text}");
        let edits: [(Edit, &str); 7] = [
            (|streams| streams.settings.segment_len = 8, "a segment of 8 pairs"),
            (|streams| streams.settings.segment_len = 0, "a segment of 0 pairs"),
            (|streams| streams.settings.segments = usize::MAX, "segments of 16 pairs long"),
            (|streams| streams.settings.segments = 0, "a stream is not 0 segments"),
            (|streams| streams.estimators.clear(), "the estimators are []"),
            (|streams| streams.estimators[1].errors.clear(), "0 streams, not 3"),
            (|streams| streams.estimators[3].errors[1].truncate(1), "a stream is not 2 segments"),
        ];
        for (edit, cause) in edits {
            let message = streams(edit).check().unwrap_err().to_string();
            assert!(message.contains(cause), "{message}");
        }
    }
}
