//! Launches and recordings of them.

use std::{any::Any, sync::Arc};

use super::{Array, Device, Memory};
use crate::KernelError;

/// The parameter of a kernel: one `repr(C)` struct, without padding, that `.cuh` mirrors. Addresses in it are `u64`.
pub trait Params: bytemuck::Pod {}

/// One launch of a kernel. Grids have two axes, blocks one. Only the ops of this crate make launches, after they have
/// checked that the arrays are as long as the kernel needs; a launch keeps their memory alive.
#[derive(Debug, Clone)]
pub struct Launch {
    kernel: &'static str,
    grid: [u32; 2],
    block_dim: u32,
    shared_bytes: u32,
    /// In words, so that every struct is aligned.
    params: Vec<u64>,
    params_len: usize,
    #[expect(dead_code, reason = "held so that it lives")]
    memory: Vec<Memory>,
}

impl Launch {
    /// A launch whose parameters hold addresses in `arrays` and nowhere else.
    pub(crate) fn new<P: Params>(
        kernel: &'static str,
        (grid, block_dim, shared_bytes): ([u32; 2], u32, u32),
        params: P,
        arrays: &[&Array],
    ) -> Self {
        let mut words = vec![0u64; size_of::<P>().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..size_of::<P>()].copy_from_slice(bytemuck::bytes_of(&params));
        let memory = arrays.iter().map(|array| array.memory().clone()).collect();
        Self { kernel, grid, block_dim, shared_bytes, params: words, params_len: size_of::<P>(), memory }
    }

    /// Name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Blocks along each axis.
    pub fn grid(&self) -> [u32; 2] {
        self.grid
    }

    /// Threads of a block.
    pub fn block_dim(&self) -> u32 {
        self.block_dim
    }

    /// Bytes of dynamic shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// The parameter, aligned to 8 bytes.
    pub fn params(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.params)[..self.params_len]
    }

    /// Whether it has no blocks, so that there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// Gives launches to a device, in order.
///
/// # Errors
/// If the driver refuses.
pub fn run(device: &dyn Device, launches: &[Launch]) -> Result<(), KernelError> {
    for launch in launches.iter().filter(|launch| !launch.is_empty()) {
        // SAFETY: launches come from the ops of this crate alone, which check the arrays that the kernel is given; the
        // launch keeps them alive until it is in the queue, and memory goes back in the order of the queue.
        unsafe { device.launch(launch) }?;
    }
    Ok(())
}

/// Launches that a device runs as one piece of work.
#[derive(Debug)]
pub struct Recording {
    device: Arc<dyn Device>,
    work: Arc<dyn Any + Send + Sync>,
    /// Keeps the memory alive.
    launches: Vec<Launch>,
}

impl Recording {
    /// Records launches; nothing runs yet.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(device: &Arc<dyn Device>, launches: Vec<Launch>) -> Result<Self, KernelError> {
        let launches: Vec<Launch> = launches.into_iter().filter(|launch| !launch.is_empty()).collect();
        Ok(Self { device: Arc::clone(device), work: device.record(&launches)?, launches })
    }

    /// Gives all of them to the device.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn replay(&self) -> Result<(), KernelError> {
        // SAFETY: as in `run`; this recording keeps the memory alive.
        unsafe { self.device.replay(&*self.work) }
    }

    /// Number of launches.
    pub fn len(&self) -> usize {
        self.launches.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }
}
