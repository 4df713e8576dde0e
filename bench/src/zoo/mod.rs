//! The built-in models on held-out problems: how often they are right, in how many passes, and how fast.
//!
//! | module | holds |
//! |---|---|
//! | [`exam`] | problems put to a model, and sums over its answers |
//! | [`race`] | the same at batch 1 against the clock, in turns |
//! | [`causal`], [`linear`], [`canvas`], [`curve`] | the parts |
//! | [`table`] | goals, and what is written |

mod canvas;
mod causal;
mod curve;
mod exam;
mod linear;
mod race;
mod subject;
mod table;

use std::{collections::BTreeSet, path::PathBuf, time::Instant};

use anyhow::ensure;
use clap::{Args, ValueEnum};
use engine::{Activations, Quantize};
use serde_json::json;
use zoo::tasks::{Split, Task};

use crate::hardware::Hardware;
use curve::Grid;
use exam::{Method, Question, first, questions};
use subject::{Settings, Subject};
use table::Findings;

/// Arguments of `zoo`.
#[derive(Debug, Args)]
pub(crate) struct ZooArgs {
    /// Folder with one folder for each model: leapfrog-ar, leapfrog-cllm, leapfrog-diffusion, leapfrog-block, leapfrog-lla.
    #[arg(long, default_value = "models/builtin")]
    models: PathBuf,
    /// Folder with the folder of leapfrog-lla-twin, which is not built in.
    #[arg(long, default_value = "bench/models")]
    twins: PathBuf,
    /// Problems of each task.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    problems: u64,
    /// Seed of the problems, of sampling, and of resampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which held-out problems.
    #[arg(long, value_enum, default_value_t = HeldOut::Test)]
    split: HeldOut,
    /// Rounds of timed parts; in each, everything is measured once, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Problems of each task in timed parts, and for canvases without early stop.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    timed: u64,
    /// Problems of each task for each setting of the curve.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    curve_problems: u64,
    /// Weights at load: q8_0, q4_k or f32.
    #[arg(long, default_value = "q8_0")]
    quantize: Quantize,
    /// Rounding of what goes into quantised layers: int8 or int16.
    #[arg(long, default_value = "int16")]
    activations: Activations,
    /// Threads; all cores if left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Requests at a time where no time is taken.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Most tokens of an answer of a causal model.
    #[arg(long, default_value_t = 96)]
    max_tokens: usize,
    /// Slots of a canvas; the most tokens of an answer of the block model.
    #[arg(long, default_value_t = 64)]
    canvas: usize,
    /// Slots that are decoded together; the family's own if left out.
    #[arg(long)]
    block_length: Option<usize>,
    /// Thresholds of the curve.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.6,0.7,0.8,0.9,0.95")]
    thresholds: Vec<f32>,
    /// Thresholds of anchors (kappa) of the curve.
    #[arg(long, value_delimiter = ',', default_value = "0.7,0.8,0.9,0.95")]
    kappas: Vec<f32>,
    /// Relaxed thresholds (tau) of the curve; those below kappa are run.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.6,0.75,0.85")]
    taus: Vec<f32>,
    /// Radii (W) of the curve.
    #[arg(long, value_delimiter = ',', default_value = "2,4,8")]
    radii: Vec<usize>,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Folder for `summary.md`, `raw.json`, `curve.csv` and `curve.svg`.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Problems that no model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeldOut {
    Test,
    Validation,
}

impl From<HeldOut> for Split {
    fn from(split: HeldOut) -> Self {
        match split {
            HeldOut::Test => Self::Test,
            HeldOut::Validation => Self::Validation,
        }
    }
}

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Accuracy of `leapfrog-ar`.
    Ar,
    /// `leapfrog-cllm` against `leapfrog-ar`.
    Cllm,
    /// `leapfrog-diffusion`: policies, passes, speed.
    Diffusion,
    /// `leapfrog-block`: its exact cache.
    Block,
    /// `leapfrog-diffusion` over thresholds.
    Curve,
    /// `leapfrog-lla` against its softmax twin.
    Lla,
}

/// Names of the models' folders.
const AR: &str = "leapfrog-ar";
const CLLM: &str = "leapfrog-cllm";
const DIFFUSION: &str = "leapfrog-diffusion";
const BLOCK: &str = "leapfrog-block";
const LLA: &str = "leapfrog-lla";
const LLA_TWIN: &str = "leapfrog-lla-twin";

