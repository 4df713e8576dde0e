//! Random queries, keys and values, and the f64 reference on some of their rows.

use std::ops::Range;

use anyhow::Context;
use candle_core::{Device, Tensor};
use kernels::{
    AttentionPlan, LlaPlan, LlaRow, PlanRow,
    reference::{self, LlaInputs, LlaShape},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::stats::SplitMix;

/// Positions per page of the caches.
pub(super) const PAGE_LEN: usize = 64;
/// Products of the reference for one cell; rows are left out beyond.
const REFERENCE_PRODUCTS: usize = 1_000_000_000;
/// Queries, that is heads of rows, of the reference at the least, if there are as many.
const LEAST_QUERIES: usize = 16;
/// Most numbers of a call's queries, keys and values together: 4 GiB.
const MOST_NUMBERS: usize = 1 << 30;
/// Rows whose reference is shorter than this share of the longest are measured against that share.
const FLOOR: f64 = 0.05;

/// Sizes of one call: the last `rows` of `context` positions are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) rows: usize,
    pub(crate) context: usize,
}

impl Shape {
    /// `1 / sqrt(dim)`
    pub(crate) fn scale(self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }

    /// One past the last position that a row sees.
    pub(crate) fn visible_end(self, row: usize) -> usize {
        self.context - self.rows + row + 1
    }

    /// Whether queries, keys and values are few enough to be held in memory.
    pub(crate) fn fits(self) -> bool {
        let Self { heads, kv_heads, dim, rows, context } = self;
        let vectors = rows.checked_mul(heads).zip(context.checked_mul(kv_heads));
        let numbers = vectors.and_then(|(queries, keys)| keys.checked_mul(2)?.checked_add(queries)?.checked_mul(dim));
        numbers.is_some_and(|numbers| numbers <= MOST_NUMBERS)
    }

    fn pages(self) -> usize {
        self.context.div_ceil(PAGE_LEN)
    }
}

/// What a call works on. Queries and keys are Gaussian with unit root mean square, values Gaussian.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(super) shape: Shape,
    /// `[rows, heads, dim]`
    pub(super) q: Tensor,
    /// `[pages, kv_heads, page_len, dim]`
    pub(super) keys: Tensor,
    /// As the keys.
    pub(super) values: Tensor,
    pub(super) attention_plan: AttentionPlan,
    pub(super) plan: LlaPlan,
}

impl Inputs {
    pub(crate) fn new(shape: Shape, seed: u64) -> anyhow::Result<Self> {
        let Shape { heads, kv_heads, dim, rows, context } = shape;
        let mut random = SplitMix(seed);
        // No copies: memory that was freed here would hide what a contender takes.
        let mut normal = |count: usize, unit: bool| {
            let mut numbers: Vec<f32> = Vec::with_capacity(count);
            numbers.extend((0..count).map(|_| random.normal()));
            for row in numbers.chunks_exact_mut(dim).filter(|_| unit) {
                let square: f32 = row.iter().map(|x| x * x).sum();
                let factor = (dim as f32 / square).sqrt();
                row.iter_mut().for_each(|x| *x *= factor);
            }
            numbers
        };
        let cache = (shape.pages(), kv_heads, PAGE_LEN, dim);
        let cached = shape.pages() * kv_heads * PAGE_LEN * dim;
        let q = Tensor::from_vec(normal(rows * heads * dim, true), (rows, heads, dim), &Device::Cpu)?;
        let keys = Tensor::from_vec(normal(cached, true), cache, &Device::Cpu)?;
        let values = Tensor::from_vec(normal(cached, false), cache, &Device::Cpu)?;
        let plan_rows = (context - rows..context)
            .map(|position| PlanRow { table: 0, position, visible_end: position + 1 })
            .collect();
        let table = (0..u32::try_from(shape.pages())?).collect();
        let attention_plan = AttentionPlan::new(vec![table], plan_rows, PAGE_LEN)?;
        let plan = LlaPlan::from_attention(&attention_plan, None);
        Ok(Self { shape, q, keys, values, attention_plan, plan })
    }

    /// The cache of a key-value head as `[context, dim]`.
    pub(crate) fn head(&self, cache: &Tensor, kv_head: usize) -> candle_core::Result<Tensor> {
        let Shape { dim, context, .. } = self.shape;
        let all = cache.narrow(1, kv_head, 1)?.contiguous()?.reshape(((), dim))?;
        all.narrow(0, 0, context)
    }
}

/// Outputs of some rows in f64 by a dense Cholesky solve of every query.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// Rows that were computed, ascending.
    pub(super) rows: Vec<usize>,
    /// `[computed rows, heads * dim]`
    pub(super) outputs: Vec<f64>,
    shape: Shape,
}

