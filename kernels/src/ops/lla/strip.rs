//! The two products that every pass over the keys is made of, for a group of queries and a strip of positions:
//!
//! - scores `Z = X K^T`: a chain of fused multiply-adds over the dimensions for each query and key;
//! - sums `Y K` or `Y V`: a chain over the visible positions of the strip, added to the sums of earlier strips.
//!
//! Both are the same for a query whatever other queries share the tile. Nothing that a query does not see enters its
//! sums: factors are selected, not multiplied by zero, and sums run over its positions only.

use std::ops::Range;

use super::segment::{Lanes, Sums};
use crate::cpu::{LANES, Simd};

/// Positions whose keys stay in the innermost cache while all queries use them; also where chains of additions end.
pub(super) const STRIP_LEN: usize = 64;
/// Vectors of positions per strip.
pub(super) const STRIP_VECTORS: usize = STRIP_LEN / LANES;
/// Most queries that go through a product together: with two registers for a vector, their sums, a key and a factor fill
/// the sixteen registers of AVX2.
pub(super) const MAX_GROUP: usize = 6;

/// Work on a group of queries and a strip, compiled for every size of a group, so that sums stay in registers.
pub(super) trait OfGroup {
    /// Must be `#[inline(always)]`.
    fn run<S: Simd, const Q: usize>(&mut self, simd: S, group: [usize; Q], strip: usize);
}

/// Runs `work` for all `queries` in groups of about equal size.
#[inline(always)]
pub(super) fn for_groups<S: Simd>(simd: S, queries: &[usize], strip: usize, work: &mut impl OfGroup) {
    let mut rest = queries;
    for groups in (1..=queries.len().div_ceil(MAX_GROUP)).rev() {
        let (group, later) = rest.split_at(rest.len().div_ceil(groups));
        rest = later;
        match *group {
            [a, b, c, d, e, f] => work.run::<S, 6>(simd, [a, b, c, d, e, f], strip),
            [a, b, c, d, e] => work.run::<S, 5>(simd, [a, b, c, d, e], strip),
            [a, b, c, d] => work.run::<S, 4>(simd, [a, b, c, d], strip),
            [a, b, c] => work.run::<S, 3>(simd, [a, b, c], strip),
            [a, b] => work.run::<S, 2>(simd, [a, b], strip),
            [a] => work.run::<S, 1>(simd, [a], strip),
            _ => unreachable!("a group has one to MAX_GROUP queries"),
        }
    }
}

/// Whether `vectors` times `queries` sums, a vector of each operand and a factor fit the registers of the level.
const fn fits<S: Simd>(queries: usize, vectors: usize) -> bool {
    // A level for tiles of eight rows has 32 registers of a whole vector, the others 16 of half a vector.
    if S::TILE_ROWS >= 8 { (queries + 1) * vectors < 32 } else { queries * vectors <= MAX_GROUP }
}

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

/// A group of queries and a strip of positions.
#[derive(Debug)]
pub(super) struct Strip<'a, const Q: usize> {
    /// Factors of the positions.
    pub(super) factors: [[Lanes; STRIP_VECTORS]; Q],
    /// Positions that each query sees, from the start of the strip.
    pub(super) visible: [Range<usize>; Q],
    /// Where the positions lie.
    pub(super) runs: &'a [Run],
}

/// Positions of a strip that follow each other in the caches too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// Counted from the start of the strip.
    pub(super) positions: Range<usize>,
    /// Where the first of them lies, in rows.
    pub(super) slot: usize,
}

impl Run {
    /// Those of `positions` that belong to the run, and their rows of `matrix`.
    #[inline(always)]
    pub(super) fn rows<'a>(
        &self,
        positions: &Range<usize>,
        matrix: Matrix<'a>,
    ) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        // Without common positions, an empty range inside the run.
        let start = self.positions.start.max(positions.start).min(self.positions.end);
        let end = self.positions.end.min(positions.end).max(start);
        let slot = self.slot + (start - self.positions.start);
        let rows = &matrix.data[slot * matrix.dim..][..(end - start) * matrix.dim];
        (start..end).zip(rows.chunks_exact(matrix.dim))
    }
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
    if start == 0 && end >= LANES {
        return value;
    }
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