impl Part {
    fn models(self) -> &'static [&'static str] {
        match self {
            Self::Ar => &[AR],
            Self::Cllm => &[AR, CLLM],
            Self::Diffusion | Self::Curve => &[DIFFUSION],
            Self::Block => &[BLOCK],
            Self::Lla => &[LLA, LLA_TWIN],
        }
    }
}

/// What all parts need to know.
#[derive(Debug)]
struct Setup<'a> {
    seed: u64,
    rounds: usize,
    timed: u64,
    max_tokens: usize,
    canvas: usize,
    block_length: Option<usize>,
    temperatures: [f32; 3],
    args: &'a ZooArgs,
}

impl<'a> Setup<'a> {
    fn new(args: &'a ZooArgs) -> Self {
        Self {
            seed: args.seed,
            rounds: args.rounds as usize,
            timed: args.timed.min(args.problems),
            max_tokens: args.max_tokens,
            canvas: args.canvas,
            block_length: args.block_length,
            temperatures: [0.0, 0.7, 1.0],
            args,
        }
    }

    /// Jacobi of the model's own width, held fixed: the passes then depend on neither the clock nor the company.
    fn own_width(&self, model: &Subject) -> Method {
        Method::jacobi(Some(model.engine.model().width), self.max_tokens)
    }
}

pub(crate) fn run(args: &ZooArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    let setup = Setup::new(args);
    let parts: Vec<Part> = Part::value_variants()
        .iter()
        .copied()
        .filter(|part| args.only.is_empty() || args.only.contains(part))
        .collect();
    let subjects = subjects(args, &parts)?;
    let subject = |name: &str| {
        let found = subjects.iter().find(|subject| subject.name == name);
        found.ok_or_else(|| anyhow::anyhow!("`{name}` is not loaded"))
    };
    let questions = questions(args.split.into(), args.seed, args.problems);
    let hardware = Hardware::read();
    let mut findings = Findings::default();
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Ar => causal::ar(&setup, subject(AR)?, &questions, &mut findings)?,
            Part::Cllm => causal::cllm(&setup, subject(CLLM)?, subject(AR)?, &questions, &mut findings)?,
            Part::Diffusion => canvas::diffusion(&setup, subject(DIFFUSION)?, &questions, &mut findings)?,
            Part::Block => canvas::block(&setup, subject(BLOCK)?, &questions, &mut findings)?,
            Part::Lla => linear::lla(&setup, subject(LLA)?, subject(LLA_TWIN)?, &questions, &mut findings)?,
            Part::Curve => {
                let few = first(&questions, args.curve_problems);
                let out = args.out.as_deref();
                curve::curve(&setup, subject(DIFFUSION)?, &few, &grid(args), out, &mut findings)?;
            }
        }
        eprintln!("part {part:?} done after {:.0} s", began.elapsed().as_secs_f64());
        // After each part, so that a later one cannot take an earlier one with it.
        text = summary(&setup, &hardware, &subjects, &questions, &findings);
        if let Some(folder) = &args.out {
            table::save(folder, &text, head(args, &hardware, &subjects), &findings)?;
        }
    }
    println!("{text}");
    Ok(())
}

/// What `raw.json` says before the figures.
fn head(args: &ZooArgs, hardware: &Hardware, subjects: &[Subject]) -> serde_json::Value {
    let hashes = |subject: &Subject| (subject.name.to_owned(), json!(subject.hashes));
    json!({
        "command": command(),
        "hardware": hardware,
        "models": subjects.iter().map(hashes).collect::<serde_json::Map<_, _>>(),
        "split": Split::from(args.split),
        "seed": args.seed,
    })
}

/// Loads what the parts need, and says what they do not.
fn subjects(args: &ZooArgs, parts: &[Part]) -> anyhow::Result<Vec<Subject>> {
    let settings = Settings {
        quantize: Some(args.quantize),
        activations: args.activations,
        threads: args.threads,
        batch: args.batch,
    };
    let mut subjects = Vec::new();
    for name in [AR, CLLM, DIFFUSION, BLOCK, LLA, LLA_TWIN] {
        if parts.iter().any(|part| part.models().contains(&name)) {
            let folder = if name == LLA_TWIN { &args.twins } else { &args.models };
            subjects.push(Subject::load(folder, name, settings)?);
        } else {
            eprintln!("{name}: left out, no part of `--only` needs it");
        }
    }
    ensure!(!subjects.is_empty(), "no part to run");
    Ok(subjects)
}

