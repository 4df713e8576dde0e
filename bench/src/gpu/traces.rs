//! What strategies accept: recorded from the built-in models on the processor, in the same run.

use std::collections::BTreeMap;

use engine::{CacheMode, DecodingOptions, DiffusionOptions, Frame, Policy, Strategy};
use serde::Serialize;

use super::builtin::{Output, complete, prompts, start};

/// Most tokens of an answer, and slots of a canvas.
const TOKENS: usize = 64;
/// Slots decoded together under full attention.
const BLOCK: usize = 32;

/// How one request of a built-in model went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Trace {
    /// Text tokens.
    pub(super) tokens: usize,
    pub(super) steps: Steps,
}

/// The passes of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) enum Steps {
    /// Tokens that each pass accepted, that of the prompt left out.
    Jacobi { width: usize, accepted: Vec<usize> },
    /// Passes of each block of a canvas that is there from the start.
    Canvas { canvas_len: usize, block_len: usize, passes: Vec<usize> },
    /// Passes of each block of a text that grows.
    Blocks { block_len: usize, passes: Vec<usize> },
}

/// Traces by what they are of.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Traces {
    pub(super) jacobi: Vec<Trace>,
    pub(super) canvas: Vec<(&'static str, Vec<Trace>)>,
    pub(super) blocks: Vec<(&'static str, Vec<Trace>)>,
}

/// The policies of diffusion, by the name of their cells.
const POLICIES: [(&str, Policy); 2] = [("threshold", Policy::Threshold), ("local_leap", Policy::LocalLeap)];

impl Traces {
    /// Decodes as many prompts with each strategy.
    pub(super) fn record(num_prompts: usize) -> anyhow::Result<Self> {
        let mut traces = Self { jacobi: jacobi(num_prompts)?, ..Self::default() };
        let engine = start("leapfrog-diffusion", None)?;
        let questions = prompts(engine.model(), num_prompts)?;
        for (name, policy) in POLICIES {
            let options = DiffusionOptions {
                policy: Some(policy),
                gen_length: Some(TOKENS),
                block_length: Some(BLOCK),
                cache: Some(CacheMode::Dual),
                ..DiffusionOptions::default()
            };
            let outputs = complete(&engine, &questions, &diffusion(options), (TOKENS, false))?;
            let steps = |passes| Steps::Canvas { canvas_len: TOKENS, block_len: BLOCK, passes };
            traces.canvas.push((name, of_frames(&outputs, steps)));
        }
        let engine = start("leapfrog-block", None)?;
        let questions = prompts(engine.model(), num_prompts)?;
        let block_len = match engine.model().attention {
            engine::AttentionKind::BlockCausal { block_len, .. } => block_len,
            _ => anyhow::bail!("leapfrog-block does not attend by blocks"),
        };
        for (name, policy) in POLICIES {
            let options = DiffusionOptions {
                policy: Some(policy),
                block_length: Some(block_len),
                cache: Some(CacheMode::Block),
                ..DiffusionOptions::default()
            };
            let outputs = complete(&engine, &questions, &diffusion(options), (TOKENS, false))?;
            traces.blocks.push((name, of_frames(&outputs, |passes| Steps::Blocks { block_len, passes })));
        }
        Ok(traces)
    }
}

fn diffusion(options: DiffusionOptions) -> DecodingOptions {
    DecodingOptions { diffusion: options, ..DecodingOptions::default() }
}

fn jacobi(num_prompts: usize) -> anyhow::Result<Vec<Trace>> {
    let engine = start("leapfrog-cllm", None)?;
    let questions = prompts(engine.model(), num_prompts)?;
    let width = engine.model().width;
    let decoding = DecodingOptions {
        strategy: Strategy::Jacobi,
        width: Some(width),
        adaptive: Some(false),
        ..DecodingOptions::default()
    };
    let outputs = complete(&engine, &questions, &decoding, (TOKENS, false))?;
    Ok(outputs
        .iter()
        .map(|output| {
            let mut accepted = spread(&output.finish.stats.acceptance_histogram);
            // The pass that reads the prompt is replayed as such, with what it commits.
            let first = accepted.len().min(1);
            accepted.drain(..first);
            Trace { tokens: output.finish.completion_tokens, steps: Steps::Jacobi { width, accepted } }
        })
        .collect())
}

/// Passes by what they accept, from a histogram whose entry `a - 1` counts those of `a`. Their order is not known: it is
/// made so that the fewest come first.
fn spread(histogram: &[u64]) -> Vec<usize> {
    (1..).zip(histogram).flat_map(|(accepted, count)| std::iter::repeat_n(accepted, *count as usize)).collect()
}

fn of_frames(outputs: &[Output], steps: impl Fn(Vec<usize>) -> Steps) -> Vec<Trace> {
    let of = |output: &Output| Trace {
        tokens: output.finish.completion_tokens,
        steps: steps(passes_by_block(&output.frames)),
    };
    outputs.iter().map(of).collect()
}

fn passes_by_block(frames: &[Frame]) -> Vec<usize> {
    let mut passes: BTreeMap<usize, usize> = BTreeMap::new();
    frames.iter().for_each(|frame| *passes.entry(frame.block).or_default() += 1);
    passes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_become_passes() {
        assert_eq!(spread(&[2, 0, 1]), [1, 1, 3]);
        assert_eq!(spread(&[]), [0usize; 0]);
    }

    #[test]
    fn frames_are_counted_by_block() {
        let frame = |block, step| Frame { step, block, committed: 0, masked: 0, fixed: Vec::new() };
        assert_eq!(passes_by_block(&[frame(0, 1), frame(0, 2), frame(1, 3)]), [2, 1]);
    }

    #[test]
    fn the_built_in_models_leave_traces() {
        let traces = Traces::record(3).unwrap();
        assert_eq!(traces.jacobi.len(), 3);
        for trace in &traces.jacobi {
            let Steps::Jacobi { width, accepted } = &trace.steps else { panic!("{trace:?}") };
            assert!(accepted.iter().all(|count| (1..=*width + 1).contains(count)), "{trace:?}");
            // The pass that is left out accepted a token at least.
            assert!(accepted.iter().sum::<usize>() < trace.tokens, "{trace:?}");
        }
        assert_eq!((traces.canvas.len(), traces.blocks.len()), (2, 2));
        for (_, traces) in traces.canvas.iter().chain(&traces.blocks) {
            assert_eq!(traces.len(), 3);
            for trace in traces {
                let (Steps::Canvas { passes, block_len, .. } | Steps::Blocks { passes, block_len }) = &trace.steps
                else {
                    panic!("{trace:?}")
                };
                // The hand-over of a block model is a pass of its own.
                assert!(!passes.is_empty() && passes.iter().all(|count| (1..=*block_len).contains(count)), "{trace:?}");
                assert!(trace.tokens <= passes.len() * block_len, "{trace:?}");
            }
        }
    }
}