/// Scores of the rows of `left` with the turned keys of a strip.
#[inline(always)]
pub(super) fn project<S: Simd, const Q: usize>(
    simd: S,
    turned: &[Lanes],
    left: [&[f32]; Q],
    dim: usize,
    strip: usize,
) -> [[Lanes; STRIP_VECTORS]; Q] {
    let mut out = [[[0.0; LANES]; STRIP_VECTORS]; Q];
    let turned = &turned[strip * STRIP_VECTORS * dim..][..STRIP_VECTORS * dim];
    if fits::<S>(Q, 4) {
        project_vectors::<S, Q, 4>(simd, turned, left, dim, 0, &mut out);
    } else if fits::<S>(Q, 2) {
        for vector in (0..STRIP_VECTORS).step_by(2) {
            project_vectors::<S, Q, 2>(simd, turned, left, dim, vector, &mut out);
        }
    } else {
        for vector in 0..STRIP_VECTORS {
            project_vectors::<S, Q, 1>(simd, turned, left, dim, vector, &mut out);
        }
    }
    out
}

/// [`project`] for vectors `vector..vector + V` of the strip.
#[inline(always)]
fn project_vectors<S: Simd, const Q: usize, const V: usize>(
    simd: S,
    turned: &[Lanes],
    left: [&[f32]; Q],
    dim: usize,
    vector: usize,
    out: &mut [[Lanes; STRIP_VECTORS]; Q],
) {
    let mut keys: [&[Lanes]; V] = [&[]; V];
    for v in 0..V {
        keys[v] = &turned[(vector + v) * dim..][..dim];
    }
    let left = left.map(|row| &row[..dim]);
    let mut sums = [[simd.splat(0.0); V]; Q];
    for d in 0..dim {
        let mut key = [simd.splat(0.0); V];
        for v in 0..V {
            key[v] = simd.load(&keys[v][d]);
        }
        for q in 0..Q {
            let x = simd.splat(left[q][d]);
            for v in 0..V {
                sums[q][v] = simd.fma(key[v], x, sums[q][v]);
            }
        }
    }
    for q in 0..Q {
        for v in 0..V {
            simd.store(&mut out[q][vector + v], sums[q][v]);
        }
    }
}

/// Adds to `sums` the rows of `matrix` times the factors of a strip.
#[inline(always)]
pub(super) fn gather<S: Simd, const Q: usize>(
    simd: S,
    strip: &Strip<'_, Q>,
    matrix: Matrix<'_>,
    group: &[usize; Q],
    sums: &mut Sums,
) {
    // The positions that all queries see go through together; those that see nothing must not hold up the others.
    let seen = || strip.visible.iter().filter(|visible| !visible.is_empty());
    let start = seen().map(|visible| visible.start).max().unwrap_or(0);
    let end = seen().map(|visible| visible.end).min().unwrap_or(0).max(start);
    sums.strip.clear();
    sums.strip.resize(Q * sums.vectors, [0.0; LANES]);
    let totals = &mut sums.strip[..];
    for q in 0..Q {
        let visible = &strip.visible[q];
        add_rows(simd, strip, matrix, (q, visible.start..visible.end.min(start)), totals);
    }
    let (whole, mut vector) = (matrix.dim / LANES, 0);
    while vector < whole {
        let left = whole - vector;
        vector += if fits::<S>(Q, 4) && left >= 4 {
            add_shared::<S, Q, 4>(simd, strip, matrix, (start..end, vector), totals)
        } else if fits::<S>(Q, 2) && left >= 2 {
            add_shared::<S, Q, 2>(simd, strip, matrix, (start..end, vector), totals)
        } else {
            add_shared::<S, Q, 1>(simd, strip, matrix, (start..end, vector), totals)
        };
    }
    if whole < sums.vectors {
        add_last(simd, strip, matrix, start..end, totals);
    }
    for q in 0..Q {
        let visible = &strip.visible[q];
        if visible.is_empty() {
            continue;
        }
        add_rows(simd, strip, matrix, (q, visible.start.max(end)..visible.end), totals);
        let rows = &mut sums.rows[group[q] * sums.vectors..][..sums.vectors];
        for (sum, total) in rows.iter_mut().zip(&totals[q * sums.vectors..]) {
            let added = simd.add(simd.load(sum), simd.load(total));
            simd.store(sum, added);
        }
    }
}

