//! The canvas: which slots are decided, which block is being decoded, and what may leave to the left.

use std::ops::Range;

use models::TokenId;

use crate::{
    decode::{EndRule, TokenScore},
    request::{EarlyStop, InfillPart},
};

/// What a position of the canvas is. Positions are absolute: those of the prompt come first.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Slot {
    /// A token of the request, or one that has left.
    Given,
    /// Masked.
    Open,
    /// Filled, and still here.
    Decided(TokenScore),
    /// Behind the end of its text.
    Closed,
}

/// How a canvas is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Full attention: all of it is there from the start; each hole is worked off in blocks of `block_len`.
    Whole { block_len: usize },
    /// Block-causal attention: it grows by units of `unit_len`, counted from `origin`, up to position `end`; each unit
    /// is worked off in blocks of `block_len`.
    Units { unit_len: usize, origin: usize, block_len: usize, end: usize },
}

/// The block that is being decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Number of blocks before it.
    pub(super) index: usize,
    /// Its positions.
    pub(super) slots: Range<usize>,
    /// Positions that see each other: the unit around the block, or the whole canvas.
    pub(super) unit: Range<usize>,
}

/// Tokens and slots of one sequence.
#[derive(Debug)]
pub(super) struct Canvas {
    mask_id: TokenId,
    shape: Shape,
    /// Token by position; the mask token where a slot is open.
    tokens: Vec<TokenId>,
    slots: Vec<Slot>,
    /// Positions to fill, ascending.
    holes: Vec<Range<usize>>,
    /// `None` once nothing is open and nothing can grow.
    block: Option<Block>,
    num_begun: usize,
    /// Everything before this position has left.
    released: usize,
}

impl Canvas {
    /// The prompt, followed by `parts` (whole canvases) or by whatever comes (units).
    pub(super) fn new(prompt: &[TokenId], parts: &[InfillPart], shape: Shape, mask_id: TokenId) -> Self {
        let mut tokens = prompt.to_vec();
        let mut slots = vec![Slot::Given; prompt.len()];
        let mut holes = Vec::new();
        for part in parts {
            match part {
                InfillPart::Fixed(given) => {
                    tokens.extend_from_slice(given);
                    slots.resize(tokens.len(), Slot::Given);
                }
                InfillPart::Hole(len) => {
                    holes.push(tokens.len()..tokens.len() + len);
                    tokens.resize(tokens.len() + len, mask_id);
                    slots.resize(tokens.len(), Slot::Open);
                }
            }
        }
        if let Shape::Units { end, .. } = shape {
            holes.push(prompt.len()..end);
        }
        let mut canvas =
            Self { mask_id, shape, tokens, slots, holes, block: None, num_begun: 0, released: prompt.len() };
        canvas.advance();
        canvas
    }

    /// Tokens by position.
    pub(super) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    pub(super) fn slot(&self, position: usize) -> &Slot {
        &self.slots[position]
    }

    /// The current block.
    pub(super) fn block(&self) -> Option<&Block> {
        self.block.as_ref()
    }

    /// Number of blocks of a whole canvas; 1 where a canvas grows.
    pub(super) fn num_blocks(&self) -> usize {
        match self.shape {
            Shape::Whole { block_len } => self.holes.iter().map(|hole| hole.len().div_ceil(block_len)).sum(),
            Shape::Units { .. } => 1,
        }
    }

    /// Slots behind the prompt that are final from the left.
    pub(super) fn num_released(&self, prompt_len: usize) -> usize {
        self.released - prompt_len
    }

    /// Undecided slots within `range`.
    pub(super) fn num_open(&self, range: Range<usize>) -> usize {
        self.slots[range].iter().filter(|slot| **slot == Slot::Open).count()
    }

    /// Undecided slots.
    pub(super) fn num_masked(&self) -> usize {
        self.num_open(0..self.slots.len())
    }

    /// Filled tokens that have not left.
    pub(super) fn decided(&self) -> Vec<TokenId> {
        let pairs = self.tokens.iter().zip(&self.slots).skip(self.released);
        pairs.filter(|(_, slot)| matches!(slot, Slot::Decided(_))).map(|(token, _)| *token).collect()
    }

