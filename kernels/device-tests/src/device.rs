//! A device whose kernels run on the host.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kernels::{
    KernelError,
    device::{Allocation, Device, DeviceFacts, Launch},
};

use crate::{Order, host};

/// As a device aligns what it allocates.
const ALIGNMENT: usize = 256;
/// What fresh memory is filled with: NaN in every float type, so that what is read before it was written shows.
const FILL: u8 = 0xff;

/// A device in host memory. Work runs at once, block after block.
#[derive(Debug)]
pub struct HostDevice {
    facts: DeviceFacts,
    order: Order,
    held_bytes: Arc<AtomicUsize>,
    num_launches: AtomicUsize,
}

impl HostDevice {
    /// A device with as much memory as is named, otherwise as an H200: grids are cut for as many multiprocessors.
    pub fn new(total_bytes: usize, order: Order) -> Arc<Self> {
        let facts = DeviceFacts { name: "host".into(), capability: (9, 0), num_multiprocessors: 132, total_bytes };
        Self::with_facts(facts, order)
    }

    /// A device that says of itself what it is told. The kernels are the same.
    pub fn with_facts(facts: DeviceFacts, order: Order) -> Arc<Self> {
        Arc::new(Self { facts, order, held_bytes: Arc::default(), num_launches: AtomicUsize::new(0) })
    }

    /// Kernels run so far.
    pub fn num_launches(&self) -> usize {
        self.num_launches.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct HostMemory {
    address: *mut u8,
    layout: Layout,
    held_bytes: Arc<AtomicUsize>,
}

// SAFETY: the memory is owned; who reads and writes it is settled by the users of `Device`, as on a device.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl Allocation for HostMemory {
    fn address(&self) -> u64 {
        self.address as u64
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.held_bytes.fetch_sub(self.layout.size(), Ordering::Relaxed);
        // SAFETY: it was allocated with this layout and is freed here alone.
        unsafe { dealloc(self.address, self.layout) }
    }
}

impl Device for HostDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<usize, KernelError> {
        Ok(self.facts.total_bytes.saturating_sub(self.held_bytes.load(Ordering::Relaxed)))
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Allocation>, KernelError> {
        let free = self.free_bytes()?;
        let none = || KernelError::DeviceMemory { needed: bytes, free };
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| none())?;
        if layout.size() > free {
            return Err(none());
        }
        // SAFETY: the layout is not empty.
        let address = unsafe { alloc(layout) };
        if address.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: all of it was allocated above.
        unsafe { address.write_bytes(FILL, layout.size()) };
        self.held_bytes.fetch_add(layout.size(), Ordering::Relaxed);
        Ok(Box::new(HostMemory { address, layout, held_bytes: Arc::clone(&self.held_bytes) }))
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), KernelError> {
        // SAFETY: the caller names memory of this device.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<(), KernelError> {
        // SAFETY: the caller names memory of this device.
        unsafe { (address as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        // SAFETY: the caller names memory of this device.
        unsafe { (address as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.num_launches.fetch_add(1, Ordering::Relaxed);
        let config = (launch.grid(), launch.block_dim(), launch.shared_bytes());
        // SAFETY: the caller answers for the parameters.
        unsafe { host::launch(launch.kernel(), launch.params().as_ptr().cast(), config, self.order) }
            .map_err(KernelError::HostRun)
    }

    fn record(&self, launches: &[Launch]) -> Result<Arc<dyn Any + Send + Sync>, KernelError> {
        Ok(Arc::new(launches.to_vec()))
    }

    unsafe fn replay(&self, recording: &(dyn Any + Send + Sync)) -> Result<(), KernelError> {
        let launches: &Vec<Launch> = recording.downcast_ref().ok_or(KernelError::ForeignRecording)?;
        // SAFETY: the caller answers for the memory.
        launches.iter().try_for_each(|launch| unsafe { self.launch(launch) })
    }

    fn synchronize(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn millis(&self, work: &mut dyn FnMut() -> Result<(), KernelError>) -> Result<f32, KernelError> {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f32() * 1e3)
    }
}
