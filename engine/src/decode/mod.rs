//! Decoding strategies.
//!
//! A [`Decoder`] decides, for one sequence, what the next forward pass must see and what its scores make final. It
//! holds no device handle and never sees a row of logits, so every strategy is tested on tables. The laws that all of
//! them keep are in `engine/specs/architecture.md` and are tested in `engine/tests/laws.rs`.

mod ar;
mod guess;
mod jacobi;
mod width;

use std::ops::Range;

use models::{TokenId, Visibility};

pub use ar::Ar;
pub use guess::Guesser;
pub use jacobi::{Jacobi, JacobiConfig};
pub use width::{Survival, WidthController};

use crate::cost::PassCost;
pub use crate::sampling::TokenScore;

/// One strategy for one sequence. Owns its drafts; dies with the request.
pub trait Decoder: Send {
    /// Name of the strategy, as clients know it.
    fn name(&self) -> &'static str;

    /// What the next forward pass must see. Same state and view, same plan.
    fn plan(&self, seq: &SeqView<'_>) -> StepPlan;

    /// Reads the scores of the planned rows, `scores[i]` for row `plan.scored.start + i`; says which tokens are final
    /// and what the KV cache keeps.
    fn judge(
        &mut self,
        seq: &SeqView<'_>,
        plan: &StepPlan,
        scores: Vec<TokenScore>,
    ) -> Result<StepOutcome, DecodeError>;
}

/// What a decoder may know of its sequence.
#[derive(Debug, Clone, Copy)]
pub struct SeqView<'a> {
    /// Prompt and committed tokens.
    pub tokens: &'a [TokenId],
    /// How many of them are the prompt.
    pub prompt_len: usize,
    /// Valid positions in the KV cache.
    pub kv_len: usize,
    /// Tokens that may still be committed.
    pub budget_left: usize,
    /// Rows that the sequence may use in this pass, at least 1.
    pub row_cap: usize,
    /// What a pass costs.
    pub cost: PassCost<'a>,
}

impl SeqView<'_> {
    /// Tokens whose keys and values are not in the cache yet: the whole prompt at first, then the pending token.
    pub fn forced(&self) -> &[TokenId] {
        &self.tokens[self.kv_len..]
    }
}

/// The rows of one sequence in the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// Absolute position of the first row.
    pub start: usize,
    /// Tokens to feed: committed ones that lack KV, then drafts or masks.
    pub tokens: Vec<TokenId>,
    /// What each row sees.
    pub visibility: Visibility,
    /// Rows (indices into `tokens`) that `judge` wants scored; empty for a chunk of a long prompt.
    pub scored: Range<usize>,
}

impl StepPlan {
    /// The next chunk of tokens that lack KV, if they do not all fit into this pass together with one scored row.
    /// Serves every strategy whose prompt can be read in chunks.
    pub fn prompt_chunk(seq: &SeqView<'_>) -> Option<Self> {
        let forced = seq.forced();
        (forced.len() > seq.row_cap.max(1)).then(|| Self {
            start: seq.kv_len,
            tokens: forced[..seq.row_cap.max(1)].to_vec(),
            visibility: Visibility::Causal,
            scored: 0..0,
        })
    }

    /// All tokens that lack KV, then `drafts`; scores the last of the former and every draft.
    pub fn causal_window(seq: &SeqView<'_>, drafts: &[TokenId]) -> Self {
        let forced = seq.forced();
        let tokens = [forced, drafts].concat();
        Self { start: seq.kv_len, scored: forced.len() - 1..tokens.len(), tokens, visibility: Visibility::Causal }
    }

    /// One past the last position that the pass writes.
    pub fn end(&self) -> usize {
        self.start + self.tokens.len()
    }
}

/// What a judged pass made of the sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// Tokens that are final now, in order; they follow the committed prefix.
    pub commits: Vec<TokenScore>,
    /// What stays in the KV cache.
    pub kv: KvEffect,
}

impl StepOutcome {
    /// A pass that only filled the KV cache.
    pub fn prefilled() -> Self {
        Self { commits: Vec::new(), kv: KvEffect::Keep }
    }
}

/// What the KV cache must do after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvEffect {
    /// Everything up to the end of the pass is valid.
    Keep,
    /// Only the first `n` positions are valid.
    Truncate(usize),
    /// Nothing is valid; the next plan starts at position 0.
    Refresh,
}

/// A decoder met scores that do not fit its plan: a fault of the engine, never of a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Number of scores and of scored rows differ.
    #[error("{expected} rows were to be scored, {got} scores came back")]
    ScoreCount {
        /// Rows planned.
        expected: usize,
        /// Scores received.
        got: usize,
    },
}

/// Checks that a plan's rows were all scored.
fn expect_scores(plan: &StepPlan, scores: &[TokenScore]) -> Result<(), DecodeError> {
    let expected = plan.scored.len();
    if scores.len() == expected { Ok(()) } else { Err(DecodeError::ScoreCount { expected, got: scores.len() }) }
}
