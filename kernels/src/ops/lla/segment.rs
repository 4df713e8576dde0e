//! A segment of the positions that a tile of queries sees: scores, weights, and the products of weighted scores with
//! keys or values.

use std::ops::Range;

use super::strip::{Matrix, QUERY_TILE, STRIP_LEN, STRIP_VECTORS, Strip, gather_all, load, project, row_of, select};
use crate::cpu::{Kernel, LANES, Simd, math::exp};

/// Positions per segment. Segments start at multiples of it, so that sums do not depend on the batch; several threads
/// share a long sequence by segments.
pub(super) const SEGMENT_LEN: usize = 1024;
/// Vectors of positions per segment.
const SEGMENT_VECTORS: usize = SEGMENT_LEN / LANES;
/// What weights lose, so that those below it are zero: they are nothing beside the largest, which is 1, and products
/// with them would be denormal, which is slow on some CPUs.
const WEIGHT_FLOOR: f32 = 1e-30;

/// A vector of a head.
pub(super) type Lanes = [f32; LANES];

/// Sums over positions for each query, and for one more that pads lists of queries.
#[derive(Debug, Default, Clone)]
pub(super) struct Sums {
    /// Sum of the factors, by lane of the position, `[queries + 1]`.
    pub(super) factors: Vec<Lanes>,
    /// Sum of the factors times the rows of a matrix, `[queries + 1, vectors]`.
    pub(super) rows: Vec<Lanes>,
    /// Vectors per row.
    pub(super) vectors: usize,
}

impl Sums {
    /// Makes room and puts zeros for `queries`.
    pub(super) fn clear(&mut self, num_queries: usize, vectors: usize, queries: &[usize]) {
        self.vectors = vectors;
        self.factors.resize(num_queries + 1, [0.0; LANES]);
        self.rows.resize((num_queries + 1) * vectors, [0.0; LANES]);
        for &query in queries {
            self.factors[query] = [0.0; LANES];
            self.rows[query * vectors..][..vectors].fill([0.0; LANES]);
        }
    }

    /// The row of a query.
    pub(super) fn row(&self, query: usize) -> &[Lanes] {
        &self.rows[query * self.vectors..][..self.vectors]
    }

    /// Adds what a later segment found for a query.
    pub(super) fn merge(&mut self, later: &Self, query: usize) {
        let range = query * self.vectors..(query + 1) * self.vectors;
        let rows = self.rows[range.clone()].as_flattened_mut().iter_mut().zip(later.rows[range].as_flattened());
        let factors = self.factors[query].iter_mut().zip(&later.factors[query]);
        for (sum, later) in rows.chain(factors) {
            *sum += later;
        }
    }
}

/// Positions of one segment, and what a tile of queries keeps of them between passes.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Where each position lies in the caches, in rows, from the start of the segment to the last position that any
    /// query sees. Those before [`Self::first`] are not used.
    slots: Vec<usize>,
    /// First position that any query sees, from the start of the segment.
    first: usize,
    /// Positions that each query sees, from the start of the segment, `[queries + 1]`.
    visible: Vec<Range<usize>>,
    /// Keys with the dimensions outside, `[segment / 16, key_dim]`.
    turned: Vec<Lanes>,
    /// Squared norms of the keys, `[segment / 16]`.
    norms: Vec<Lanes>,
    /// Scores, then weights relative to the largest score, `[queries + 1, segment / 16]`.
    weights: Vec<Lanes>,
    /// Largest score of each query, `[queries + 1]`.
    pub(super) max: Vec<f32>,
    /// Weighted squared norms of the keys, by lane, `[queries + 1]`.
    pub(super) norm_sums: Vec<Lanes>,
    pub(super) key_sums: Sums,
    pub(super) value_sums: Sums,
}

impl Segment {
    /// Prepares for queries that see `visible`, counted from the start of the segment and within it. `slot` says where
    /// a position of the segment lies.
    pub(super) fn reset(&mut self, visible: impl Iterator<Item = Range<usize>>, slot: impl Fn(usize) -> usize) {
        self.visible.clear();
        self.visible.extend(visible);
        let seen = || self.visible.iter().filter(|range| !range.is_empty());
        self.first = seen().map(|range| range.start).min().unwrap_or(0);
        let end = seen().map(|range| range.end).max().unwrap_or(0);
        // The query that pads lists.
        self.visible.push(0..0);
        self.slots.clear();
        self.slots.extend((0..end).map(|position| if position < self.first { 0 } else { slot(position) }));
    }

    fn num_queries(&self) -> usize {
        self.visible.len() - 1
    }

