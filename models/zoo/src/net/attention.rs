//! Attention over packed rows, with rotary positions and a gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};

use super::{
    Rows,
    ops::{copied, exp_negative, values},
};

/// Softmax attention of `q` `[rows, heads * d]` over `k` and `v` `[rows, kv_heads * d]` to `[rows, heads * d]`.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) rows: Arc<Rows>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Base of the rotary frequencies.
    pub(crate) theta: f32,
    pub(crate) weighting: Weighting,
}

/// What makes a weight of a rotated query and a rotated key. The weights of a row sum to one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Weighting {
    /// The exponential of `scale <q, k>`.
    Softmax { scale: f32 },
    /// `<phi(q), phi(k)>` with `phi = elu + 1` (Katharopoulos et al., arXiv:2006.16236).
    Linear,
}

/// The heads of one group of rows, rotated: `[heads, n, d]` each, `k` and `v` repeated for the heads that share them.
struct Group {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Attention {
    /// Cosines and sines, `[rows, d / 2]`.
    pub(super) fn rope(&self) -> (Vec<f32>, Vec<f32>) {
        let half = self.head_dim / 2;
        let angles =
            self.rows.positions.iter().flat_map(|position| {
                (0..half).map(move |i| *position as f32 * self.theta.powf(-(i as f32) / half as f32))
            });
        angles.map(|angle| (angle.cos(), angle.sin())).unzip()
    }

    /// Copies one head of rows `start..start + n` out of `[rows, heads * d]`, rotating by `sign` times the position.
    pub(super) fn take_head(
        &self,
        from: &[f32],
        heads: usize,
        head: usize,
        range: &std::ops::Range<usize>,
        rope: Option<&(Vec<f32>, Vec<f32>)>,
        into: &mut Vec<f32>,
    ) {
        let (d, half) = (self.head_dim, self.head_dim / 2);
        for row in range.clone() {
            let x = &from[(row * heads + head) * d..][..d];
            match rope {
                None => into.extend_from_slice(x),
                Some((cos, sin)) => {
                    let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
                    into.extend((0..half).map(|i| x[i] * cos[i] - x[i + half] * sin[i]));
                    into.extend((0..half).map(|i| x[i + half] * cos[i] + x[i] * sin[i]));
                }
            }
        }
    }

    /// Adds one head's rows, rotated back if asked for, to `[rows, heads * d]`.
    pub(super) fn add_head(
        &self,
        from: &[f32],
        heads: usize,
        head: usize,
        range: &std::ops::Range<usize>,
        rope: Option<&(Vec<f32>, Vec<f32>)>,
        into: &mut [f32],
    ) {
        let (d, half) = (self.head_dim, self.head_dim / 2);
        for (x, row) in from.chunks_exact(d).zip(range.clone()) {
            let out = &mut into[(row * heads + head) * d..][..d];
            match rope {
                None => out.iter_mut().zip(x).for_each(|(out, x)| *out += x),
                Some((cos, sin)) => {
                    let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
                    for i in 0..half {
                        out[i] += x[i] * cos[i] + x[i + half] * sin[i];
                        out[i + half] += x[i + half] * cos[i] - x[i] * sin[i];
                    }
                }
            }
        }
    }

    fn group(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        range: &std::ops::Range<usize>,
        rope: &(Vec<f32>, Vec<f32>),
    ) -> Result<Group> {
        let shape = (self.heads, range.len(), self.head_dim);
        let share = self.heads / self.kv_heads;
        let gather = |from: &[f32], heads: usize, rope: Option<&(Vec<f32>, Vec<f32>)>| {
            let mut out = Vec::with_capacity(self.heads * range.len() * self.head_dim);
            for head in 0..self.heads {
                self.take_head(
                    from,
                    heads,
                    if heads == self.heads { head } else { head / share },
                    range,
                    rope,
                    &mut out,
                );
            }
            Tensor::from_vec(out, shape, &Device::Cpu)
        };
        let (mut q, mut k) = (gather(q, self.heads, Some(rope))?, gather(k, self.kv_heads, Some(rope))?);
        if self.weighting == Weighting::Linear {
            // elu + 1
            [q, k] = [(q.elu(1.0)? + 1.0)?, (k.elu(1.0)? + 1.0)?];
        }
        Ok(Group { q, k, v: gather(v, self.kv_heads, None)? })
    }

    /// Attention weights of a group, `[heads, n, n]`, zero where a row does not see another, and what they were divided by.
    fn weights(&self, group: &Group, range: &std::ops::Range<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut scores = copied(&group.q.matmul(&group.k.t()?)?)?;
        let sums = self.normalize(&mut scores, range);
        Ok((scores, sums))
    }

