//! There was no C++ compiler.

use std::ffi::c_void;

use kernels::device::LlaParams;

use crate::Order;

pub(crate) const AVAILABLE: bool = false;

/// # Safety
/// None needed: nothing runs.
pub(crate) unsafe fn launch(kernel: &str, _: *const c_void, _: ([u32; 2], u32, u32), _: Order) -> Result<(), String> {
    Err(format!("{kernel}: built without a C++ compiler"))
}

pub(crate) fn params_len() -> usize {
    size_of::<LlaParams>()
}

pub(crate) fn to_half(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

pub(crate) fn to_bfloat(value: f32) -> u16 {
    half::bf16::from_f32(value).to_bits()
}
