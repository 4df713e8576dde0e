//! Splitting rows among threads.

use rayon::prelude::*;

/// Values below which a second thread costs more than it saves.
const PARALLEL_VALUES: usize = 1 << 15;

/// Calls `body` with runs of whole rows of `out` and the index of the first row of each.
pub(crate) fn for_rows(out: &mut [f32], row_len: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < PARALLEL_VALUES || rayon::current_num_threads() == 1 {
        body(0, out);
        return;
    }
    let rows_per_piece = (PARALLEL_VALUES / 4).div_ceil(row_len.max(1));
    out.par_chunks_mut(rows_per_piece * row_len)
        .enumerate()
        .for_each(|(piece, rows)| body(piece * rows_per_piece, rows));
}
