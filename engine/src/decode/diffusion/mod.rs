//! Denoising a canvas of masks: block by block, each pass proposes a token for every undecided slot of the block and a
//! commit policy says which of them are final. `engine/specs/diffusion.md` has the rules and their sources.

mod canvas;
mod config;
mod family;
#[cfg(test)]
mod tests;

use std::ops::Range;

use models::{AttentionKind, LogitAlignment, TokenId, Visibility};

use self::{
    canvas::{Block, Canvas, Shape, Slot},
    config::PolicyConfig,
};
use super::{
    CanvasChange, CanvasReading, DecodeError, Decoder, KvEffect, KvUse, Reading, RowDemand, SeqView, StepOutcome,
    StepPlan, TokenScore,
    commit::{BlockStart, Candidate, CommitPolicy, Rule},
    expect_scores,
};
use crate::{
    event::{CommitCounts, DiffusionStats},
    request::CacheMode,
};

pub use self::config::DiffusionConfig;

/// Diffusion decoder of one sequence.
#[derive(Debug)]
pub struct Diffusion {
    config: DiffusionConfig,
    policy: Box<dyn CommitPolicy>,
    canvas: Canvas,
    prompt_len: usize,
    /// Block for which the approximate cache holds everything else.
    cached_for: Option<usize>,
    /// Passes over the current block that could only edit.
    post_steps: usize,
    steps: usize,
    /// Blocks that got a step.
    blocks: usize,
    counts: CommitCounts,
    edits: usize,
}

/// The rows of the next pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    /// Positions to feed.
    rows: Range<usize>,
    /// Slots to score, a range of positions.
    slots: Range<usize>,
}

impl Diffusion {
    /// A decoder at the start of a sequence.
    pub fn new(config: DiffusionConfig, prompt: &[TokenId]) -> Self {
        let canvas = Canvas::new(prompt, &config.parts, config.shape, config.mask_id);
        let mut decoder = Self {
            policy: config.policy.build(config.steps),
            canvas,
            prompt_len: prompt.len(),
            cached_for: None,
            post_steps: 0,
            steps: 0,
            blocks: 0,
            counts: CommitCounts::default(),
            edits: 0,
            config,
        };
        decoder.begin_block();
        decoder
    }

