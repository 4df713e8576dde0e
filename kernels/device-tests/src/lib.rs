//! Runs launches of device kernels on the host, so that they are tested where there is no device.
//!
//! The sources are those that a device gets, compiled as C++ behind a small shim: a block runs cooperatively, one fiber
//! for each thread, and the matrix step of a warp is computed from the registers of its lanes. Nothing here says how
//! fast a kernel is, and a device may round the sums of a matrix step in another order.

mod device;
mod host;

pub use device::HostDevice;

use std::sync::Arc;

use kernels::device::{Device, LlaLaunch};

/// The order in which the threads of a block run between two waits. A result must not depend on it. Copies to shared
/// memory that a thread need not wait for are made at once if the order is forward, and when it waits for them if not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// Ascending.
    Forward = 0,
    /// Descending.
    Backward = 1,
    /// Neither.
    Shuffled = 2,
}

/// Whether there was a C++ compiler to build the kernels with.
pub const AVAILABLE: bool = host::AVAILABLE;

/// The device of tests that can run on any: the first GPU if `LEAPFROG_TEST_DEVICE` is `cuda`, otherwise the host.
///
/// # Panics
/// If the GPU is asked for and not there.
pub fn any_device() -> Arc<dyn Device> {
    match std::env::var("LEAPFROG_TEST_DEVICE").as_deref() {
        Ok("cuda") => kernels::cuda::open(0).unwrap_or_else(|error| panic!("LEAPFROG_TEST_DEVICE=cuda: {error}")),
        _ => HostDevice::new(1 << 30, Order::Forward),
    }
}

/// Runs launches one after the other.
///
/// # Errors
/// If a kernel does what would hang or be undefined on a device: names the kernel, the block and the thread.
///
/// # Safety
/// The addresses in the parameters must be those of host memory of the lengths that the plan asks for, readable, and
/// writable where the kernels write.
pub unsafe fn run(launches: &[LlaLaunch], order: Order) -> Result<(), String> {
    for launch in launches {
        // SAFETY: the caller promises what the parameters need, and they are those of this kernel.
        unsafe {
            host::launch(
                launch.kernel,
                std::ptr::from_ref(&launch.params).cast(),
                (launch.grid, launch.block_dim, launch.shared_bytes),
                order,
            )
        }?;
    }
    Ok(())
}

/// Runs one of the kernels that are wrong on purpose, which read no parameters.
///
/// # Errors
/// If the shim notices.
pub fn run_wrong(kernel: &str) -> Result<(), String> {
    // SAFETY: these kernels have no parameters.
    unsafe { host::launch(kernel, std::ptr::null(), ([1, 1], 32, 64), Order::Forward) }
}

/// Length of the parameters as the kernels see them.
pub fn params_len() -> usize {
    host::params_len()
}

/// Rounded to IEEE half precision as the kernels do it here.
pub fn to_half(value: f32) -> u16 {
    host::to_half(value)
}

/// Rounded to bfloat16 as the kernels do it.
pub fn to_bfloat(value: f32) -> u16 {
    host::to_bfloat(value)
}