/// Adds positions that all queries see to vectors `vector..vector + V`, all of them whole, of `totals`,
/// `[queries, vectors]`; returns `V`.
#[inline(always)]
fn add_shared<S: Simd, const Q: usize, const V: usize>(
    simd: S,
    strip: &Strip<'_, Q>,
    matrix: Matrix<'_>,
    (positions, vector): (Range<usize>, usize),
    totals: &mut [Lanes],
) -> usize {
    let vectors = totals.len() / Q;
    let mut sums = [[simd.splat(0.0); V]; Q];
    for q in 0..Q {
        for v in 0..V {
            sums[q][v] = simd.load(&totals[q * vectors + vector + v]);
        }
    }
    let factors = strip.factors.each_ref().map(|factors| factors.as_flattened());
    for run in strip.runs {
        for (position, row) in run.rows(&positions, matrix) {
            let row = &row[vector * LANES..].as_chunks::<LANES>().0[..V];
            let mut x = [simd.splat(0.0); V];
            for v in 0..V {
                x[v] = simd.load(&row[v]);
            }
            for q in 0..Q {
                let factor = simd.splat(factors[q][position]);
                for v in 0..V {
                    sums[q][v] = simd.fma(factor, x[v], sums[q][v]);
                }
            }
        }
    }
    for q in 0..Q {
        for v in 0..V {
            simd.store(&mut totals[q * vectors + vector + v], sums[q][v]);
        }
    }
    V
}

/// [`add_shared`] for the last vector of rows that do not end with a whole one.
#[inline(always)]
fn add_last<S: Simd, const Q: usize>(
    simd: S,
    strip: &Strip<'_, Q>,
    matrix: Matrix<'_>,
    positions: Range<usize>,
    totals: &mut [Lanes],
) {
    let vectors = totals.len() / Q;
    for (position, row) in strip.runs.iter().flat_map(|run| run.rows(&positions, matrix)) {
        let x = load(simd, row, vectors - 1);
        for q in 0..Q {
            let total = &mut totals[(q + 1) * vectors - 1];
            let factor = simd.splat(strip.factors[q].as_flattened()[position]);
            let sum = simd.fma(factor, x, simd.load(total));
            simd.store(total, sum);
        }
    }
}

/// Adds positions to the totals of query `q` of the group alone.
#[inline(always)]
fn add_rows<S: Simd, const Q: usize>(
    simd: S,
    strip: &Strip<'_, Q>,
    matrix: Matrix<'_>,
    (q, positions): (usize, Range<usize>),
    totals: &mut [Lanes],
) {
    let vectors = totals.len() / Q;
    if positions.is_empty() {
        return;
    }
    let totals = &mut totals[q * vectors..][..vectors];
    for (position, row) in strip.runs.iter().flat_map(|run| run.rows(&positions, matrix)) {
        let factor = simd.splat(strip.factors[q].as_flattened()[position]);
        for (vector, total) in totals.iter_mut().enumerate() {
            let sum = simd.fma(factor, load(simd, row, vector), simd.load(total));
            simd.store(total, sum);
        }
    }
}
