//! The gated activation between the two halves of a feed-forward layer.

use crate::{
    KernelError,
    device::{Array, Launch, Params, PartialSums},
    ops::partials::{PartialParams, check_array, check_half, check_width, narrow, padded},
};

const OP: &str = "swiglu_finish";
/// `kSwigluThreads` in `fused.cuh`.
const THREADS: u32 = 256;
/// Columns of a block.
const COLUMNS: usize = 4 * THREADS as usize;

/// A call of [`swiglu_finish`]; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct SwigluFinish<'a> {
    /// `[rows, 2 * ffn]`, the gate first.
    pub partials: &'a PartialSums,
    /// f16 or bf16, `[rows, padded]`, written.
    pub output: &'a Array,
    /// Rows.
    pub rows: usize,
    /// Values of the gate, a multiple of 4.
    pub ffn: usize,
}

/// Mirrored by `SwigluFinishParams` in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct SwigluFinishParams {
    partials: PartialParams,
    output: u64,
    ffn: u32,
    padded: u32,
    element_type: u32,
    num_rows: u32,
}

impl Params for SwigluFinishParams {}
const _: () = assert!(size_of::<SwigluFinishParams>() == 32 + 8 + 4 * 4);

/// `output = silu(gate) * up` of the partial sums.
///
/// # Errors
/// If an array is too short or of another type, or `ffn` is no multiple of 4.
pub fn swiglu_finish(call: &SwigluFinish<'_>) -> Result<Launch, KernelError> {
    let &SwigluFinish { partials, output, rows, ffn } = call;
    check_width(OP, "ffn", ffn)?;
    check_half(OP, "output", output)?;
    let overflow = || KernelError::Overflow { op: OP, what: "output" };
    let output_len = rows.checked_mul(padded(ffn)).ok_or_else(overflow)?;
    check_array(OP, "output", output, (output.element(), output_len))?;
    let params = SwigluFinishParams {
        partials: partials.params(OP, rows, ffn.checked_mul(2).ok_or_else(overflow)?)?,
        output: output.address(),
        ffn: narrow(OP, "ffn", ffn)?,
        padded: narrow(OP, "ffn", padded(ffn))?,
        element_type: output.element() as u32,
        num_rows: narrow(OP, "rows", rows)?,
    };
    let grid = [params.num_rows, narrow(OP, "ffn", padded(ffn).div_ceil(COLUMNS))?];
    let mut arrays = vec![output];
    arrays.extend(partials.arrays());
    Ok(Launch::new("swiglu_finish", (grid, THREADS, 0), params, &arrays))
}
