//! What `strategies` is asked to do, checked before any model is loaded.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{Activations, BuiltIn, ModelSource, Quantize};

use super::{
    catalogue::{Contender, known},
    energy::EnergyArgs,
};

/// Stands for every built-in model.
const ALL_BUILT_IN: &str = "builtin";

/// Arguments of `strategies`.
#[derive(Debug, Args)]
pub(crate) struct StrategiesArgs {
    /// Models, with commas or one by one: built-in names, folders, GGUF files, Hub ids; `builtin` stands for all built-in
    /// models [default: the first built-in model].
    #[arg(long = "model", value_delimiter = ',', value_name = "MODEL")]
    pub(super) models: Vec<String>,
    /// What is asked: `zoo` (all tasks with checkers), tasks of it with commas (math,json,sql,chat,chain), `questions` (the
    /// built-in prompts without checkers), or a file: JSON lines with `prompt` or `messages`, or one prompt a line
    /// [default: zoo for built-in models, else questions].
    #[arg(long)]
    pub(super) prompts: Option<String>,
    /// Problems of each task, or prompts of the list, from its beginning.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) problems: u64,
    /// Most tokens of an answer; the slots of a canvas [default: 96, and 64 for diffusion models].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_tokens: Option<u64>,
    /// Threads of a forward pass; all cores if left out.
    #[arg(long)]
    pub(super) threads: Option<usize>,
    /// Weights at load: q8_0, q4_k or f32; as they are if left out.
    #[arg(long)]
    pub(super) quantize: Option<Quantize>,
    /// Rounding of what goes into quantised layers: int8 or int16.
    #[arg(long, default_value = "int16")]
    pub(super) activations: Activations,
    /// Requests at a time; each number is measured.
    #[arg(long = "batch", value_delimiter = ',', default_value = "1,4", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(super) batches: Vec<u64>,
    /// Rounds after one that warms up; in each, all strategies take a turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rounds: u64,
    /// Only these strategies, beside the baseline.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(super) only: Vec<String>,
    /// One more strategy: `NAME=JSON`, with the object `decoding` of the HTTP API, or the name of a preset.
    #[arg(long = "decoding", value_name = "NAME=JSON")]
    pub(super) own: Vec<String>,
    /// Seed of the problems and of the noise of policies.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Accuracy that a recommended strategy may lose at most, in points.
    #[arg(long, default_value_t = 2.0, value_name = "POINTS")]
    pub(super) margin: f64,
    #[command(flatten)]
    pub(super) energy: EnergyArgs,
    /// Folder for `summary.md`, `raw.json` and `accuracy-speed.svg`.
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
}

/// The arguments with their meaning.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) sources: Vec<(String, ModelSource)>,
    /// Ascending, each once.
    pub(super) batches: Vec<usize>,
    pub(super) own: Vec<Contender>,
}

impl StrategiesArgs {
    /// Checks what can be checked without a model.
    pub(super) fn resolve(&self) -> anyhow::Result<Plan> {
        ensure!(
            (0.0..100.0).contains(&self.margin) && self.margin > 0.0,
            "--margin {}: the points of accuracy that may be lost are above 0 and below 100",
            self.margin
        );
        let own = self.own.iter().map(|text| Contender::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
        for (index, contender) in own.iter().enumerate() {
            let is_taken =
                known().any(|name| name == contender.name) || own[..index].iter().any(|e| e.name == contender.name);
            ensure!(!is_taken, "--decoding {}: that name is taken; choose another", contender.name);
        }
        if let Some(name) = self.only.iter().find(|name| !known().any(|known| known == **name)) {
            let names: Vec<&str> = known().collect();
            bail!("--only {name}: no such strategy; there are {}", names.join(", "));
        }
        let mut batches: Vec<usize> = self.batches.iter().map(|batch| *batch as usize).collect();
        batches.sort_unstable();
        batches.dedup();
        ensure!(!batches.is_empty(), "--batch names no number of requests, such as 1,4");
        Ok(Plan { sources: self.sources()?, batches, own })
    }

    fn sources(&self) -> anyhow::Result<Vec<(String, ModelSource)>> {
        let mut names: Vec<&str> = Vec::new();
        for name in &self.models {
            match name.as_str() {
                ALL_BUILT_IN => names.extend(BuiltIn::all().map(|model| model.name())),
                name => names.push(name),
            }
        }
        if names.is_empty() {
            names.push(BuiltIn::default().name());
        }
        let mut sources: Vec<(String, ModelSource)> = Vec::new();
        for name in names {
            let source = name.parse().with_context(|| format!("--model {name}"))?;
            if sources.iter().all(|(_, other)| *other != source) {
                sources.push((name.into(), source));
            }
        }
        Ok(sources)
    }
}