    /// The same with a commit policy of the caller's.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_policy(config: DiffusionConfig, prompt: &[TokenId], policy: Box<dyn CommitPolicy>) -> Self {
        let mut decoder = Self { policy, ..Self::new(config, prompt) };
        decoder.begin_block();
        decoder
    }

    fn begin_block(&mut self) {
        self.post_steps = 0;
        let Some(block) = self.canvas.block() else { return };
        let (num_blocks, order) = match self.config.shape {
            Shape::Whole { .. } => (self.canvas.num_blocks(), block.index),
            Shape::Units { unit_len, block_len, .. } => {
                (unit_len / block_len, (block.slots.start - block.unit.start) / block_len)
            }
        };
        let steps = match self.config.steps {
            // What does not divide evenly goes to the first blocks.
            Some(steps) => steps / num_blocks + usize::from(order < steps % num_blocks),
            None => block.slots.len(),
        };
        let num_open = self.canvas.num_open(block.slots.clone());
        self.policy.begin(BlockStart { num_open, len: block.slots.len(), steps: steps.max(1) });
    }

    /// Distance from a row to the slot that it scores.
    fn ahead(&self) -> usize {
        match self.config.alignment {
            LogitAlignment::NextSlot => 1,
            LogitAlignment::SameSlot => 0,
        }
    }

    fn editing(&self) -> Option<(f32, usize)> {
        match self.config.policy {
            PolicyConfig::Editing { edit_threshold, max_post_steps, .. } => Some((edit_threshold, max_post_steps)),
            _ => None,
        }
    }

    /// Whether the first slot of a unit is still open and is scored by the last row of the unit before: the hand-over
    /// of models that are block-causal and shifted (Fast-dLLM v2).
    fn hands_over(&self, block: &Block) -> bool {
        let first = block.unit.start;
        matches!(self.config.shape, Shape::Units { .. })
            && self.ahead() == 1
            && first > 0
            && *self.canvas.slot(first) == Slot::Open
    }

    /// Whether a filled slot of the block may still be overwritten. One that was handed over is scored by a row that is
    /// not fed any more: it stays.
    fn is_editable(&self, block: &Block, position: usize) -> bool {
        let is_scored = match self.config.shape {
            Shape::Whole { .. } => true,
            Shape::Units { .. } => position >= block.unit.start + self.ahead() || block.unit.start == 0,
        };
        self.editing().is_some() && is_scored && matches!(self.canvas.slot(position), Slot::Decided(_))
    }

    /// Slots of the block that want a score, from the first to the last; none if the block is done.
    fn wanted(&self, block: &Block) -> Range<usize> {
        let is_wanted =
            |position: &usize| *self.canvas.slot(*position) == Slot::Open || self.is_editable(block, *position);
        match (block.slots.clone().find(is_wanted), block.slots.clone().rev().find(is_wanted)) {
            (Some(first), Some(last)) => first..last + 1,
            _ => block.slots.end..block.slots.end,
        }
    }

    /// Rows and slots of the next pass, with `kv_len` valid positions.
    fn span(&self, block: &Block, kv_len: usize) -> Span {
        if self.hands_over(block) {
            let first = block.unit.start;
            // The last row of the unit before is needed, whatever is valid.
            let start = self.base(kv_len).min(self.canvas.unit_of(first - 1).start);
            return Span { rows: start..first, slots: first..first + 1 };
        }
        let slots = self.wanted(block);
        let total = self.canvas.tokens().len();
        let cached = self.cached_for == Some(block.index) && kv_len == total;
        let before = block.slots.start.saturating_sub(self.ahead());
        let rows = match (self.config.shape, self.config.cache) {
            (Shape::Whole { .. }, CacheMode::Prefix) if cached => before..total,
            (Shape::Whole { .. }, CacheMode::Dual) if cached => before..block.slots.end,
            (Shape::Whole { .. }, _) => 0..total,
            (Shape::Units { .. }, _) => self.base(kv_len).min(block.unit.start)..block.unit.end,
        };
        Span { rows, slots }
    }

    /// Where a growing canvas goes on.
    fn base(&self, kv_len: usize) -> usize {
        if self.config.cache == CacheMode::Block { kv_len } else { 0 }
    }

    fn visibility(&self) -> Visibility {
        match self.config.shape {
            Shape::Whole { .. } => Visibility::Through(self.canvas.tokens().len()),
            Shape::Units { unit_len, origin, .. } => Visibility::Blocks { origin, block_len: unit_len },
        }
    }

    /// A chunk of finished blocks, if the pass with scores would need more than `row_cap` rows.
    fn chunk(&self, span: &Span, row_cap: usize) -> Option<Range<usize>> {
        let start = span.rows.start;
        let is_growing = matches!(self.config.shape, Shape::Units { .. }) && self.config.cache == CacheMode::Block;
        if !is_growing || span.rows.len() <= row_cap {
            return None;
        }
        // Whole units before the one that is scored, or that hands over.
        let limit = self.canvas.unit_of(span.rows.end - 1).start;
        let fits = self.canvas.unit_of(start + row_cap).start;
        let end = fits.max(self.canvas.unit_of(start).end).min(limit);
        (end > start).then_some(start..end)
    }

    fn apply(&mut self, block: &Block, first: usize, scores: Vec<TokenScore>) -> CanvasChange {
        let mut scores: Vec<Option<TokenScore>> = scores.into_iter().map(Some).collect();
        let mut fixed = Vec::new();
        let num_open = self.canvas.num_open(block.slots.clone());
        let mut candidates = Vec::new();
        let mut edited = Vec::new();
        for (position, score) in (first..).zip(&scores) {
            let Some(score) = score else { continue };
            let confidence = score.confidence.unwrap_or(0.0);
            match self.canvas.slot(position) {
                Slot::Open => candidates.push(Candidate { position, confidence }),
                Slot::Decided(old)
                    if old.token != score.token
                        && self.is_editable(block, position)
                        && self.editing().is_some_and(|(threshold, _)| confidence > threshold) =>
                {
                    edited.push(position);
                }
                _ => {}
            }
        }
        let chosen = match self.hands_over(block) {
            true => candidates.iter().enumerate().map(|(index, _)| (index, Rule::Top)).collect(),
            false => self.policy.select(&candidates),
        };
        for (index, rule) in chosen {
            match rule {
                Rule::Top => self.counts.top += 1,
                Rule::Anchor => self.counts.anchor += 1,
                Rule::Relaxed => self.counts.relaxed += 1,
            }
            fixed.push(candidates[index].position);
        }
        self.edits += edited.len();
        if self.editing().is_some() && num_open == 0 {
            self.post_steps = if edited.is_empty() { usize::MAX } else { self.post_steps + 1 };
        }
        fixed.extend(edited);
        fixed.sort_unstable();
        for &position in &fixed {
            if let Some(score) = scores[position - first].take() {
                self.canvas.fill(position, score);
            }
        }
        let slot = |&position: &usize| (position - self.prompt_len, self.canvas.tokens()[position]);
        CanvasChange {
            fixed: fixed.iter().map(slot).collect(),
            step: self.steps,
            block: block.index,
            committed: 0,
            masked: 0,
        }
    }

    /// Whether nothing in the block can change any more.
    fn is_done(&self, block: &Block) -> bool {
        let is_settled = match self.editing() {
            Some((_, max_post_steps)) => {
                self.post_steps >= max_post_steps
                    || !block.slots.clone().any(|position| self.is_editable(block, position))
            }
            None => true,
        };
        self.canvas.num_open(block.slots.clone()) == 0 && is_settled
    }

    fn kv_effect(&self, block: &Block) -> KvEffect {
        match (self.config.shape, self.config.cache) {
            (Shape::Whole { .. }, CacheMode::Prefix | CacheMode::Dual) => {
                KvEffect::Truncate(self.canvas.tokens().len())
            }
            (Shape::Units { .. }, CacheMode::Block) => KvEffect::Truncate(block.unit.start),
            _ => KvEffect::Refresh,
        }
    }
}

