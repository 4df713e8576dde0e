//! The part of the output matrix that one weight matrix fills.

use crate::cpu::{LANES, SharedSlice};

/// Columns `offset..offset + width` of a row-major matrix with `stride` columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) ys: SharedSlice<'a, f32>,
    pub(super) stride: usize,
    pub(super) offset: usize,
    pub(super) width: usize,
}

impl Output<'_> {
    /// Writes the sixteen columns of a panel in one row; columns past the width are padding.
    ///
    /// # Safety
    /// No other thread may write the same row and panel.
    #[inline(always)]
    pub(super) unsafe fn write(&self, row: usize, panel: usize, values: &[f32; LANES]) {
        let first = panel * LANES;
        let count = LANES.min(self.width - first);
        // SAFETY: panels and rows do not overlap, and the caller has this one to itself.
        let to = unsafe { self.ys.part(row * self.stride + self.offset + first, count) };
        to.copy_from_slice(&values[..count]);
    }
}
