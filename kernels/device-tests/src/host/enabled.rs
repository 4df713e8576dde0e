//! Calls into `shim/registry.cpp`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use crate::Order;

pub(crate) const AVAILABLE: bool = true;
const MESSAGE_LEN: usize = 512;

unsafe extern "C" {
    fn leapfrog_shim_launch(
        name: *const c_char,
        params: *const c_void,
        grid_x: u32,
        grid_y: u32,
        block_dim: u32,
        shared_bytes: usize,
        order: u32,
        message: *mut c_char,
        room: usize,
    ) -> c_int;
    fn leapfrog_shim_params_len() -> usize;
    fn leapfrog_shim_to_half(value: f32) -> u16;
    fn leapfrog_shim_to_bfloat(value: f32) -> u16;
}

/// # Safety
/// `params` must point to what the kernel needs, with addresses of host memory.
pub(crate) unsafe fn launch(
    kernel: &str,
    params: *const c_void,
    (grid, block_dim, shared_bytes): ([u32; 2], u32, u32),
    order: Order,
) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|error| error.to_string())?;
    let mut message = [0 as c_char; MESSAGE_LEN];
    // SAFETY: the name ends in zero, the message has the room that is named, and the caller answers for the parameters.
    let code = unsafe {
        leapfrog_shim_launch(
            name.as_ptr(),
            params,
            grid[0],
            grid[1],
            block_dim,
            shared_bytes as usize,
            order as u32,
            message.as_mut_ptr(),
            MESSAGE_LEN,
        )
    };
    if code == 0 {
        return Ok(());
    }
    // SAFETY: on an error the message was written, with a zero at its end.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(message.to_string_lossy().into_owned())
}

pub(crate) fn params_len() -> usize {
    // SAFETY: the function has no conditions.
    unsafe { leapfrog_shim_params_len() }
}

pub(crate) fn to_half(value: f32) -> u16 {
    // SAFETY: the function has no conditions.
    unsafe { leapfrog_shim_to_half(value) }
}

pub(crate) fn to_bfloat(value: f32) -> u16 {
    // SAFETY: the function has no conditions.
    unsafe { leapfrog_shim_to_bfloat(value) }
}
