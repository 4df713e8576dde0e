//! A segment of the positions that a tile of queries sees: scores, weights, and the products of weighted scores with
//! keys or values.

use std::ops::Range;

use super::strip::{
    Matrix, OfGroup, Run, STRIP_LEN, STRIP_VECTORS, Strip, for_groups, gather, load, project, row_of, select,
};
use crate::cpu::{Kernel, LANES, Simd, math::exp};

/// Positions per segment. Segments start at multiples of it, so that sums do not depend on the batch; several threads
/// share a long sequence by segments.
pub(super) const SEGMENT_LEN: usize = 1024;
/// What weights lose, so that those below it are zero: they are nothing beside the largest, which is 1, and products
/// with them would be denormal, which is slow on some CPUs.
const WEIGHT_FLOOR: f32 = 1e-30;

/// A vector of a head.
pub(super) type Lanes = [f32; LANES];

/// Sums over positions for each query.
#[derive(Debug, Default, Clone)]
pub(super) struct Sums {
    /// Sum of the factors, by lane of the position, `[queries]`.
    pub(super) factors: Vec<Lanes>,
    /// Sum of the factors times the rows of a matrix, `[queries, vectors]`.
    pub(super) rows: Vec<Lanes>,
    /// Vectors per row.
    pub(super) vectors: usize,
    /// Sums of the strip at hand, `[queries of the group, vectors]`.
    pub(super) strip: Vec<Lanes>,
}

impl Sums {
    /// Makes room and puts zeros for `queries`.
    pub(super) fn clear(&mut self, num_queries: usize, vectors: usize, queries: &[usize]) {
        self.vectors = vectors;
        self.factors.resize(num_queries, [0.0; LANES]);
        self.rows.resize((num_queries) * vectors, [0.0; LANES]);
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

/// Runs of positions, strip by strip.
#[derive(Debug, Default)]
struct Runs {
    runs: Vec<Run>,
    /// Which of them belong to each strip, `[strips]`.
    strips: Vec<Range<usize>>,
}

impl Runs {
    fn of(&self, strip: usize) -> &[Run] {
        &self.runs[self.strips[strip].clone()]
    }
}

/// Positions of one segment, and what a tile of queries keeps of them between passes.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Where the positions that any query sees lie.
    runs: Runs,
    /// First position that any query sees, and one past the last, from the start of the segment.
    seen: Range<usize>,
    /// Positions that each query sees, from the start of the segment, `[queries]`.
    visible: Vec<Range<usize>>,
    /// Keys with the dimensions outside, `[positions / 16, key_dim]`.
    turned: Vec<Lanes>,
    /// Squared norms of the keys, `[positions / 16]`.
    norms: Vec<Lanes>,
    /// Scores, then weights relative to the largest score, `[queries, positions / 16]`.
    weights: Vec<Lanes>,
    /// Largest score of each query, `[queries]`.
    pub(super) max: Vec<f32>,
    /// Weighted squared norms of the keys, by lane, `[queries]`.
    pub(super) norm_sums: Vec<Lanes>,
    pub(super) key_sums: Sums,
    pub(super) value_sums: Sums,
}

impl Segment {
    /// Prepares for queries that see `visible`, counted from the start of the segment and within it. `runs` says where
    /// positions of the segment lie: how many from the start of a range follow each other, and the slot of the first.
    pub(super) fn reset(
        &mut self,
        visible: impl Iterator<Item = Range<usize>>,
        runs: impl Fn(Range<usize>) -> (usize, usize),
    ) {
        self.visible.clear();
        // An empty range may lie beyond what the others see, for which there is no room.
        self.visible.extend(visible.map(|range| if range.is_empty() { 0..0 } else { range }));
        let seen = || self.visible.iter().filter(|range| !range.is_empty());
        let start = seen().map(|range| range.start).min().unwrap_or(0);
        self.seen = start..seen().map(|range| range.end).max().unwrap_or(0);
        let Runs { runs: found, strips } = &mut self.runs;
        found.clear();
        strips.clear();
        for strip in 0..self.seen.end.div_ceil(STRIP_LEN) {
            let (base, first) = (strip * STRIP_LEN, found.len());
            let mut position = self.seen.start.max(base);
            let end = self.seen.end.min(base + STRIP_LEN);
            while position < end {
                let (len, slot) = runs(position..end);
                found.push(Run { positions: position - base..position - base + len, slot });
                position += len;
            }
            strips.push(first..found.len());
        }
    }

