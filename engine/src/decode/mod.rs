//! Decoding strategies.
//!
//! A [`Decoder`] decides, for one sequence, what the next forward pass must see and what its scores make final. It
//! holds no device handle and never sees a row of logits, so every strategy is tested on tables. The laws that all of
//! them keep are in `engine/specs/architecture.md` and are tested in `engine/tests/laws.rs`.

mod ar;
pub mod commit;
pub mod diffusion;
mod guess;
mod jacobi;
mod width;

use std::ops::Range;

use models::{TokenId, Visibility};

pub use ar::Ar;
pub use diffusion::{Diffusion, DiffusionConfig};
pub use guess::Guesser;
pub use jacobi::{Jacobi, JacobiConfig};
pub use width::{Survival, WidthController};

pub use crate::sampling::TokenScore;
use crate::{
    cost::PassCost,
    event::DiffusionStats,
    request::{StopRules, SuppressEos},
    sampling::ConfidenceRule,
};

/// One strategy for one sequence. Owns its drafts; dies with the request.
pub trait Decoder: Send {
    /// Name of the strategy, as clients know it.
    fn name(&self) -> &'static str;

    /// Rows that the next pass needs. By default all tokens that lack KV, in chunks of any length.
    fn demand(&self, seq: &SeqView<'_>) -> RowDemand {
        RowDemand::Chunks { forced: seq.forced().len(), least: 1 }
    }

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

    /// How the sequence uses its KV pages; asked once, at the start.
    fn kv_use(&self) -> KvUse {
        KvUse::Growing { border: Some(1) }
    }

    /// Tokens that one who reads `tokens` anew may take from a cache of shared prefixes, for [`KvUse::Growing`]. The
    /// rest must be fed, because its rows are scored.
    fn shareable<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        &tokens[..tokens.len() - 1]
    }

    /// Most tokens that it can commit; `None`: as many as the context holds.
    fn capacity(&self) -> Option<usize> {
        None
    }

    /// How the canvas was filled, if there is one.
    fn diffusion(&self) -> Option<DiffusionStats> {
        None
    }
}

/// How a decoder uses the KV pages of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvUse {
    /// Valid positions are exact and grow with the text. They can be computed again at any time, and those before a
    /// multiple of `border` positions can be shared with sequences that begin alike.
    Growing {
        /// At least 1; `None` if nothing can be shared.
        border: Option<usize>,
    },
    /// Nothing stays valid from one pass to the next.
    Scratch,
    /// This many positions from the start to the end. They are approximate: computing them again would change the text,
    /// so the sequence keeps its pages.
    Fixed(usize),
}

/// Rows that the next pass of a sequence needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowDemand {
    /// Tokens that lack KV, to be read in chunks; more rows may be used for drafts.
    Chunks {
        /// How many there are.
        forced: usize,
        /// Fewest rows that make a chunk.
        least: usize,
    },
    /// This many rows, all or none.
    Whole(usize),
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
    /// Which tokens end a text.
    pub ends: EndRule<'a>,
}

/// Which tokens end a text.
#[derive(Debug, Clone, Copy)]
pub struct EndRule<'a> {
    /// The model's own end tokens.
    pub own: &'a [TokenId],
    /// What the request says.
    pub stop: &'a StopRules,
}

impl EndRule<'_> {
    /// Whether `token`, the `index`-th of its text, ends it.
    pub fn is_end(&self, token: TokenId, index: usize) -> bool {
        let asked = self.stop.token_ids.contains(&token) && index >= self.stop.min_tokens;
        asked || (!self.stop.ignore_eos && self.own.contains(&token))
    }
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
    /// How the scored rows are read.
    pub reading: Reading,
}

/// How the rows of a pass are scored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Reading {
    /// Each row follows those before it: the drafts between them are its history.
    #[default]
    InOrder,
    /// The rows are slots of a canvas.
    Canvas(CanvasReading),
}

/// How the slots of a canvas are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanvasReading {
    /// Tokens decided already beyond the committed ones: with them they are the history of every slot.
    pub decided: Vec<TokenId>,
    /// Denoising steps before this one: part of the key of the sampling noise.
    pub step: u64,
    /// How confidence is measured.
    pub confidence: ConfidenceRule<'static>,
    /// Whether end tokens are held down.
    pub suppress_eos: SuppressEos,
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
            reading: Reading::InOrder,
        })
    }

    /// All tokens that lack KV, then `drafts`; scores the last of the former and every draft.
    pub fn causal_window(seq: &SeqView<'_>, drafts: &[TokenId]) -> Self {
        let forced = seq.forced();
        let tokens = [forced, drafts].concat();
        Self {
            start: seq.kv_len,
            scored: forced.len() - 1..tokens.len(),
            tokens,
            visibility: Visibility::Causal,
            reading: Reading::InOrder,
        }
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
    /// What changed on the canvas; `None` for strategies without one, and for passes that judged no slot.
    pub canvas: Option<CanvasChange>,
}

/// What a denoising step changed on a canvas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanvasChange {
    /// Slots that were filled or overwritten, ascending; slot 0 is the first behind the prompt. Empty where an editing
    /// pass found nothing to change.
    pub fixed: Vec<(usize, TokenId)>,
    /// Denoising steps so far, this one included.
    pub step: usize,
    /// Index of the block.
    pub block: usize,
    /// Slots from the left that are final.
    pub committed: usize,
    /// Undecided slots.
    pub masked: usize,
}

impl StepOutcome {
    /// A pass that only filled the KV cache.
    pub fn prefilled() -> Self {
        Self { commits: Vec::new(), kv: KvEffect::Keep, canvas: None }
    }
}

/// What the KV cache must do after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvEffect {
    /// Everything up to the end of the pass is valid.
    Keep,
    /// The first `n` positions are valid and no others.
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
    /// A pass was planned although no slot is left.
    #[error("every slot of the canvas is decided")]
    CanvasFull,
}

/// Checks that a plan's rows were all scored.
fn expect_scores(plan: &StepPlan, scores: &[TokenScore]) -> Result<(), DecodeError> {
    let expected = plan.scored.len();
    if scores.len() == expected { Ok(()) } else { Err(DecodeError::ScoreCount { expected, got: scores.len() }) }
}
