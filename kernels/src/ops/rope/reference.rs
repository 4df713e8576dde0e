//! Rotary embedding in its plainest form.

/// Sizes of the heads that are rotated.
#[derive(Debug, Clone, Copy)]
pub struct RopeShape {
    /// Features of a head.
    pub head_dim: usize,
    /// How many of them, from the first on, are rotated.
    pub rotary_dims: usize,
}

/// Rotates the first features of each head of `xs`, `[rows, heads, head_dim]`, with the row of `cos` and `sin` at each
/// row's position. Element `i` is paired with `i + rotary_dims / 2`.
pub fn rope(xs: &[f32], (cos, sin): (&[f32], &[f32]), positions: &[usize], shape: RopeShape) -> Vec<f32> {
    let half = shape.rotary_dims / 2;
    let mut out = xs.to_vec();
    let row_len = xs.len() / positions.len().max(1);
    for (at, value) in out.iter_mut().enumerate() {
        let (row, dim) = (at / row_len, at % shape.head_dim);
        if dim >= shape.rotary_dims {
            continue;
        }
        let pair = dim % half;
        let (cos, sin) = (cos[positions[row] * half + pair], sin[positions[row] * half + pair]);
        *value = if dim < half { xs[at] * cos - xs[at + half] * sin } else { xs[at] * cos + xs[at - half] * sin };
    }
    out
}
