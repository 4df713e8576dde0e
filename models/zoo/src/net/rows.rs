//! Packed rows: several sequences side by side in one pass, without padding.

use std::ops::Range;

/// What a pass reads: tokens with their positions, and which rows each row sees.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// Positions in the sequence, `[rows]`.
    pub positions: Vec<u32>,
    /// Rows that each row sees, as two ranges of rows of the pack; either may be empty. `[rows]`
    pub sees: Vec<[Range<usize>; 2]>,
    /// Rows that belong together; no row sees another group.
    pub groups: Vec<Range<usize>>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds a row that sees the two ranges.
    pub fn push(&mut self, token: u32, position: usize, sees: [Range<usize>; 2]) {
        self.tokens.push(token);
        self.positions.push(position as u32);
        self.sees.push(sees);
    }

    /// Ends the group that began at row `start`.
    pub fn close(&mut self, start: usize) {
        self.groups.push(start..self.len());
    }

    /// Adds a sequence in which every row sees itself and those before it; returns its first row.
    pub fn push_causal(&mut self, tokens: &[u32]) -> usize {
        let start = self.len();
        for (at, token) in tokens.iter().enumerate() {
            self.push(*token, at, [start..start + at + 1, 0..0]);
        }
        start
    }

    /// Adds a sequence in which every row sees every other; returns its first row.
    pub fn push_full(&mut self, tokens: &[u32]) -> usize {
        let start = self.len();
        for (at, token) in tokens.iter().enumerate() {
            self.push(*token, at, [start..start + tokens.len(), 0..0]);
        }
        start
    }

    /// Adds a sequence in which a row sees its block of `block_len` and the blocks before it; returns its first row.
    pub fn push_blocks(&mut self, tokens: &[u32], block_len: usize) -> usize {
        let start = self.len();
        for (at, token) in tokens.iter().enumerate() {
            let end = ((at / block_len + 1) * block_len).min(tokens.len());
            self.push(*token, at, [start..start + end, 0..0]);
        }
        start
    }
}
