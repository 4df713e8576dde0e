//! What the program is told on its command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use zoo::{export::Family, tasks::Task};

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
    /// Trains a network; continues where the run folder stands.
    Train(TrainArgs),
    /// Writes a model folder from a run.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// The task: math, json, sql, chat or chain.
    pub(crate) task: Task,
    /// How many.
    #[arg(long, default_value_t = 5)]
    pub(crate) count: u64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerArgs {
    /// Folder for `tokenizer.json` and `tokenizer_config.json`.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Entries of the vocabulary.
    #[arg(long, default_value_t = 1024)]
    pub(crate) vocab: usize,
    /// Problems of each task to train on.
    #[arg(long, default_value_t = 8000)]
    pub(crate) problems: u64,
    /// Seed of the problems.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

/// How to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecipeName {
    /// Next-token prediction.
    Ar,
    /// Consistency training on the network's own Jacobi trajectories.
    Consistency,
    /// Masked diffusion by blocks.
    Blocks,
    /// Masked diffusion with full attention.
    Full,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// How to train.
    pub(crate) recipe: RecipeName,
    /// Folder of the run: checkpoint, log, evaluation.
    #[arg(long)]
    pub(crate) run: PathBuf,
    /// Folder with `tokenizer.json`.
    #[arg(long)]
    pub(crate) tokenizer: PathBuf,
    /// Run or model folder whose weights to start from; random weights if left out.
    #[arg(long)]
    pub(crate) from: Option<PathBuf>,
    /// Steps of the whole run.
    #[arg(long)]
    pub(crate) steps: usize,
    /// Steps of rising learning rate.
    #[arg(long, default_value_t = 40)]
    pub(crate) warm_up: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 4e-3)]
    pub(crate) learning_rate: f64,
    /// Rows of a micro-batch, roughly.
    #[arg(long, default_value_t = 2048)]
    pub(crate) rows: usize,
    /// Micro-batches of a step.
    #[arg(long, default_value_t = 2)]
    pub(crate) micro_batches: usize,
    /// Threads; no more than micro-batches are of use.
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Steps between checkpoints, each with an evaluation.
    #[arg(long, default_value_t = 200)]
    pub(crate) save_every: usize,
    /// Validation problems of each task in an evaluation.
    #[arg(long, default_value_t = 60)]
    pub(crate) eval_problems: u64,
    /// Tokens of a window (consistency) or of a block (blocks, full).
    #[arg(long, default_value_t = 16)]
    pub(crate) width: usize,
    /// Features of a row.
    #[arg(long, default_value_t = 192)]
    pub(crate) hidden: usize,
    /// Layers.
    #[arg(long, default_value_t = 4)]
    pub(crate) layers: usize,
    /// Heads of queries.
    #[arg(long, default_value_t = 6)]
    pub(crate) heads: usize,
    /// Heads of keys and values.
    #[arg(long, default_value_t = 2)]
    pub(crate) kv_heads: usize,
    /// Features of a head.
    #[arg(long, default_value_t = 32)]
    pub(crate) head_dim: usize,
    /// Features inside the MLP.
    #[arg(long, default_value_t = 512)]
    pub(crate) ffn: usize,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Folder of the run.
    #[arg(long)]
    pub(crate) run: PathBuf,
    /// Folder with `tokenizer.json`.
    #[arg(long)]
    pub(crate) tokenizer: PathBuf,
    /// llama, cllm:WIDTH, dream or fast-dllm:BLOCK.
    #[arg(long)]
    pub(crate) family: Family,
    /// Folder of the model.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// The command that trained it, for `training.json`.
    #[arg(long)]
    pub(crate) command: Option<String>,
    /// The commit that it was trained at.
    #[arg(long)]
    pub(crate) commit: Option<String>,
    /// The machine that it was trained on.
    #[arg(long)]
    pub(crate) machine: Option<String>,
}
