//! The command line: exactly what was typed. What it means is decided in [`crate::settings`].

mod energy;

use std::{env, fmt, path::PathBuf};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::bench::BenchArgs;

pub use self::energy::{
    AttributionChoice, BasisChoice, EnergyArgs, EnergyMode, EnergyUsage, Span, SpanError, SpanOrOff, WatchArgs,
};

const EXAMPLES: &str = "\
Examples:
  leapfrog                                        serve a small built-in model on http://127.0.0.1:8080
  leapfrog serve --model builtin                  serve all small built-in models
  leapfrog serve --model ./my-model               serve a folder with config.json and *.safetensors
  leapfrog serve --model model.gguf --port 9000   serve one GGUF file
  leapfrog serve --model org/name                 download a model from the Hugging Face Hub and serve it
  leapfrog serve --model ./a --model b.gguf       serve two; a request names one, or gets the first
  leapfrog run --model ./my-model                 chat with a model in this terminal
  leapfrog health --ready                         exit with 0 if the server on this machine takes requests
  leapfrog bench speed --model ./my-model         measure a model; `leapfrog bench --help` lists what can be measured
  leapfrog energy                                 watch what the server on this machine uses, in watts and joules

Then:
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'

Every option of `serve` can also be given as an environment variable (LEAPFROG_PORT for --port) or in a file
leapfrog.toml (port = 8080; dashes become underscores). The command line wins over the environment, and the
environment over the file.";

const RUN_EXAMPLES: &str = "\
Examples:
  leapfrog run \"Why is the sky blue?\"                  answer once
  leapfrog run --model ./my-model                        chat; /clear forgets the chat, /exit or Ctrl-D ends it
  leapfrog run --model ./my-dllm --decoding fast         watch a diffusion model fill its canvas, faster
  echo \"Why?\" | leapfrog run > answer.txt              the text goes to stdout, the statistics to stderr

Ctrl-C stops a reply; in the empty line it ends the chat.";

/// Serves language models over an OpenAI-compatible HTTP API and decodes many tokens per forward pass.
///
/// Without a command it serves; without a model it serves a small one that is built in.
#[derive(Debug, Parser)]
#[command(name = "leapfrog", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; nothing means `serve`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `serve`, for when the command is left out.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a model and serve it (the default)
    #[command(after_help = EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Load a model and use it in this terminal, without a server
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Ask a running server how it is: exit code 0 is well, 1 is not
    Health(HealthArgs),
    /// Watch the power and the energy of a running server
    Energy(WatchArgs),
    /// Measure speed, accuracy and energy; runs the program leapfrog-bench with what follows
    #[command(disable_help_flag = true)]
    Bench(BenchArgs),
}

/// Options of `run`.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct RunArgs {
    /// What to answer or continue; without it, each line of the standard input is one turn of a chat
    pub prompt: Option<String>,
    /// Most tokens of a reply; a diffusion model with full attention fills a canvas of this size, so that it also
    /// changes the text [default: as many as the context or the canvas holds]
    #[arg(long, value_name = "N", help_heading = "Generation")]
    pub max_tokens: Option<usize>,
    /// 0 is greedy [default: the model's own, or 0]
    #[arg(long, value_name = "T", help_heading = "Generation")]
    pub temperature: Option<f32>,
    /// The same seed gives the same text [default: random]
    #[arg(long, value_name = "N", help_heading = "Generation")]
    pub seed: Option<u64>,
    /// What the model is told before the first turn
    #[arg(long, value_name = "TEXT", help_heading = "Generation")]
    pub system: Option<String>,
    /// How tokens are found: quality, balanced or fast, or the JSON object `decoding` of the HTTP API
    #[arg(long, value_name = "PRESET|JSON", help_heading = "Generation")]
    pub decoding: Option<String>,
    /// Do not show how a canvas is filled, only text that is final
    #[arg(long, help_heading = "Generation")]
    pub no_frames: bool,
    /// The model and what runs it.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Options of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Base address of the server [default: http://127.0.0.1:8080, or the port in LEAPFROG_PORT]
    #[arg(long, env = "LEAPFROG_URL")]
    pub url: Option<String>,
    /// Ask whether it takes requests, not only whether it runs
    #[arg(long)]
    pub ready: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Options of every command that loads a model. The same struct reads `leapfrog.toml`, so that no option can be missing
