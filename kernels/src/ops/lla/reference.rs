//! Local linear attention in f64 with a dense solve for each row, written to be read beside its equations.
//!
//! For a query `q` with visible keys `k_j` and values `v_j`, scale `a` and ridge `lam`:
//!
//! ```text
//! p_j   = softmax_j(a <q, k_j>)
//! kbar  = sum_j p_j k_j              u_j = k_j - kbar
//! A     = sum_j p_j u_j u_j^T + lam I
//! x     = A^-1 (kbar - q)            the probe
//! o     = sum_j p_j (1 - <u_j, x>) v_j
//! ```
//!
//! It is the intercept, at the query, of the affine function of the keys that fits the values best under the weights
//! `p_j` and the penalty `lam` on its slope ("Local Linear Attention", arXiv:2510.01450, in mean-centred form). The
//! ridge is measured against the softmax-normalised covariance of the keys, as in the code that its authors released.

use super::LlaPlan;

/// Sizes of the tensors that local linear attention works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlaShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; query head `h` reads head `h / (num_heads / num_kv_heads)`.
    pub num_kv_heads: usize,
    /// Values per query and key.
    pub key_dim: usize,
    /// Values per value vector and output.
    pub value_dim: usize,
}

/// What one query finds in its visible keys.
#[derive(Debug, Clone, PartialEq)]
pub struct LlaSolution {
    /// `o`, `[value_dim]`; zero without visible keys.
    pub output: Vec<f64>,
    /// `x`, `[key_dim]`.
    pub probe: Vec<f64>,
    /// `kbar`, `[key_dim]`.
    pub key_mean: Vec<f64>,
    /// `sum_j p_j v_j`, the output of softmax attention, `[value_dim]`.
    pub softmax_output: Vec<f64>,
    /// `log sum_j exp(a <q, k_j>)`; minus infinity without visible keys.
    pub lse: f64,
    /// `<kbar - q, x>`, the squared Mahalanobis distance of the query from the mean of the keys.
    pub eta: f64,
}

/// Derivatives of `sum <o, grad_output>`.
#[derive(Debug, Clone, PartialEq)]
pub struct LlaGradients {
    /// By the queries, shaped as they are.
    pub q: Vec<f64>,
    /// By the keys, shaped as they are.
    pub keys: Vec<f64>,
    /// By the values, shaped as they are.
    pub values: Vec<f64>,
    /// By the ridge of each row, `[rows, heads]`.
    pub ridge: Vec<f64>,
}

/// Queries, paged keys and values of one call, in the shapes of [`lla`](crate::lla).
#[derive(Debug, Clone, Copy)]
pub struct LlaInputs<'a> {
    /// `[rows, heads, key_dim]`
    pub q: &'a [f64],
    /// `[pages, kv_heads, page_len, key_dim]`
    pub keys: &'a [f64],
    /// `[pages, kv_heads, page_len, value_dim]`
    pub values: &'a [f64],
    /// `lam` of each row and head, `[rows, heads]`, above zero.
    pub ridge: &'a [f64],
    /// `a`
    pub scale: f64,
}

/// Local linear attention of every row and head, `[rows * heads]`. `None` if some ridge is so small beside its keys that
/// `A` is not positive definite in f64.
pub fn lla(inputs: &LlaInputs<'_>, plan: &LlaPlan, shape: LlaShape) -> Option<Vec<LlaSolution>> {
    let mut solutions = Vec::with_capacity(plan.num_rows() * shape.num_heads);
    for index in 0..plan.num_rows() * shape.num_heads {
        let visible = Visible::of(inputs, plan, shape, index);
        solutions.push(if visible.keys.is_empty() { nothing(shape) } else { visible.system()?.solution() });
    }
    Some(solutions)
}

/// The output with given probes `x`, `[rows, heads, key_dim]`, in the form of "Parallax" (arXiv:2605.29157): with
/// `t_j = <x, k_j>`, `o = vbar (1 + sum_j p_j t_j) - sum_j p_j t_j v_j`. `[rows, heads, value_dim]`; the ridge is not used.
pub fn parallax(inputs: &LlaInputs<'_>, probe: &[f64], plan: &LlaPlan, shape: LlaShape) -> Vec<f64> {
    let mut out = Vec::with_capacity(plan.num_rows() * shape.num_heads * shape.value_dim);
    for (index, x) in probe.chunks_exact(shape.key_dim).enumerate() {
        let visible = Visible::of(inputs, plan, shape, index);
        let (p, _) = visible.weights();
        let pt: Vec<f64> = p.iter().zip(&visible.keys).map(|(p, key)| p * dot(x, key)).collect();
        let mut row = vec![0.0; shape.value_dim];
        let mean = 1.0 + pt.iter().sum::<f64>();
        for ((p, pt), value) in p.iter().zip(&pt).zip(&visible.values) {
            add(&mut row, p * mean - pt, value);
        }
        out.extend(row);
    }
    out
}

