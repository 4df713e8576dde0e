//! Running kernels on a device: memory, launches and the device itself, behind a trait.
//!
//! | item | is |
//! |---|---|
//! | [`Device`] | one accelerator with one queue of work |
//! | [`Array`] | device memory with elements of one type |
//! | [`Launch`] | one launch of a kernel, its arguments checked against the arrays it uses |
//! | [`run`], [`Recording`] | give launches to the device one by one, or as a graph that is replayed |
//!
//! Ops make launches and start nothing: a forward pass is a list of launches that depends on the shapes of its batch
//! alone. What changes from step to step (tokens, positions, page tables) lies in arrays that are written before. So the
//! same list can be recorded once and replayed.
//!
//! There are two devices: the one that [`cuda::open`](crate::cuda::open) gives, and one that runs the same kernels on the
//! host, in `device-tests`.

mod array;
mod launch;

pub use array::{Allocation, Array, ElementType, HostElement, Memory};
pub use launch::{Launch, Params, Recording, run};

pub use crate::ops::attention::{
    device::{Attention, attention, attention_records},
    device_plan::{DevicePlan, PlanLimits, PlanShape, PlanStep},
    reference::HeadShape,
};
pub use crate::ops::fused::{AddNorm, HeadNorm, QkvFinish, Rotary, SwigluFinish, add_norm, qkv_finish, swiglu_finish};
pub use crate::ops::partials::{PADDING, PartialSums, padded};

pub use crate::ops::lla::device::{
    DecodeSizes, LlaAddresses, LlaCounters, LlaDevicePlan, LlaParams, LlaProbe, LlaRounds, LlaTile, LlaVisible,
};
pub use crate::ops::lla::launch::{
    LlaSlope, LlaTensors, LlaUploadedPlan, LlaUploadedRidge, LlaWay, LlaWork, lla_launches,
};
pub use crate::ops::lla::launches::LlaLaunch;
pub use crate::ops::lla::room::{LlaCall, LlaLimits, LlaRoom, LlaStep, LlaStepShape};
pub use crate::ops::matmul::{
    DeviceFormat, DeviceLinear, DeviceWeight, EmbedParams, MatmulParams, MatmulPart, RandomParams, embed, matmul,
};
pub use crate::ops::score::{
    ScoreAdjustments, ScoreBatch, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreResult, ScoreShape, ScoreSizes,
};

use std::{any::Any, fmt, sync::Arc};

use crate::KernelError;

/// Names of all kernels, by op.
pub const KERNELS: [&[&str]; 5] = [
    &crate::ops::attention::device::KERNEL_NAMES,
    &crate::ops::fused::KERNEL_NAMES,
    &crate::ops::lla::launches::KERNEL_NAMES,
    &crate::ops::matmul::KERNEL_NAMES,
    &crate::ops::score::launch::KERNEL_NAMES,
];

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its name, as the vendor spells it.
    pub name: String,
    /// What tells it from all others, as the vendor's tools spell it, such as `GPU-` and a UUID.
    pub uuid: String,
    /// Major and minor number of the compute capability that the code for it was compiled for: that of the device, or a lower
    /// one.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// Device memory, in bytes.
    pub total_bytes: usize,
}

impl DeviceFacts {
    /// Whether its matrix units take bf16.
    pub fn has_bf16(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// One accelerator with one queue, for one thread at a time: what is given to it runs in the order in which it was given. Nothing but
/// [`Device::read`], [`Device::synchronize`] and [`Device::millis`] waits for it.
pub trait Device: fmt::Debug + Send + Sync {
    /// What it is.
    fn facts(&self) -> &DeviceFacts;

    /// Device memory that nobody holds, in bytes.
    ///
    /// # Errors
    /// If the driver refuses.
    fn free_bytes(&self) -> Result<usize, KernelError>;

    /// Memory of unspecified content, aligned to 256 bytes.
    ///
    /// # Errors
    /// If there is not enough.
    fn alloc(&self, bytes: usize) -> Result<Box<dyn Allocation>, KernelError>;

    /// Copies to the device; `bytes` may be reused at once.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// The bytes from `address` on must belong to one allocation of this device that lives.
    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), KernelError>;

    /// Sets memory to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// As [`Device::write`].
    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<(), KernelError>;

    /// Copies within the device.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Safety
    /// As [`Device::write`], for both addresses; what is read and what is written must not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), KernelError>;

    /// Copies from the device, after all work given so far.
    ///
    /// # Errors
    /// If the driver refuses, or work given before has failed.
    ///
    /// # Safety
    /// As [`Device::write`].
    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Gives a launch to the device.
    ///
    /// # Errors
    /// If there is no such kernel, or the driver refuses.
    ///
    /// # Safety
    /// The memory behind the addresses in the parameters must be what the kernel needs, and live.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError>;

    /// Makes one piece of work of several launches, without running it.
    ///
    /// # Errors
    /// If there is no such kernel, or the driver refuses.
    fn record(&self, launches: &[Launch]) -> Result<Arc<dyn Any + Send + Sync>, KernelError>;

    /// Gives recorded work to the device.
    ///
    /// # Errors
    /// If the driver refuses, or the work was recorded by another device.
    ///
    /// # Safety
    /// As [`Device::launch`], for all launches of the recording.
    unsafe fn replay(&self, recording: &(dyn Any + Send + Sync)) -> Result<(), KernelError>;

    /// Waits for all work given so far.
    ///
    /// # Errors
    /// If some of it has failed.
    fn synchronize(&self) -> Result<(), KernelError>;

    /// Runs `work` and waits; returns the time that what it gave to the device took there, in milliseconds.
    ///
    /// # Errors
    /// Those of `work` and of the driver.
    fn millis(&self, work: &mut dyn FnMut() -> Result<(), KernelError>) -> Result<f32, KernelError>;
}