impl Decoder for Diffusion {
    fn name(&self) -> &'static str {
        "diffusion"
    }

    fn demand(&self, seq: &SeqView<'_>) -> RowDemand {
        let Some(block) = self.canvas.block() else { return RowDemand::Whole(1) };
        let span = self.span(block, seq.kv_len);
        let rows = span.rows.len();
        // The unit before is fed together with the one that is decoded; what is older is read in chunks.
        match (self.config.shape, self.config.cache) {
            (Shape::Units { unit_len, .. }, CacheMode::Block) if rows > 2 * unit_len => {
                RowDemand::Chunks { forced: rows, least: unit_len }
            }
            _ => RowDemand::Whole(rows),
        }
    }

    fn plan(&self, seq: &SeqView<'_>) -> StepPlan {
        let tokens = self.canvas.tokens();
        let visibility = self.visibility();
        let Some(block) = self.canvas.block() else {
            // Nothing is left to decide; `judge` says so.
            let tokens = tokens[..1].to_vec();
            return StepPlan {
                start: 0,
                tokens,
                visibility: Visibility::Causal,
                scored: 0..0,
                reading: Reading::InOrder,
            };
        };
        let span = self.span(block, seq.kv_len);
        if let RowDemand::Chunks { .. } = self.demand(seq)
            && let Some(rows) = self.chunk(&span, seq.row_cap)
        {
            let tokens = tokens[rows.clone()].to_vec();
            return StepPlan { start: rows.start, tokens, visibility, scored: 0..0, reading: Reading::InOrder };
        }
        let row_of = |position: usize| position - self.ahead() - span.rows.start;
        StepPlan {
            start: span.rows.start,
            tokens: tokens[span.rows.clone()].to_vec(),
            visibility,
            scored: row_of(span.slots.start)..row_of(span.slots.end),
            reading: Reading::Canvas(CanvasReading {
                decided: self.canvas.decided(),
                step: self.steps as u64,
                confidence: self.config.confidence,
                suppress_eos: self.config.suppress_eos,
            }),
        }
    }

    fn judge(
        &mut self,
        seq: &SeqView<'_>,
        plan: &StepPlan,
        scores: Vec<TokenScore>,
    ) -> Result<StepOutcome, DecodeError> {
        expect_scores(plan, &scores)?;
        let Some(block) = self.canvas.block().cloned() else { return Err(DecodeError::CanvasFull) };
        if scores.is_empty() {
            return Ok(StepOutcome::prefilled());
        }
        self.steps += 1;
        // The block that follows the end of a text is opened and never decoded.
        self.blocks = block.index + 1;
        let kv = self.kv_effect(&block);
        if matches!(kv, KvEffect::Truncate(_)) && plan.start == 0 {
            self.cached_for = Some(block.index);
        }
        let first = plan.start + plan.scored.start + self.ahead();
        let mut change = self.apply(&block, first, scores);
        let done = self.is_done(&block);
        // What may still be edited does not leave.
        let hold_from = if self.editing().is_some() && !done { block.slots.start } else { usize::MAX };
        let commits = self.canvas.release(&seq.ends, self.config.early_stop, hold_from);
        change.committed = self.canvas.num_released(self.prompt_len);
        change.masked = self.canvas.num_masked();
        if self.is_done(&block) {
            self.canvas.advance();
            self.begin_block();
        }
        Ok(StepOutcome { commits, kv, canvas: Some(change) })
    }

    fn kv_use(&self) -> KvUse {
        match (self.config.shape, self.config.cache, self.config.attention) {
            (Shape::Whole { .. }, ..) => KvUse::Fixed(self.canvas.tokens().len()),
            // Pages begin at position 0, and so must the blocks of what is shared.
            (Shape::Units { unit_len, origin: 0, .. }, CacheMode::Block, AttentionKind::BlockCausal { .. }) => {
                KvUse::Growing { border: Some(unit_len) }
            }
            (Shape::Units { .. }, CacheMode::Block, _) => KvUse::Growing { border: None },
            (Shape::Units { .. }, ..) => KvUse::Scratch,
        }
    }

    fn shareable<'a>(&self, tokens: &'a [TokenId]) -> &'a [TokenId] {
        // The unit of the next slot is fed, and so is the row that scores its first slot.
        &tokens[..self.canvas.unit_of(tokens.len() - self.ahead()).start]
    }

    fn capacity(&self) -> Option<usize> {
        self.config.capacity()
    }

    fn diffusion(&self) -> Option<DiffusionStats> {
        Some(DiffusionStats {
            denoising_steps: self.steps,
            blocks: self.blocks,
            commits: self.counts,
            edits: self.edits,
            policy: self.config.policy.kind(),
            cache: self.config.cache,
        })
    }
}