/// there.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(default)]
pub struct CommonArgs {
    /// File with options [default: leapfrog.toml in the current folder, if there is one]
    #[arg(long, env = "LEAPFROG_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Folder, .gguf file, Hub id (org/name, org/name@revision) or name of a built-in model; `serve` takes several:
    /// repeat it, or put commas between them. `builtin` is all built-in models [default: the first built-in model]
    #[arg(long, short, env = "LEAPFROG_MODEL", help_heading = "Model")]
    #[serde(deserialize_with = "one_or_many")]
    pub model: Vec<String>,
    /// Convert the weights while loading: f32, q8_0 or q4_k [default: keep quantised weights, else f32]
    #[arg(long, env = "LEAPFROG_QUANTIZE", value_name = "TYPE", help_heading = "Model")]
    pub quantize: Option<String>,
    /// Rounding of what goes into quantised layers: int8 is up to twice as fast and less exact [default: int16]
    #[arg(long, env = "LEAPFROG_ACTIVATIONS", value_name = "TYPE", help_heading = "Model")]
    pub activations: Option<String>,
    /// A tokenizer.json to use instead of the model's own
    #[arg(long, env = "LEAPFROG_TOKENIZER", value_name = "FILE", help_heading = "Model")]
    pub tokenizer: Option<PathBuf>,
    /// A Jinja file to use instead of the model's own chat template
    #[arg(long, env = "LEAPFROG_CHAT_TEMPLATE", value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,
    /// Token that marks what a diffusion model has not written yet [default: the model's own]
    #[arg(long, env = "LEAPFROG_MASK_ID", value_name = "N", help_heading = "Model")]
    pub mask_id: Option<u32>,
    /// How a diffusion model attends, where its config does not say: full or block_causal [default: by its name]
    #[arg(long, env = "LEAPFROG_ATTENTION", value_name = "KIND", help_heading = "Model")]
    pub attention: Option<String>,
    /// What runs the model: cpu, cuda, or cuda:N for one of several GPUs [default: cpu]
    #[arg(long, env = "LEAPFROG_DEVICE", value_name = "DEVICE", help_heading = "Model")]
    pub device: Option<String>,
    /// What a GPU computes with: f16 or bf16 [default: the type of the weights, f16 where they have neither]
    #[arg(long, env = "LEAPFROG_PRECISION", value_name = "TYPE", help_heading = "Model")]
    pub precision: Option<String>,

    /// Requests that decode at the same time [default: 8]
    #[arg(long, env = "LEAPFROG_MAX_CONCURRENT", value_name = "N", help_heading = "Engine")]
    pub max_concurrent: Option<usize>,
    /// Requests that may wait; one more is answered with 429 [default: 64]
    #[arg(long, env = "LEAPFROG_MAX_QUEUE", value_name = "N", help_heading = "Engine")]
    pub max_queue: Option<usize>,
    /// Most tokens of one forward pass while prompts are read [default: 256]
    #[arg(long, env = "LEAPFROG_MAX_ROWS", value_name = "N", help_heading = "Engine")]
    pub max_rows: Option<usize>,
    /// Tokens that the KV cache of each model holds, of all requests together [default: by memory]
    #[arg(long, env = "LEAPFROG_KV_TOKENS", value_name = "N", help_heading = "Engine")]
    pub kv_tokens: Option<usize>,
    /// Longest prompt plus completion, in tokens [default: the model's]
    #[arg(long, env = "LEAPFROG_MAX_CONTEXT", value_name = "N", help_heading = "Engine")]
    pub max_context: Option<usize>,
    /// Widest Jacobi block of requests that name no width [default: the model's own, or 8]
    #[arg(long, env = "LEAPFROG_WIDTH", value_name = "N", help_heading = "Engine")]
    pub width: Option<usize>,
    /// Threads of a forward pass [default: one per available core]
    #[arg(long, env = "LEAPFROG_THREADS", value_name = "N", help_heading = "Engine")]
    pub threads: Option<usize>,