fn grid(args: &ZooArgs) -> Grid {
    Grid {
        thresholds: args.thresholds.clone(),
        kappas: args.kappas.clone(),
        taus: args.taus.clone(),
        radii: args.radii.clone(),
    }
}

fn command() -> Vec<String> {
    crate::report::command_words()
}

fn summary(
    setup: &Setup<'_>,
    hardware: &Hardware,
    subjects: &[Subject],
    questions: &[Question],
    findings: &Findings,
) -> String {
    let args = setup.args;
    let threads = args.threads.unwrap_or(hardware.cores);
    let mut text = format!(
        "# Built-in models on held-out problems\n\n`{}`\n\ncommit {}, {} ({} cores, {}), {threads} threads, weights {:?}, \
         activations {:?}\n\n",
        command().join(" "),
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" "),
        args.quantize,
        args.activations,
    );
    text.push_str("| model | family | parameters | file | SHA-256 |\n|---|---|---|---|---|\n");
    for subject in subjects {
        let info = subject.engine.model();
        for (file, hash) in subject.hashes.iter().filter(|(file, _)| file.ends_with(".safetensors")) {
            text.push_str(&format!("| {} | {} | {} | {file} | {hash} |\n", subject.name, info.family, info.num_params));
        }
    }
    text.push('\n');
    text.push_str(&findings.table());
    text.push_str("\n## How it was counted\n\n");
    text.push_str(&notes(setup, questions));
    for section in &findings.sections {
        text.push('\n');
        text.push_str(section);
    }
    text
}

/// What a reader must know to judge the figures.
fn notes(setup: &Setup<'_>, questions: &[Question]) -> String {
    let args = setup.args;
    let distinct = |task: Task| {
        let keys = questions.iter().filter(|question| question.task() == task);
        let keys: BTreeSet<String> =
            keys.map(|question| format!("{:?} {}", question.problem.messages, question.problem.key)).collect();
        format!("{task} {}", keys.len())
    };
    let distinct: Vec<String> = Task::ALL.into_iter().map(distinct).collect();
    format!(
        "- {} problems of each task from the split `{:?}`, seed {}; different ones: {}.\n\
         - Right means that the task's checker accepts the whole text. Accuracies: Wilson. Differences: the same problems \
         under both methods, Wald with half a trial added to each cell. Tokens per forward and shares of passes: sums over \
         sums, bootstrap within tasks.\n\
         - Tokens are completion tokens as the engine counts them, the end token included. A pass counts if it scored a \
         slot of the request, the one that ends the prefill among them, so AR is exactly 1. The column without the first \
         pass leaves out that pass and what it committed.\n\
         - Tokens per forward of Jacobi are taken at the model's own width, held fixed; what the adaptive width reaches \
         stands beside its time. `chain` is the serial control: every figure over all tasks contains it and is shown \
         without it as well.\n\
         - Answers of causal models have at most {} tokens; canvases have {} slots, decoded in blocks of {}. `cut` counts \
         answers that the budget ended.\n\
         - One token a pass is the fixed quota with as many steps as slots, in the order and by the schedule that the \
         model's family is published with, on the same canvas. Early stop leaves a canvas when everything up to an end token is decided; both sides of a \
         ratio have the same setting.\n\
         - Where no time is taken, {} requests run at a time. Times are of one request at a time: {} rounds over the first \
         {} problems of each task after one round that warms up; in each round all take a turn, and who begins changes. \
         Decoding is from the first committed token to the end, without what the first pass committed; of a canvas it is \
         the whole time in the engine.\n\
         - Prompts that begin alike may share keys and values; the column \"prompt tokens shared\" says how many tokens a lane \
         did not have to compute in all rounds. It can only shorten times end to end.\n\
         - The verdict looks at the estimate, and says so if its interval or range reaches beyond the bound.\n",
        args.problems,
        args.split,
        args.seed,
        distinct.join(", "),
        args.max_tokens,
        args.canvas,
        args.block_length.map_or("the family's own length".into(), |length| length.to_string()),
        args.batch,
        setup.rounds,
        setup.timed,
    )
}
