//! The same shape in PyTorch, beside ours in the same run.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use models::{AttentionKind, ModelConfig, Precision};
use serde::Deserialize;
use serde_json::json;

use super::{
    Part, Setup,
    forward::PASS,
    log::{Cell, Log, figure},
};

/// The script, part of the program.
const SCRIPT: &str = include_str!("torch_model.py");
/// Variant: one CUDA graph a cell.
pub(super) const GRAPH: &str = "graph";
/// Variant: compiled by `torch.compile`, and one CUDA graph a cell.
const COMPILE: &str = "compile";
/// Rows that are compiled for: it takes long.
const COMPILED_ROWS: [usize; 2] = [1, 32];
/// How long it may go on beyond its budget, for the cell that it has begun.
const GRACE: Duration = Duration::from_secs(60);
/// Less time than this is not worth a start.
const LEAST_S: f64 = 30.0;

/// A line of the script.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    /// What runs it.
    Hello { torch: String, device: String },
    /// Times of a cell, in milliseconds.
    Cell { variant: String, rows: usize, context: usize, ms: Vec<f64> },
    /// A cell without times.
    Failed { variant: String, rows: usize, context: usize, error: String },
    /// Why there is nothing.
    Error { error: String },
}

impl Line {
    fn parse(text: &str) -> anyhow::Result<Self> {
        serde_json::from_str(text).with_context(|| format!("PyTorch's side printed `{text}`"))
    }
}

/// Runs the script for a shape and sets its times beside those of the same cells of ours.
pub(super) fn run(setup: &Setup, (name, config): (&str, &ModelConfig), log: &mut Log) -> anyhow::Result<()> {
    log.note(
        Part::Torch,
        "Random weights of the same shape in plain PyTorch: fused q, k, v and gate, up; scaled_dot_product_attention over a \
         cache; one CUDA graph a cell, and for 1 and 32 rows torch.compile besides. Its passes take the likeliest token of \
         each row. Weights are 16-bit floats whatever --format says.",
    );
    let cells = cells(setup, config);
    let left_out =
        |log: &mut Log, reason: String| log.add(Cell { left_out: Some(reason), ..Cell::new(Part::Torch, name, GRAPH) });
    let budget = setup.left_s() - GRACE.as_secs_f64();
    if budget < LEAST_S {
        return left_out(log, "the time budget is spent".into());
    }
    let lines = match start(&setup.python, &request(setup, config, &cells, budget)) {
        Ok(script) => script.lines(Duration::from_secs_f64(budget) + GRACE),
        Err(error) => return left_out(log, format!("{error:#}")),
    };
    for line in lines {
        match line.and_then(|line| Line::parse(&line)) {
            Ok(Line::Hello { torch, device }) => log.note(Part::Torch, format!("PyTorch {torch} on {device}")),
            Ok(Line::Cell { variant, rows, context, ms }) => {
                let cell = Cell { millis: ms, ..Cell::new(Part::Torch, name, variant).at(rows, context) };
                let ours = log.find(Part::Forward, name, PASS, Some((rows, context))).and_then(Cell::median);
                let ratio = cell.median().zip(ours).map(|(theirs, ours)| theirs / ours);
                log.add(cell.with_some(figure::OVER_OURS, ratio))?;
            }
            Ok(Line::Failed { variant, rows, context, error }) => {
                let cell = Cell::new(Part::Torch, name, variant).at(rows, context);
                log.add(Cell { left_out: Some(error), ..cell })?;
            }
            Ok(Line::Error { error }) => left_out(log, error)?,
            Err(error) => left_out(log, format!("{error:#}"))?,
        }
    }
    Ok(())
}

/// Cells in the order in which they matter: few rows first, what is compiled last.
fn cells(setup: &Setup, config: &ModelConfig) -> Vec<(&'static str, usize, usize)> {
    let fits = |rows: usize, context: usize| rows + context <= config.context_len;
    let mut cells = Vec::new();
    for &context in &setup.contexts {
        let rows = setup.rows.iter().filter(|rows| fits(**rows, context));
        cells.extend(rows.map(|rows| (GRAPH, *rows, context)));
    }
    let compiled = COMPILED_ROWS.into_iter().filter(|rows| setup.rows.contains(rows));
    let context = setup.contexts.first().copied().unwrap_or(0);
    cells.extend(compiled.filter(|rows| fits(*rows, context)).map(|rows| (COMPILE, rows, context)));
    cells
}

