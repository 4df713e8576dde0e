//! Weights as f32, in panels of sixteen outputs. One output value is a chain of fused multiply-adds over ascending `k`.

use std::ops::Range;

use rayon::prelude::*;

use super::output::Output;
use crate::cpu::{Kernel, LANES, Simd};

/// An f32 weight matrix, `[panels, in, 16]`; outputs past the last are zero.
#[derive(Debug)]
pub(super) struct Dense {
    in_features: usize,
    values: Vec<[f32; LANES]>,
}

impl Dense {
    /// Packs `weight`, `[out, in]`, both at least one.
    pub(super) fn pack(weight: &[f32], in_features: usize) -> Self {
        let out_features = weight.len() / in_features;
        let mut values = vec![[0.0; LANES]; out_features.div_ceil(LANES) * in_features];
        values.par_chunks_mut(in_features).zip(weight.par_chunks(LANES * in_features)).for_each(|(panel, rows)| {
            for (lane, row) in rows.chunks_exact(in_features).enumerate() {
                for (values, &weight) in panel.iter_mut().zip(row) {
                    values[lane] = weight;
                }
            }
        });
        Self { in_features, values }
    }

    /// Bytes of the packed values.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// Copies the weights of output `index`.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        let panel = self.panel(index / LANES);
        for (out, values) in out.iter_mut().zip(panel) {
            *out = values[index % LANES];
        }
    }

    #[inline(always)]
    fn panel(&self, index: usize) -> &[[f32; LANES]] {
        &self.values[index * self.in_features..][..self.in_features]
    }
}

/// `xs * weight^T` for some panels and all rows.
#[derive(Debug)]
pub(super) struct DenseTask<'a> {
    pub(super) weight: &'a Dense,
    pub(super) panels: Range<usize>,
    /// `[rows, in]`
    pub(super) xs: &'a [f32],
    pub(super) output: Output<'a>,
}

/// Bytes of activations that stay in the second-level cache while the panels pass by.
const BLOCK_BYTES: usize = 256 << 10;

impl Kernel for DenseTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let in_features = self.weight.in_features;
        let rows = self.xs.len() / in_features;
        let rows_per_block = (BLOCK_BYTES / (4 * in_features)).next_multiple_of(8);
        for start in (0..rows).step_by(rows_per_block) {
            let block = start..rows.min(start + rows_per_block);
            let mut panel = self.panels.start;
            while panel < self.panels.end {
                panel += match self.panels.end - panel {
                    1 => self.rows::<S, 1>(simd, panel, block.clone()),
                    2..4 => self.rows::<S, 2>(simd, panel, block.clone()),
                    _ => self.rows::<S, 4>(simd, panel, block.clone()),
                };
            }
        }
    }
}

impl DenseTask<'_> {
    /// All rows of the block for `PANELS` panels; returns `PANELS`.
    #[inline(always)]
    fn rows<S: Simd, const PANELS: usize>(&self, simd: S, panel: usize, block: Range<usize>) -> usize {
        let mut row = block.start;
        while row < block.end {
            let left = block.end - row;
            row += if left >= 4 && S::TILE_ROWS >= 8 {
                self.tile::<S, PANELS, 4>(simd, panel, row)
            } else if left >= 2 {
                self.tile::<S, PANELS, 2>(simd, panel, row)
            } else {
                self.tile::<S, PANELS, 1>(simd, panel, row)
            };
        }
        PANELS
    }

    #[inline(always)]
    fn tile<S: Simd, const PANELS: usize, const ROWS: usize>(&self, simd: S, panel: usize, row: usize) -> usize {
        let in_features = self.weight.in_features;
        let mut weights: [&[[f32; LANES]]; PANELS] = [&[]; PANELS];
        for (p, weights) in weights.iter_mut().enumerate() {
            *weights = &self.weight.panel(panel + p)[..in_features];
        }
        let mut xs: [&[f32]; ROWS] = [&[]; ROWS];
        for (r, xs) in xs.iter_mut().enumerate() {
            *xs = &self.xs[(row + r) * in_features..][..in_features];
        }
        let mut sums = [[simd.splat(0.0); ROWS]; PANELS];
        for k in 0..in_features {
            let mut x = [simd.splat(0.0); ROWS];
            for r in 0..ROWS {
                x[r] = simd.splat(xs[r][k]);
            }
            for p in 0..PANELS {
                let weight = simd.load(&weights[p][k]);
                for r in 0..ROWS {
                    sums[p][r] = simd.fma(weight, x[r], sums[p][r]);
                }
            }
        }
        let mut values = [0.0; LANES];
        for (p, sums) in sums.iter().enumerate() {
            for (r, &sum) in sums.iter().enumerate() {
                simd.store(&mut values, sum);
                // SAFETY: tasks have disjoint ranges of panels, and this one visits each panel and row once.
                unsafe { self.output.write(row + r, panel + p, &values) };
            }
        }
        ROWS
    }
}
