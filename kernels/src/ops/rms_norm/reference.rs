//! Root-mean-square normalisation in its plainest form.

/// `x / sqrt(mean(x^2) + eps) * weight` for each row of `weight.len()` values.
pub fn rms_norm(xs: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(xs.len());
    for row in xs.chunks_exact(weight.len()) {
        let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(weight).map(|(&x, &w)| (f64::from(x) * factor * f64::from(w)) as f32));
    }
    out
}
