//! What is typed.

use std::path::PathBuf;

use clap::Args;

use crate::canvas::Shape;

const LIMITS: std::ops::RangeInclusive<u64> = 1..=1_000_000;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// File or folder with the weights that all contenders serve; a GGUF file for llama.cpp.
    #[arg(long)]
    pub(super) model: PathBuf,
    /// Path of llama.cpp's `llama-server`, to be measured over HTTP beside `leapfrog serve`.
    #[arg(long)]
    pub(super) llama_server: Option<PathBuf>,
    /// More options for llama-server, as one text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) llama_server_args: Option<String>,
    /// Another server, started with this command: `NAME=COMMAND`, with {model}, {port}, {threads}, {slots} (the highest
    /// concurrency) and {context} (tokens of all slots together) in it. Repeat it for more.
    #[arg(long, value_name = "NAME=COMMAND")]
    pub(super) rival: Vec<String>,
    /// Another server that runs already: `NAME=URL`. Repeat it for more.
    #[arg(long, value_name = "NAME=URL")]
    pub(super) rival_url: Vec<String>,
    /// Path of llama.cpp's `llama-bench`, to be measured beside our engine in this process, without HTTP.
    #[arg(long)]
    pub(super) llama_bench: Option<PathBuf>,
    /// Path of llama.cpp's `llama-diffusion-cli`, the same for diffusion models.
    #[arg(long)]
    pub(super) llama_diffusion_cli: Option<PathBuf>,
    /// Path of `leapfrog`; the one beside this program if left out.
    #[arg(long)]
    pub(super) leapfrog: Option<PathBuf>,
    /// More options for `leapfrog serve`, as one text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) leapfrog_args: Option<String>,
    /// A decoding of Leapfrog: `NAME`, `NAME={JSON}` or `NAME=key=value,key=value`, with the keys of `decoding`; `NAME={}` is
    /// the server's own choice. Repeat it for more; default, AR and Jacobi of width 8 if left out.
    #[arg(long)]
    pub(super) decoding: Vec<String>,
    /// Name of the contender that the others are compared with; the first rival if left out.
    #[arg(long)]
    pub(super) reference: Option<String>,
    /// Threads of each server; all cores if left out.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(super) threads: Option<u64>,
    /// Requests at a time; each is measured in every round.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8", value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(super) concurrency: Vec<u64>,
    /// Rounds that count; one more before them warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(LIMITS))]
    pub(super) rounds: u64,
    /// Requests of a turn: one contender, one concurrency, one round.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(LIMITS))]
    pub(super) requests: u64,
    /// Prompts: a built-in set or a file, as `bench serve` takes them.
    #[arg(long, default_value = "zoo")]
    pub(super) prompts: String,
    /// Use the prompts again when there are fewer than the run needs; servers may then know the answers' beginnings.
    #[arg(long)]
    pub(super) repeat_prompts: bool,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(LIMITS))]
    pub(super) max_tokens: u64,
    /// Tokens of prompt and answer that a server must have room for.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(LIMITS))]
    pub(super) context: u64,
    /// Seed of the choice of prompts.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Let answers end where the model ends them, so that their lengths differ.
    #[arg(long)]
    pub(super) natural_end: bool,
    /// Longest wait for a server to be ready, in seconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) start_timeout_s: u64,
    /// Longest wait for one answer, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout_s: u64,
    /// Tokens of the prefill measurement beside llama-bench.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(LIMITS))]
    pub(super) prompt_tokens: u64,
    /// What llama-diffusion-cli and our engine fill.
    #[command(flatten)]
    pub(super) shape: Shape,
    /// llama-diffusion-cli carries the patch of `peers/README.md`: its quota ranks by confidence.
    #[arg(long)]
    pub(super) llama_patched: bool,
    /// Folder for `summary.md`, `raw.json`, plots and the servers' logs.
    #[arg(long)]
    pub(super) out: PathBuf,
}
