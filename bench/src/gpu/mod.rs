//! The CUDA engine against the limits of its device and against PyTorch, with nothing but this program.
//!
//! | module | holds |
//! |---|---|
//! | [`shapes`], [`subject`] | published shapes, and models of them with weights that the device makes up |
//! | [`facts`] | the device and its limits |
//! | [`check`], [`builtin`] | whether the device computes what the processor does; the built-in models |
//! | [`forward`] | passes, and steps from end to end |
//! | [`decoding`], [`traces`] | tokens a second of strategies, by recorded schedules |
//! | [`score`], [`kernels`] | kernels alone |
//! | [`torch`] | the same shapes in PyTorch |
//! | [`log`], [`floors`] | cells, tables, and what must be reached |

mod builtin;
mod check;
mod decoding;
mod facts;
mod floors;
mod forward;
mod kernels;
mod log;
mod score;
mod shapes;
mod subject;
#[cfg(test)]
mod tests;
mod torch;
mod traces;

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use ::kernels::device::{Array, Device, DeviceFormat, ElementType, Recording};
use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use engine::{Precision, Target};
use models::ModelConfig;
use serde::Serialize;

use check::Effort;
use facts::Facts;
use log::{Cell, Log};
use shapes::Shape;
use subject::Subject;
use traces::Traces;

/// Passes and reductions of a round: given at once, so that the device never waits for the host.
const REPEATS: usize = 10;
/// Bytes that a copy for the bandwidth has.
const COPY_BYTES: usize = 1 << 30;
/// Bytes that operands of kernels have together: no cache holds them.
const COLD_BYTES: usize = 512 << 20;
/// Copies of operands at most.
const MOST_COPIES: usize = 1024;
/// Requests of each strategy that are recorded and replayed.
const TRACES: usize = 8;
/// Positions beyond the longest context: the widest pass or a canvas with its prompt.
const SLACK: usize = 512;

/// Arguments of `gpu`.
#[derive(Debug, Args)]
pub(crate) struct GpuArgs {
    /// What to measure: cuda, or cuda:N for one of several GPUs.
    #[arg(long, default_value = "cuda")]
    device: Target,
    /// Only these parts. The bandwidth of copies is always measured.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Shapes of models.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "llada-8b,dream-7b,sdar-4b,llama2-7b,smollm2-135m")]
    shape: Vec<Shape>,
    /// Rows of a pass.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,64,128,256,512")]
    rows: Vec<usize>,
    /// Positions before the rows.
    #[arg(long, value_delimiter = ',', default_value = "0,1024,4096")]
    contexts: Vec<usize>,
    /// Type that the device computes with: bf16 or f16. Quantised weights are multiplied in f16.
    #[arg(long)]
    precision: Option<Precision>,
    /// Weights of the shapes: bf16, f16, q8_0 or q4_k.
    #[arg(long, value_enum, default_value_t = Format::Bf16)]
    format: Format,
    /// Timed rounds of a cell.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// No new cell is begun after so many seconds; what is left out is listed.
    #[arg(long, default_value_t = 3600.0)]
    budget_s: f64,
    /// Python with PyTorch.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Folder for `summary.md` and `raw.json`, which are written anew after every cell.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// The device and the bandwidth of copies.
    Facts,
    /// Built-in models on the device against the processor.
    Check,
    /// Reduction of logits to scores.
    Score,
    /// Forward passes by rows and context.
    Forward,
    /// Steps from end to end.
    Steps,
    /// Tokens a second of strategies.
    Decoding,
    /// Matrix products and attention.
    Kernels,
    /// PyTorch.
    Torch,
}

impl Part {
    const ALL: [Self; 8] =
        [Self::Facts, Self::Check, Self::Score, Self::Forward, Self::Steps, Self::Decoding, Self::Kernels, Self::Torch];

