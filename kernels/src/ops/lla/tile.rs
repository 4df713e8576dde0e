//! A tile of queries from scores to outputs: first pass, solver, last pass. What happens to a query depends on nothing
//! but the query and what it sees.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    output::{Correct, Means},
    segment::{Lanes, Product, Right, SEGMENT_LEN, Scores, Segment, Sums, Weigh},
    solver::{Finish, Progress, Start, Step, Systems},
    strip::Matrix,
};
use crate::{
    arch::CpuLevel,
    cpu::{Kernel, LANES, dispatch},
};

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    segments: Vec<Segment>,
    sums: Sums,
    active: Vec<usize>,
}

/// Where the probes come from.
#[derive(Debug, Clone)]
pub(super) enum Probes {
    /// Each query solves its system.
    Solve {
        /// `lam`, `[queries]`
        ridge: Vec<f32>,
        tolerance: f32,
        max_iterations: usize,
    },
    /// `[queries, vectors]`, with zeros past `key_dim`.
    Given(Vec<Lanes>),
}

/// Queries of one key-value head and one page table.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    pub(super) level: CpuLevel,
    /// Whether several threads share the segments.
    pub(super) split: bool,
    /// Whether [`Found::details`] is wanted.
    pub(super) details: bool,
    /// `[queries, vectors]`, with zeros past `key_dim`.
    pub(super) queries: Vec<Lanes>,
    pub(super) scale: f32,
    pub(super) probes: Probes,
    /// Positions that each query sees.
    pub(super) visible: Vec<Range<usize>>,
    pub(super) keys: Matrix<'a>,
    pub(super) values: Matrix<'a>,
}

/// What a tile ends with. Vectors are padded with zeros.
#[derive(Debug)]
pub(super) struct Found {
    /// `[queries]`
    pub(super) progress: Vec<Progress>,
    /// Squared norms of the difference from softmax attention and of softmax attention, `[queries]`.
    pub(super) squares: Vec<[f64; 2]>,
    /// `[queries, vectors of value_dim]`
    pub(super) output: Vec<Lanes>,
    pub(super) details: Option<Details>,
}

/// What a tile found on the way; kept only if it is wanted, as it is larger than the output.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) systems: Systems,
    /// Largest score, `[queries]`.
    pub(super) max: Vec<f32>,
    /// `[queries, vectors of value_dim]`
    pub(super) softmax_output: Vec<Lanes>,
}

