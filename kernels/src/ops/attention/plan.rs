//! Which row sees which positions, and where the positions lie. Built once per forward pass, shared by all layers.

use std::sync::Arc;

use crate::KernelError;

const OP: &str = "attention plan";

/// One row of the packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRow {
    /// Index of the row's page table.
    pub table: usize,
    /// Position of the row: where its keys and values are written and how far they are rotated.
    pub position: usize,
    /// The row sees positions `0..visible_end`.
    pub visible_end: usize,
}

/// Page tables and rows of one forward pass. Cloning shares the data.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tables: Vec<Vec<u32>>,
    rows: Vec<PlanRow>,
    page_len: usize,
    /// One past the largest page used; 0 without pages.
    page_end: usize,
    /// One past the largest position written; 0 without rows.
    position_end: usize,
}

impl AttentionPlan {
    /// Checks that each row's own position and all positions that it sees lie in its table. Whether the pages exist is
    /// checked against the cache when the plan is used.
    pub fn new(tables: Vec<Vec<u32>>, rows: Vec<PlanRow>, page_len: usize) -> Result<Self, KernelError> {
        if page_len == 0 {
            return Err(KernelError::Zero { op: OP, what: "page_len" });
        }
        for row in &rows {
            let table = tables.get(row.table).ok_or(KernelError::OutOfRange {
                op: OP,
                what: "page table",
                index: row.table,
                len: tables.len(),
            })?;
            let capacity =
                table.len().checked_mul(page_len).ok_or(KernelError::Overflow { op: OP, what: "page table" })?;
            if row.position >= capacity {
                return Err(KernelError::OutOfRange { op: OP, what: "position", index: row.position, len: capacity });
            }
            if row.visible_end == 0 {
                return Err(KernelError::Zero { op: OP, what: "visible_end" });
            }
            if row.visible_end > capacity {
                let index = row.visible_end - 1;
                return Err(KernelError::OutOfRange { op: OP, what: "visible position", index, len: capacity });
            }
        }
        let page_end = tables.iter().flatten().map(|&page| page as usize + 1).max().unwrap_or(0);
        let position_end = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        Ok(Self { inner: Arc::new(Inner { tables, rows, page_len, page_end, position_end }) })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.inner.rows.len()
    }

    /// The rows, in batch order.
    pub fn rows(&self) -> &[PlanRow] {
        &self.inner.rows
    }

    /// Positions per page.
    pub fn page_len(&self) -> usize {
        self.inner.page_len
    }

    /// The pages of a row's sequence, in order of position.
    pub fn pages(&self, row: &PlanRow) -> &[u32] {
        &self.inner.tables[row.table]
    }

    /// All page tables.
    pub(crate) fn tables(&self) -> &[Vec<u32>] {
        &self.inner.tables
    }

    /// One past the largest page of any table.
    pub(crate) fn page_end(&self) -> usize {
        self.inner.page_end
    }

    /// One past the largest position of any row.
    pub(crate) fn position_end(&self) -> usize {
        self.inner.position_end
    }
}
