//! Checks that turn tensors into slices.

use candle_core::{CpuStorage, DType, Layout, Tensor};

use crate::KernelError;

/// Refuses anything but a contiguous f32 tensor.
pub(crate) fn check_f32(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<(), KernelError> {
    if tensor.dtype() != DType::F32 {
        return Err(KernelError::DType { op, what, got: tensor.dtype() });
    }
    if !tensor.is_contiguous() {
        return Err(KernelError::NotContiguous { op, what });
    }
    Ok(())
}

/// The three axes of `tensor`, or an error that names `expected`.
pub(crate) fn dims3(
    op: &'static str,
    what: &'static str,
    expected: &str,
    tensor: &Tensor,
) -> Result<(usize, usize, usize), KernelError> {
    tensor.dims3().map_err(|_| shape_error(op, what, expected, tensor))
}

/// The two axes of `tensor`, or an error that names `expected`.
pub(crate) fn dims2(
    op: &'static str,
    what: &'static str,
    expected: &str,
    tensor: &Tensor,
) -> Result<(usize, usize), KernelError> {
    tensor.dims2().map_err(|_| shape_error(op, what, expected, tensor))
}

/// The error of a tensor whose shape is not `expected`.
pub(crate) fn shape_error(
    op: &'static str,
    what: &'static str,
    expected: impl Into<String>,
    tensor: &Tensor,
) -> KernelError {
    KernelError::Shape { op, what, expected: expected.into(), got: tensor.shape().clone() }
}

/// The values of a contiguous f32 storage.
pub(crate) fn values<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [f32], KernelError> {
    let (start, end) = layout.contiguous_offsets().ok_or(KernelError::NotContiguous { op, what })?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[start..end]),
        other => Err(KernelError::DType { op, what, got: candle_core::backend::BackendStorage::dtype(other) }),
    }
}

/// Wraps a kernel error for the tensor library.
pub(crate) fn wrap(error: KernelError) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