    fn title(self) -> &'static str {
        match self {
            Self::Facts => "Device",
            Self::Check => "Against the processor",
            Self::Score => "Scores",
            Self::Forward => "Forward passes",
            Self::Steps => "Steps from end to end",
            Self::Decoding => "Decoding",
            Self::Kernels => "Kernels",
            Self::Torch => "PyTorch",
        }
    }
}

/// Weights of the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(name = "bf16")]
    Bf16,
    #[value(name = "f16")]
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k")]
    Q4K,
}

impl Format {
    /// As the device has it, and what it is multiplied in.
    fn on_device(self) -> (DeviceFormat, Precision) {
        match self {
            Self::Bf16 => (DeviceFormat::BF16, Precision::BF16),
            Self::F16 => (DeviceFormat::F16, Precision::F16),
            Self::Q8_0 => (DeviceFormat::Q8_0, Precision::F16),
            Self::Q4K => (DeviceFormat::Q4_K, Precision::F16),
        }
    }
}

/// What all parts need to know.
#[derive(Debug)]
struct Setup {
    device: Arc<dyn Device>,
    facts: Facts,
    parts: Vec<Part>,
    rows: Vec<usize>,
    /// Rows that kernels are measured with at most.
    most_rows: usize,
    contexts: Vec<usize>,
    precision: Precision,
    format: DeviceFormat,
    rounds: usize,
    repeats: usize,
    cold_bytes: usize,
    check: Effort,
    num_traces: usize,
    /// Tokens of a replayed prompt, if not the usual number.
    prompt: Option<usize>,
    python: PathBuf,
    began: Instant,
    budget_s: f64,
}