/// Gradients of `sum <o, grad_output>` with `grad_output` `[rows, heads, value_dim]`; `None` as for [`lla`].
pub fn lla_gradients(
    inputs: &LlaInputs<'_>,
    plan: &LlaPlan,
    shape: LlaShape,
    grad_output: &[f64],
) -> Option<LlaGradients> {
    let LlaShape { key_dim, value_dim, .. } = shape;
    let mut total = LlaGradients {
        q: vec![0.0; inputs.q.len()],
        keys: vec![0.0; inputs.keys.len()],
        values: vec![0.0; inputs.values.len()],
        ridge: vec![0.0; inputs.ridge.len()],
    };
    for index in 0..plan.num_rows() * shape.num_heads {
        let visible = Visible::of(inputs, plan, shape, index);
        if visible.keys.is_empty() {
            continue;
        }
        let row = visible.system()?.gradients(&grad_output[index * value_dim..][..value_dim]);
        total.q[index * key_dim..][..key_dim].copy_from_slice(&row.query);
        total.ridge[index] = row.ridge;
        for (j, &slot) in visible.slots.iter().enumerate() {
            add(&mut total.keys[slot * key_dim..][..key_dim], 1.0, &row.keys[j]);
            add(&mut total.values[slot * value_dim..][..value_dim], 1.0, &row.values[j]);
        }
    }
    Some(total)
}

/// A row that sees nothing.
fn nothing(shape: LlaShape) -> LlaSolution {
    let (keys, values) = (vec![0.0; shape.key_dim], vec![0.0; shape.value_dim]);
    LlaSolution {
        output: values.clone(),
        probe: keys.clone(),
        key_mean: keys,
        softmax_output: values,
        lse: f64::NEG_INFINITY,
        eta: 0.0,
    }
}

/// A query and what it sees.
struct Visible<'a> {
    query: &'a [f64],
    keys: Vec<&'a [f64]>,
    values: Vec<&'a [f64]>,
    /// Where the keys and values lie, in rows of the caches.
    slots: Vec<usize>,
    ridge: f64,
    scale: f64,
}

impl<'a> Visible<'a> {
    /// The query of row `index / num_heads`, head `index % num_heads`.
    fn of(inputs: &LlaInputs<'a>, plan: &LlaPlan, shape: LlaShape, index: usize) -> Self {
        let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = shape;
        let row = &plan.rows()[index / num_heads];
        let kv_head = index % num_heads / (num_heads / num_kv_heads);
        let slots: Vec<usize> = (row.visible_start..row.visible_end)
            .map(|position| plan.slot(row.table, position, (kv_head, num_kv_heads)))
            .collect();
        Self {
            query: &inputs.q[index * key_dim..][..key_dim],
            keys: slots.iter().map(|slot| &inputs.keys[slot * key_dim..][..key_dim]).collect(),
            values: slots.iter().map(|slot| &inputs.values[slot * value_dim..][..value_dim]).collect(),
            slots,
            ridge: inputs.ridge[index],
            scale: inputs.scale,
        }
    }

    /// `p_j`, and the logarithm of the sum of the exponentials of the scores.
    fn weights(&self) -> (Vec<f64>, f64) {
        let scores: Vec<f64> = self.keys.iter().map(|key| self.scale * dot(self.query, key)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let omega: f64 = weights.iter().sum();
        (weights.iter().map(|weight| weight / omega).collect(), max + omega.ln())
    }

    fn system(&self) -> Option<System<'_, 'a>> {
        let (p, lse) = self.weights();
        let key_mean = weighted_sum(&p, &self.keys);
        let centred: Vec<Vec<f64>> = self.keys.iter().map(|key| sub(key, &key_mean)).collect();
        let dim = key_mean.len();
        let mut a = vec![0.0; dim * dim];
        for (p, u) in p.iter().zip(&centred) {
            for (row, u_row) in a.chunks_exact_mut(dim).zip(u) {
                add(row, p * u_row, u);
            }
        }
        for diagonal in a.iter_mut().step_by(dim + 1) {
            *diagonal += self.ridge;
        }
        let a = Cholesky::of(a, dim)?;
        let probe = a.solve(&sub(&key_mean, self.query));
        Some(System { visible: self, p, lse, key_mean, centred, a, probe })
    }
}

/// The weights of a query and its solved system.
struct System<'b, 'a> {
    visible: &'b Visible<'a>,
    p: Vec<f64>,
    lse: f64,
    key_mean: Vec<f64>,
    /// `u_j`
    centred: Vec<Vec<f64>>,
    a: Cholesky,
    probe: Vec<f64>,
}

/// Gradients of one row; those of keys and values by visible position.
struct RowGradients {
    query: Vec<f64>,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    ridge: f64,
}

impl System<'_, '_> {
    fn solution(self) -> LlaSolution {
        let weights: Vec<f64> =
            self.p.iter().zip(&self.centred).map(|(p, u)| p * (1.0 - dot(u, &self.probe))).collect();
        LlaSolution {
            output: weighted_sum(&weights, &self.visible.values),
            softmax_output: weighted_sum(&self.p, &self.visible.values),
            eta: dot(&sub(&self.key_mean, self.visible.query), &self.probe),
            probe: self.probe,
            key_mean: self.key_mean,
            lse: self.lse,
        }
    }

