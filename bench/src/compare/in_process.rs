//! Rivals without a server: `llama-bench` and `llama-diffusion-cli` beside our engine in this process. The figures are
//! those of `speed` and `canvas`.

use anyhow::{Context, ensure};
use serde::Serialize;

use super::{args::CompareArgs, command, settings::threads};
use crate::{
    canvas::{self, CanvasArgs},
    speed::{self, SpeedArgs},
};

/// The figures for programs.
#[derive(Debug, Default, Serialize)]
pub(super) struct InProcess {
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<speed::Raw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canvas: Option<canvas::Raw>,
    /// For people, in Markdown.
    #[serde(skip)]
    pub(super) text: String,
}

/// What is to be run.
#[derive(Debug)]
pub(super) struct Wanted {
    speed: Option<SpeedArgs>,
    canvas: Option<CanvasArgs>,
}

impl Wanted {
    /// Programs must exist.
    pub(super) fn of(args: &CompareArgs) -> anyhow::Result<Self> {
        let number = |value: u64| usize::try_from(value).context("a number is too large");
        let path = args.model.display().to_string();
        let (threads, rounds) = (Some(threads(args)?), number(args.rounds)?);
        let speed = |program| {
            anyhow::Ok(SpeedArgs {
                model: path.clone(),
                quantize: None,
                threads,
                prompt_tokens: number(args.prompt_tokens)?,
                gen_tokens: number(args.max_tokens)?,
                rounds,
                widths: vec![8],
                llama_bench: Some(command::find(program).context("--llama-bench")?),
                llama_model: None,
                out: None,
            })
        };
        let canvas = |program| {
            anyhow::Ok(CanvasArgs {
                model: path.clone(),
                quantize: None,
                activations: engine::Activations::default(),
                threads,
                shape: args.shape.clone(),
                max_steps: None,
                rounds,
                threshold: None,
                relaxed_threshold: None,
                only: Vec::new(),
                llama_diffusion: Some(command::find(program).context("--llama-diffusion-cli")?),
                llama_patched: args.llama_patched,
                llama_exact: false,
                out: None,
            })
        };
        let wanted = Self {
            speed: args.llama_bench.as_deref().map(speed).transpose()?,
            canvas: args.llama_diffusion_cli.as_deref().map(canvas).transpose()?,
        };
        if !wanted.is_empty() {
            let is_gguf = args.model.extension().is_some_and(|extension| extension == "gguf");
            ensure!(is_gguf, "--model {path}: llama-bench and llama-diffusion-cli read GGUF files (.gguf) only");
        }
        Ok(wanted)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.speed.is_none() && self.canvas.is_none()
    }

    pub(super) fn measure(&self) -> anyhow::Result<InProcess> {
        let mut found = InProcess::default();
        if let Some(args) = &self.speed {
            let (text, raw) = speed::measured(args).context("beside llama-bench")?;
            found.text.push_str(&format!("\n## In process, beside `llama-bench`\n\n{text}"));
            found.speed = Some(raw);
        }
        if let Some(args) = &self.canvas {
            let (text, raw) = canvas::measured(args).context("beside llama-diffusion-cli")?;
            found.text.push_str(&format!("\n## In process, beside `llama-diffusion-cli`\n\n{text}"));
            found.canvas = Some(raw);
        }
        Ok(found)
    }
}
