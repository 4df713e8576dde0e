//! Rotary embedding in its plainest form.

/// Rotates `xs`, `[rows, heads, head_dim]`, with the row of `cos` and `sin` at each row's position. Element `i` is
/// paired with `i + head_dim / 2`.
pub fn rope(xs: &[f32], (cos, sin): (&[f32], &[f32]), positions: &[usize], head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = vec![0.0; xs.len()];
    let row_len = xs.len() / positions.len().max(1);
    for (at, value) in out.iter_mut().enumerate() {
        let (row, dim) = (at / row_len, at % head_dim);
        let pair = dim % half;
        let (cos, sin) = (cos[positions[row] * half + pair], sin[positions[row] * half + pair]);
        *value = if dim < half { xs[at] * cos - xs[at + half] * sin } else { xs[at] * cos + xs[at - half] * sin };
    }
    out
}