    /// How energy is metered.
    #[command(flatten)]
    #[serde(skip)]
    pub energy: EnergyArgs,

    /// How log lines on stderr look [default: text]
    #[arg(long, env = "LEAPFROG_LOG_FORMAT", value_enum, help_heading = "Logs")]
    pub log_format: Option<LogFormat>,
    /// error, warn, info, debug or trace, or a filter such as info,engine=debug [default: info]
    #[arg(long, env = "LEAPFROG_LOG_LEVEL", value_name = "LEVEL", help_heading = "Logs")]
    pub log_level: Option<String>,
}

/// Options of `serve`. They are read from `leapfrog.toml` like the common ones.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(default)]
pub struct ServeArgs {
    /// The model and what runs it.
    #[command(flatten)]
    #[serde(skip)]
    pub common: CommonArgs,

    /// Name that clients may use for the model; repeat for more. The model's own name stays valid. Not with several
    /// models
    #[arg(long, env = "LEAPFROG_MODEL_ID", value_delimiter = ',', value_name = "NAME", help_heading = "Model")]
    pub model_id: Vec<String>,
    /// Address to listen on; 0.0.0.0 lets other machines in [default: 127.0.0.1]
    #[arg(long, env = "LEAPFROG_HOST", value_name = "ADDRESS", help_heading = "Network")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes any free one [default: 8080]
    #[arg(long, short, env = "LEAPFROG_PORT", help_heading = "Network")]
    pub port: Option<u16>,
    /// Key that clients must send as `Authorization: Bearer KEY`; repeat for more [default: none needed]
    #[arg(
        long,
        env = "LEAPFROG_API_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "KEY",
        help_heading = "Network"
    )]
    pub api_key: Vec<String>,
    /// File with one key a line; empty lines and lines that start with # are skipped
    #[arg(long, env = "LEAPFROG_API_KEY_FILE", value_name = "FILE", help_heading = "Network")]
    pub api_key_file: Option<PathBuf>,
    /// Key for everything that API keys allow, and for judging answers (`/v1/energy/evaluations`); repeat for more
    /// [default: none]
    #[arg(
        long,
        env = "LEAPFROG_ADMIN_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "KEY",
        help_heading = "Network"
    )]
    pub admin_key: Vec<String>,
    /// Web origin whose pages may call this server, or *; repeat for more [default: none]
    #[arg(long, env = "LEAPFROG_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN", help_heading = "Network")]
    pub cors_origin: Vec<String>,
    /// Name that may stand in the Host header, besides localhost; repeat for more. Checked when listening on this
    /// machine only, or when given [default: none]
    #[arg(long, env = "LEAPFROG_ALLOWED_HOST", value_delimiter = ',', value_name = "NAME", help_heading = "Network")]
    pub allowed_host: Vec<String>,
    /// Largest request body, in bytes [default: 4194304]
    #[arg(long, env = "LEAPFROG_MAX_BODY", value_name = "BYTES", help_heading = "Network")]
    pub max_body: Option<usize>,
    /// Refuse requests with unknown fields; otherwise the header x-leapfrog-ignored lists them [default: false]
    #[arg(
        long,
        env = "LEAPFROG_STRICT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "BOOL",
        help_heading = "Network"
    )]
    pub strict: Option<bool>,
    /// Who is told what a request cost, in `usage.energy` [default: opt-in]
    #[arg(long, env = "LEAPFROG_ENERGY_USAGE", value_enum, value_name = "WHO", help_heading = "Energy")]
    pub energy_usage: Option<EnergyUsage>,
    /// Some metrics also under the names of other servers, with commas between: vllm, llamacpp [default: none]
    #[arg(long, env = "LEAPFROG_METRICS_COMPAT", value_delimiter = ',', value_name = "LIST", help_heading = "Network")]
    #[serde(deserialize_with = "one_or_many")]
    pub metrics_compat: Vec<String>,
    /// After SIGTERM or Ctrl-C, how long running requests may still take, in seconds [default: 30]
    #[arg(long, env = "LEAPFROG_DRAIN_TIMEOUT", value_name = "SECONDS", help_heading = "Network")]
    pub drain_timeout: Option<u64>,
}

