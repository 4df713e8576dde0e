//! What the program is told on its command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use zoo::{
    lab::{Contender, Problem},
    plan::Model,
    tasks::{Split, Task},
};

/// Tasks with exact checkers, and the trainer of the built-in models.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints problems of a task as JSON lines.
    Sample(SampleArgs),
    /// Trains the tokenizer on the tasks and reports the lengths of their problems.
    Tokenizer(TokenizerArgs),
    /// Trains a built-in model and writes its folder; continues where its runs stand.
    Train(TrainArgs),
    /// Trains small networks that differ in how rows mix, on recall and in-context regression, at equal budgets.
    Lab(LabArgs),
    /// Estimates the next value of streams that change, with linear, softmax and local linear attention; trains nothing.
    Stream(StreamArgs),
}

/// [`Split`] as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SplitName {
    Train,
    Validation,
    Test,
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::Validation => Self::Validation,
            SplitName::Test => Self::Test,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// The task: math, json, sql, chat or chain.
    pub(crate) task: Task,
    /// How many.
    #[arg(long, default_value_t = 5)]
    pub(crate) count: u64,
    /// Which part of the problems.
    #[arg(long, value_enum, default_value = "train")]
    pub(crate) split: SplitName,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerArgs {
    /// Folder for `tokenizer.json` and `tokenizer_config.json`.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// leapfrog-ar, leapfrog-cllm, leapfrog-block, leapfrog-diffusion, leapfrog-lla or leapfrog-lla-twin. The second and
    /// third start from the first, the fourth from the third.
    pub(crate) model: Model,
    /// Folder of the runs: checkpoints, loss curves (`log.csv`) and evaluations (`evaluation.csv`) of every stage.
    #[arg(long, default_value = "target/zoo")]
    pub(crate) runs: PathBuf,
    /// Folder that the model's folder is written to.
    #[arg(long, default_value = "models/builtin")]
    pub(crate) out: PathBuf,
    /// Threads; more than two are of no use. Set RAYON_NUM_THREADS=1 beside it: each of them multiplies alone.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Steps between checkpoints, each with an evaluation.
    #[arg(long, default_value_t = 150)]
    pub(crate) save_every: usize,
    /// Validation problems of each task in an evaluation.
    #[arg(long, default_value_t = 50)]
    pub(crate) problems: u64,
}

#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// recall, regression
    #[arg(long, value_delimiter = ',', default_value = "recall,regression")]
    pub(crate) problems: Vec<Problem>,
    /// linear, softmax, lla
    #[arg(long, value_delimiter = ',', default_value = "linear,softmax,lla")]
    pub(crate) contenders: Vec<Contender>,
    /// Runs of each, with seeds from 1 on.
    #[arg(long, default_value_t = 4)]
    pub(crate) seeds: u64,
    /// Steps of a run.
    #[arg(long, default_value_t = 1000)]
    pub(crate) steps: usize,
    /// Rows of a step.
    #[arg(long, default_value_t = 2048)]
    pub(crate) rows: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 4e-3)]
    pub(crate) learning_rate: f64,
    /// Sequences of an examination.
    #[arg(long, default_value_t = 128)]
    pub(crate) sequences: usize,
    /// File that gets a JSON line for each run. Runs that it has are not repeated.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct StreamArgs {
    /// Features of keys and values.
    #[arg(long, default_value_t = 16)]
    pub(crate) dim: usize,
    /// Segments of a stream.
    #[arg(long, default_value_t = 4)]
    pub(crate) segments: usize,
    /// Pairs of a segment.
    #[arg(long, default_value_t = 128)]
    pub(crate) segment_len: usize,
    /// Deviation of keys from the centre of their segment, relative to its length.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) spread: f32,
    /// Deviation of the noise on values.
    #[arg(long, default_value_t = 0.1)]
    pub(crate) noise: f32,
    /// Streams on which scale and ridge are chosen.
    #[arg(long, default_value_t = 16)]
    pub(crate) validation: usize,
    /// Streams that are reported.
    #[arg(long, default_value_t = 64)]
    pub(crate) test: usize,
    /// File that gets the settings and every error as JSON.
    #[arg(long)]
    pub(crate) out: PathBuf,
}
