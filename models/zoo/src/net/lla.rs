//! Local linear attention over packed rows, with a gradient ("Local Linear Attention", arXiv:2510.01450).
//!
//! With `p_j` the softmax weights of a row, `kbar` and `vbar` the means of keys and values under them,
//! `u_j = k_j - kbar`, `A = sum_j p_j u_j u_j^T + lam I` and `x = A^-1 (kbar - q)`, the output is
//! `vbar - sum_j p_j <u_j, x> v_j`. Rows are short here, so `A` is formed, with one product for all rows of a group, and
//! factored, eight rows side by side; serving never forms it.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::{
    attention::{Attention, Weighting},
    cholesky::{Factors, triangle},
    ops::{copied, values},
};

/// LLA of `qkv`, `[rows, (heads + 2 * kv_heads) * d]`, with the ridge `floor + softplus(theta)` of each head, `[heads]`, to
/// `[rows, heads * d]`.
#[derive(Debug)]
pub(crate) struct Lla {
    attention: Attention,
    scale: f32,
    floor: f32,
    /// What the forward pass found, for the gradient.
    solved: Mutex<Option<Vec<Solved>>>,
}

/// The systems of one group of `n` rows. Heads that share keys lie behind one another: `m = heads / kv_heads * n`.
#[derive(Debug)]
struct Solved {
    /// Rotated queries, `[kv_heads, m, d]`.
    q: Tensor,
    /// Rotated keys, `[kv_heads, n, d]`.
    k: Tensor,
    /// `[kv_heads, n, d]`
    v: Tensor,
    /// Attention weights, `[kv_heads, m, n]`.
    p: Vec<f32>,
    /// Means of `k` under the weights, `[kv_heads, m, d]`.
    kbar: Vec<f32>,
    /// Means of `v` under the weights, `[kv_heads, m, d]`.
    vbar: Vec<f32>,
    /// Solutions, `[kv_heads, m, d]`.
    x: Vec<f32>,
    factors: Factors,
}

/// `ln(1 + e^x)`
pub(crate) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Lla {
    /// `rows` and sizes are those of `attention`; its weighting is the softmax with `scale`.
    pub(crate) fn new(attention: Attention, scale: f32, floor: f32) -> Self {
        let attention = Attention { weighting: Weighting::Softmax { scale }, ..attention };
        Self { attention, scale, floor, solved: Mutex::new(None) }
    }

    /// Heads of a row of `qkv`.
    fn width(&self) -> usize {
        self.attention.heads + 2 * self.attention.kv_heads
    }

    /// Heads of `qkv` from `first` on, `[kv_heads, count / kv_heads * n, d]`.
    fn heads(
        &self,
        qkv: &[f32],
        (first, count): (usize, usize),
        range: &Range<usize>,
        rope: Option<&(Vec<f32>, Vec<f32>)>,
    ) -> Vec<f32> {
        let mut out = Vec::with_capacity(count * range.len() * self.attention.head_dim);
        for head in first..first + count {
            self.attention.take_head(qkv, self.width(), head, range, rope, &mut out);
        }
        out
    }

    fn solve(&self, qkv: &[f32], theta: &[f32], range: &Range<usize>, rope: &(Vec<f32>, Vec<f32>)) -> Result<Solved> {
        let Attention { heads, kv_heads, head_dim: d, .. } = self.attention;
        let n = range.len();
        let m = heads / kv_heads * n;
        let q = self.heads(qkv, (0, heads), range, Some(rope));
        let k = self.heads(qkv, (heads, kv_heads), range, Some(rope));
        let v = self.heads(qkv, (heads + kv_heads, kv_heads), range, None);
        // What is averaged: keys, values, and the products of two coordinates of a key.
        let width = 2 * d + triangle(d);
        let mut features = Vec::with_capacity(kv_heads * n * width);
        for (k, v) in k.chunks_exact(d).zip(v.chunks_exact(d)) {
            features.extend_from_slice(k);
            features.extend_from_slice(v);
            for i in 0..d {
                features.extend(k[..=i].iter().map(|other| k[i] * other));
            }
        }
        let tensor = |values: Vec<f32>, rows: usize, columns: usize| {
            Tensor::from_vec(values, (kv_heads, rows, columns), &Device::Cpu)
        };
        let (queries, keys) = (tensor(q, m, d)?, tensor(k, n, d)?);
        let mut p = copied(&queries.matmul(&keys.t()?)?)?;
        self.attention.normalize(&mut p, range);
        let means = copied(&tensor(p.clone(), m, n)?.matmul(&tensor(features, n, width)?)?)?;
        let (mut kbar, mut vbar, mut x) = (Vec::new(), Vec::new(), Vec::new());
        let mut factors = Factors::new(d);
        let q = copied(&queries)?;
        let ridges: Vec<f32> = theta.iter().map(|theta| self.floor + softplus(*theta)).collect();
        for (row, means) in means.chunks_exact(width).enumerate() {
            let key = &means[..d];
            kbar.extend_from_slice(key);
            vbar.extend_from_slice(&means[d..2 * d]);
            x.extend(key.iter().zip(&q[row * d..]).map(|(key, q)| key - q));
            factors.push(&means[2 * d..], key, ridges[row / n]);
        }
        factors.factor();
        factors.solve(&mut x);
        Ok(Solved { q: queries, k: keys, v: tensor(v, n, d)?, p, kbar, vbar, x, factors })
    }

    fn solve_all(&self, qkv: &[f32], theta: &[f32]) -> Result<Vec<Solved>> {
        let rope = self.attention.rope();
        self.attention.rows.groups.iter().map(|range| self.solve(qkv, theta, range, &rope)).collect()
    }
}