impl Tile<'_> {
    /// Computes the outputs. `runs` says where positions lie in the caches, as for [`Segment::reset`].
    pub(super) fn run(&self, scratch: &mut Scratch, runs: impl Fn(Range<usize>) -> (usize, usize)) -> Found {
        let num_queries = self.visible.len();
        let Scratch { segments, sums, active } = scratch;
        let segments = self.prepare(segments, runs);
        active.clear();
        active.extend(0..num_queries);

        let scaled: Vec<Lanes> = self.queries.iter().map(|lanes| lanes.map(|value| value * self.scale)).collect();
        let (queries, list) = (&scaled, &*active);
        self.pass(segments, |segment| Scores { segment, queries, active: list, keys: self.keys });
        let mut max = vec![f32::NEG_INFINITY; num_queries];
        for segment in segments.iter() {
            for (max, &other) in max.iter_mut().zip(&segment.max) {
                *max = if other > *max { other } else { *max };
            }
        }
        let (keys, values) = (self.keys, self.values);
        self.pass(segments, |segment| Weigh { segment, max: &max, active: list, keys, values });

        let mut systems = Systems::new(num_queries, keys.vectors());
        self.start(segments, &mut systems, sums, active);
        let mut softmax_output = vec![[0.0; LANES]; num_queries * values.vectors()];
        merge(sums, segments, |segment| &segment.value_sums, active, num_queries);
        dispatch(self.level, Means { systems: &systems, sums, output: &mut softmax_output });

        match &self.probes {
            Probes::Solve { tolerance, max_iterations, .. } => {
                self.solve(segments, &mut systems, sums, active, (*tolerance, *max_iterations));
            }
            Probes::Given(probe) => systems.give(probe),
        }
        dispatch(self.level, Finish { systems: &mut systems, queries: &self.queries });

        systems.probed(active);
        let (left, bias, key_dim, right) = (&systems.probe, &systems.bias, keys.dim, Right::Values(values));
        let list = &*active;
        self.pass(segments, |segment| Product { segment, active: list, left, bias, key_dim, right });
        merge(sums, segments, |segment| &segment.value_sums, active, num_queries);
        let mut output = softmax_output.clone();
        dispatch(self.level, Correct { systems: &mut systems, active, product: sums, output: &mut output });
        let squares = output.chunks_exact(values.vectors()).zip(softmax_output.chunks_exact(values.vectors()));
        let squares = squares.map(|(output, mean)| squares_of(output.as_flattened(), mean.as_flattened())).collect();
        let progress = systems.progress.clone();
        let details = self.details.then_some(Details { systems, max, softmax_output });
        Found { progress, squares, output, details }
    }

    /// Means of the keys and right sides.
    fn start(&self, segments: &[Segment], systems: &mut Systems, sums: &mut Sums, active: &[usize]) {
        let num_queries = self.visible.len();
        merge(sums, segments, |segment| &segment.key_sums, active, num_queries);
        let mut norm_sums = vec![[0.0; LANES]; num_queries];
        for segment in segments {
            let later = segment.norm_sums.as_flattened();
            for (sum, later) in norm_sums.as_flattened_mut().iter_mut().zip(later) {
                *sum += later;
            }
        }
        let no_ridge = vec![0.0; num_queries];
        let (ridge, max_iterations) = match &self.probes {
            Probes::Solve { ridge, max_iterations, .. } => (ridge, *max_iterations),
            Probes::Given(_) => (&no_ridge, 0),
        };
        let (queries, key_dim) = (&self.queries, self.keys.dim);
        let start = Start { systems, queries, keys: sums, norm_sums: &norm_sums, key_dim, ridge, max_iterations };
        dispatch(self.level, start);
    }

    /// Sets up the segments that any query sees and returns them.
    fn prepare<'s>(
        &self,
        segments: &'s mut Vec<Segment>,
        runs: impl Fn(Range<usize>) -> (usize, usize),
    ) -> &'s mut [Segment] {
        let seen = || self.visible.iter().filter(|visible| !visible.is_empty());
        let start = seen().map(|visible| visible.start).min().unwrap_or(0) / SEGMENT_LEN;
        let end = seen().map(|visible| visible.end).max().unwrap_or(0).div_ceil(SEGMENT_LEN);
        if segments.len() < end - start {
            segments.resize_with(end - start, Segment::default);
        }
        let segments = &mut segments[..end - start];
        for (index, segment) in segments.iter_mut().enumerate() {
            let base = (start + index) * SEGMENT_LEN;
            let cut = |position: usize| position.saturating_sub(base).min(SEGMENT_LEN);
            let visible = self.visible.iter().map(|visible| cut(visible.start)..cut(visible.end));
            segment.reset(visible, |positions| runs(base + positions.start..base + positions.end));
        }
        segments
    }

    /// Runs a kernel on every segment.
    fn pass<'s, K: Kernel<Output = ()>>(
        &self,
        segments: &'s mut [Segment],
        kernel: impl Fn(&'s mut Segment) -> K + Sync + Send,
    ) {
        if self.split {
            segments.par_iter_mut().with_max_len(1).for_each(|segment| dispatch(self.level, kernel(segment)));
        } else {
            segments.iter_mut().for_each(|segment| dispatch(self.level, kernel(segment)));
        }
    }

    /// Steps until no query needs another. Finished queries leave the tile, so that the work is the sum of the
    /// iterations and not their maximum times the queries.
    fn solve(
        &self,
        segments: &mut [Segment],
        systems: &mut Systems,
        sums: &mut Sums,
        active: &mut Vec<usize>,
        (tolerance, max_iterations): (f32, usize),
    ) {
        loop {
            systems.running(active);
            if active.is_empty() {
                return;
            }
            let (left, bias, key_dim, right) =
                (&systems.direction, &systems.bias, self.keys.dim, Right::Keys(self.keys));
            let list = &*active;
            self.pass(segments, |segment| Product { segment, active: list, left, bias, key_dim, right });
            merge(sums, segments, |segment| &segment.key_sums, active, self.visible.len());
            dispatch(self.level, Step { systems, active, product: sums, tolerance, max_iterations });
        }
    }
}

/// Squared norms of the difference of two rows and of the second.
fn squares_of(output: &[f32], mean: &[f32]) -> [f64; 2] {
    output.iter().zip(mean).fold([0.0; 2], |[difference, square], (&output, &mean)| {
        [difference + f64::from(output - mean).powi(2), square + f64::from(mean).powi(2)]
    })
}

/// Adds up what the segments found for the queries in `active`, in ascending order.
fn merge(
    sums: &mut Sums,
    segments: &[Segment],
    found: impl Fn(&Segment) -> &Sums,
    active: &[usize],
    num_queries: usize,
) {
    let vectors = segments.first().map_or(0, |segment| found(segment).vectors);
    sums.clear(num_queries, vectors, active);
    for segment in segments {
        for &query in active {
            sums.merge(found(segment), query);
        }
    }
}