    /// With `g` the gradient of the output, `gam_j = <g, v_j>` and `gbar = sum_j p_j gam_j`:
    ///
    /// ```text
    /// c   = sum_j p_j (gam_j - gbar) u_j                                  y = A^-1 c
    /// e_j = gam_j - (gam_j - gbar) <x, u_j> - <y, u_j> + <y, u_j> <x, u_j>
    /// t_j = p_j (e_j - sum_l p_l e_l)
    /// dq   = a sum_j t_j k_j + y
    /// dk_j = a t_j q + p_j (<y, u_j> - gam_j + gbar) x + p_j (<x, u_j> - 1) y
    /// dv_j = p_j (1 - <x, u_j>) g
    /// dlam = <x, y>
    /// ```
    fn gradients(&self, g: &[f64]) -> RowGradients {
        let Visible { query, keys, values, scale, .. } = self.visible;
        let (p, x) = (&self.p, &self.probe);
        let gam: Vec<f64> = values.iter().map(|v| dot(g, v)).collect();
        let gbar = dot(p, &gam);
        let mut c = vec![0.0; x.len()];
        for ((p, gam), u) in p.iter().zip(&gam).zip(&self.centred) {
            add(&mut c, p * (gam - gbar), u);
        }
        let y = self.a.solve(&c);
        let xu: Vec<f64> = self.centred.iter().map(|u| dot(x, u)).collect();
        let yu: Vec<f64> = self.centred.iter().map(|u| dot(&y, u)).collect();
        let e: Vec<f64> = (0..p.len()).map(|j| gam[j] - (gam[j] - gbar) * xu[j] - yu[j] + yu[j] * xu[j]).collect();
        let mean = dot(p, &e);
        let t: Vec<f64> = p.iter().zip(&e).map(|(p, e)| p * (e - mean)).collect();

        let mut dq = y.clone();
        add(&mut dq, *scale, &weighted_sum(&t, keys));
        let (mut dk, mut dv) = (Vec::with_capacity(p.len()), Vec::with_capacity(p.len()));
        for j in 0..p.len() {
            let mut row = vec![0.0; x.len()];
            add(&mut row, scale * t[j], query);
            add(&mut row, p[j] * (yu[j] - gam[j] + gbar), x);
            add(&mut row, p[j] * (xu[j] - 1.0), &y);
            dk.push(row);
            dv.push(g.iter().map(|g| p[j] * (1.0 - xu[j]) * g).collect());
        }
        RowGradients { query: dq, keys: dk, values: dv, ridge: dot(x, &y) }
    }
}

/// The lower triangle `L` of `L L^T`, `[dim, dim]`.
struct Cholesky {
    lower: Vec<f64>,
    dim: usize,
}

impl Cholesky {
    /// Factors a symmetric matrix; `None` if it is not positive definite.
    fn of(mut matrix: Vec<f64>, dim: usize) -> Option<Self> {
        for i in 0..dim {
            for j in 0..=i {
                let rest = matrix[i * dim + j] - dot(&matrix[i * dim..][..j], &matrix[j * dim..][..j]);
                matrix[i * dim + j] = if i > j {
                    rest / matrix[j * dim + j]
                } else if rest > 0.0 {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        Some(Self { lower: matrix, dim })
    }

    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let (lower, dim) = (&self.lower, self.dim);
        let mut x = right.to_vec();
        for i in 0..dim {
            x[i] = (x[i] - dot(&lower[i * dim..][..i], &x[..i])) / lower[i * dim + i];
        }
        for i in (0..dim).rev() {
            let above: f64 = (i + 1..dim).map(|j| lower[j * dim + i] * x[j]).sum();
            x[i] = (x[i] - above) / lower[i * dim + i];
        }
        x
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sub(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// `to += factor * values`
fn add(to: &mut [f64], factor: f64, values: &[f64]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += factor * value;
    }
}

/// `sum_j weights_j rows_j`
fn weighted_sum(weights: &[f64], rows: &[&[f64]]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for (&weight, row) in weights.iter().zip(rows) {
        add(&mut sum, weight, row);
    }
    sum
}
