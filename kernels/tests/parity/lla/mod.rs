//! Local linear attention: the golden vectors, the laws of the operator, inputs made to break it.

mod adversarial;
mod any_plan;
mod golden;
mod invariance;
mod properties;

use candle_core::{Device, Tensor};
use kernels::{
    LlaOutput, LlaPlan, LlaRow, LlaSequence, LlaSettings, LlaSolver, Ridge, lla, parallax,
    reference::{self, LlaInputs, LlaShape, LlaSolution},
};

use crate::Random;

/// Heads, key-value heads, key size, value size.
const fn shape(num_heads: usize, num_kv_heads: usize, key_dim: usize, value_dim: usize) -> LlaShape {
    LlaShape { num_heads, num_kv_heads, key_dim, value_dim }
}

/// All inputs of one call.
#[derive(Clone)]
struct Case {
    shape: LlaShape,
    plan: LlaPlan,
    num_pages: usize,
    /// `[rows, heads, key_dim]`
    q: Vec<f32>,
    /// `[pages, kv_heads, page_len, key_dim]`
    keys: Vec<f32>,
    /// `[pages, kv_heads, page_len, value_dim]`
    values: Vec<f32>,
    /// `[rows, heads]`
    ridge: Vec<f32>,
    scale: f32,
    solver: LlaSolver,
}

impl Case {
    /// Normal numbers, a ridge of 0.5, the usual scale.
    fn new(shape: LlaShape, plan: LlaPlan, num_pages: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let slots = num_pages * shape.num_kv_heads * plan.page_len();
        let num_queries = plan.num_rows() * shape.num_heads;
        Self {
            q: random.normal(num_queries * shape.key_dim),
            keys: random.normal(slots * shape.key_dim),
            values: random.normal(slots * shape.value_dim),
            ridge: vec![0.5; num_queries],
            scale: (shape.key_dim as f32).sqrt().recip(),
            solver: LlaSolver::default(),
            shape,
            plan,
            num_pages,
        }
    }

    /// One sequence of `len` rows over as many keys in one page.
    fn causal(shape: LlaShape, len: usize, seed: u64) -> Self {
        let sequence = LlaSequence { position: 0, num_rows: len };
        Self::new(shape, LlaPlan::contiguous(&[sequence], len, None).unwrap(), 1, seed)
    }

    fn with_ridge(mut self, ridge: f32) -> Self {
        self.ridge.fill(ridge);
        self
    }

    /// The same caches with other rows, whose queries and ridges are those of the rows `of` of this case.
    fn rows(&self, rows: &[LlaRow], of: &[usize]) -> Self {
        let LlaShape { num_heads, key_dim, .. } = self.shape;
        let tables = self.plan.rows().iter().map(|row| row.table).max().map_or(0, |table| table + 1);
        assert_eq!(self.num_pages, tables, "one page for each table");
        let tables = (0..tables as u32).map(|page| vec![page]).collect();
        let plan = LlaPlan::new(tables, rows.to_vec(), self.plan.page_len()).unwrap();
        let pick = |from: &[f32], len: usize| -> Vec<f32> {
            of.iter().flat_map(|&row| from[row * len..][..len].to_vec()).collect()
        };
        let (q, ridge) = (pick(&self.q, num_heads * key_dim), pick(&self.ridge, num_heads));
        Self { plan, q, ridge, ..self.clone() }
    }

    /// Some rows of this case, in the order given.
    fn some_rows(&self, of: &[usize]) -> Self {
        let rows: Vec<LlaRow> = of.iter().map(|&row| self.plan.rows()[row]).collect();
        self.rows(&rows, of)
    }

    fn tensor(&self, values: &[f32], dim: usize) -> Tensor {
        let shape = (self.num_pages, self.shape.num_kv_heads, self.plan.page_len(), dim);
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn queries(&self, values: &[f32]) -> Tensor {
        let shape = (self.plan.num_rows(), self.shape.num_heads, self.shape.key_dim);
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn run(&self) -> LlaOutput {
        let (keys, values) =
            (self.tensor(&self.keys, self.shape.key_dim), self.tensor(&self.values, self.shape.value_dim));
        let ridge = Ridge::PerRow(&self.ridge);
        let settings = LlaSettings { scale: self.scale, ridge, solver: self.solver, details: true };
        let out = lla(&self.queries(&self.q), (&keys, &values), &self.plan, &settings).unwrap();
        assert_eq!(out.output.dims(), [self.plan.num_rows(), self.shape.num_heads * self.shape.value_dim]);
        assert_eq!(out.report.num_queries, self.ridge.len());
        assert_eq!(out.report.iterations.iter().sum::<usize>(), self.ridge.len());
        out
    }

    /// The outputs alone.
    fn outputs(&self) -> Vec<f32> {
        flat(&self.run().output)
    }

    /// Outputs with given probes, and how many queries fell back.
    fn parallax(&self, probe: &[f32]) -> (Vec<f32>, usize) {
        let (keys, values) =
            (self.tensor(&self.keys, self.shape.key_dim), self.tensor(&self.values, self.shape.value_dim));
        let (q, probe) = (self.queries(&self.q), self.queries(probe));
        let out = parallax(&q, &probe, (&keys, &values), &self.plan, self.scale).unwrap();
        (flat(&out.output), out.num_fallbacks)
    }

    /// Calls `body` with the inputs in f64.
    fn in_f64<R>(&self, body: impl FnOnce(&LlaInputs<'_>) -> R) -> R {
        let (q, keys, values, ridge) = (wide(&self.q), wide(&self.keys), wide(&self.values), wide(&self.ridge));
        let scale = f64::from(self.scale);
        body(&LlaInputs { q: &q, keys: &keys, values: &values, ridge: &ridge, scale })
    }

    fn reference(&self) -> Vec<LlaSolution> {
        self.in_f64(|inputs| reference::lla(inputs, &self.plan, self.shape)).unwrap()
    }
}

impl Random {
    /// Normal numbers, by Box and Muller.
    fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (0..count)
            .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
            .collect()
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Outputs of the reference, one after the other.
fn reference_outputs(solutions: &[LlaSolution]) -> Vec<f64> {
    solutions.iter().flat_map(|solution| solution.output.clone()).collect()
}

/// Largest error of a vector of `dim` values, relative to its norm or, for small ones, to a twentieth of the largest
/// norm; infinite if anything is not finite.
fn vector_error(got: &[f64], expected: &[f64], dim: usize) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let largest = expected.chunks_exact(dim).map(norm).fold(0.0, f64::max);
    let errors = got.chunks_exact(dim).zip(expected.chunks_exact(dim)).map(|(got, expected)| {
        let difference: Vec<f64> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference);
        // Zero for zero is exact, also where everything expected is zero.
        if error == 0.0 { 0.0 } else { error / norm(expected).max(0.05 * largest) }
    });
    errors.fold(0.0, |worst, error| if error <= worst { worst } else { error_or_infinity(error) })
}

fn error_or_infinity(error: f64) -> f64 {
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Refuses outputs that are not finite.
#[track_caller]
fn assert_finite(values: &[f32], what: &str) {
    assert!(values.iter().all(|value| value.is_finite()), "{what}: not finite");
}

#[track_caller]
fn assert_within(error: f64, tolerance: f64, what: &str) {
    assert!(error <= tolerance, "{what}: error {error:.2e}, allowed {tolerance:.2e}");
}
