//! The optimiser: Muon for the matrices of the layers, AdamW for embeddings, norms and biases.
//!
//! Muon (Jordan et al., 2024; <https://kellerjordan.github.io/posts/muon/>) replaces the momentum of a matrix by the
//! nearest matrix with orthonormal rows or columns, found by five Newton-Schulz iterations. Its step is scaled to the
//! size of an AdamW step, `0.2 sqrt(max(rows, columns))` (Liu et al., arXiv:2502.16982).

use std::{collections::BTreeMap, thread};

use candle_core::{DType, Device, Tensor, Var};

use crate::ZooError;

const MOMENTUM: f64 = 0.95;
const BETAS: (f64, f64) = (0.9, 0.98);
const EPS: f64 = 1e-9;
const WEIGHT_DECAY: f64 = 0.01;
/// Coefficients of the quintic iteration.
const QUINTIC: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;

/// State of the optimiser by parameter; f32, shaped as the parameter.
#[derive(Debug, Default)]
pub struct Optimizer {
    /// Momentum, or the first moment.
    first: BTreeMap<String, Tensor>,
    /// The second moment; only where AdamW is used.
    second: BTreeMap<String, Tensor>,
    /// Steps done.
    steps: usize,
}

/// Whether Muon trains the parameter.
fn is_matrix(name: &str, var: &Var) -> bool {
    var.rank() == 2 && !name.contains("embed")
}

impl Optimizer {
    /// One step against the gradients, which are scaled down first if their norm is above `max_norm`. The work is shared
    /// by `threads` threads. Returns the norm of the gradients.
    pub fn step(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        grads: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        max_norm: f64,
        threads: usize,
    ) -> Result<f64, ZooError> {
        let mut square = 0f64;
        for grad in grads.values() {
            square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = square.sqrt();
        let scale = if norm > max_norm { max_norm / norm } else { 1.0 };
        self.steps += 1;
        let steps = self.steps as i32;
        let jobs: Vec<_> = parameters.iter().filter_map(|(name, var)| Some((name, var, grads.get(name)?))).collect();
        let (first, second) = (&self.first, &self.second);
        let work = |worker: usize| -> Result<Vec<_>, ZooError> {
            let own = jobs.iter().skip(worker).step_by(threads);
            own.map(|(name, var, grad)| {
                let grad = (*grad * scale)?;
                let zeros = || Tensor::zeros(var.shape(), DType::F32, &Device::Cpu);
                let old = first.get(*name).map_or_else(zeros, |old| Ok(old.clone()))?;
                let (momentum, variance, update) = if is_matrix(name, var) {
                    let momentum = ((old * MOMENTUM)? + &grad)?;
                    let direction = orthogonal(&(grad + (&momentum * MOMENTUM)?)?)?;
                    let (rows, columns) = var.dims2()?;
                    let update =
                        ((direction * (0.2 * (rows.max(columns) as f64).sqrt()))? + (var.as_tensor() * WEIGHT_DECAY)?)?;
                    (momentum, None, update)
                } else {
                    let momentum = ((old * BETAS.0)? + (&grad * (1.0 - BETAS.0))?)?;
                    let old = second.get(*name).map_or_else(zeros, |old| Ok(old.clone()))?;
                    let variance = ((old * BETAS.1)? + (grad.sqr()? * (1.0 - BETAS.1))?)?;
                    let root = ((&variance / (1.0 - BETAS.1.powi(steps)))?.sqrt()? + EPS)?;
                    let update = ((&momentum / (1.0 - BETAS.0.powi(steps)))? / root)?;
                    (momentum, Some(variance), update)
                };
                var.set(&(var.as_tensor() - (update * learning_rate)?)?.detach())?;
                Ok(((*name).clone(), momentum.detach(), variance.map(|variance| variance.detach())))
            })
            .collect()
        };
        let done = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|worker| scope.spawn(move || work(worker))).collect();
            workers.into_iter().map(|worker| worker.join().expect("the optimiser does not panic")).collect::<Vec<_>>()
        });
        for part in done {
            for (name, momentum, variance) in part? {
                if let Some(variance) = variance {
                    self.second.insert(name.clone(), variance);
                }
                self.first.insert(name, momentum);
            }
        }
        Ok(norm)
    }

    /// All of its state as tensors, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let first = self.first.iter().map(|(name, tensor)| (format!("first.{name}"), tensor.clone()));
        let second = self.second.iter().map(|(name, tensor)| (format!("second.{name}"), tensor.clone()));
        first.chain(second).collect()
    }

    /// The optimiser after `steps` steps that ended with this state.
    pub fn from_state(state: &BTreeMap<String, Tensor>, steps: usize) -> Self {
        let part = |prefix: &str| {
            let named = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
            named.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
        };
        Self { first: part("first."), second: part("second."), steps }
    }
}

/// The polar factor of a matrix, roughly: all singular values end between 0.7 and 1.2.
fn orthogonal(matrix: &Tensor) -> Result<Tensor, ZooError> {
    let (rows, columns) = matrix.dims2()?;
    let norm = f64::from(matrix.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let mut x = (matrix / (norm + 1e-7))?;
    let is_tall = rows > columns;
    if is_tall {
        x = x.t()?.contiguous()?;
    }
    for _ in 0..ITERATIONS {
        let square = x.matmul(&x.t()?)?;
        let mix = ((&square * QUINTIC.1)? + (square.matmul(&square)? * QUINTIC.2)?)?;
        x = ((&x * QUINTIC.0)? + mix.matmul(&x)?)?;
    }
    Ok(if is_tall { x.t()?.contiguous()? } else { x })
}
