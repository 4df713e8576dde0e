//! No device in this build.

use std::sync::Arc;

use crate::{KernelError, device::Device};

/// Number of devices.
///
/// # Errors
/// Always: the build lacks the feature `cuda`.
pub fn count() -> Result<usize, KernelError> {
    Err(KernelError::CudaMissing)
}

/// A device.
///
/// # Errors
/// Always: the build lacks the feature `cuda`.
pub fn open(_: usize) -> Result<Arc<dyn Device>, KernelError> {
    Err(KernelError::CudaMissing)
}
