//! The two products that every pass over the keys is made of, for four queries and a strip of positions:
//!
//! - scores `Z = X K^T`: a chain of fused multiply-adds over the dimensions for each query and key;
//! - sums `Y K` or `Y V`: a chain over the visible positions of the strip, added to the sums of earlier strips.
//!
//! Both are the same for a query whatever other queries share the tile. Nothing that a query does not see enters its
//! sums: factors are selected, not multiplied by zero, and sums run over its positions only.

#![expect(clippy::needless_range_loop, reason = "tiles of registers are indexed alike, by constants")]

use std::ops::Range;

use super::segment::{Lanes, Sums};
use crate::cpu::{LANES, Simd};

/// Positions whose keys stay in the innermost cache while all queries use them; also where chains of additions end.
pub(super) const STRIP_LEN: usize = 64;
/// Vectors of positions per strip.
pub(super) const STRIP_VECTORS: usize = STRIP_LEN / LANES;
/// Queries that go through a product together; lists of queries are padded to a multiple of it.
pub(super) const QUERY_TILE: usize = 4;

/// Keys or values of all pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    /// Values per row.
    pub(super) dim: usize,
}

impl Matrix<'_> {
    /// Vectors per row.
    pub(super) fn vectors(&self) -> usize {
        self.dim.div_ceil(LANES)
    }
}

/// Four queries and a strip of positions.
#[derive(Debug)]
pub(super) struct Strip<'a> {
    /// Factors of the positions, `[strip]` for each query.
    pub(super) factors: [&'a [f32]; QUERY_TILE],
    /// Positions that each query sees, from the start of the strip.
    pub(super) visible: [Range<usize>; QUERY_TILE],
    /// Where the positions lie in the caches, in rows, from the start of the strip.
    pub(super) slots: &'a [usize],
}

/// The values of a query as numbers.
#[inline(always)]
pub(super) fn row_of(rows: &[Lanes], query: usize, vectors: usize) -> &[f32] {
    rows[query * vectors..][..vectors].as_flattened()
}

/// `value` in the lanes of vector `vector` whose positions are in `visible`, `other` in the rest.
#[inline(always)]
pub(super) fn select<S: Simd>(simd: S, visible: &Range<usize>, vector: usize, value: S::F, other: S::F) -> S::F {
    let (start, end) = (visible.start.saturating_sub(vector * LANES), visible.end.saturating_sub(vector * LANES));
    simd.first(start, other, simd.first(end, value, other))
}

/// Values `LANES * vector..` of a head, zeros past its end.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, head: &[f32], vector: usize) -> S::F {
    let rest = &head[vector * LANES..];
    match rest.first_chunk::<LANES>() {
        Some(values) => simd.load(values),
        None => {
            let mut values = [0.0; LANES];
            values[..rest.len()].copy_from_slice(rest);
            simd.load(&values)
        }
    }
}

/// Scores of four rows of `left` with the turned keys of a strip.
#[inline(always)]
pub(super) fn project<S: Simd>(
    simd: S,
    turned: &[Lanes],
    left: [&[f32]; QUERY_TILE],
    dim: usize,
    strip: usize,
) -> [[Lanes; STRIP_VECTORS]; QUERY_TILE] {
    let mut out = [[[0.0; LANES]; STRIP_VECTORS]; QUERY_TILE];
    let turned = &turned[strip * STRIP_VECTORS * dim..][..STRIP_VECTORS * dim];
    if S::TILE_ROWS >= 8 {
        project_vectors::<S, 4>(simd, turned, left, dim, 0, &mut out);
    } else {
        for vector in 0..STRIP_VECTORS {
            project_vectors::<S, 1>(simd, turned, left, dim, vector, &mut out);
        }
    }
    out
}

