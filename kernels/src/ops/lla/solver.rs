//! Conjugate gradients for the probes of a tile: every query its own system `(C + lam I) x = kbar - q`, all in step.
//!
//! The products with the keys, `C p`, come from the segments; here are the vectors of `key_dim` values and the scalars
//! of each query. The right side is scaled to unit norm, which keeps squares in range, and the probe is scaled back.

use super::segment::{Lanes, Sums};
use crate::cpu::{Kernel, LANES, Simd};

/// Squared norm of a residual, of a right side of norm one, below which a query goes no further. Rounding has had the
/// last word long before; the terms of smaller squares underflow, and a step, their ratio, could have any size.
const LEAST_SQUARES: f32 = f32::MIN_POSITIVE / f32::EPSILON;

/// Where a query stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// More steps to go.
    Running,
    /// The residual is small enough, or was zero from the start.
    Solved,
    /// The steps are used up.
    Capped,
    /// Rounding has made a direction useless: `<p, A p>` is not positive, or the residual is below [`LEAST_SQUARES`] and
    /// still above the tolerance.
    Frozen,
}

/// The scalars of one query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) stage: Stage,
    pub(super) iterations: usize,
    /// The probe was not finite and has become zero.
    pub(super) fallback: bool,
    /// Sum of the weights; 0 if the query sees nothing.
    pub(super) omega: f32,
    /// Mean of the diagonal of the covariance of the keys.
    pub(super) spread: f32,
    /// `<kbar - q, x>`
    pub(super) eta: f32,
    /// `lam`
    ridge: f32,
    /// Factor of the probe: the norm of the right side.
    pub(super) norm: f32,
    /// Squared norm of the residual, and what it was at the start.
    residual: f32,
    first_residual: f32,
}

/// The systems of a tile. Arrays are `[queries, vectors]`, with zeros past `key_dim`.
#[derive(Debug)]
pub(super) struct Systems {
    vectors: usize,
    pub(super) key_mean: Vec<Lanes>,
    pub(super) probe: Vec<Lanes>,
    residual: Vec<Lanes>,
    pub(super) direction: Vec<Lanes>,
    /// `A p` of the query at hand, `[vectors]`.
    image: Vec<Lanes>,
    /// `<direction, kbar>`, or `<probe, kbar>` once [`Finish`] has run, `[queries]`.
    pub(super) bias: Vec<f32>,
    /// `[queries]`
    pub(super) progress: Vec<Progress>,
}

impl Systems {
    pub(super) fn new(num_queries: usize, vectors: usize) -> Self {
        let zeros = || vec![[0.0; LANES]; num_queries * vectors];
        Self {
            vectors,
            key_mean: zeros(),
            probe: zeros(),
            residual: zeros(),
            direction: zeros(),
            image: vec![[0.0; LANES]; vectors],
            bias: vec![0.0; num_queries],
            progress: Vec::with_capacity(num_queries),
        }
    }

    /// The queries that need another step; empty if none does.
    pub(super) fn running(&self, active: &mut Vec<usize>) {
        active.clear();
        active.extend((0..self.progress.len()).filter(|&query| self.progress[query].stage == Stage::Running));
    }

    /// The queries whose outputs are not those of softmax attention.
    pub(super) fn probed(&self, active: &mut Vec<usize>) {
        active.clear();
        active.extend((0..self.progress.len()).filter(|&query| {
            let probe = &self.probe[self.range(query)];
            self.progress[query].omega != 0.0 && probe.as_flattened().iter().any(|x| *x != 0.0)
        }));
    }

    /// Takes probes that need no solving, `[queries, vectors]`.
    pub(super) fn give(&mut self, probe: &[Lanes]) {
        self.probe.copy_from_slice(probe);
        for progress in &mut self.progress {
            (progress.stage, progress.norm) = (Stage::Solved, 1.0);
        }
    }

    /// Leaves a query without a probe, that is with softmax attention.
    pub(super) fn fall_back(&mut self, query: usize) {
        let range = self.range(query);
        self.probe[range].fill([0.0; LANES]);
        self.progress[query].eta = 0.0;
        self.progress[query].fallback = true;
    }

    /// Where the vectors of a query lie.
    pub(super) fn range(&self, query: usize) -> std::ops::Range<usize> {
        query * self.vectors..(query + 1) * self.vectors
    }
}

/// Means of the keys, and the start of the systems: `x = 0`, `r = p = kbar - q`.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) systems: &'a mut Systems,
    /// `[queries, vectors]`
    pub(super) queries: &'a [Lanes],
    /// Sums of the weights and of the weighted keys.
    pub(super) keys: &'a Sums,
    /// Sums of the weighted squared norms of the keys, by lane, `[queries]`.
    pub(super) norm_sums: &'a [Lanes],
    pub(super) key_dim: usize,
    /// `lam` of each query, `[queries]`.
    pub(super) ridge: &'a [f32],
    pub(super) max_iterations: usize,
}

