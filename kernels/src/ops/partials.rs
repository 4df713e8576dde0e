//! Outputs of matrix products on a device: partial sums that their consumer adds, so that the sum costs no launch of its
//! own.

use crate::{
    KernelError,
    device::{Array, ElementType},
};

/// Values of a row of 16-bit inputs of a matrix product come in multiples of this.
pub const PADDING: usize = 64;
/// Columns that a thread reads at once.
const VECTOR: usize = 4;

/// `width` rounded up to what a row of inputs of a matrix product has; what is past `width` is zero.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(PADDING)
}

/// The output of a matrix product, `[num_splits, rows, width]` in f32. The value of a row and column is the sum over the
/// splits, in their order, plus the bias. How many splits there are is a property of the weight, never of the rows.
#[derive(Debug, Clone)]
pub struct PartialSums {
    /// f32, `[num_splits, rows, width]`; may be longer.
    pub sums: Array,
    /// At least one.
    pub num_splits: usize,
    /// f32, `[width]`
    pub bias: Option<Array>,
}

/// Mirrored by `PartialSums` in `partials.cuh`.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct PartialParams {
    sums: u64,
    bias: u64,
    split_stride: u64,
    num_splits: u32,
    width: u32,
}

const _: () = assert!(size_of::<PartialParams>() == 32);

impl PartialSums {
    /// Checks the arrays for `rows` rows of `width` values.
    pub(crate) fn params(&self, op: &'static str, rows: usize, width: usize) -> Result<PartialParams, KernelError> {
        if self.num_splits == 0 {
            return Err(KernelError::Zero { op, what: "splits" });
        }
        check_width(op, "columns", width)?;
        let overflow = || KernelError::Overflow { op, what: "sums" };
        let stride = rows.checked_mul(width).ok_or_else(overflow)?;
        let len = stride.checked_mul(self.num_splits).ok_or_else(overflow)?;
        check_array(op, "sums", &self.sums, (ElementType::F32, len))?;
        if let Some(bias) = &self.bias {
            check_array(op, "bias", bias, (ElementType::F32, width))?;
        }
        Ok(PartialParams {
            sums: self.sums.address(),
            bias: self.bias.as_ref().map_or(0, Array::address),
            split_stride: stride as u64,
            num_splits: narrow(op, "splits", self.num_splits)?,
            width: narrow(op, "columns", width)?,
        })
    }

    /// The arrays that the parameters name.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.sums].into_iter().chain(&self.bias)
    }
}

/// Refuses rows that are not whole vectors.
pub(crate) fn check_width(op: &'static str, what: &'static str, width: usize) -> Result<(), KernelError> {
    if width == 0 {
        return Err(KernelError::Zero { op, what });
    }
    if !width.is_multiple_of(VECTOR) {
        return Err(KernelError::NoKernelFor { op, what, got: width.to_string(), supported: "multiples of 4" });
    }
    Ok(())
}

/// Refuses what is not one of the 16-bit types.
pub(crate) fn check_half(op: &'static str, what: &'static str, array: &Array) -> Result<(), KernelError> {
    if array.element().is_half() {
        return Ok(());
    }
    Err(KernelError::NoKernelFor { op, what, got: array.element().to_string(), supported: "f16, bf16" })
}

/// Refuses an array of another type, with fewer elements than `len`, or that does not start at a whole vector.
pub(crate) fn check_array(
    op: &'static str,
    what: &'static str,
    array: &Array,
    (element, len): (ElementType, usize),
) -> Result<(), KernelError> {
    array.expect(what, element, len)?;
    if !array.address().is_multiple_of(16) {
        return Err(KernelError::Misaligned { op, what, address: array.address() });
    }
    Ok(())
}

/// A size that the kernels keep in 32 bits.
pub(crate) fn narrow(op: &'static str, what: &'static str, size: usize) -> Result<u32, KernelError> {
    u32::try_from(size).map_err(|_| KernelError::Overflow { op, what })
}
