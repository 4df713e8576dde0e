//! The ways to compute a call: the kernel, softmax attention, and the dense form in f32.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use kernels::{LlaOutput, LlaSettings, LlaSolver, Ridge, attention, lla};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::inputs::{Inputs, Shape, split};

/// What is measured in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contender {
    /// `kernels::lla`
    Cpu,
    /// `kernels::attention`
    Softmax,
    /// All differences of keys and queries in one tensor, and a matrix for each query.
    Dense,
}

impl Contender {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU path",
            Self::Softmax => "softmax attention",
            Self::Dense => "dense f32",
        }
    }

    /// The output, `[rows, heads * dim]`.
    pub(super) fn run(self, inputs: &Inputs, ridge: f32) -> anyhow::Result<Tensor> {
        match self {
            Self::Cpu => Ok(cpu(inputs, ridge, false)?.output),
            Self::Softmax => {
                let Inputs { q, keys, values, attention_plan, shape, .. } = inputs;
                Ok(attention(q, keys, values, attention_plan, shape.scale())?)
            }
            Self::Dense => dense(inputs, ridge),
        }
    }
}

/// The kernel with its default solver.
pub(crate) fn cpu(inputs: &Inputs, ridge: f32, details: bool) -> anyhow::Result<LlaOutput> {
    let Inputs { q, keys, values, plan, shape, .. } = inputs;
    let ridge = vec![ridge; shape.heads];
    let solver = LlaSolver::default();
    let settings = LlaSettings { scale: shape.scale(), ridge: Ridge::PerHead(&ridge), solver, details };
    Ok(lla(q, (keys, values), plan, &settings)?)
}

/// Memory of the tensors of [`dense`] that grow with the square of the length, in bytes: differences, weighted
/// differences, and a few matrices of scores.
pub(super) fn dense_bytes(shape: Shape) -> usize {
    let Shape { dim, rows, context, .. } = shape;
    rows.saturating_mul(context).saturating_mul(2 * dim + 4).saturating_mul(4)
}

/// The plain evaluation: `z_ij = k_j - q_i` as a tensor, `Sigma_i = sum_j w_ij z_ij z_ij^T + lam omega_i I` by a batched
/// product, one solve for each query, heads one after the other. Rows go to all cores.
fn dense(inputs: &Inputs, ridge: f32) -> anyhow::Result<Tensor> {
    let Shape { heads, kv_heads, dim, rows, .. } = inputs.shape;
    let parts: Vec<Range<usize>> = split(rows, rayon::current_num_threads().min(rows)).collect();
    let mut outputs = Vec::with_capacity(heads);
    for head in 0..heads {
        let q = inputs.q.narrow(1, head, 1)?.contiguous()?.reshape((rows, dim))?;
        let kv_head = head / (heads / kv_heads);
        let keys = inputs.head(&inputs.keys, kv_head)?.contiguous()?;
        let values = inputs.head(&inputs.values, kv_head)?.contiguous()?;
        let one = |part: &Range<usize>| dense_rows(inputs.shape, &q, (&keys, &values), part.clone(), ridge);
        let found = parts.par_iter().with_max_len(1).map(one).collect::<anyhow::Result<Vec<Tensor>>>()?;
        outputs.push(Tensor::cat(&found, 0)?);
    }
    Ok(Tensor::cat(&outputs, 1)?)
}