    /// Fills or overwrites a slot.
    pub(super) fn fill(&mut self, position: usize, score: TokenScore) {
        self.tokens[position] = score.token;
        self.slots[position] = Slot::Decided(score);
    }

    /// The unit that holds `position`.
    pub(super) fn unit_of(&self, position: usize) -> Range<usize> {
        match self.shape {
            Shape::Whole { .. } => 0..self.tokens.len(),
            Shape::Units { unit_len, origin, end, .. } => match position.checked_sub(origin) {
                None => 0..origin.min(end),
                Some(offset) => {
                    let start = origin + offset / unit_len * unit_len;
                    start..(start + unit_len).min(end)
                }
            },
        }
    }

    /// Moves to the block of the first open slot; a growing canvas grows if there is none.
    pub(super) fn advance(&mut self) {
        let open = self.slots.iter().skip(self.released).position(|slot| *slot == Slot::Open);
        let open = open.map(|offset| self.released + offset);
        let index = self.num_begun;
        self.block = match self.shape {
            Shape::Whole { block_len } => open.and_then(|position| {
                let hole = self.hole_of(position)?;
                let start = hole.start + (position - hole.start) / block_len * block_len;
                let slots = start..(start + block_len).min(hole.end);
                Some(Block { index, slots, unit: 0..self.tokens.len() })
            }),
            Shape::Units { block_len, end, .. } => {
                let position = open.unwrap_or(self.tokens.len());
                (position < end).then(|| {
                    let unit = self.unit_of(position);
                    if self.tokens.len() < unit.end {
                        self.tokens.resize(unit.end, self.mask_id);
                        self.slots.resize(unit.end, Slot::Open);
                    }
                    let start = unit.start + (position - unit.start) / block_len * block_len;
                    Block { index, slots: start..(start + block_len).min(unit.end), unit }
                })
            }
        };
        self.num_begun += usize::from(self.block.is_some());
    }

    /// Takes what is final from the left. Nothing from `hold_from` on leaves. A token that ends its text closes the rest
    /// of its hole, when `early_stop` allows it.
    pub(super) fn release(&mut self, ends: &EndRule<'_>, early_stop: EarlyStop, hold_from: usize) -> Vec<TokenScore> {
        let mut released = Vec::new();
        while self.released < self.slots.len().min(hold_from) {
            let position = self.released;
            match &self.slots[position] {
                Slot::Open => break,
                Slot::Given | Slot::Closed => {}
                Slot::Decided(score) => {
                    let score = score.clone();
                    let hole = self.hole_of(position).unwrap_or(position..position + 1);
                    if ends.is_end(score.token, position - hole.start) {
                        if !self.may_end(position, &hole, early_stop) {
                            break;
                        }
                        self.close(position + 1..hole.end, score.token);
                    }
                    released.push(score);
                    self.slots[position] = Slot::Given;
                }
            }
            self.released += 1;
        }
        released
    }

    /// Whether the text of `hole` may end at `position`.
    fn may_end(&self, position: usize, hole: &Range<usize>, early_stop: EarlyStop) -> bool {
        match early_stop {
            EarlyStop::Prefix => true,
            EarlyStop::Block => {
                let range = match self.shape {
                    Shape::Whole { block_len } => {
                        let start = hole.start + (position - hole.start) / block_len * block_len;
                        start..(start + block_len).min(hole.end)
                    }
                    Shape::Units { .. } => self.unit_of(position),
                };
                self.num_open(range) == 0
            }
            EarlyStop::None => hole.end <= self.slots.len() && self.num_open(hole.clone()) == 0,
        }
    }

    /// Nothing behind the end of a text is decided any more: open slots become end tokens.
    fn close(&mut self, range: Range<usize>, end_token: TokenId) {
        for position in range.start..range.end.min(self.slots.len()) {
            if self.slots[position] == Slot::Open {
                self.tokens[position] = end_token;
            }
            self.slots[position] = Slot::Closed;
        }
    }

    fn hole_of(&self, position: usize) -> Option<Range<usize>> {
        self.holes.iter().find(|hole| hole.contains(&position)).cloned()
    }
}