impl CommonArgs {
    /// These options, and those of `fallback` where nothing was given.
    pub fn or(self, fallback: Self) -> Self {
        Self {
            config: self.config,
            model: if self.model.is_empty() { fallback.model } else { self.model },
            quantize: self.quantize.or(fallback.quantize),
            activations: self.activations.or(fallback.activations),
            tokenizer: self.tokenizer.or(fallback.tokenizer),
            chat_template: self.chat_template.or(fallback.chat_template),
            mask_id: self.mask_id.or(fallback.mask_id),
            attention: self.attention.or(fallback.attention),
            device: self.device.or(fallback.device),
            precision: self.precision.or(fallback.precision),
            max_concurrent: self.max_concurrent.or(fallback.max_concurrent),
            max_queue: self.max_queue.or(fallback.max_queue),
            max_rows: self.max_rows.or(fallback.max_rows),
            kv_tokens: self.kv_tokens.or(fallback.kv_tokens),
            max_context: self.max_context.or(fallback.max_context),
            width: self.width.or(fallback.width),
            threads: self.threads.or(fallback.threads),
            energy: self.energy.or(fallback.energy),
            log_format: self.log_format.or(fallback.log_format),
            log_level: self.log_level.or(fallback.log_level),
        }
    }
}

impl ServeArgs {
    /// These options, and those of `fallback` where nothing was given.
    pub fn or(self, fallback: Self) -> Self {
        let list = |own: Vec<String>, other: Vec<String>| if own.is_empty() { other } else { own };
        Self {
            common: self.common.or(fallback.common),
            model_id: list(self.model_id, fallback.model_id),
            host: self.host.or(fallback.host),
            port: self.port.or(fallback.port),
            api_key: list(self.api_key, fallback.api_key),
            api_key_file: self.api_key_file.or(fallback.api_key_file),
            admin_key: list(self.admin_key, fallback.admin_key),
            cors_origin: list(self.cors_origin, fallback.cors_origin),
            allowed_host: list(self.allowed_host, fallback.allowed_host),
            max_body: self.max_body.or(fallback.max_body),
            strict: self.strict.or(fallback.strict),
            energy_usage: self.energy_usage.or(fallback.energy_usage),
            metrics_compat: list(self.metrics_compat, fallback.metrics_compat),
            drain_timeout: self.drain_timeout.or(fallback.drain_timeout),
        }
    }
}

/// Reads a string, or a list of strings.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, one: &str) -> Result<Self::Value, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = many.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(OneOrMany)
}

/// What is wrong with a command line or its variables, in one line.
pub fn explain(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information")).collect();
    let told = lines.join(" ");
    let told = told.strip_prefix("error: ").unwrap_or(&told);
    match variable(error) {
        Some(variable) => format!("{variable}: {told} (see leapfrog --help)"),
        None => format!("{told} (see leapfrog --help)"),
    }
}

/// The environment variable that the value at fault came from; clap names only the option.
fn variable(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (option, value) = (text(ContextKind::InvalidArg)?, text(ContextKind::InvalidValue)?);
    let name = option.trim_start_matches('-').split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next()?;
    let variable = format!("LEAPFROG_{}", name.replace('-', "_").to_ascii_uppercase());
    let typed = env::args().any(|arg| arg == value || arg.ends_with(&format!("={value}")));
    (!typed && env::var(&variable).is_ok_and(|set| set.contains(value))).then_some(variable)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        let cli = Cli::try_parse_from(["leapfrog", "--port", "9000", "--strict"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!((cli.serve.port, cli.serve.strict), (Some(9000), Some(true)));
        let cli = Cli::try_parse_from(["leapfrog", "serve", "--port", "9001", "--strict=false"]).unwrap();
        let Some(Command::Serve(serve)) = cli.command else { panic!("`serve` was typed") };
        assert_eq!((serve.port, serve.strict), (Some(9001), Some(false)));
        assert!(Cli::try_parse_from(["leapfrog", "--port", "1", "serve"]).is_err(), "options belong to the command");
    }
}
