//! SwiGLU in its plainest form.

/// `silu(gate) * up` for rows of `2 * ffn` values, the gate first.
pub fn swiglu(gate_up: &[f32], ffn: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * ffn) {
        let (gate, up) = row.split_at(ffn);
        out.extend(gate.iter().zip(up).map(|(&gate, &up)| {
            let gate = f64::from(gate);
            (gate / (1.0 + (-gate).exp()) * f64::from(up)) as f32
        }));
    }
    out
}
