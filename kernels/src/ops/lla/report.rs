//! What the solver did, for the whole call and for each query.

use super::{
    Found, Ridge,
    reference::LlaShape,
    schedule::Queries,
    segment::Lanes,
    solver::{Progress, Stage},
    tile::Details,
};
use crate::cpu::LANES;

/// A ridge below this share of the variance of the keys counts as weak.
const WEAK_RIDGE: f32 = 1e-3;

/// How the solver fared in one call. A query is one head of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LlaReport {
    /// Queries of the call.
    pub num_queries: usize,
    /// `iterations[n]` queries took `n` steps.
    pub iterations: Vec<usize>,
    /// Queries that used all steps without reaching the tolerance. Their outputs may be further from local linear
    /// attention than softmax attention is.
    pub num_capped: usize,
    /// Queries that stopped before the tolerance because rounding made their next direction useless.
    pub num_frozen: usize,
    /// Queries that returned softmax attention because their probe, or its output, was not finite.
    pub num_fallbacks: usize,
    /// Queries whose ridge is below a thousandth of the mean variance of the keys that they see: they need many steps and
    /// lose accuracy.
    pub num_weak_ridges: usize,
    /// Largest squared Mahalanobis distance `<kbar - q, x>` of a query from the mean of its keys.
    pub largest_eta: f32,
    /// Norm of the difference from softmax attention, relative to the norm of softmax attention; zero if that is zero.
    pub change: f64,
}

/// What each query found. Queries are ordered as rows, then heads.
#[derive(Debug, Clone, PartialEq)]
pub struct LlaDetails {
    /// Solution of the system `(C + lam I) x = kbar - q`, `[rows, heads, key_dim]`.
    pub probe: Vec<f32>,
    /// Mean `kbar` of the visible keys under the softmax weights, `[rows, heads, key_dim]`.
    pub key_mean: Vec<f32>,
    /// Softmax attention, `[rows, heads, value_dim]`.
    pub softmax_output: Vec<f32>,
    /// Natural logarithm of the sum of the exponentials of the scores, `[rows, heads]`; minus infinity for a row that
    /// sees nothing.
    pub lse: Vec<f32>,
    /// Squared Mahalanobis distance `<kbar - q, x>`, `[rows, heads]`.
    pub eta: Vec<f32>,
    /// Steps taken, `[rows, heads]`.
    pub iterations: Vec<usize>,
}

impl LlaReport {
    pub(super) fn of(found: &Found, ridge: Ridge<'_>, num_rows: usize, shape: LlaShape) -> Self {
        let mut report = Self::default();
        // Squares by query, so that their sum does not depend on the tiles, which depend on the number of threads.
        let mut squares = vec![[0.0; 2]; num_rows * shape.num_heads];
        for (queries, found) in found {
            for (((row, head), progress), found) in queries.places().zip(&found.progress).zip(&found.squares) {
                let index = row * shape.num_heads + head;
                let ridge = match ridge {
                    Ridge::PerHead(ridge) => ridge[head],
                    Ridge::PerRow(ridge) => ridge[index],
                };
                report.add(progress, ridge);
                squares[index] = *found;
            }
        }
        let [change, softmax] = squares.iter().fold([0.0, 0.0], |sum, square| [sum[0] + square[0], sum[1] + square[1]]);
        report.change = if softmax == 0.0 { 0.0 } else { (change / softmax).sqrt() };
        report
    }

    fn add(&mut self, progress: &Progress, ridge: f32) {
        self.num_queries += 1;
        if self.iterations.len() <= progress.iterations {
            self.iterations.resize(progress.iterations + 1, 0);
        }
        self.iterations[progress.iterations] += 1;
        self.num_capped += usize::from(progress.stage == Stage::Capped);
        self.num_frozen += usize::from(progress.stage == Stage::Frozen);
        self.num_fallbacks += usize::from(progress.fallback);
        self.num_weak_ridges += usize::from(ridge < WEAK_RIDGE * progress.spread);
        self.largest_eta = self.largest_eta.max(progress.eta);
    }
}

impl LlaDetails {
    /// `None` if the tiles were not asked for details.
    pub(super) fn of(found: &Found, num_rows: usize, shape: LlaShape) -> Option<Self> {
        let LlaShape { num_heads, key_dim, value_dim, .. } = shape;
        let count = num_rows * num_heads;
        let found: Vec<_> =
            found.iter().map(|(queries, found)| Some((queries, found.details.as_ref()?))).collect::<Option<_>>()?;
        let vectors = |dim, part: fn(&Details) -> &[Lanes]| {
            scatter(found.iter().map(|(queries, found)| (*queries, part(found))), count, dim, num_heads)
        };
        let mut details = Self {
            probe: vectors(key_dim, |found| &found.systems.probe),
            key_mean: vectors(key_dim, |found| &found.systems.key_mean),
            softmax_output: vectors(value_dim, |found| &found.softmax_output),
            lse: vec![0.0; count],
            eta: vec![0.0; count],
            iterations: vec![0; count],
        };
        for (queries, found) in found {
            let rows = found.systems.progress.iter().zip(&found.max);
            for ((row, head), (progress, max)) in queries.places().zip(rows) {
                let at = row * num_heads + head;
                details.lse[at] = max + progress.omega.ln();
                details.eta[at] = progress.eta;
                details.iterations[at] = progress.iterations;
            }
        }
        Some(details)
    }
}

/// Vectors of `dim` values in the order of rows and heads, from padded ones in the order of the tiles.
pub(super) fn scatter<'a>(
    tiles: impl Iterator<Item = (&'a Queries, &'a [Lanes])>,
    count: usize,
    dim: usize,
    num_heads: usize,
) -> Vec<f32> {
    let mut out = vec![0.0; count * dim];
    for (queries, padded) in tiles {
        let padded = padded.as_flattened().chunks_exact(dim.next_multiple_of(LANES));
        for ((row, head), vector) in queries.places().zip(padded) {
            out[(row * num_heads + head) * dim..][..dim].copy_from_slice(&vector[..dim]);
        }
    }
    out
}