impl Setup {
    fn new(args: &GpuArgs, device: Arc<dyn Device>) -> anyhow::Result<Self> {
        let (format, precision) = args.format.on_device();
        if let Some(asked) = args.precision {
            ensure!(asked == precision, "weights in {format} are multiplied in {precision}, not in {asked}");
        }
        let rounds = args.rounds as usize;
        let only = |part: &Part| args.only.is_empty() || args.only.contains(part);
        Ok(Self {
            facts: Facts::measure(&device, rounds, COPY_BYTES)?,
            device,
            parts: Part::ALL.into_iter().filter(only).collect(),
            rows: args.rows.clone(),
            most_rows: usize::MAX,
            contexts: args.contexts.clone(),
            precision,
            format,
            rounds,
            repeats: REPEATS,
            cold_bytes: COLD_BYTES,
            check: Effort { num_prompts: 20, tokens: 48 },
            num_traces: TRACES,
            prompt: None,
            python: args.python.clone(),
            began: Instant::now(),
            budget_s: args.budget_s,
        })
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// Seconds of the budget that are left.
    fn left_s(&self) -> f64 {
        self.budget_s - self.began.elapsed().as_secs_f64()
    }

    /// Does the work of a cell, or says why not: it was refused before, the time is spent, or it failed.
    fn guarded<R>(&self, refusal: Option<String>, work: impl FnOnce() -> anyhow::Result<R>) -> Result<R, String> {
        match refusal {
            Some(reason) => Err(reason),
            None if self.left_s() <= 0.0 => Err(SPENT.into()),
            None => work().map_err(|error| format!("{error:#}")),
        }
    }

    /// Copies of operands that no cache holds together.
    fn copies(&self, bytes: usize) -> usize {
        (self.cold_bytes / bytes.max(1) + 1).min(MOST_COPIES)
    }

    /// Such copies of an array, itself among them.
    fn cold(&self, first: Array, bytes: usize) -> anyhow::Result<Vec<Array>> {
        let mut all = vec![first];
        for _ in 1..self.copies(bytes) {
            let copy = Array::new(&self.device, all[0].element(), all[0].len())?;
            all[0].copy_to(&copy)?;
            all.push(copy);
        }
        Ok(all)
    }

    /// Milliseconds of each of the `count` pieces of work of a recording, by round.
    fn replays(&self, recording: &Recording, count: usize) -> anyhow::Result<Vec<f64>> {
        recording.replay()?;
        let replays = self.repeats.div_ceil(count);
        let round = |_| {
            let millis = self.device.millis(&mut || (0..replays).try_for_each(|_| recording.replay()))?;
            Ok(f64::from(millis) / (replays * count) as f64)
        };
        (0..self.rounds).map(round).collect()
    }

    /// Type of keys and values.
    fn element(&self) -> ElementType {
        match self.precision {
            Precision::F16 => ElementType::F16,
            Precision::BF16 => ElementType::BF16,
        }
    }
}

/// Why a cell was not begun.
const SPENT: &str = "the time budget is spent";

pub(crate) fn run(args: &GpuArgs) -> anyhow::Result<()> {
    check_args(args)?;
    let device = args.device.open()?.context("--device is the processor; this measures a GPU")?;
    if let Some(folder) = &args.out {
        // Now rather than when everything is measured.
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let setup = Setup::new(args, device)?;
    let mut log = Log::new(setup.facts.clone(), args.out.clone());
    let models = args.shape.iter().map(|shape| Ok((shape.name().to_owned(), shape.config()?)));
    let models: Vec<_> = models.collect::<anyhow::Result<_>>()?;
    let ended = measure(&setup, &models, &mut log);
    println!("\n{}", log.summary());
    ended
}

fn check_args(args: &GpuArgs) -> anyhow::Result<()> {
    ensure!(args.rows.iter().all(|rows| (1..=4096).contains(rows)), "--rows must be between 1 and 4096");
    ensure!(args.contexts.iter().all(|context| *context <= 1 << 17), "--contexts must be at most {}", 1 << 17);
    ensure!(!args.rows.is_empty() && !args.contexts.is_empty(), "nothing to measure");
    let budget = args.budget_s;
    ensure!(budget.is_finite() && budget > 0.0, "--budget-s is {budget}, it must be finite and above zero");
    Ok(())
}

/// All parts, the checks first: a number of a wrong result is worth nothing.
fn measure(setup: &Setup, models: &[(String, ModelConfig)], log: &mut Log) -> anyhow::Result<()> {
    facts::run(setup, log)?;
    if setup.has(Part::Check) && !check::run(setup, log)? {
        bail!("the device does not compute what the processor does; nothing else was measured");
    }
    if setup.has(Part::Score) {
        score::run(setup, models, log)?;
    }
    let traces = if setup.has(Part::Decoding) { Some(Traces::record(setup.num_traces)?) } else { None };
    for (name, config) in models {
        if [Part::Forward, Part::Steps, Part::Decoding].into_iter().any(|part| setup.has(part)) {
            with_model(setup, (name, config), traces.as_ref(), log)?;
        }
        if setup.has(Part::Kernels) {
            kernels::run(setup, (name, config), log)?;
        }
        // By now the memory of the model is free again.
        if setup.has(Part::Torch) {
            torch::run(setup, (name, config), log)?;
        }
    }
    Ok(())
}

/// The parts that need the whole model. One that does not fit is left out with the reason.
fn with_model(
    setup: &Setup,
    (name, config): (&str, &ModelConfig),
    traces: Option<&Traces>,
    log: &mut Log,
) -> anyhow::Result<()> {
    let most = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or(0);
    let (rows, contexts) = (most(&setup.rows), most(&setup.contexts));
    let sizes = (rows.max(SLACK), contexts + rows.max(SLACK));
    let mut subject = match setup.guarded(None, || Subject::new(setup, (name, config.clone()), sizes)) {
        Ok(subject) => subject,
        Err(reason) => {
            return log.add(Cell { left_out: Some(reason), ..Cell::new(Part::Forward, name, "the model") });
        }
    };
    if setup.has(Part::Forward) {
        forward::forward(setup, &mut subject, log)?;
    }
    if setup.has(Part::Steps) {
        forward::steps(setup, &mut subject, log)?;
    }
    if let Some(traces) = traces {
        decoding::run(setup, &mut subject, traces, log)?;
    }
    Ok(())
}
