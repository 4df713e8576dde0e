//! Rotary position embedding, halves paired as in the Hugging Face checkpoints.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};

use crate::{
    AttentionPlan, KernelError,
    cpu::for_rows,
    tensor::{check_f32, dims2, dims3, shape_error, values, wrap},
};

pub(crate) mod reference;

const OP: &str = "rope";

/// Rotates the first `rotary_dims` features of each head of `xs`, `[rows, heads, head_dim]`, to the position of each row
/// of `plan`, and leaves the rest as they are. `cos` and `sin` are `[max_positions, rotary_dims / 2]`; element `i` is
/// paired with `i + rotary_dims / 2`.
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor, plan: &AttentionPlan) -> Result<Tensor, KernelError> {
    for (what, tensor) in [("xs", xs), ("cos", cos), ("sin", sin)] {
        check_f32(OP, what, tensor)?;
    }
    let (rows, heads, head_dim) = dims3(OP, "xs", "[rows, heads, head_dim]", xs)?;
    if rows != plan.num_rows() || head_dim % 2 != 0 || head_dim == 0 || heads == 0 {
        let expected = format!("[{}, heads, head_dim] with an even head_dim", plan.num_rows());
        return Err(shape_error(OP, "xs", expected, xs));
    }
    let (_, half) = dims2(OP, "cos", "[max_positions, rotary_dims / 2]", cos)?;
    if half == 0 || half > head_dim / 2 {
        return Err(shape_error(OP, "cos", format!("[max_positions, 1 to {}]", head_dim / 2), cos));
    }
    for (what, tensor) in [("cos", cos), ("sin", sin)] {
        let (max_positions, width) = dims2(OP, what, "[max_positions, rotary_dims / 2]", tensor)?;
        if width != half {
            return Err(shape_error(OP, what, format!("[max_positions, {half}]"), tensor));
        }
        if plan.position_end() > max_positions {
            let index = plan.position_end() - 1;
            return Err(KernelError::OutOfRange { op: OP, what: "position", index, len: max_positions });
        }
    }
    Ok(xs.apply_op3_no_bwd(cos, sin, &Rope { plan, row_len: heads * head_dim, head_dim, half })?)
}

struct Rope<'a> {
    plan: &'a AttentionPlan,
    row_len: usize,
    head_dim: usize,
    /// Pairs of features that are rotated.
    half: usize,
}

impl CustomOp3 for Rope<'_> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = values(OP, "xs", xs, xs_layout).map_err(wrap)?;
        let cos = values(OP, "cos", cos, cos_layout).map_err(wrap)?;
        let sin = values(OP, "sin", sin, sin_layout).map_err(wrap)?;
        let (row_len, half) = (self.row_len, self.half);
        let mut out = vec![0.0; xs.len()];
        for_rows(&mut out, row_len, |first, out| {
            for (at, out) in out.chunks_exact_mut(row_len).enumerate() {
                let row = first + at;
                let position = self.plan.rows()[row].position;
                let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
                let heads = xs[row * row_len..][..row_len].chunks_exact(self.head_dim);
                for (x, out) in heads.zip(out.chunks_exact_mut(self.head_dim)) {
                    rotate(x, (cos, sin), out);
                }
            }
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }
}

fn rotate(x: &[f32], (cos, sin): (&[f32], &[f32]), out: &mut [f32]) {
    let half = cos.len();
    let (x, rest) = x.split_at(2 * half);
    let (out, out_rest) = out.split_at_mut(2 * half);
    out_rest.copy_from_slice(rest);
    let (first, second) = x.split_at(half);
    let (out_first, out_second) = out.split_at_mut(half);
    for i in 0..half {
        out_first[i] = first[i] * cos[i] - second[i] * sin[i];
        out_second[i] = second[i] * cos[i] + first[i] * sin[i];
    }
}