/// [`dense`] for some rows of one head. `q` is `[rows, dim]`, keys and values are `[context, dim]`.
fn dense_rows(
    shape: Shape,
    q: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    part: Range<usize>,
    ridge: f32,
) -> anyhow::Result<Tensor> {
    let Shape { dim, context, .. } = shape;
    let q = q.narrow(0, part.start, part.len())?;
    let hidden =
        |row: usize| (0..context).map(move |j| if j < shape.visible_end(row) { 0.0 } else { f32::NEG_INFINITY });
    let mask: Vec<f32> = part.clone().flat_map(hidden).collect();
    let mask = Tensor::from_vec(mask, (part.len(), context), &Device::Cpu)?;
    let scores = (q.matmul(&keys.t()?)? * f64::from(shape.scale()))?.add(&mask)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
    let omega = weights.sum(1)?.to_vec1::<f32>()?;
    let z = keys.unsqueeze(0)?.broadcast_sub(&q.unsqueeze(1)?)?;
    let weighted = z.broadcast_mul(&weights.unsqueeze(2)?)?;
    let mu = weights.unsqueeze(1)?.matmul(&z)?.flatten_all()?.to_vec1::<f32>()?;
    let sigma = weighted.transpose(1, 2)?.matmul(&z)?.flatten_all()?.to_vec1::<f32>()?;
    drop(weighted);
    let mut rho = mu.clone();
    let mut denominators = Vec::with_capacity(part.len());
    let systems = sigma.chunks_exact(dim * dim).zip(rho.chunks_exact_mut(dim)).zip(mu.chunks_exact(dim));
    for (((sigma, rho), mu), omega) in systems.zip(&omega) {
        let mut matrix = sigma.to_vec();
        matrix.iter_mut().step_by(dim + 1).for_each(|diagonal| *diagonal += ridge * omega);
        solve(&mut matrix, rho);
        denominators.push(omega - mu.iter().zip(&*rho).map(|(mu, rho)| mu * rho).sum::<f32>());
    }
    let rho = Tensor::from_vec(rho, (part.len(), dim, 1), &Device::Cpu)?;
    let slope = z.matmul(&rho)?.squeeze(2)?;
    let factors = (weights * slope.affine(-1.0, 1.0)?)?;
    let output = factors.matmul(values)?;
    let denominators = Tensor::from_vec(denominators, (part.len(), 1), &Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(output.broadcast_div(&denominators)?)
}

/// Replaces `right` by the solution of a symmetric positive system, `[n, n]`, whose lower half becomes its Cholesky
/// factor. Not finite if a pivot is not positive.
fn solve(matrix: &mut [f32], right: &mut [f32]) {
    let n = right.len();
    for row in 0..n {
        for column in 0..=row {
            let (above, here) = matrix.split_at(row * n);
            let other = if column == row { &here[..column] } else { &above[column * n..][..column] };
            let sum: f32 = here[..column].iter().zip(other).map(|(a, b)| a * b).sum();
            let value = here[column] - sum;
            matrix[row * n + column] = if column == row { value.sqrt() } else { value / matrix[column * n + column] };
        }
    }
    for row in 0..n {
        let sum: f32 = matrix[row * n..][..row].iter().zip(&*right).map(|(a, b)| a * b).sum();
        right[row] = (right[row] - sum) / matrix[row * n + row];
    }
    for row in (0..n).rev() {
        let sum: f32 = (row + 1..n).map(|below| matrix[below * n + row] * right[below]).sum();
        right[row] = (right[row] - sum) / matrix[row * n + row];
    }
}

#[cfg(test)]
mod tests {
    use super::{super::inputs::Oracle, *};

    #[test]
    fn systems_are_solved() {
        let mut matrix = [4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 3.0];
        let mut right = [8.0, 15.0, 11.0];
        solve(&mut matrix, &mut right);
        for (got, expected) in right.iter().zip([1.0, 2.0, 3.0]) {
            assert!((got - expected).abs() < 1e-5, "{right:?}");
        }
    }

    /// Rows that a later key would change, groups of heads, several pages, and a context before the first row.
    #[test]
    fn all_contenders_compute_the_same_function() {
        for shape in [
            Shape { heads: 2, kv_heads: 1, dim: 16, rows: 90, context: 90 },
            Shape { heads: 4, kv_heads: 2, dim: 32, rows: 3, context: 130 },
        ] {
            let inputs = Inputs::new(shape, 4).unwrap();
            let oracle = Oracle::new(&inputs, 1.0).unwrap();
            assert_eq!(oracle.rows, (0..shape.rows).collect::<Vec<_>>());
            let error = |contender: Contender, ridge| {
                let output = contender.run(&inputs, ridge).unwrap();
                assert_eq!(output.dims(), [shape.rows, shape.heads * shape.dim]);
                oracle.error(&output.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            // Residuals of 1e-5, amplified by a condition number of about ten.
            assert!(error(Contender::Cpu, 1.0) < 1e-4);
            // The query-centred form loses more: eta is up to the squared distance of a query over the ridge, some 60.
            assert!(error(Contender::Dense, 1.0) < 1e-3);
            // The metric sees another ridge, and softmax attention.
            assert!(error(Contender::Dense, 1.5) > 1e-2);
            assert!(error(Contender::Softmax, 1.0) > 1e-1);
        }
    }
}