    fn num_queries(&self) -> usize {
        self.visible.len()
    }

    /// The strips that any query sees.
    fn strips(&self) -> Range<usize> {
        self.seen.start / STRIP_LEN..self.seen.end.div_ceil(STRIP_LEN)
    }

    /// What each query of a group sees of a strip, counted from its start; `None` if no query sees any of it.
    fn visible_of<const Q: usize>(&self, group: [usize; Q], strip: usize) -> Option<[Range<usize>; Q]> {
        let start = strip * STRIP_LEN;
        let visible = group.map(|query| {
            let Range { start: first, end } = self.visible[query];
            let cut = |position: usize| position.saturating_sub(start).min(STRIP_LEN);
            // A range on either side becomes an empty one.
            cut(first)..cut(end)
        });
        visible.iter().any(|visible| !visible.is_empty()).then_some(visible)
    }

    /// Vectors of positions that are kept for each query.
    fn stride(&self) -> usize {
        self.seen.end.div_ceil(STRIP_LEN) * STRIP_VECTORS
    }
}

/// First pass over the keys: their scores with all queries.
#[derive(Debug)]
pub(super) struct Scores<'a> {
    pub(super) segment: &'a mut Segment,
    /// `[queries, vectors]`, times the scale.
    pub(super) queries: &'a [Lanes],
    /// All queries.
    pub(super) active: &'a [usize],
    pub(super) keys: Matrix<'a>,
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (keys, active) = (self.keys, self.active);
        let (num_queries, stride) = (self.segment.num_queries(), self.segment.stride());
        grow(&mut self.segment.turned, stride * keys.dim);
        grow(&mut self.segment.norms, stride);
        grow(&mut self.segment.weights, num_queries * stride);
        for strip in self.segment.strips() {
            turn(simd, self.segment, keys, strip);
            for_groups(simd, active, strip, &mut self);
        }
        let segment = self.segment;
        segment.max.clear();
        for query in 0..num_queries {
            let visible = segment.visible[query].clone();
            let lowest = simd.splat(f32::NEG_INFINITY);
            let mut max = lowest;
            for vector in visible.start / LANES..visible.end.div_ceil(LANES) {
                let scores = simd.load(&segment.weights[query * stride + vector]);
                max = simd.max(select(simd, &visible, vector, scores, lowest), max);
            }
            segment.max.push(simd.largest(max));
        }
    }
}

impl OfGroup for Scores<'_> {
    #[inline(always)]
    fn run<S: Simd, const Q: usize>(&mut self, simd: S, group: [usize; Q], strip: usize) {
        let Self { segment, queries, keys, .. } = self;
        if segment.visible_of(group, strip).is_none() {
            return;
        }
        let left = group.map(|query| row_of(queries, query, keys.vectors()));
        let scores = project(simd, &segment.turned, left, keys.dim, strip);
        let stride = segment.stride();
        for (query, scores) in group.into_iter().zip(&scores) {
            segment.weights[query * stride + strip * STRIP_VECTORS..][..STRIP_VECTORS].copy_from_slice(scores);
        }
    }
}

/// Second pass: weights, their sum, and the weighted keys and values.
#[derive(Debug)]
pub(super) struct Weigh<'a> {
    pub(super) segment: &'a mut Segment,
    /// Largest score of each query in all segments, `[queries]`.
    pub(super) max: &'a [f32],
    /// All queries.
    pub(super) active: &'a [usize],
    pub(super) keys: Matrix<'a>,
    pub(super) values: Matrix<'a>,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Self { segment, max, active, keys, values } = &mut self;
        let (active, num_queries, stride) = (*active, segment.num_queries(), segment.stride());
        segment.key_sums.clear(num_queries, keys.vectors(), active);
        segment.value_sums.clear(num_queries, values.vectors(), active);
        segment.norm_sums.clear();
        let zero = simd.splat(0.0);
        for (query, &max) in max.iter().enumerate() {
            let visible = segment.visible[query].clone();
            let (mut sum, mut norm_sum) = (zero, zero);
            for vector in visible.start / LANES..visible.end.div_ceil(LANES) {
                let weights = &mut segment.weights[query * stride + vector];
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
            for_groups(simd, active, strip, &mut self);
        }
    }
}

