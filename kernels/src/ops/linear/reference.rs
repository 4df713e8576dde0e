//! The linear layer in its plainest form.

/// `xs * weight^T` in f64: `xs` is `[rows, in]`, `weight` `[out, in]`.
pub fn linear(xs: &[f32], weight: &[f32], in_features: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(xs.len() / in_features * (weight.len() / in_features));
    for x in xs.chunks_exact(in_features) {
        for w in weight.chunks_exact(in_features) {
            out.push(x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum());
        }
    }
    out
}