    /// Turns products of queries and keys of a group, any number of times `[n, n]`, into attention weights; returns what
    /// those of each row were divided by.
    pub(super) fn normalize(&self, scores: &mut [f32], range: &std::ops::Range<usize>) -> Vec<f32> {
        let n = range.len();
        let mut sums = Vec::with_capacity(scores.len() / n);
        for (index, row) in scores.chunks_exact_mut(n).enumerate() {
            let spans = self.rows.sees[range.start + index % n].clone();
            let spans =
                spans.map(|span| if span.is_empty() { 0..0 } else { span.start - range.start..span.end - range.start });
            if let Weighting::Softmax { scale } = self.weighting {
                let seen = spans.iter().flat_map(|span| &row[span.clone()]);
                let largest = seen.fold(f32::NEG_INFINITY, |largest, x| largest.max(*x));
                for span in spans.clone() {
                    row[span].iter_mut().for_each(|x| *x = exp_negative((*x - largest) * scale));
                }
            }
            let (mut sum, mut at) = (0f32, 0);
            for span in spans {
                if !span.is_empty() {
                    row[at..span.start].fill(0.0);
                    at = span.end;
                    sum += row[span].iter().sum::<f32>();
                }
            }
            row[at..].fill(0.0);
            row.iter_mut().for_each(|x| *x *= 1.0 / sum);
            sums.push(sum);
        }
        sums
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "zoo-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_at: &Layout,
        k: &CpuStorage,
        k_at: &Layout,
        v: &CpuStorage,
        v_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (values(q, q_at)?, values(k, k_at)?, values(v, v_at)?);
        let rope = self.rope();
        let mut out = vec![0f32; q.len()];
        for range in &self.rows.groups {
            let n = range.len();
            let group = self.group(q, k, v, range, &rope)?;
            let weights = Tensor::from_vec(self.weights(&group, range)?.0, (self.heads, n, n), &Device::Cpu)?;
            let mixed = copied(&weights.matmul(&group.v)?)?;
            for (head, mixed) in mixed.chunks_exact(n * self.head_dim).enumerate() {
                self.add_head(mixed, self.heads, head, range, None, &mut out);
            }
        }
        Ok((CpuStorage::F32(out), q_at.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (qs, ks, vs, grads) = (copied(q)?, copied(k)?, copied(v)?, copied(grad)?);
        let rope = self.rope();
        let (mut dq, mut dk, mut dv) = (vec![0f32; qs.len()], vec![0f32; ks.len()], vec![0f32; vs.len()]);
        let share = self.heads / self.kv_heads;
        for range in &self.rows.groups {
            let n = range.len();
            let group = self.group(&qs, &ks, &vs, range, &rope)?;
            let (weights, sums) = self.weights(&group, range)?;
            let mut out = Vec::with_capacity(self.heads * n * self.head_dim);
            for head in 0..self.heads {
                self.take_head(&grads, self.heads, head, range, None, &mut out);
            }
            let out = Tensor::from_vec(out, (self.heads, n, self.head_dim), &Device::Cpu)?;
            let mut d_scores = copied(&out.matmul(&group.v.t()?)?)?;
            for ((d, p), sum) in d_scores.chunks_exact_mut(n).zip(weights.chunks_exact(n)).zip(sums) {
                let dot = d.iter().zip(p).map(|(d, p)| d * p).sum::<f32>();
                match self.weighting {
                    Weighting::Softmax { scale } => d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale),
                    // Only what is not seen has a weight of zero.
                    Weighting::Linear => {
                        d.iter_mut().zip(p).for_each(|(d, p)| *d = if *p > 0.0 { (*d - dot) / sum } else { 0.0 });
                    }
                }
            }
            let shape = (self.heads, n, n);
            let d_scores = Tensor::from_vec(d_scores, shape, &Device::Cpu)?;
            let weights = Tensor::from_vec(weights, shape, &Device::Cpu)?;
            let (mut d_q, mut d_k) = (d_scores.matmul(&group.k)?, d_scores.t()?.matmul(&group.q)?);
            if self.weighting == Weighting::Linear {
                // The derivative of elu + 1 is 1 where that is above 1, and elu + 1 elsewhere.
                [d_q, d_k] = [(d_q * group.q.minimum(1.0)?)?, (d_k * group.k.minimum(1.0)?)?];
            }
            let parts = [d_q, d_k, weights.t()?.matmul(&out)?];
            let [d_q, d_k, d_v] = [copied(&parts[0])?, copied(&parts[1])?, copied(&parts[2])?];
            let each = n * self.head_dim;
            for head in 0..self.heads {
                let part = head * each..(head + 1) * each;
                self.add_head(&d_q[part.clone()], self.heads, head, range, Some(&rope), &mut dq);
                self.add_head(&d_k[part.clone()], self.kv_heads, head / share, range, Some(&rope), &mut dk);
                self.add_head(&d_v[part], self.kv_heads, head / share, range, None, &mut dv);
            }
        }
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dk, k.shape(), k.device())?),
            Some(Tensor::from_vec(dv, v.shape(), v.device())?),
        ))
    }
}