impl Solved {
    /// `<vector, k_j - kbar>` for a vector of each row: `[kv_heads, m, d]` to `[kv_heads, m, n]`.
    fn relative(&self, vectors: &[f32]) -> Result<Vec<f32>> {
        let (_, n, d) = self.k.dims3()?;
        let mut out = copied(&Tensor::from_slice(vectors, self.q.shape(), &Device::Cpu)?.matmul(&self.k.t()?)?)?;
        let rows = vectors.chunks_exact(d).zip(self.kbar.chunks_exact(d));
        for (out, (vector, kbar)) in out.chunks_exact_mut(n).zip(rows) {
            let mean = dot(vector, kbar);
            out.iter_mut().for_each(|t| *t -= mean);
        }
        Ok(out)
    }

    fn tensor(&self, weights: Vec<f32>) -> Result<Tensor> {
        let (kv_heads, m, _) = self.q.dims3()?;
        Tensor::from_vec(weights, (kv_heads, m, self.k.dim(1)?), &Device::Cpu)
    }

    /// `[kv_heads, m, d]`
    fn output(&self) -> Result<Vec<f32>> {
        let (_, n, d) = self.k.dims3()?;
        let mut weights = self.relative(&self.x)?;
        let mut sums = Vec::with_capacity(weights.len() / n);
        for (weights, p) in weights.chunks_exact_mut(n).zip(self.p.chunks_exact(n)) {
            weights.iter_mut().zip(p).for_each(|(t, p)| *t *= p);
            // Zero but for rounding, which it takes out of what follows.
            sums.push(weights.iter().sum::<f32>());
        }
        let mut out = copied(&self.tensor(weights)?.matmul(&self.v)?)?;
        for ((out, vbar), sum) in out.chunks_exact_mut(d).zip(self.vbar.chunks_exact(d)).zip(sums) {
            out.iter_mut().zip(vbar).for_each(|(out, vbar)| *out = vbar - (*out - sum * vbar));
        }
        Ok(out)
    }

