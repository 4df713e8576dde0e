//! What the program is told on its command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use zoo::{
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
