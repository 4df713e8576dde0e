//! The device, where the crate was built with the feature `cuda`; elsewhere the same names, none of which can come to be.

#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;

#[cfg(not(feature = "cuda"))]
pub use disabled::*;
#[cfg(feature = "cuda")]
pub use enabled::*;

use crate::device::ElementType;

/// An element that tensors on a device have.
pub trait DeviceElement: DeviceRepr {
    /// The type, as the kernels are told.
    const ELEMENT_TYPE: ElementType;
}

impl DeviceElement for f32 {
    const ELEMENT_TYPE: ElementType = ElementType::F32;
}

impl DeviceElement for half::f16 {
    const ELEMENT_TYPE: ElementType = ElementType::F16;
}

impl DeviceElement for half::bf16 {
    const ELEMENT_TYPE: ElementType = ElementType::BF16;
}
