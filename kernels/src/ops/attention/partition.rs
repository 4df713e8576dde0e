//! Attention of a few queries over one partition of the positions: scores, softmax and weighted values, not yet
//! divided by the sum.
//!
//! A score is a chain of fused multiply-adds over the head's dimensions, an output value one over the positions; both
//! are the same for a query whatever other queries share the tile.

#![expect(clippy::needless_range_loop, reason = "tiles of registers are indexed alike, by constants")]

use crate::cpu::{Kernel, LANES, Simd, math::exp};

/// Positions per partition. Partitions start at multiples of it, so that they do not depend on the batch.
pub(super) const PARTITION_LEN: usize = 256;
/// Query counts are padded to a multiple of this.
pub(super) const QUERY_TILE: usize = 4;

/// What a query knows after some partitions. With no visible position yet, `sum` is 0.
#[derive(Debug, Clone)]
pub(super) struct Partials {
    /// Largest score, `[queries]`.
    pub(super) max: Vec<f32>,
    /// Sum of `e^(score - max)`, `[queries]`.
    pub(super) sum: Vec<f32>,
    /// Values weighted by `e^(score - max)`, `[queries, padded head_dim]`.
    pub(super) values: Vec<[f32; LANES]>,
}

impl Partials {
    /// Nothing seen yet by `num_queries` queries with `vectors` vectors per head.
    pub(super) fn new(num_queries: usize, vectors: usize) -> Self {
        Self {
            max: vec![f32::NEG_INFINITY; num_queries],
            sum: vec![0.0; num_queries],
            values: vec![[0.0; LANES]; num_queries * vectors],
        }
    }

    /// Adds what a later partition found, for the queries in `seen`, which see positions in it.
    pub(super) fn merge(&mut self, later: &Self, seen: impl Iterator<Item = usize>) {
        let vectors = self.values.len() / self.max.len();
        for query in seen {
            let max = if self.max[query] > later.max[query] { self.max[query] } else { later.max[query] };
            let (keep, add) = ((self.max[query] - max).exp(), (later.max[query] - max).exp());
            self.max[query] = max;
            self.sum[query] = self.sum[query] * keep + later.sum[query] * add;
            let range = query * vectors..(query + 1) * vectors;
            let (values, later) = (self.values[range.clone()].as_flattened_mut(), later.values[range].as_flattened());
            for (value, later) in values.iter_mut().zip(later) {
                *value = *value * keep + later * add;
            }
        }
    }
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Sixteen keys with the dimensions outside, `[padded head_dim]`.
    keys: Vec<[f32; LANES]>,
    /// `[queries, partition / 16]`
    scores: Vec<[f32; LANES]>,
}

/// One partition of one key-value head for a tile of queries.
#[derive(Debug)]
pub(super) struct Partition<'a> {
    /// Scaled queries, `[queries, padded head_dim]`, a multiple of [`QUERY_TILE`] of them, padding zero.
    pub(super) queries: &'a [f32],
    /// Positions of this partition that each query sees, `[queries]`; 0 for padding.
    pub(super) visible: &'a [usize],
    /// Where the keys and values of each position start, up to the last that any query sees.
    pub(super) offsets: &'a [usize],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) head_dim: usize,
    pub(super) scratch: &'a mut Scratch,
    /// Filled in for the queries that see anything; `values` must be zero.
    pub(super) out: &'a mut Partials,
}

impl Kernel for Partition<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let vectors = self.head_dim.div_ceil(LANES);
        self.scratch.keys.resize(vectors * LANES, [0.0; LANES]);
        self.scratch.scores.resize(self.visible.len() * PARTITION_LEN / LANES, [0.0; LANES]);
        for first in (0..self.offsets.len()).step_by(LANES) {
            self.turn_keys(simd, first);
            let mut query = 0;
            while query < self.visible.len() {
                query += if self.visible.len() - query >= 8 && S::TILE_ROWS >= 8 {
                    self.scores::<S, 8>(simd, query, first)
                } else {
                    self.scores::<S, QUERY_TILE>(simd, query, first)
                };
            }
        }
        for query in 0..self.visible.len() {
            self.softmax(simd, query);
        }
        for query in (0..self.visible.len()).step_by(QUERY_TILE) {
            let mut vector = 0;
            while vector < vectors {
                vector += match vectors - vector {
                    4.. => self.weigh::<S, 4>(simd, query, vector),
                    2..4 => self.weigh::<S, 2>(simd, query, vector),
                    _ => self.weigh::<S, 1>(simd, query, vector),
                };
            }
        }
    }
}

