//! llama.cpp's own benchmark, run as a child process.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};
use serde::Deserialize;

/// One line of `llama-bench -o json`.
#[derive(Debug, Deserialize)]
struct Line {
    n_prompt: u64,
    n_gen: u64,
    avg_ts: f64,
    build_commit: Option<String>,
}

/// Tokens per second of one run.
#[derive(Debug, Clone)]
pub(crate) struct LlamaRun {
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    pub(crate) build: String,
}

/// Runs `llama-bench` once.
pub(crate) fn run(
    program: &Path,
    model: &Path,
    threads: usize,
    prompt: usize,
    generate: usize,
) -> anyhow::Result<LlamaRun> {
    let output = Command::new(program)
        .arg("-m")
        .arg(model)
        .args(["-t", &threads.to_string(), "-p", &prompt.to_string(), "-n", &generate.to_string()])
        .args(["-r", "1", "-o", "json"])
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", program.display(), errors.trim());
    let lines: Vec<Line> = serde_json::from_slice(&output.stdout).context("llama-bench did not print its JSON")?;
    let speed = |wanted: fn(&Line) -> bool, name: &str| {
        let line =
            lines.iter().find(|line| wanted(line)).with_context(|| format!("llama-bench gave no {name} line"))?;
        anyhow::Ok(line.avg_ts)
    };
    Ok(LlamaRun {
        prefill: speed(|line| line.n_prompt > 0 && line.n_gen == 0, "prefill")?,
        decode: speed(|line| line.n_gen > 0 && line.n_prompt == 0, "decode")?,
        build: lines.first().and_then(|line| line.build_commit.clone()).unwrap_or_else(|| "unknown".into()),
    })
}
