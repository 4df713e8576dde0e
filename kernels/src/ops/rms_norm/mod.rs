//! Root-mean-square normalisation.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use crate::{
    KernelError,
    arch::CpuLevel,
    cpu::{Kernel, LANES, Simd, dispatch, for_rows},
    tensor::{check_f32, shape_error, values, wrap},
};

pub(crate) mod reference;

const OP: &str = "rms_norm";

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis: `[.., dim] -> [.., dim]` with `weight` `[dim]`.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, KernelError> {
    check_f32(OP, "xs", xs)?;
    check_f32(OP, "weight", weight)?;
    let dim = match xs.dims().last() {
        Some(&dim) if dim > 0 => dim,
        _ => return Err(shape_error(OP, "xs", "[.., dim] with dim above zero", xs)),
    };
    if weight.dims() != [dim] {
        return Err(shape_error(OP, "weight", format!("[{dim}]"), weight));
    }
    Ok(xs.apply_op2_no_bwd(weight, &RmsNorm { eps })?)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = values(OP, "xs", xs, xs_layout).map_err(wrap)?;
        let weight = values(OP, "weight", weight, weight_layout).map_err(wrap)?;
        let (dim, eps, level) = (weight.len(), self.eps, CpuLevel::current());
        let mut out = vec![0.0; xs.len()];
        for_rows(&mut out, dim, |row, out| {
            dispatch(level, Rows { xs: &xs[row * dim..][..out.len()], weight, eps, out });
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }
}

struct Rows<'a> {
    xs: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let dim = self.weight.len();
        for (xs, out) in self.xs.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            let (vectors, tail) = xs.as_chunks::<LANES>();
            let (quads, rest) = vectors.as_chunks::<4>();
            // Four chains of squares hide the latency of the addition.
            let mut sums = [simd.splat(0.0); 4];
            for quad in quads {
                for (sum, x) in sums.iter_mut().zip(quad) {
                    let x = simd.load(x);
                    *sum = simd.fma(x, x, *sum);
                }
            }
            for x in rest {
                let x = simd.load(x);
                sums[0] = simd.fma(x, x, sums[0]);
            }
            let mut last = [0.0; LANES];
            last[..tail.len()].copy_from_slice(tail);
            let last = simd.load(&last);
            sums[1] = simd.fma(last, last, sums[1]);
            let sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
            let factor = 1.0 / (sum / dim as f32 + self.eps).sqrt();
            for ((out, &x), &weight) in out.iter_mut().zip(xs).zip(self.weight) {
                *out = x * factor * weight;
            }
        }
    }
}