    /// The strips that any query sees.
    fn strips(&self) -> Range<usize> {
        self.first / STRIP_LEN..self.slots.len().div_ceil(STRIP_LEN)
    }

    /// What each of four queries sees of a strip, counted from its start.
    fn visible_of(&self, quad: &[usize; QUERY_TILE], strip: usize) -> [Range<usize>; QUERY_TILE] {
        let start = strip * STRIP_LEN;
        quad.map(|query| {
            let Range { start: first, end } = self.visible[query];
            let cut = |position: usize| position.saturating_sub(start).min(STRIP_LEN);
            // A range on either side becomes an empty one.
            cut(first)..cut(end)
        })
    }
}

/// First pass over the keys: their scores with all queries.
#[derive(Debug)]
pub(super) struct Scores<'a> {
    pub(super) segment: &'a mut Segment,
    /// `[queries + 1, vectors]`, times the scale, padding zero.
    pub(super) queries: &'a [Lanes],
    /// All queries, padded.
    pub(super) active: &'a [usize],
    pub(super) keys: Matrix<'a>,
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { segment, queries, active, keys } = self;
        let num_queries = segment.num_queries();
        segment.turned.resize(SEGMENT_VECTORS * keys.dim, [0.0; LANES]);
        segment.norms.resize(SEGMENT_VECTORS, [0.0; LANES]);
        segment.weights.resize((num_queries + 1) * SEGMENT_VECTORS, [0.0; LANES]);
        for strip in segment.strips() {
            for vector in strip * STRIP_VECTORS..(strip + 1) * STRIP_VECTORS {
                turn(simd, segment, keys, vector);
            }
            for quad in active.as_chunks::<QUERY_TILE>().0 {
                if segment.visible_of(quad, strip).iter().all(Range::is_empty) {
                    continue;
                }
                let left = quad.map(|query| row_of(queries, query, keys.vectors()));
                let scores = project(simd, &segment.turned, left, keys.dim, strip);
                for (&query, scores) in quad.iter().zip(&scores) {
                    let to = query * SEGMENT_VECTORS + strip * STRIP_VECTORS;
                    segment.weights[to..to + STRIP_VECTORS].copy_from_slice(scores);
                }
            }
        }
        segment.max.clear();
        for query in 0..=num_queries {
            let visible = segment.visible[query].clone();
            let lowest = simd.splat(f32::NEG_INFINITY);
            let mut max = lowest;
            for vector in visible.start / LANES..visible.end.div_ceil(LANES) {
                let scores = simd.load(&segment.weights[query * SEGMENT_VECTORS + vector]);
                max = simd.max(select(simd, &visible, vector, scores, lowest), max);
            }
            segment.max.push(simd.largest(max));
        }
    }
}

/// Second pass: weights, their sum, and the weighted keys and values.
#[derive(Debug)]
pub(super) struct Weigh<'a> {
    pub(super) segment: &'a mut Segment,
    /// Largest score of each query in all segments, `[queries + 1]`.
    pub(super) max: &'a [f32],
    /// All queries, padded.
    pub(super) active: &'a [usize],
    pub(super) keys: Matrix<'a>,
    pub(super) values: Matrix<'a>,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { segment, max, active, keys, values } = self;
        let num_queries = segment.num_queries();
        segment.key_sums.clear(num_queries, keys.vectors(), active);
        segment.value_sums.clear(num_queries, values.vectors(), active);
        segment.norm_sums.clear();
        let zero = simd.splat(0.0);
        for (query, &max) in max.iter().enumerate() {
            let visible = segment.visible[query].clone();
            let (mut sum, mut norm_sum) = (zero, zero);
            for vector in visible.start / LANES..visible.end.div_ceil(LANES) {
                let weights = &mut segment.weights[query * SEGMENT_VECTORS + vector];
                let weight = exp(simd, simd.sub(simd.load(weights), simd.splat(max)));
                let weight = simd.max(zero, simd.sub(weight, simd.splat(WEIGHT_FLOOR)));
                let weight = select(simd, &visible, vector, weight, zero);
                sum = simd.add(sum, weight);
                let norm = simd.mul(weight, simd.load(&segment.norms[vector]));
                norm_sum = simd.add(norm_sum, select(simd, &visible, vector, norm, zero));
                simd.store(weights, weight);
            }
            simd.store(&mut segment.key_sums.factors[query], sum);
            let mut lanes = [0.0; LANES];
            simd.store(&mut lanes, norm_sum);
            segment.norm_sums.push(lanes);
        }
        for strip in segment.strips() {
            for quad in active.as_chunks::<QUERY_TILE>().0 {
                let visible = segment.visible_of(quad, strip);
                if visible.iter().all(Range::is_empty) {
                    continue;
                }
                let weights = quad.map(|query| {
                    segment.weights[query * SEGMENT_VECTORS + strip * STRIP_VECTORS..][..STRIP_VECTORS].as_flattened()
                });
                let strip = Strip { factors: weights, visible, slots: &segment.slots[strip * STRIP_LEN..] };
                gather_all(simd, &strip, keys, quad, &mut segment.key_sums);
                gather_all(simd, &strip, values, quad, &mut segment.value_sums);
            }
        }
    }
}