impl Oracle {
    /// As many rows, evenly spread, as take [`REFERENCE_PRODUCTS`].
    pub(crate) fn new(inputs: &Inputs, ridge: f32) -> anyhow::Result<Self> {
        let Shape { heads, kv_heads, dim, rows: num_rows, context } = inputs.shape;
        let products = (context - num_rows / 2) * dim * dim * heads;
        let count = (REFERENCE_PRODUCTS / products).max(LEAST_QUERIES.div_ceil(heads)).min(num_rows);
        let rows: Vec<usize> = match count {
            1 => vec![num_rows - 1],
            _ => (0..count).map(|i| i * (num_rows - 1) / (count - 1)).collect(),
        };
        let wide = |tensor: &Tensor| -> anyhow::Result<Vec<f64>> {
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        let (q, keys, values) = (wide(&inputs.q)?, wide(&inputs.keys)?, wide(&inputs.values)?);
        let shape = LlaShape { num_heads: heads, num_kv_heads: kv_heads, key_dim: dim, value_dim: dim };
        let table: Vec<u32> = (0..u32::try_from(inputs.shape.pages())?).collect();
        let one = |row: usize| -> anyhow::Result<Vec<f64>> {
            let seen = LlaRow { table: 0, visible_start: 0, visible_end: inputs.shape.visible_end(row) };
            let plan = LlaPlan::new(vec![table.clone()], vec![seen], PAGE_LEN)?;
            let inputs = LlaInputs {
                q: &q[row * heads * dim..][..heads * dim],
                keys: &keys,
                values: &values,
                ridge: &vec![f64::from(ridge); heads],
                scale: f64::from(inputs.shape.scale()),
            };
            let solutions = reference::lla(&inputs, &plan, shape).context("the reference has no solution")?;
            Ok(solutions.into_iter().flat_map(|solution| solution.output).collect())
        };
        let outputs =
            rows.par_iter().with_max_len(1).map(|row| one(*row)).collect::<anyhow::Result<Vec<Vec<f64>>>>()?;
        Ok(Self { rows, outputs: outputs.concat(), shape: inputs.shape })
    }

    /// Largest error of a query among the rows: the norm of the difference, relative to that of the reference or to
    /// [`FLOOR`] times the largest of those. `output` is `[rows, heads * dim]`.
    pub(crate) fn error(&self, output: &[f32]) -> f64 {
        let Shape { heads, dim, .. } = self.shape;
        let got = self.rows.iter().flat_map(|row| output[row * heads * dim..][..heads * dim].chunks_exact(dim));
        largest_error(got, self.outputs.chunks_exact(dim))
    }
}

/// [`Oracle::error`] of given queries; not a number if some output is not.
fn largest_error<'a>(got: impl Iterator<Item = &'a [f32]>, expected: std::slice::ChunksExact<'_, f64>) -> f64 {
    let norm = |square: f64| square.sqrt();
    let longest = expected.clone().map(|row| norm(row.iter().map(|x| x * x).sum())).fold(0.0, f64::max);
    got.zip(expected).fold(0.0, |largest: f64, (got, expected)| {
        let difference = norm(got.iter().zip(expected).map(|(got, x)| (f64::from(*got) - x).powi(2)).sum());
        let length = norm(expected.iter().map(|x| x * x).sum());
        let error = difference / length.max(FLOOR * longest);
        if error.is_nan() || largest.is_nan() { f64::NAN } else { largest.max(error) }
    })
}

/// Splits `len` into one range for each of `parts`, the first ones longer.
pub(crate) fn split(len: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |part| len * part / parts..len * (part + 1) / parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_row_or_to_a_share_of_the_longest() {
        let expected = [3.0, 4.0, 0.0, 0.1];
        let error = |got: [f32; 4]| largest_error(got.chunks_exact(2), expected.chunks_exact(2));
        assert_eq!(error([3.0, 4.0, 0.0, 0.1]), f64::from(0.1f32 - 0.1) + (f64::from(0.1f32) - 0.1) / 0.25);
        assert!((error([3.0, 4.5, 0.0, 0.1]) - 0.1).abs() < 1e-6);
        // The second row has norm 0.1 and counts as 0.25.
        assert!((error([3.0, 4.0, 0.05, 0.1]) - 0.2).abs() < 1e-6);
        assert!(error([f32::NAN, 4.0, 0.0, 0.1]).is_nan());
    }

    #[test]
    fn inputs_have_unit_root_mean_square_and_follow_the_seed() {
        let shape = Shape { heads: 2, kv_heads: 1, dim: 16, rows: 3, context: 70 };
        let inputs = Inputs::new(shape, 1).unwrap();
        assert_eq!(inputs.keys.dims(), [2, 1, PAGE_LEN, 16]);
        let q = inputs.q.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for row in q.chunks_exact(16) {
            let square: f32 = row.iter().map(|x| x * x).sum();
            assert!((square - 16.0).abs() < 1e-3, "{square}");
        }
        let same = Inputs::new(shape, 1).unwrap().q.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(q, same);
        assert_ne!(q, Inputs::new(shape, 2).unwrap().q.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!((0..3).map(|row| shape.visible_end(row)).collect::<Vec<_>>(), [68, 69, 70]);
        assert_eq!(split(5, 2).collect::<Vec<_>>(), [0..2, 2..5]);
    }
}
