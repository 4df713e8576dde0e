//! Operations with a gradient that candle lacks or computes in many small steps. All of them are f32 on the CPU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// The values of a contiguous f32 tensor.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => bail!("the operation needs contiguous rows"),
        (other, _) => {
            bail!("the operation computes f32 only, not {:?}", candle_core::backend::BackendStorage::dtype(other))
        }
    }
}

/// The values of a tensor, copied.
pub(crate) fn copied(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

/// `exp(x)` for `x <= 0` in a form that compilers vectorise. Its relative error is at most `3e-7 + 1e-7 |x|`, nearly all of
/// it the rounding of `x log2(e)`; below `2^-126` it stays there.
#[inline]
pub(crate) fn exp_negative(x: f32) -> f32 {
    let scaled = (x * std::f32::consts::LOG2_E).max(-126.0);
    let whole = (scaled - 0.5) as i32;
    let rest = (scaled - whole as f32) * std::f32::consts::LN_2;
    let series = 1.0
        + rest * (1.0 + rest * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest / 720.0)))));
    series * f32::from_bits(((whole + 127) << 23) as u32)
}

/// Root mean square norm of rows, times a weight per feature: `[rows, d]`, `[d]` to `[rows, d]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl RmsNorm {
    fn inverse(self, row: &[f32]) -> f32 {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        1.0 / (mean + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "zoo-rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, w: &CpuStorage, w_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, x_at)?, values(w, w_at)?);
        let mut out = vec![0f32; x.len()];
        for (out, row) in out.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            let inverse = self.inverse(row);
            for ((out, x), w) in out.iter_mut().zip(row).zip(w) {
                *out = x * inverse * w;
            }
        }
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (copied(x)?, copied(w)?, copied(grad)?);
        let d = ws.len();
        let (mut dx, mut dw) = (vec![0f32; xs.len()], vec![0f32; d]);
        for ((dx, x), g) in dx.chunks_exact_mut(d).zip(xs.chunks_exact(d)).zip(gs.chunks_exact(d)) {
            let inverse = self.inverse(x);
            let dot = x.iter().zip(g).zip(&ws).map(|((x, g), w)| x * g * w).sum::<f32>();
            let pull = dot * inverse * inverse / d as f32;
            for i in 0..d {
                dx[i] = inverse * (g[i] * ws[i] - x[i] * pull);
                dw[i] += g[i] * x[i] * inverse;
            }
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, w.shape(), w.device())?)))
    }
}

/// `silu(gate) * up`, all `[rows, d]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SwiGlu;

fn sigmoid(x: f32) -> f32 {
    let small = exp_negative(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "zoo-swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, at: &Layout, up: &CpuStorage, up_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(gate, at)?, values(up, up_at)?);
        let out = gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up).collect();
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gates, ups, mut grads) = (copied(gate)?, copied(up)?, copied(grad)?);
        let mut d_gate = vec![0f32; gates.len()];
        for (((d_gate, gate), up), grad) in d_gate.iter_mut().zip(&gates).zip(&ups).zip(&mut grads) {
            let sigma = sigmoid(*gate);
            *d_gate = *grad * up * sigma * (1.0 + gate * (1.0 - sigma));
            *grad *= gate * sigma;
        }
        let d_gate = Tensor::from_vec(d_gate, gate.shape(), gate.device())?;
        Ok((Some(d_gate), Some(Tensor::from_vec(grads, up.shape(), up.device())?)))
    }
}

/// What rows should predict.
#[derive(Debug, Clone)]
pub(crate) enum Targets {
    /// One token per row.
    Tokens(Vec<u32>),
    /// A distribution per row, `[rows, vocab]`.
    Probabilities(Vec<f32>),
}

/// Cross entropy in nats, summed over rows with a weight each: logits `[rows, vocab]` to `[]`.
#[derive(Debug, Clone)]
pub(crate) struct CrossEntropy {
    pub(crate) targets: Targets,
    pub(crate) weights: Vec<f32>,
}

/// Replaces logits by probabilities; returns the logarithm of the sum of the exponentials.
pub(crate) fn softmax(row: &mut [f32]) -> f32 {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = exp_negative(*x - largest);
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
    largest + sum.ln()
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "zoo-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, vocab) = at.shape().dims2()?;
        let logits = values(logits, at)?;
        if rows != self.weights.len() {
            bail!("{} weights for {rows} rows of logits", self.weights.len());
        }
        let mut scratch = vec![0f32; vocab];
        let mut total = 0f64;
        for (index, (row, weight)) in logits.chunks_exact(vocab).zip(&self.weights).enumerate() {
            scratch.copy_from_slice(row);
            let lse = softmax(&mut scratch);
            let hit = match &self.targets {
                Targets::Tokens(tokens) => row[tokens[index] as usize],
                Targets::Probabilities(wanted) => {
                    wanted[index * vocab..(index + 1) * vocab].iter().zip(row).map(|(p, z)| p * z).sum()
                }
            };
            total += f64::from(weight * (lse - hit));
        }
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, vocab) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()?;
        let mut out = copied(logits)?;
        for (index, (row, weight)) in out.chunks_exact_mut(vocab).zip(&self.weights).enumerate() {
            softmax(row);
            match &self.targets {
                Targets::Tokens(tokens) => row[tokens[index] as usize] -= 1.0,
                Targets::Probabilities(wanted) => {
                    row.iter_mut().zip(&wanted[index * vocab..(index + 1) * vocab]).for_each(|(x, p)| *x -= p);
                }
            }
            row.iter_mut().for_each(|x| *x *= weight * scale);
        }
        Ok(Some(Tensor::from_vec(out, logits.shape(), logits.device())?))
    }
}
