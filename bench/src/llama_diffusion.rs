//! llama.cpp's example for diffusion models, run as a child process.
//!
//! It has no cache and one schedule per block. With `--top-k 1` it is greedy, and its confidence, taken behind the
//! filter, is 1 for every slot; ties go to the smaller position, so its quota works from left to right. Our policy
//! `quota` with the ranking `sequential` is the same rule.

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::stats::Summary;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) program: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) prompt: String,
    pub(crate) canvas: usize,
    pub(crate) block: usize,
    /// Steps of the whole canvas.
    pub(crate) steps: usize,
    /// Whether it carries the patch of `peers/README.md` and ranks by confidence.
    pub(crate) patched: bool,
    /// Whether to run it with an f32 cache and plain attention: for comparing tokens.
    pub(crate) exact: bool,
}

/// Runs that may lose their last lines: it does not wait for its log.
const ATTEMPTS: usize = 4;

/// One run of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PeerRun {
    /// Mean seconds of a forward pass with its sampling.
    pub(crate) step_seconds: f64,
    /// Forward passes.
    pub(crate) steps: usize,
    /// Of the process, loading included.
    pub(crate) seconds: f64,
    pub(crate) text: String,
}

/// Steps to ask for, or why the program cannot fill this canvas. Its canvas length counts the prompt, and its number of
/// blocks is that length over the block length, so a prompt adds blocks that are empty: they get steps, of which one runs.
pub(crate) fn steps_to_ask(peer: &Peer, prompt_tokens: usize) -> anyhow::Result<usize> {
    let length = prompt_tokens + peer.canvas;
    ensure!(
        length.is_multiple_of(peer.block) && peer.canvas.is_multiple_of(peer.block),
        "llama-diffusion-cli wants prompt ({prompt_tokens} tokens) plus canvas ({}) in whole blocks of {}",
        peer.canvas,
        peer.block
    );
    let (blocks, all_blocks) = (peer.canvas / peer.block, length / peer.block);
    ensure!(peer.steps.is_multiple_of(blocks), "{} steps do not divide over {blocks} blocks", peer.steps);
    Ok(peer.steps / blocks * all_blocks)
}

/// Runs the program once.
pub(crate) fn run(peer: &Peer, prompt_tokens: usize, threads: usize) -> anyhow::Result<PeerRun> {
    let asked_steps = steps_to_ask(peer, prompt_tokens)?;
    let length = prompt_tokens + peer.canvas;
    let number = |value: usize| value.to_string();
    for _ in 0..ATTEMPTS {
        let began = Instant::now();
        let output = Command::new(&peer.program)
            .arg("-m")
            .arg(&peer.model)
            .args(["-p", &peer.prompt])
            .args(["-b", &number(length), "-ub", &number(length), "-t", &number(threads)])
            .args(["--diffusion-steps", &number(asked_steps), "--diffusion-block-length", &number(peer.block)])
            .args(if peer.exact { &["-fa", "off", "-ctk", "f32", "-ctv", "f32"][..] } else { &[] })
            .args(["--temp", "0", "--top-k", if peer.patched { "0" } else { "1" }, "--top-p", "1", "--seed", "0"])
            .output()
            .with_context(|| format!("cannot run {}", peer.program.display()))?;
        let seconds = began.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed: {}", peer.program.display(), said.trim());
        let times = said.split_once("\ntotal time: ").and_then(|(_, rest)| rest.split_once('\n'));
        let Some((line, rest)) = times else { continue };
        let total_ms: f64 = line.split("ms").next().unwrap_or_default().trim().parse().context("the total time")?;
        let steps = said.matches("diffusion step:").count();
        ensure!(steps > 0, "{} reported no step", peer.program.display());
        // A log line's time stamp and level stand in front of the text.
        let text = rest.split_once(" I \n").map_or(rest, |(_, text)| text).trim_matches('\n');
        if text.is_empty() {
            continue;
        }
        return Ok(PeerRun { step_seconds: total_ms / 1e3 / steps as f64, steps, seconds, text: text.to_owned() });
    }
    bail!("{} did not print its times and its text in {ATTEMPTS} runs", peer.program.display())
}

/// The comparison, as lines below the table; empty without runs.
pub(crate) fn summary(runs: &[PeerRun], our_steps: &[f64], our_text: Option<&str>, patched: bool) -> String {
    let theirs: Vec<f64> = runs.iter().map(|run| run.step_seconds).collect();
    let ratios: Vec<f64> = theirs.iter().zip(our_steps).map(|(theirs, ours)| theirs / ours).collect();
    let (Some(step), Some(ratio)) = (Summary::of(&theirs), Summary::of(&ratios)) else { return String::new() };
    let same = match (our_text, runs.first()) {
        (Some(ours), Some(run)) if ours == run.text => "the same text",
        (Some(_), Some(_)) => "ANOTHER text (quantised layers round differently; compare tokens with an f32 file)",
        _ => "its text was not compared",
    };
    format!(
        "\nllama.cpp (`llama-diffusion-cli`, greedy, {}): {:.3} s per step ({:.3}-{:.3}), x {:.2} ({:.2}-{:.2}) of ours \
         without a cache; {same} as {}\n",
        if patched { "patched, quota by confidence" } else { "quota from left to right" },
        step.median,
        step.min,
        step.max,
        ratio.median,
        ratio.min,
        ratio.max,
        if patched { "quota" } else { "quota_sequential" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_prompt_get_steps_too() {
        let peer = Peer {
            program: PathBuf::new(),
            model: PathBuf::new(),
            prompt: String::new(),
            canvas: 64,
            block: 32,
            steps: 16,
            patched: false,
            exact: false,
        };
        assert_eq!(steps_to_ask(&peer, 32).unwrap(), 24);
        assert!(steps_to_ask(&peer, 29).unwrap_err().to_string().contains("prompt (29 tokens)"));
        assert!(steps_to_ask(&Peer { steps: 15, ..peer }, 32).unwrap_err().to_string().contains("15 steps"));
    }

    #[test]
    fn ratios_are_paired_and_texts_compared() {
        let run = |step_seconds, text: &str| PeerRun { step_seconds, steps: 8, seconds: 1.0, text: text.into() };
        let runs = [run(2.0, "ab"), run(3.0, "ab")];
        let told = summary(&runs, &[1.0, 1.0], Some("ab"), false);
        assert!(told.contains("x 2.50 (2.00-3.00)") && told.contains("the same text"), "{told}");
        assert!(summary(&runs, &[1.0, 1.0], Some("ac"), true).contains("ANOTHER text"));
        assert!(summary(&[], &[], None, false).is_empty());
    }
}