/// Values `LANES * vector..` of a head, zeros past its end.
#[inline(always)]
fn load<S: Simd>(simd: S, head: &[f32], vector: usize) -> S::F {
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

impl Partition<'_> {
    /// Puts keys `first..first + 16` on the lanes; keys that no query sees are not read and become zero.
    #[inline(always)]
    fn turn_keys<S: Simd>(&mut self, simd: S, first: usize) {
        let offsets = &self.offsets[first..self.offsets.len().min(first + LANES)];
        let (blocks, _) = self.scratch.keys.as_chunks_mut::<LANES>();
        for (vector, out) in blocks.iter_mut().enumerate() {
            let mut rows = [simd.splat(0.0); LANES];
            for (row, &offset) in rows.iter_mut().zip(offsets) {
                *row = load(simd, &self.keys[offset..][..self.head_dim], vector);
            }
            let columns = simd.transpose(rows);
            for (out, column) in out.iter_mut().zip(columns) {
                simd.store(out, column);
            }
        }
    }

    /// Scores of `QUERIES` queries with the turned keys; returns `QUERIES`.
    #[inline(always)]
    fn scores<S: Simd, const QUERIES: usize>(&mut self, simd: S, query: usize, first: usize) -> usize {
        let dim = self.scratch.keys.len();
        let mut queries: [&[f32]; QUERIES] = [&[]; QUERIES];
        for (q, values) in queries.iter_mut().enumerate() {
            *values = &self.queries[(query + q) * dim..][..dim];
        }
        let keys = &self.scratch.keys[..dim];
        let mut sums = [simd.splat(0.0); QUERIES];
        for d in 0..dim {
            let key = simd.load(&keys[d]);
            for q in 0..QUERIES {
                sums[q] = simd.fma(key, simd.splat(queries[q][d]), sums[q]);
            }
        }
        for (q, &sum) in sums.iter().enumerate() {
            simd.store(&mut self.scratch.scores[(query + q) * (PARTITION_LEN / LANES) + first / LANES], sum);
        }
        QUERIES
    }

    /// Turns the scores of a query into weights relative to the largest.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, simd: S, query: usize) {
        let visible = self.visible[query];
        if visible == 0 {
            return;
        }
        let scores = &mut self.scratch.scores[query * (PARTITION_LEN / LANES)..][..visible.div_ceil(LANES)];
        let lowest = simd.splat(f32::NEG_INFINITY);
        let mut max = lowest;
        for (at, scores) in scores.iter().enumerate() {
            max = simd.max(simd.first(visible - at * LANES, simd.load(scores), lowest), max);
        }
        let max = simd.largest(max);
        let mut sum = simd.splat(0.0);
        for (at, scores) in scores.iter_mut().enumerate() {
            let weight = exp(simd, simd.sub(simd.load(scores), simd.splat(max)));
            let weight = simd.first(visible - at * LANES, weight, simd.splat(0.0));
            sum = simd.add(sum, weight);
            simd.store(scores, weight);
        }
        self.out.max[query] = max;
        self.out.sum[query] = simd.sum(sum);
    }

    /// Weighted sum of `VECTORS` vectors of the values for a tile of queries; returns `VECTORS`.
    #[inline(always)]
    fn weigh<S: Simd, const VECTORS: usize>(&mut self, simd: S, query: usize, vector: usize) -> usize {
        let visible = &self.visible[query..query + QUERY_TILE];
        let (mut shared, mut most) = (usize::MAX, 0);
        for &visible in visible {
            // Padding sees nothing and must not hold up the others.
            shared = if visible == 0 { shared } else { shared.min(visible) };
            most = most.max(visible);
        }
        let shared = shared.min(most);
        let weights =
            &self.scratch.scores[query * (PARTITION_LEN / LANES)..].as_flattened()[..QUERY_TILE * PARTITION_LEN];
        let mut sums = [[simd.splat(0.0); VECTORS]; QUERY_TILE];
        for position in 0..shared {
            let value = &self.values[self.offsets[position]..][..self.head_dim];
            let mut x = [simd.splat(0.0); VECTORS];
            for v in 0..VECTORS {
                x[v] = load(simd, value, vector + v);
            }
            for q in 0..QUERY_TILE {
                let weight = simd.splat(weights[q * PARTITION_LEN + position]);
                for v in 0..VECTORS {
                    sums[q][v] = simd.fma(weight, x[v], sums[q][v]);
                }
            }
        }
        let vectors = self.out.values.len() / self.visible.len();
        for q in 0..QUERY_TILE {
            for position in shared..visible[q] {
                let value = &self.values[self.offsets[position]..][..self.head_dim];
                let weight = simd.splat(weights[q * PARTITION_LEN + position]);
                for v in 0..VECTORS {
                    sums[q][v] = simd.fma(weight, load(simd, value, vector + v), sums[q][v]);
                }
            }
            for v in 0..VECTORS {
                simd.store(&mut self.out.values[(query + q) * vectors + vector + v], sums[q][v]);
            }
        }
        VECTORS
    }
}