impl OfGroup for Weigh<'_> {
    #[inline(always)]
    fn run<S: Simd, const Q: usize>(&mut self, simd: S, group: [usize; Q], strip: usize) {
        let Self { segment, keys, values, .. } = self;
        let Some(visible) = segment.visible_of(group, strip) else { return };
        let stride = segment.stride();
        let mut factors = [[[0.0; LANES]; STRIP_VECTORS]; Q];
        for (factors, query) in factors.iter_mut().zip(group) {
            factors.copy_from_slice(&segment.weights[query * stride + strip * STRIP_VECTORS..][..STRIP_VECTORS]);
        }
        let strip = Strip { factors, visible, runs: segment.runs.of(strip) };
        gather(simd, &strip, *keys, &group, &mut segment.key_sums);
        gather(simd, &strip, *values, &group, &mut segment.value_sums);
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
    /// The queries that take part.
    pub(super) active: &'a [usize],
    /// `X`, `[queries, vectors of key_dim]`.
    pub(super) left: &'a [Lanes],
    /// Subtracted from every score of a query, `[queries]`.
    pub(super) bias: &'a [f32],
    pub(super) key_dim: usize,
    pub(super) right: Right<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (segment, active) = (&mut *self.segment, self.active);
        let (num_queries, strips) = (segment.num_queries(), segment.strips());
        match self.right {
            Right::Keys(keys) => segment.key_sums.clear(num_queries, keys.vectors(), active),
            Right::Values(values) => segment.value_sums.clear(num_queries, values.vectors(), active),
        }
        for strip in strips {
            for_groups(simd, active, strip, &mut self);
        }
    }
}

impl OfGroup for Product<'_> {
    #[inline(always)]
    fn run<S: Simd, const Q: usize>(&mut self, simd: S, group: [usize; Q], strip: usize) {
        let Self { segment, left, bias, key_dim, right, .. } = self;
        let Some(visible) = segment.visible_of(group, strip) else { return };
        let stride = segment.stride();
        let left = group.map(|query| row_of(left, query, key_dim.div_ceil(LANES)));
        let mut factors = project(simd, &segment.turned, left, *key_dim, strip);
        let (right, sums) = match *right {
            Right::Keys(keys) => (keys, &mut segment.key_sums),
            Right::Values(values) => (values, &mut segment.value_sums),
        };
        for ((factors, query), visible) in factors.iter_mut().zip(group).zip(&visible) {
            let weights = &segment.weights[query * stride + strip * STRIP_VECTORS..][..STRIP_VECTORS];
            let bias = simd.splat(bias[query]);
            let mut sum = simd.load(&sums.factors[query]);
            for (vector, (factor, weight)) in factors.iter_mut().zip(weights).enumerate() {
                let score = simd.sub(simd.load(factor), bias);
                let product = simd.mul(simd.load(weight), score);
                let product = select(simd, visible, vector, product, simd.splat(0.0));
                sum = simd.add(sum, product);
                simd.store(factor, product);
            }
            simd.store(&mut sums.factors[query], sum);
        }
        let strip = Strip { factors, visible, runs: segment.runs.of(strip) };
        gather(simd, &strip, right, &group, sums);
    }
}

/// Makes room for `len` vectors, whatever they hold.
fn grow(buffer: &mut Vec<Lanes>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, [0.0; LANES]);
    }
}

/// Puts the keys of a strip on the lanes, and their squared norms; positions outside those of the tile become zero.
#[inline(always)]
fn turn<S: Simd>(simd: S, segment: &mut Segment, keys: Matrix<'_>, strip: usize) {
    let Segment { runs, turned, norms, .. } = segment;
    let runs = runs.of(strip);
    let norms = &mut norms[strip * STRIP_VECTORS..][..STRIP_VECTORS];
    let turned = &mut turned[strip * STRIP_VECTORS * keys.dim..][..STRIP_VECTORS * keys.dim];
    for (vector, (turned, norms)) in turned.chunks_exact_mut(keys.dim).zip(norms).enumerate() {
        let positions = vector * LANES..(vector + 1) * LANES;
        let mut norm = simd.splat(0.0);
        for (block, out) in turned.chunks_mut(LANES).enumerate() {
            let mut rows = [simd.splat(0.0); LANES];
            for (position, row) in runs.iter().flat_map(|run| run.rows(&positions, keys)) {
                rows[position % LANES] = load(simd, row, block);
            }
            for (out, column) in out.iter_mut().zip(simd.transpose(rows)) {
                simd.store(out, column);
                norm = simd.fma(column, column, norm);
            }
        }
        simd.store(norms, norm);
    }
}
