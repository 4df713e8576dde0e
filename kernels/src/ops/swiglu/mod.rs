//! SwiGLU: the gated activation of the feed-forward layer.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::{
    KernelError,
    arch::CpuLevel,
    cpu::{Kernel, LANES, Simd, dispatch, for_rows, math::silu},
    tensor::{check_f32, dims2, shape_error, values, wrap},
};

pub(crate) mod reference;

const OP: &str = "swiglu";

/// `silu(gate) * up`: `[rows, 2 * ffn] -> [rows, ffn]`, the gate in the first half of each row.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor, KernelError> {
    check_f32(OP, "gate_up", gate_up)?;
    let (_, width) = dims2(OP, "gate_up", "[rows, 2 * ffn]", gate_up)?;
    if width % 2 != 0 || width == 0 {
        return Err(shape_error(OP, "gate_up", "[rows, 2 * ffn]", gate_up));
    }
    Ok(gate_up.apply_op1_no_bwd(&SwiGlu { ffn: width / 2 })?)
}

struct SwiGlu {
    ffn: usize,
}

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let gate_up = values(OP, "gate_up", storage, layout).map_err(wrap)?;
        let (ffn, level) = (self.ffn, CpuLevel::current());
        let mut out = vec![0.0; gate_up.len() / 2];
        for_rows(&mut out, ffn, |row, out| {
            dispatch(level, Rows { ffn, gate_up: &gate_up[2 * row * ffn..][..2 * out.len()], out });
        });
        let rows = out.len() / ffn;
        Ok((CpuStorage::F32(out), Shape::from((rows, ffn))))
    }
}

struct Rows<'a> {
    ffn: usize,
    gate_up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, out) in self.gate_up.chunks_exact(2 * self.ffn).zip(self.out.chunks_exact_mut(self.ffn)) {
            let (gate, up) = row.split_at(self.ffn);
            let ((gate, gate_tail), (up, up_tail)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
            let (out, out_tail) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                let gate = silu(simd, simd.load(gate));
                simd.store(out, simd.mul(gate, simd.load(up)));
            }
            if !out_tail.is_empty() {
                let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
                gate[..gate_tail.len()].copy_from_slice(gate_tail);
                up[..up_tail.len()].copy_from_slice(up_tail);
                let product = simd.mul(silu(simd, simd.load(&gate)), simd.load(&up));
                simd.store(&mut gate, product);
                out_tail.copy_from_slice(&gate[..out_tail.len()]);
            }
        }
    }
}