/// Which matrix a [`Product`] sums.
#[derive(Debug, Clone, Copy)]
pub(super) enum Right<'a> {
    /// A step of the solver.
    Keys(Matrix<'a>),
    /// The last pass.
    Values(Matrix<'a>),
}

/// A later pass: `Y = W o (X K^T - bias)`, its sums over positions, and `Y` times the keys or the values.
#[derive(Debug)]
pub(super) struct Product<'a> {
    pub(super) segment: &'a mut Segment,
    /// The queries that take part, padded.
    pub(super) active: &'a [usize],
    /// `X`, `[queries + 1, vectors of key_dim]`, padding zero.
    pub(super) left: &'a [Lanes],
    /// Subtracted from every score of a query, `[queries + 1]`.
    pub(super) bias: &'a [f32],
    pub(super) key_dim: usize,
    pub(super) right: Right<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { segment, active, left, bias, key_dim, right } = self;
        let (num_queries, strips) = (segment.num_queries(), segment.strips());
        let (right, mut sums) = match right {
            Right::Keys(keys) => (keys, std::mem::take(&mut segment.key_sums)),
            Right::Values(values) => (values, std::mem::take(&mut segment.value_sums)),
        };
        sums.clear(num_queries, right.vectors(), active);
        for strip in strips {
            for quad in active.as_chunks::<QUERY_TILE>().0 {
                let visible = segment.visible_of(quad, strip);
                if visible.iter().all(Range::is_empty) {
                    continue;
                }
                let left = quad.map(|query| row_of(left, query, key_dim.div_ceil(LANES)));
                let mut factors = project(simd, &segment.turned, left, key_dim, strip);
                for q in 0..QUERY_TILE {
                    let weights = &segment.weights[quad[q] * SEGMENT_VECTORS + strip * STRIP_VECTORS..];
                    let bias = simd.splat(bias[quad[q]]);
                    let mut sum = simd.load(&sums.factors[quad[q]]);
                    for vector in 0..STRIP_VECTORS {
                        let score = simd.sub(simd.load(&factors[q][vector]), bias);
                        let factor = simd.mul(simd.load(&weights[vector]), score);
                        let factor = select(simd, &visible[q], vector, factor, simd.splat(0.0));
                        sum = simd.add(sum, factor);
                        simd.store(&mut factors[q][vector], factor);
                    }
                    simd.store(&mut sums.factors[quad[q]], sum);
                }
                let factors = [0, 1, 2, 3].map(|q: usize| factors[q].as_flattened());
                let strip = Strip { factors, visible, slots: &segment.slots[strip * STRIP_LEN..] };
                gather_all(simd, &strip, right, quad, &mut sums);
            }
        }
        match self.right {
            Right::Keys(_) => segment.key_sums = sums,
            Right::Values(_) => segment.value_sums = sums,
        }
    }
}

/// Puts the keys of a vector of positions on the lanes, and their squared norms; positions outside those of the tile
/// become zero.
#[inline(always)]
fn turn<S: Simd>(simd: S, segment: &mut Segment, keys: Matrix<'_>, vector: usize) {
    let Segment { slots, first, turned, norms, .. } = segment;
    let positions = vector * LANES..((vector + 1) * LANES).min(slots.len());
    let turned = &mut turned[vector * keys.dim..][..keys.dim];
    let mut norm = simd.splat(0.0);
    for (block, out) in turned.chunks_mut(LANES).enumerate() {
        let mut rows = [simd.splat(0.0); LANES];
        for position in positions.clone().filter(|position| *position >= *first) {
            rows[position % LANES] = load(simd, &keys.data[slots[position] * keys.dim..][..keys.dim], block);
        }
        for (out, column) in out.iter_mut().zip(simd.transpose(rows)) {
            simd.store(out, column);
            norm = simd.fma(column, column, norm);
        }
    }
    simd.store(&mut norms[vector], norm);
}
