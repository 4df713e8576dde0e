//! Means of the values, and what the probes correct of them.

use super::{
    segment::{Lanes, Sums},
    solver::{Systems, divide},
};
use crate::cpu::{Kernel, Simd};

/// Outputs of softmax attention; zero where nothing is seen.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub(super) systems: &'a Systems,
    /// Sums of the weighted values.
    pub(super) sums: &'a Sums,
    /// `[queries, vectors]`, zero.
    pub(super) output: &'a mut [Lanes],
}

impl Kernel for Means<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { systems, sums, output } = self;
        for (query, progress) in systems.progress.iter().enumerate() {
            if progress.omega != 0.0 {
                let output = &mut output[query * sums.vectors..][..sums.vectors];
                divide(simd, output, sums.row(query), progress.omega);
            }
        }
    }
}

/// `o = vbar - (sum_j y_j v_j - vbar sum_j y_j) / omega` with `y_j = w_j <x, k_j - kbar>`. The second sum would be zero in
/// exact arithmetic; here it takes away the error that the scores of a query have in common.
#[derive(Debug)]
pub(super) struct Correct<'a> {
    pub(super) systems: &'a mut Systems,
    /// The queries with a probe.
    pub(super) active: &'a [usize],
    /// Sums of `y_j` and of `y_j v_j`.
    pub(super) product: &'a Sums,
    /// `vbar` at first, `[queries, vectors]`.
    pub(super) output: &'a mut [Lanes],
}

impl Kernel for Correct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { systems, active, product, output } = self;
        let vectors = product.vectors;
        let mut mean = vec![[0.0; crate::cpu::LANES]; vectors];
        for &query in active {
            let output = &mut output[query * vectors..][..vectors];
            mean.copy_from_slice(output);
            let sum = simd.splat(-simd.sum(simd.load(&product.factors[query])));
            let omega = simd.splat(systems.progress[query].omega);
            for ((output, mean), row) in output.iter_mut().zip(&mean).zip(product.row(query)) {
                let mean = simd.load(mean);
                let correction = simd.div(simd.fma(sum, mean, simd.load(row)), omega);
                simd.store(output, simd.sub(mean, correction));
            }
            if !output.as_flattened().iter().all(|value| value.is_finite()) {
                output.copy_from_slice(&mean);
                systems.fall_back(query);
            }
        }
    }
}
