//! What a caller receives while a request runs.

use std::time::Duration;

use models::TokenId;
use serde::Serialize;

use crate::{
    energy::Ticket,
    error::RequestError,
    request::{CacheMode, Policy},
};

/// One message of a request's stream. The order is: at most one `Prompt`, any number of `Committed` and `Frame`, then exactly one
/// `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt, one entry a token (the first has no log-probability); only if asked for.
    Prompt(Vec<TokenRecord>),
    /// What one decode step made final. Never taken back.
    Committed(Commit),
    /// What one denoising step fixed, in the order of position and not of the text; only if asked for.
    Frame(Frame),
    /// The request is done.
    Finished(Finish),
    /// The request ended by a fault of the server; what was committed before stands.
    Failed(RequestError),
}

/// Final text and tokens of one decode step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// Text to append. Whole code points; may be empty while a code point or a possible stop string is held back.
    pub text: String,
    /// The tokens whose text this event completes. Their bytes, concatenated over all events, are the text (special
    /// tokens and the end token have none).
    pub tokens: Vec<TokenRecord>,
    /// Index of the hole that the text belongs to; 0 for a text without holes.
    pub hole: usize,
}

/// What a denoising step changed on the canvas: a difference to the frames before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Denoising steps so far, this one included.
    pub step: usize,
    /// Index of the block that is being decoded.
    pub block: usize,
    /// Slots from the left that are final.
    pub committed: usize,
    /// Slots of the canvas that are undecided. A block-causal canvas grows, so the number may rise.
    pub masked: usize,
    /// Slots and their tokens, ascending. Slot 0 is the first behind the prompt; given tokens between holes count. A
    /// slot may come again if the policy edits.
    pub fixed: Vec<(usize, TokenId)>,
}

/// One token with what was asked for about it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRecord {
    /// The token.
    pub id: TokenId,
    /// Natural log of the model's probability, before temperature and filters; `None` for the first prompt token, and
    /// if not asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with their log-probabilities, descending; empty if not asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// The token budget or the context is used up.
    Length,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Committed tokens, the end token included.
    pub completion_tokens: usize,
    /// How it was decoded.
    pub stats: DecodeStats,
    /// What to ask the monitor for its energy with; `None` if nobody meters.
    pub ticket: Option<Ticket>,
}

/// How a request was decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeStats {
    /// The strategy that ran: `ar`, `jacobi` or `diffusion`.
    pub strategy: &'static str,
    /// Passes that scored at least one slot of this request. The pass that finishes the prefill counts: it scores the
    /// first token. Chunks of a long prompt that score nothing do not.
    pub forward_passes: usize,
    /// Rows that those passes scored.
    pub scored_rows: usize,
    /// Entry `a - 1`: number of passes that committed `a` tokens. Weighted by `a` it sums to the completion tokens.
    pub acceptance_histogram: Vec<u64>,
    /// Prompt tokens whose keys and values were shared with earlier requests.
    pub cached_tokens: usize,
    /// How the canvas was filled; `None` for other strategies.
    pub diffusion: Option<DiffusionStats>,
    /// From submission to the first step.
    pub queue: Duration,
    /// From the first step to the first committed token.
    pub prefill: Duration,
    /// From the first committed token to the end.
    pub decode: Duration,
}

/// How a canvas was filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffusionStats {
    /// Passes that judged slots of the canvas.
    pub denoising_steps: usize,
    /// Blocks begun.
    pub blocks: usize,
    /// Slots decided, by the rule that did it.
    pub commits: CommitCounts,
    /// Filled slots that were overwritten.
    pub edits: usize,
    /// The policy in force.
    pub policy: Policy,
    /// The cache in force.
    pub cache: CacheMode,
}

/// Slots decided, by the rule that did it. The sum counts slots of the canvas, also those behind the end of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CommitCounts {
    /// Because they were the best of their pass, or by a quota.
    pub top: usize,
    /// Because they reached the threshold.
    pub anchor: usize,
    /// Because an anchor was near and they reached the relaxed threshold.
    pub relaxed: usize,
}

impl DecodeStats {
    /// Committed tokens per scoring pass; plain AR is exactly 1. `None` if there was no pass.
    pub fn tokens_per_forward(&self) -> Option<f64> {
        let tokens: u64 = self.acceptance_histogram.iter().zip(1..).map(|(count, accepted)| count * accepted).sum();
        (self.forward_passes > 0).then(|| tokens as f64 / self.forward_passes as f64)
    }
}