    /// Gradients with respect to q, k and v as they are here, and to the ridge of each row, from that with respect to the
    /// output, `[kv_heads, m, d]`.
    fn gradients(&self, grad: Vec<f32>, scale: f32) -> Result<[Vec<f32>; 4]> {
        let (_, n, d) = self.k.dims3()?;
        let grad = Tensor::from_vec(grad, self.q.shape(), &Device::Cpu)?;
        // <g, v_j>
        let gam = copied(&grad.matmul(&self.v.t()?)?)?;
        let mut centered = gam.clone();
        let mut gbars = Vec::with_capacity(gam.len() / n);
        for (row, p) in centered.chunks_exact_mut(n).zip(self.p.chunks_exact(n)) {
            let gbar = dot(row, p);
            row.iter_mut().zip(p).for_each(|(gam, p)| *gam = p * (*gam - gbar));
            gbars.push(gbar);
        }
        let mut y = copied(&self.tensor(centered)?.matmul(&self.k)?)?;
        self.factors.solve(&mut y);
        let (xu, yu) = (self.relative(&self.x)?, self.relative(&y)?);
        let mut by_score = vec![0f32; gam.len()];
        let (mut by_x, mut by_y) = (by_score.clone(), by_score.clone());
        for (row, gbar) in gbars.into_iter().enumerate() {
            let at = row * n..(row + 1) * n;
            let (p, gam, xu, yu) = (&self.p[at.clone()], &gam[at.clone()], &xu[at.clone()], &yu[at.clone()]);
            let (by_score, by_x, by_y) = (&mut by_score[at.clone()], &mut by_x[at.clone()], &mut by_y[at]);
            let mut mean = 0.0;
            for j in 0..n {
                let e = gam[j] - (gam[j] - gbar) * xu[j] - yu[j] + yu[j] * xu[j];
                mean += p[j] * e;
                by_score[j] = e;
                by_x[j] = p[j] * (yu[j] - gam[j] + gbar);
                by_y[j] = p[j] * (xu[j] - 1.0);
            }
            by_score.iter_mut().zip(p).for_each(|(e, p)| *e = scale * p * (*e - mean));
        }
        let d_ridge = self.x.chunks_exact(d).zip(y.chunks_exact(d)).map(|(x, y)| dot(x, y)).collect();
        let y = Tensor::from_vec(y, self.q.shape(), &Device::Cpu)?;
        let x = Tensor::from_slice(&self.x, self.q.shape(), &Device::Cpu)?;
        let (by_score, by_x, by_y) = (self.tensor(by_score)?, self.tensor(by_x)?, self.tensor(by_y)?);
        let dq = (by_score.matmul(&self.k)? + &y)?;
        let dk = ((by_score.t()?.matmul(&self.q)? + by_x.t()?.matmul(&x)?)? + by_y.t()?.matmul(&y)?)?;
        let dv = by_y.t()?.matmul(&grad)?.neg()?;
        Ok([copied(&dq)?, copied(&dk)?, copied(&dv)?, d_ridge])
    }
}

impl CustomOp2 for Lla {
    fn name(&self) -> &'static str {
        "zoo-lla"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        at: &Layout,
        theta: &CpuStorage,
        theta_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Attention { heads, head_dim: d, .. } = self.attention;
        let (qkv, theta) = (values(qkv, at)?, values(theta, theta_at)?);
        let rows = self.attention.rows.len();
        if at.dims() != [rows, self.width() * d] || theta.len() != heads {
            bail!("{:?} and {} ridges for {rows} rows of {} heads of {d}", at.dims(), theta.len(), self.width());
        }
        let solved = self.solve_all(qkv, theta)?;
        let mut out = vec![0f32; rows * heads * d];
        for (solved, range) in solved.iter().zip(&self.attention.rows.groups) {
            for (head, mixed) in solved.output()?.chunks_exact(range.len() * d).enumerate() {
                self.attention.add_head(mixed, heads, head, range, None, &mut out);
            }
        }
        *self.solved.lock().unwrap_or_else(PoisonError::into_inner) = Some(solved);
        Ok((CpuStorage::F32(out), Shape::from((rows, heads * d))))
    }

    fn bwd(&self, qkv: &Tensor, theta: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Attention { heads, kv_heads, head_dim: d, .. } = self.attention;
        let (grads, thetas) = (copied(grad)?, copied(theta)?);
        let solved = match self.solved.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(solved) => solved,
            None => self.solve_all(&copied(qkv)?, &thetas)?,
        };
        let rope = self.attention.rope();
        let mut d_qkv = vec![0f32; qkv.elem_count()];
        let mut d_theta = vec![0f32; heads];
        for (solved, range) in solved.iter().zip(&self.attention.rows.groups) {
            let n = range.len();
            let mut out = Vec::with_capacity(heads * n * d);
            for head in 0..heads {
                self.attention.take_head(&grads, heads, head, range, None, &mut out);
            }
            let [dq, dk, dv, d_ridge] = solved.gradients(out, self.scale)?;
            let parts = [(0, dq, Some(&rope)), (heads, dk, Some(&rope)), (heads + kv_heads, dv, None)];
            for (first, part, rope) in parts {
                for (head, part) in part.chunks_exact(n * d).enumerate() {
                    self.attention.add_head(part, self.width(), first + head, range, rope, &mut d_qkv);
                }
            }
            for ((d_theta, theta), d_ridge) in d_theta.iter_mut().zip(&thetas).zip(d_ridge.chunks_exact(n)) {
                *d_theta += d_ridge.iter().sum::<f32>() / (1.0 + (-theta).exp());
            }
        }
        Ok((
            Some(Tensor::from_vec(d_qkv, qkv.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(d_theta, theta.shape(), &Device::Cpu)?),
        ))
    }
}
