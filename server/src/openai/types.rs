//! The shapes of replies. The same envelope serves whole replies and the chunks of a stream.

use engine::{CacheMode, CommitCounts, DecodeStats, DiffusionStats, FinishReason, Policy};
use serde::Serialize;

use super::{
    frames::FrameDiff,
    logprobs::{ChatLogprobs, CompletionLogprobs},
};
use crate::energy::usage::EnergyReport;

/// A reply or a chunk, with choices of type `C`.
#[derive(Debug, Serialize)]
pub(super) struct Reply<C> {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) choices: Vec<C>,
    /// Absent, `null`, or numbers: in a stream that ends with usage, all other chunks say `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leapfrog: Option<Report>,
}

/// Tokens read and written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: PromptTokensDetails,
    /// Only for those who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) energy: Option<Box<EnergyReport>>,
}

/// Of the tokens read, those that cost nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: usize,
}

/// How the choices were decoded: an object for one choice, else a list in the order of the choices. In a stream also
/// what a choice looks like while it is decoded.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Report {
    One(Box<Decoded>),
    Many(Vec<Decoded>),
    Frame { frame: FrameDiff },
}

impl Report {
    pub(super) fn new(mut decoded: Vec<Decoded>) -> Option<Self> {
        match decoded.len() {
            0 | 1 => decoded.pop().map(|decoded| Self::One(Box::new(decoded))),
            _ => Some(Self::Many(decoded)),
        }
    }
}

/// How one choice was decoded.
#[derive(Debug, Serialize)]
pub(super) struct Decoded {
    strategy: &'static str,
    forward_passes: usize,
    tokens_per_forward: Option<f64>,
    acceptance_histogram: Vec<u64>,
    prefill_ms: f64,
    decode_ms: f64,
    queue_ms: f64,
    seed: u64,
    #[serde(flatten)]
    diffusion: Option<Denoised>,
}

/// What a diffusion decoder adds to [`Decoded`].
#[derive(Debug, Serialize)]
struct Denoised {
    denoising_steps: usize,
    blocks: usize,
    commits: CommitCounts,
    edits: usize,
    policy: Policy,
    cache: CacheMode,
    /// Whether the text is the same as without the cache.
    cache_exact: bool,
}

impl From<&DiffusionStats> for Denoised {
    fn from(stats: &DiffusionStats) -> Self {
        Self {
            denoising_steps: stats.denoising_steps,
            blocks: stats.blocks,
            commits: stats.commits,
            edits: stats.edits,
            policy: stats.policy,
            cache: stats.cache,
            cache_exact: stats.cache.is_exact(),
        }
    }
}

impl Decoded {
    pub(super) fn new(stats: &DecodeStats, seed: u64) -> Self {
        let millis = |duration: std::time::Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        Self {
            strategy: stats.strategy,
            forward_passes: stats.forward_passes,
            tokens_per_forward: stats.tokens_per_forward(),
            acceptance_histogram: stats.acceptance_histogram.clone(),
            prefill_ms: millis(stats.prefill),
            decode_ms: millis(stats.decode),
            queue_ms: millis(stats.queue),
            seed,
            diffusion: stats.diffusion.as_ref().map(Denoised::from),
        }
    }
}

/// A choice of a whole chat reply.
#[derive(Debug, Serialize)]
pub(super) struct ChatChoice {
    pub(super) index: usize,
    pub(super) message: Message,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: FinishReason,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub(super) struct Message {
    pub(super) role: &'static str,
    pub(super) content: String,
    pub(super) refusal: Option<String>,
}

/// A choice of a chat chunk.
#[derive(Debug, Serialize)]
pub(super) struct ChatDelta {
    pub(super) index: usize,
    pub(super) delta: Delta,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<FinishReason>,
}

/// What a chat chunk adds to the message; `{}` in the chunk that finishes it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
}

/// A choice of a text completion, whole or chunk.
#[derive(Debug, Serialize)]
pub(super) struct CompletionChoice {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<CompletionLogprobs>,
    pub(super) finish_reason: Option<FinishReason>,
}
