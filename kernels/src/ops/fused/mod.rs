//! What lies between two matrix products on a device. Each kernel adds the [partial sums](crate::device::PartialSums) of
//! the product before it and writes the 16-bit input of the one after it, with zeros up to its padded width. What is
//! beyond the range of the 16-bit type becomes its largest number of the same sign; NaN stays NaN.
//!
//! The references are those of `rms_norm`, `rope`, `swiglu` and `write_kv`, whose composition each kernel is.

mod add_norm;
mod qkv_finish;
mod swiglu_finish;

pub use add_norm::{AddNorm, add_norm};
pub use qkv_finish::{HeadNorm, QkvFinish, Rotary, qkv_finish};
pub use swiglu_finish::{SwigluFinish, swiglu_finish};

/// All kernels.
pub(crate) const KERNEL_NAMES: [&str; 3] = ["add_norm", "qkv_finish", "swiglu_finish"];
