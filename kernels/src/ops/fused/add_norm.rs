//! The residual stream takes the output of a matrix product, and is normalised for the next one.

use crate::{
    KernelError,
    device::{Array, ElementType, Launch, Params, PartialSums},
    ops::partials::{PartialParams, check_array, check_half, check_width, narrow, padded},
};

const OP: &str = "add_norm";
/// `kNormThreads` and `kNormBytes` in `fused.cuh`.
const THREADS: u32 = 512;
const SHARED_BYTES: u32 = THREADS / 32 * 4;

/// A call of [`add_norm`]; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct AddNorm<'a> {
    /// f32, `[rows, hidden]`. Takes the sum, unless rows are selected.
    pub residual: &'a Array,
    /// `[rows, hidden]`; zeros if absent.
    pub partials: Option<&'a PartialSums>,
    /// f32, `[hidden]`
    pub weight: &'a Array,
    /// f16 or bf16, `[rows, padded]` or `[selected, padded]`, written.
    pub output: &'a Array,
    /// u32, the rows that are wanted, and how many there are. An index that is no row gives zeros. The residual stays as
    /// it is.
    pub selected: Option<(&'a Array, usize)>,
    /// Rows of the residual.
    pub rows: usize,
    /// Values of a row, a multiple of 4.
    pub hidden: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// Mirrored by `AddNormParams` in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AddNormParams {
    partials: PartialParams,
    residual: u64,
    weight: u64,
    output: u64,
    row_index: u64,
    num_rows: u32,
    hidden: u32,
    padded: u32,
    element_type: u32,
    eps: f32,
    writes_residual: u32,
}

impl Params for AddNormParams {}
const _: () = assert!(size_of::<AddNormParams>() == 32 + 4 * 8 + 6 * 4);

/// `residual += partial sums`, then `output = residual / sqrt(mean(residual^2) + eps) * weight`, a block for each row.
///
/// # Errors
/// If an array is too short or of another type, or `hidden` is no multiple of 4.
pub fn add_norm(call: &AddNorm<'_>) -> Result<Launch, KernelError> {
    let &AddNorm { residual, partials, weight, output, selected, rows, hidden, eps } = call;
    check_width(OP, "hidden", hidden)?;
    check_half(OP, "output", output)?;
    let overflow = || KernelError::Overflow { op: OP, what: "residual" };
    let residual_len = rows.checked_mul(hidden).ok_or_else(overflow)?;
    check_array(OP, "residual", residual, (ElementType::F32, residual_len))?;
    check_array(OP, "weight", weight, (ElementType::F32, hidden))?;
    let num_outputs = selected.map_or(rows, |(_, count)| count);
    let output_len = num_outputs.checked_mul(padded(hidden)).ok_or_else(overflow)?;
    check_array(OP, "output", output, (output.element(), output_len))?;
    if let Some((index, count)) = selected {
        index.expect("selected", ElementType::U32, count)?;
    }
    let params = AddNormParams {
        partials: partials.map(|partials| partials.params(OP, rows, hidden)).transpose()?.unwrap_or_default(),
        residual: residual.address(),
        weight: weight.address(),
        output: output.address(),
        row_index: selected.map_or(0, |(index, _)| index.address()),
        num_rows: narrow(OP, "rows", rows)?,
        hidden: narrow(OP, "hidden", hidden)?,
        padded: narrow(OP, "hidden", padded(hidden))?,
        element_type: output.element() as u32,
        eps,
        writes_residual: u32::from(partials.is_some() && selected.is_none()),
    };
    let grid = [narrow(OP, "selected", num_outputs)?, 1];
    let mut arrays = vec![residual, weight, output];
    arrays.extend(partials.into_iter().flat_map(PartialSums::arrays));
    arrays.extend(selected.map(|(index, _)| index));
    Ok(Launch::new("add_norm", (grid, THREADS, SHARED_BYTES), params, &arrays))
}