fn request(
    setup: &Setup,
    config: &ModelConfig,
    cells: &[(&'static str, usize, usize)],
    budget_s: f64,
) -> serde_json::Value {
    json!({
        "hidden": config.hidden_size,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.intermediate_size,
        "vocab": config.vocab_size,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "dtype": match setup.precision { Precision::F16 => "f16", Precision::BF16 => "bf16" },
        "causal": config.attention == AttentionKind::Causal,
        "cells": cells,
        "rounds": setup.rounds,
        "repeats": setup.repeats,
        "budget_s": budget_s,
    })
}

/// The script while it runs.
#[derive(Debug)]
struct Script {
    child: Child,
    /// What it complains about; a file, so that it never waits for a reader.
    complaints: File,
}

fn start(python: &Path, request: &serde_json::Value) -> anyhow::Result<Script> {
    let complaints = tempfile::tempfile().context("cannot make a file for the complaints of python")?;
    let mut child = Command::new(python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {}", python.display()))?;
    // One that ends at once, for want of PyTorch, reads nothing; what it printed says why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(request.to_string().as_bytes());
    }
    Ok(Script { child, complaints })
}

impl Script {
    /// What it prints, as it comes; at the end an error if it failed without a word or had to be ended.
    fn lines(mut self, limit: Duration) -> impl Iterator<Item = anyhow::Result<String>> {
        let (sender, receiver) = mpsc::sync_channel(64);
        if let Some(stdout) = self.child.stdout.take() {
            thread::spawn(move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                lines.filter(|line| !line.trim().is_empty()).try_for_each(|line| sender.send(line))
            });
        }
        let deadline = Instant::now() + limit;
        let mut script = Some(self);
        let mut num_lines = 0;
        std::iter::from_fn(move || {
            script.as_ref()?;
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    num_lines += 1;
                    Some(Ok(line))
                }
                Err(end) => {
                    let is_late = end == mpsc::RecvTimeoutError::Timeout;
                    script.take().and_then(|script| script.end(is_late, num_lines)).map(Err)
                }
            }
        })
    }

    fn end(mut self, is_late: bool, num_lines: usize) -> Option<anyhow::Error> {
        if is_late {
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        if is_late {
            return Some(anyhow::anyhow!("PyTorch's side went on for too long and was ended"));
        }
        match status {
            Err(error) => Some(error.into()),
            Ok(status) if status.success() || (status.code() == Some(3) && num_lines > 0) => None,
            Ok(status) => Some(anyhow::anyhow!("PyTorch's side ended with {status}: {}", self.last_complaint())),
        }
    }

    fn last_complaint(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.complaints.seek(SeekFrom::Start(0)).and_then(|_| self.complaints.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        read.ok().and(last).unwrap_or("it said nothing").chars().take(300).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let parse = |text: &str| Line::parse(text).unwrap();
        let hello = parse(r#"{"torch": "2.9.0", "device": "NVIDIA H200"}"#);
        assert_eq!(hello, Line::Hello { torch: "2.9.0".into(), device: "NVIDIA H200".into() });
        let cell = parse(r#"{"variant": "graph", "rows": 1, "context": 0, "ms": [1.5, 1.25]}"#);
        assert_eq!(cell, Line::Cell { variant: "graph".into(), rows: 1, context: 0, ms: vec![1.5, 1.25] });
        let failed = parse(r#"{"variant": "compile", "rows": 8, "context": 4096, "error": "out of memory"}"#);
        assert!(matches!(failed, Line::Failed { rows: 8, context: 4096, .. }));
        assert_eq!(parse(r#"{"error": "no torch"}"#), Line::Error { error: "no torch".into() });
        for wrong in
            ["", "Traceback", r#"{"rows": 1}"#, r#"{"variant": "graph", "rows": 1, "context": 0, "ms": ["x"]}"#]
        {
            let error = Line::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }

    fn script(program: &str) -> Script {
        let complaints = tempfile::tempfile().unwrap();
        let child = Command::new("sh")
            .args(["-c", program])
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone().unwrap())
            .spawn()
            .unwrap();
        Script { child, complaints }
    }

    #[test]
    fn lines_come_before_the_failure_that_follows_them() {
        let lines: Vec<_> = script("echo one; echo; echo two; echo broken >&2; exit 1").lines(GRACE).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].as_ref().unwrap(), "one");
        assert_eq!(lines[1].as_ref().unwrap(), "two");
        assert!(lines[2].as_ref().unwrap_err().to_string().ends_with("broken"));
    }

    #[test]
    fn one_that_said_why_needs_no_other_error_and_one_that_hangs_is_ended() {
        let lines: Vec<_> = script("echo why; exit 3").lines(GRACE).collect();
        assert_eq!(lines.len(), 1);
        let lines: Vec<_> = script("echo one; exec sleep 600").lines(Duration::from_millis(300)).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].as_ref().unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let error = start(Path::new("/no/such/python"), &json!({})).unwrap_err();
        assert!(error.to_string().contains("/no/such/python"), "{error}");
    }
}
