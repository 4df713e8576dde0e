//! Which row of local linear attention sees which positions, and where the positions lie.

use std::{num::NonZeroUsize, ops::Range, sync::Arc};

use crate::{KernelError, ops::attention::AttentionPlan};

const OP: &str = "lla plan";

/// One row of the packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlaRow {
    /// Index of the row's page table.
    pub table: usize,
    /// First position that the row sees.
    pub visible_start: usize,
    /// One past the last position that the row sees. A row with `visible_start == visible_end` sees nothing.
    pub visible_end: usize,
}

/// New rows of one sequence whose keys and values lie in a contiguous tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlaSequence {
    /// Position of the first new row; the positions before it are cached.
    pub position: usize,
    /// New rows; row `i` sees positions up to and including `position + i`.
    pub num_rows: usize,
}

/// Page tables and rows of one forward pass. Cloning shares the data.
///
/// Any set of visible keys can be said with it: a window or a packed batch by the range of a row, a contiguous tensor
/// `[batch, kv_heads, len, dim]` as one page of `len` positions for each sequence, an arbitrary mask by pages of one
/// position and a table for each row.
#[derive(Debug, Clone)]
pub struct LlaPlan {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tables: Vec<Vec<u32>>,
    rows: Vec<LlaRow>,
    page_len: usize,
    /// One past the largest page used; 0 without pages.
    page_end: usize,
}

impl LlaPlan {
    /// Checks that the positions that each row sees lie in its table. Whether the pages exist is checked against the
    /// caches when the plan is used.
    pub fn new(tables: Vec<Vec<u32>>, rows: Vec<LlaRow>, page_len: usize) -> Result<Self, KernelError> {
        if page_len == 0 {
            return Err(KernelError::Zero { op: OP, what: "page_len" });
        }
        for row in &rows {
            let (index, len) = (row.table, tables.len());
            let table = tables.get(index).ok_or(KernelError::OutOfRange { op: OP, what: "page table", index, len })?;
            let capacity =
                table.len().checked_mul(page_len).ok_or(KernelError::Overflow { op: OP, what: "page table" })?;
            if row.visible_start > row.visible_end {
                let (index, len) = (row.visible_start, row.visible_end);
                return Err(KernelError::OutOfRange { op: OP, what: "visible_start", index, len });
            }
            if row.visible_end > capacity {
                let index = row.visible_end - 1;
                return Err(KernelError::OutOfRange { op: OP, what: "visible position", index, len: capacity });
            }
        }
        Ok(Self::build(tables, rows, page_len))
    }

    /// The rows of `plan`, each with the last `window` positions of what it sees there, or with all of them.
    pub fn from_attention(plan: &AttentionPlan, window: Option<NonZeroUsize>) -> Self {
        let rows = plan.rows().iter().map(|row| row_ending_at(row.table, row.visible_end, window)).collect();
        Self::build(plan.tables().to_vec(), rows, plan.page_len())
    }

    /// Causal rows over contiguous keys and values, `[sequences, kv_heads, key_len, dim]`: the rows of the first
    /// sequence, then those of the second, and so on, each with the last `window` positions up to its own, or with all
    /// of them. Sequences may have different positions and row counts.
    pub fn contiguous(
        sequences: &[LlaSequence],
        key_len: usize,
        window: Option<NonZeroUsize>,
    ) -> Result<Self, KernelError> {
        let mut rows = Vec::new();
        for (table, sequence) in sequences.iter().enumerate() {
            let end = sequence.position.checked_add(sequence.num_rows);
            let end = end.ok_or(KernelError::Overflow { op: OP, what: "position" })?;
            // Before so many rows are made.
            if end > key_len {
                return Err(KernelError::OutOfRange { op: OP, what: "position", index: end - 1, len: key_len });
            }
            rows.extend((sequence.position..end).map(|position| row_ending_at(table, position + 1, window)));
        }
        let pages = u32::try_from(sequences.len()).map_err(|_| KernelError::Overflow { op: OP, what: "sequences" })?;
        Self::new((0..pages).map(|page| vec![page]).collect(), rows, key_len)
    }

    fn build(tables: Vec<Vec<u32>>, rows: Vec<LlaRow>, page_len: usize) -> Self {
        let page_end = tables.iter().flatten().map(|&page| page as usize + 1).max().unwrap_or(0);
        Self { inner: Arc::new(Inner { tables, rows, page_len, page_end }) }
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.inner.rows.len()
    }

    /// The rows, in batch order.
    pub fn rows(&self) -> &[LlaRow] {
        &self.inner.rows
    }

    /// Positions per page.
    pub fn page_len(&self) -> usize {
        self.inner.page_len
    }

    /// All page tables.
    pub(super) fn tables(&self) -> &[Vec<u32>] {
        &self.inner.tables
    }

    /// One past the largest page of any table.
    pub(super) fn page_end(&self) -> usize {
        self.inner.page_end
    }

    /// Where `position` of a table lies in a cache `[pages, kv_heads, page_len, dim]`, in rows of `dim` values.
    pub(super) fn slot(&self, table: usize, position: usize, (kv_head, num_kv_heads): (usize, usize)) -> usize {
        let page_len = self.inner.page_len;
        let page = self.inner.tables[table][position / page_len] as usize;
        (page * num_kv_heads + kv_head) * page_len + position % page_len
    }

    /// How many of `positions` of a table, from the first on, follow each other in a cache, and [`Self::slot`] of the
    /// first.
    pub(super) fn run(&self, table: usize, positions: Range<usize>, kv_head: (usize, usize)) -> (usize, usize) {
        let rest = self.inner.page_len - positions.start % self.inner.page_len;
        (positions.len().min(rest), self.slot(table, positions.start, kv_head))
    }
}

fn row_ending_at(table: usize, visible_end: usize, window: Option<NonZeroUsize>) -> LlaRow {
    let visible_start = window.map_or(0, |window| visible_end.saturating_sub(window.get()));
    LlaRow { table, visible_start, visible_end }
}