/// [`project`] for vectors `vector..vector + V` of the strip.
#[inline(always)]
fn project_vectors<S: Simd, const V: usize>(
    simd: S,
    turned: &[Lanes],
    left: [&[f32]; QUERY_TILE],
    dim: usize,
    vector: usize,
    out: &mut [[Lanes; STRIP_VECTORS]; QUERY_TILE],
) {
    let mut keys: [&[Lanes]; V] = [&[]; V];
    for v in 0..V {
        keys[v] = &turned[(vector + v) * dim..][..dim];
    }
    let left = left.map(|row| &row[..dim]);
    let mut sums = [[simd.splat(0.0); V]; QUERY_TILE];
    for d in 0..dim {
        let mut key = [simd.splat(0.0); V];
        for v in 0..V {
            key[v] = simd.load(&keys[v][d]);
        }
        for q in 0..QUERY_TILE {
            let x = simd.splat(left[q][d]);
            for v in 0..V {
                sums[q][v] = simd.fma(key[v], x, sums[q][v]);
            }
        }
    }
    for q in 0..QUERY_TILE {
        for v in 0..V {
            simd.store(&mut out[q][vector + v], sums[q][v]);
        }
    }
}

/// Adds to `sums` the rows of `matrix` times the factors of a strip.
#[inline(always)]
pub(super) fn gather_all<S: Simd>(
    simd: S,
    strip: &Strip<'_>,
    matrix: Matrix<'_>,
    quad: &[usize; QUERY_TILE],
    sums: &mut Sums,
) {
    let vectors = matrix.vectors();
    let mut vector = 0;
    while vector < vectors {
        vector += match vectors - vector {
            4.. if S::TILE_ROWS >= 8 => gather::<S, 4>(simd, strip, matrix, quad, vector, sums),
            2..4 if S::TILE_ROWS >= 8 => gather::<S, 2>(simd, strip, matrix, quad, vector, sums),
            _ => gather::<S, 1>(simd, strip, matrix, quad, vector, sums),
        };
    }
}

/// [`gather_all`] for vectors `vector..vector + V` of the rows; returns `V`.
#[inline(always)]
fn gather<S: Simd, const V: usize>(
    simd: S,
    strip: &Strip<'_>,
    matrix: Matrix<'_>,
    quad: &[usize; QUERY_TILE],
    vector: usize,
    sums: &mut Sums,
) -> usize {
    // The positions that all queries see go through together; those that see nothing must not hold up the others.
    let seen = || strip.visible.iter().filter(|visible| !visible.is_empty());
    let start = seen().map(|visible| visible.start).max().unwrap_or(0);
    let end = seen().map(|visible| visible.end).min().unwrap_or(0).max(start);
    let mut total = [[simd.splat(0.0); V]; QUERY_TILE];
    for q in 0..QUERY_TILE {
        let visible = &strip.visible[q];
        for position in visible.start..visible.end.min(start) {
            total[q] = add_row::<S, V>(simd, strip, matrix, (q, position, vector), total[q]);
        }
    }
    let shared = strip.factors.map(|factors| &factors[start..end]);
    let blind = strip.visible.each_ref().map(|visible| visible.is_empty());
    for (i, &slot) in strip.slots.get(start..end).unwrap_or(&[]).iter().enumerate() {
        let row = &matrix.data[slot * matrix.dim..][..matrix.dim];
        let mut x = [simd.splat(0.0); V];
        for v in 0..V {
            x[v] = load(simd, row, vector + v);
        }
        for q in 0..QUERY_TILE {
            let factor = simd.splat(shared[q][i]);
            for v in 0..V {
                total[q][v] = simd.fma(factor, x[v], total[q][v]);
            }
        }
    }
    for q in 0..QUERY_TILE {
        if blind[q] {
            continue;
        }
        let visible = &strip.visible[q];
        for position in visible.start.max(end)..visible.end {
            total[q] = add_row::<S, V>(simd, strip, matrix, (q, position, vector), total[q]);
        }
        for v in 0..V {
            let sum = &mut sums.rows[quad[q] * sums.vectors + vector + v];
            let added = simd.add(simd.load(sum), total[q][v]);
            simd.store(sum, added);
        }
    }
    V
}

/// Adds one position to the sums of query `q` of four.
#[inline(always)]
fn add_row<S: Simd, const V: usize>(
    simd: S,
    strip: &Strip<'_>,
    matrix: Matrix<'_>,
    (q, position, vector): (usize, usize, usize),
    mut total: [S::F; V],
) -> [S::F; V] {
    let row = &matrix.data[strip.slots[position] * matrix.dim..][..matrix.dim];
    let factor = simd.splat(strip.factors[q][position]);
    for v in 0..V {
        total[v] = simd.fma(factor, load(simd, row, vector + v), total[v]);
    }
    total
}