impl Kernel for Start<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { systems, queries, keys, norm_sums, key_dim, ridge, max_iterations } = self;
        systems.progress.clear();
        for (query, &ridge) in ridge.iter().enumerate() {
            let range = systems.range(query);
            let omega = simd.sum(simd.load(&keys.factors[query]));
            let mut progress = Progress {
                stage: Stage::Solved,
                iterations: 0,
                fallback: false,
                omega,
                spread: 0.0,
                eta: 0.0,
                ridge,
                norm: 0.0,
                residual: 0.0,
                first_residual: 0.0,
            };
            // A query that sees nothing has no mean and needs no probe.
            if omega != 0.0 {
                let mean = &mut systems.key_mean[range.clone()];
                divide(simd, mean, keys.row(query), omega);
                let squares = simd.sum(simd.load(&norm_sums[query])) / omega;
                progress.spread = (squares - dot(simd, mean, mean)).max(0.0) / key_dim as f32;
                let right = &mut systems.residual[range.clone()];
                subtract(simd, right, mean, &queries[range.clone()]);
                progress.norm = dot(simd, right, right).sqrt();
                if progress.norm != 0.0 {
                    for right in right.iter_mut() {
                        simd.store(right, simd.div(simd.load(right), simd.splat(progress.norm)));
                    }
                    progress.residual = dot(simd, right, right);
                    progress.first_residual = progress.residual;
                    progress.stage = if max_iterations == 0 { Stage::Capped } else { Stage::Running };
                }
                systems.bias[query] = dot(simd, right, mean);
                systems.direction[range.clone()].copy_from_slice(&systems.residual[range]);
            }
            systems.progress.push(progress);
        }
    }
}

/// One step of the queries in `active`, after their directions have met the keys.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) systems: &'a mut Systems,
    pub(super) active: &'a [usize],
    /// `sum_j y_j k_j` and `sum_j y_j` with `y_j = w_j <p, k_j - kbar>`.
    pub(super) product: &'a Sums,
    pub(super) tolerance: f32,
    pub(super) max_iterations: usize,
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { systems, active, product, tolerance, max_iterations } = self;
        for &query in active {
            let range = systems.range(query);
            let progress = &mut systems.progress[query];
            let key_mean = &systems.key_mean[range.clone()];
            let direction = &mut systems.direction[range.clone()];
            let residual = &mut systems.residual[range.clone()];
            let probe = &mut systems.probe[range];
            let image = &mut systems.image;
            let sum = simd.splat(-simd.sum(simd.load(&product.factors[query])));
            let (omega, ridge) = (simd.splat(progress.omega), simd.splat(progress.ridge));
            let mut curvature = simd.splat(0.0);
            for (((image, p), mean), row) in
                image.iter_mut().zip(direction.iter()).zip(key_mean).zip(product.row(query))
            {
                let p = simd.load(p);
                let centred = simd.fma(sum, simd.load(mean), simd.load(row));
                let value = simd.fma(ridge, p, simd.div(centred, omega));
                simd.store(image, value);
                curvature = simd.fma(p, value, curvature);
            }
            let curvature = simd.sum(curvature);
            if curvature.is_nan() || curvature <= 0.0 {
                progress.stage = Stage::Frozen;
                continue;
            }
            let alpha = progress.residual / curvature;
            let mut squares = simd.splat(0.0);
            for (((x, r), p), image) in
                probe.iter_mut().zip(residual.iter_mut()).zip(direction.iter()).zip(image.iter())
            {
                simd.store(x, simd.fma(simd.splat(alpha), simd.load(p), simd.load(x)));
                let next = simd.fma(simd.splat(-alpha), simd.load(image), simd.load(r));
                simd.store(r, next);
                squares = simd.fma(next, next, squares);
            }
            let squares = simd.sum(squares);
            progress.iterations += 1;
            if squares <= tolerance * tolerance * progress.first_residual {
                progress.stage = Stage::Solved;
                continue;
            }
            if squares < LEAST_SQUARES {
                progress.stage = Stage::Frozen;
                continue;
            }
            if progress.iterations >= max_iterations {
                progress.stage = Stage::Capped;
                continue;
            }
            let beta = simd.splat(squares / progress.residual);
            progress.residual = squares;
            let mut bias = simd.splat(0.0);
            for ((p, r), mean) in direction.iter_mut().zip(residual.iter()).zip(key_mean) {
                let next = simd.fma(beta, simd.load(p), simd.load(r));
                simd.store(p, next);
                bias = simd.fma(next, simd.load(mean), bias);
            }
            systems.bias[query] = simd.sum(bias);
        }
    }
}

/// Scales the probes back and prepares the last pass.
#[derive(Debug)]
pub(super) struct Finish<'a> {
    pub(super) systems: &'a mut Systems,
    /// `[queries, vectors]`
    pub(super) queries: &'a [Lanes],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { systems, queries } = self;
        for query in 0..systems.progress.len() {
            let range = systems.range(query);
            let progress = &mut systems.progress[query];
            let probe = &mut systems.probe[range.clone()];
            for x in probe.iter_mut() {
                simd.store(x, simd.mul(simd.load(x), simd.splat(progress.norm)));
            }
            if !probe.as_flattened().iter().all(|x| x.is_finite()) {
                probe.fill([0.0; LANES]);
                progress.fallback = true;
            }
            let mean = &systems.key_mean[range.clone()];
            systems.bias[query] = dot(simd, probe, mean);
            if progress.omega != 0.0 {
                // The residual has done its work: its place holds the right side.
                let right = &mut systems.residual[range.clone()];
                subtract(simd, right, mean, &queries[range]);
                progress.eta = dot(simd, right, probe);
            }
        }
    }
}

/// Sum of products: a chain over the vectors, then over the lanes.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[Lanes], b: &[Lanes]) -> f32 {
    let mut sum = simd.splat(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.fma(simd.load(a), simd.load(b), sum);
    }
    simd.sum(sum)
}

/// `to = from / divisor`
#[inline(always)]
pub(super) fn divide<S: Simd>(simd: S, to: &mut [Lanes], from: &[Lanes], divisor: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        simd.store(to, simd.div(simd.load(from), simd.splat(divisor)));
    }
}

/// `to = a - b`
#[inline(always)]
fn subtract<S: Simd>(simd: S, to: &mut [Lanes], a: &[Lanes], b: &[Lanes]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        simd.store(to, simd.sub(simd.load(a), simd.load(b)));
    }
}
