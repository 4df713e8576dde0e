//! CUDA devices, by the driver that is found at run time.

use std::{
    any::Any,
    collections::HashMap,
    ffi::c_void,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaGraph, CudaStream, DriverError, result,
        sys::{
            CUdevice_attribute_enum, CUevent_flags, CUfunction_attribute_enum, CUgraphInstantiate_flags, CUresult,
            CUstreamCaptureMode,
        },
    },
    nvrtc::Ptx,
};

use crate::{
    KernelError,
    device::{Allocation, Device, DeviceFacts, KERNELS, Launch},
};

// `IMAGES`: for each source file its device code for every architecture of `ARCHS`.
include!(concat!(env!("OUT_DIR"), "/images.rs"));
/// Compute capabilities that the build compiled for, such as `75;80`; newer devices run the last one's PTX.
const ARCHS: &str = env!("LEAPFROG_CUDA_ARCHS");
/// What a block may have of shared memory without asking.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

/// Number of devices.
///
/// # Errors
/// If there is no driver, or it refuses.
pub fn count() -> Result<usize, KernelError> {
    find_driver()?;
    result::init().map_err(driver("start"))?;
    Ok(CudaContext::device_count().map_err(driver("count devices"))?.max(0) as usize)
}

/// The device of a number, with all kernels loaded and a queue of its own.
///
/// # Errors
/// If there is no driver or no such device, or the kernels were not compiled for it.
pub fn open(ordinal: usize) -> Result<Arc<dyn Device>, KernelError> {
    let count = count()?;
    if ordinal >= count {
        return Err(KernelError::OutOfRange { op: "cuda", what: "device", index: ordinal, len: count });
    }
    let context = CudaContext::new(ordinal).map_err(driver("open a device"))?;
    let (major, minor) = context.compute_capability().map_err(driver("ask for the compute capability"))?;
    let code = code_for(ARCHS, (major, minor));
    let code = code.ok_or(KernelError::Capability { device: (major, minor), compiled: ARCHS })?;
    let processors = CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let facts = DeviceFacts {
        name: context.name().map_err(driver("ask for the name"))?,
        uuid: spell(context.uuid().map_err(driver("ask for the UUID"))?.bytes.map(|byte| byte as u8)),
        capability: (code / 10, code % 10),
        num_multiprocessors: context.attribute(processors).map_err(driver("count multiprocessors"))? as u32,
        total_bytes: context.total_mem().map_err(driver("ask for the memory"))?,
    };
    let functions = load(&context)?;
    // Not the default queue, whose work cannot be recorded.
    let stream = context.new_stream().map_err(driver("make a stream"))?;
    let staging = Mutex::new(Staging::new(&context)?);
    Ok(Arc::new(CudaDevice { facts, context, stream, functions, staging }))
}

/// One device of the driver.
struct CudaDevice {
    facts: DeviceFacts,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    staging: Mutex<Staging>,
}

/// Host memory that the device reads and writes by itself. From other memory the driver may wait for all work before it
/// copies, or copy later than it says.
struct Staging {
    memory: *mut u8,
    /// Bytes that copies under way read.
    used: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory is bound to no thread, and the lock around it sees that one uses it at a time.
unsafe impl Send for Staging {}

impl Staging {
    const BYTES: usize = 4 << 20;

    fn new(context: &Arc<CudaContext>) -> Result<Self, KernelError> {
        context.bind_to_thread().map_err(driver("enter the device"))?;
        // SAFETY: what the memory holds is written before it is read.
        let memory = unsafe { result::malloc_host(Self::BYTES, 0) }.map_err(driver("allocate host memory"))?;
        Ok(Self { memory: memory.cast(), used: 0, context: Arc::clone(context) })
    }

    /// Room for `len` bytes that no copy uses; [`CudaDevice::staging_for`] has made it.
    fn take(&mut self, len: usize) -> *mut u8 {
        assert!(len <= Self::BYTES - self.used, "staging memory is made free before it is taken");
        let start = self.used;
        self.used = (start + len).next_multiple_of(64).min(Self::BYTES);
        // SAFETY: `start` is within the allocation.
        unsafe { self.memory.add(start) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Copies may be under way. Where the driver refuses, the memory stays taken until the process ends.
        if self.context.bind_to_thread().is_ok() && self.context.synchronize().is_ok() {
            // SAFETY: it came from `malloc_host` and is freed here alone, and nothing uses it any more.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
    }
}

impl CudaDevice {
    /// The staging memory, with room for `len` bytes, which are no more than it has.
    fn staging_for(&self, len: usize) -> Result<MutexGuard<'_, Staging>, KernelError> {
        // A panic while it was held leaves it as usable as before.
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if len > Staging::BYTES - staging.used {
            self.stream.synchronize().map_err(driver("wait for the device"))?;
            staging.used = 0;
        }
        Ok(staging)
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Memory of the driver.
#[derive(Debug)]
struct CudaMemory {
    address: u64,
    context: Arc<CudaContext>,
}

impl Allocation for CudaMemory {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        // Waits for work that may use it. Where the driver refuses, the memory stays taken until the process ends.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it came from `malloc_sync` and is freed here alone.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Recorded work.
struct CudaRecording(Mutex<Graph>);

struct Graph(Option<CudaGraph>);

// SAFETY: a graph is bound to no thread; the driver only asks that calls with one graph do not overlap, for which the
// lock around it sees.
unsafe impl Send for Graph {}

impl Device for CudaDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<usize, KernelError> {
        Ok(self.context.mem_get_info().map_err(driver("ask for free memory"))?.0)
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Allocation>, KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        // SAFETY: what the memory holds is unspecified, as is said.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Box::new(CudaMemory { address, context: Arc::clone(&self.context) })),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(KernelError::DeviceMemory { needed: bytes, free: self.free_bytes()? })
            }
            Err(error) => Err(driver("allocate device memory")(error)),
        }
    }

    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        for (index, piece) in bytes.chunks(Staging::BYTES).enumerate() {
            let mut staging = self.staging_for(piece.len())?;
            let room = staging.take(piece.len());
            // SAFETY: the room is as long, no copy uses it, and it is left alone until the queue has been waited for.
            let source = unsafe {
                room.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                std::slice::from_raw_parts(room, piece.len())
            };
            let to = address + (index * Staging::BYTES) as u64;
            // SAFETY: the caller answers for the address.
            unsafe { result::memcpy_htod_async(to, source, self.stream.cu_stream()) }
                .map_err(driver("copy to the device"))?;
        }
        Ok(())
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        // SAFETY: the caller answers for the address.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(driver("clear device memory"))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        // SAFETY: the caller answers for both addresses.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(driver("copy within the device"))
    }

    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        for (index, piece) in bytes.chunks_mut(Staging::BYTES).enumerate() {
            let mut staging = self.staging_for(piece.len())?;
            let room = staging.take(piece.len());
            // SAFETY: the room is as long, no copy uses it, and the wait below outlasts the copy.
            let target = unsafe { std::slice::from_raw_parts_mut(room, piece.len()) };
            let from = address + (index * Staging::BYTES) as u64;
            // SAFETY: the caller answers for the address, and the wait below outlasts the copy.
            let copied = unsafe { result::memcpy_dtoh_async(target, from, self.stream.cu_stream()) };
            // Also after an error: part of the copy may be under way.
            self.synchronize()?;
            staging.used = 0;
            copied.map_err(driver("copy from the device"))?;
            piece.copy_from_slice(target);
        }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.context.bind_to_thread().map_err(driver("enter the device"))?;
        let kernel = launch.kernel();
        let function = self.functions.get(kernel).ok_or(KernelError::KernelMissing { kernel })?;
        if launch.shared_bytes() > USUAL_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let asked = function.set_attribute(attribute, launch.shared_bytes() as i32);
            asked.map_err(driver("ask for shared memory"))?;
        }
        let [x, y] = launch.grid();
        let mut params = [launch.params().as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes this one struct and the driver copies it before it returns; the caller answers for the
        // memory behind the addresses in it.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, 1),
                (launch.block_dim(), 1, 1),
                launch.shared_bytes(),
                self.stream.cu_stream(),
                &mut params,
            )
        };
        launched.map_err(|error| KernelError::Launch { kernel, code: error.0 as u32 })
    }

    fn record(&self, launches: &[Launch]) -> Result<Arc<dyn Any + Send + Sync>, KernelError> {
        // An error that some drop has left would end the recording before its end.
        self.context.check_err().map_err(driver("go on after an error"))?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(driver("begin to record"))?;
        // SAFETY: nothing runs; whoever replays the recording answers for the memory.
        let given = launches.iter().try_for_each(|launch| unsafe { self.launch(launch) });
        // Also after an error: the stream must leave the mode.
        let ended = self.stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        given?;
        let graph = ended.map_err(driver("end a recording"))?;
        Ok(Arc::new(CudaRecording(Mutex::new(Graph(graph)))))
    }

    unsafe fn replay(&self, recording: &(dyn Any + Send + Sync)) -> Result<(), KernelError> {
        let CudaRecording(graph) = recording.downcast_ref().ok_or(KernelError::ForeignRecording)?;
        // A panic while it was held leaves the graph as it was.
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        match &graph.0 {
            Some(graph) => graph.launch().map_err(driver("replay a recording")),
            // No launches.
            None => Ok(()),
        }
    }

    fn synchronize(&self) -> Result<(), KernelError> {
        self.stream.synchronize().map_err(driver("wait for the device"))
    }

    fn millis(&self, work: &mut dyn FnMut() -> Result<(), KernelError>) -> Result<f32, KernelError> {
        let mark = || self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver("set a mark"));
        let start = mark()?;
        work()?;
        let end = mark()?;
        start.elapsed_ms(&end).map_err(driver("measure a time"))
    }
}

/// All kernels.
fn load(context: &Arc<CudaContext>) -> Result<HashMap<&'static str, CudaFunction>, KernelError> {
    let names = || KERNELS.iter().copied().flatten().copied();
    let mut functions = HashMap::new();
    for image in IMAGES {
        let module = context.load_module(Ptx::from_binary(image.to_vec())).map_err(driver("load kernels"))?;
        // A kernel that is in no image is noticed below.
        functions.extend(names().filter_map(|name| Some((name, module.load_function(name).ok()?))));
    }
    match names().find(|name| !functions.contains_key(name)) {
        Some(kernel) => Err(KernelError::KernelMissing { kernel }),
        None => Ok(functions),
    }
}

/// Refuses a machine without a driver, which would panic later.
fn find_driver() -> Result<(), KernelError> {
    // SAFETY: only looks for the library; the driver is loaded by what follows in any case.
    if unsafe { cudarc::driver::sys::is_culib_present() } { Ok(()) } else { Err(KernelError::CudaDriverMissing) }
}

/// A UUID as NVML spells it.
fn spell(bytes: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| -> String { bytes[range].iter().map(|b| format!("{b:02x}")).collect() };
    format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

fn driver(call: &'static str) -> impl Fn(DriverError) -> KernelError {
    move |error| KernelError::Driver { call, code: error.0 as u32 }
}

/// The architecture whose code runs on a device: the newest of its own generation up to its revision, or the last one's
/// PTX. What a device could do beyond that is not in the code.
fn code_for(archs: &str, (major, minor): (i32, i32)) -> Option<u32> {
    let archs = || archs.split(';').filter_map(|arch| arch.parse::<u32>().ok());
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let native = archs().filter(|arch| arch / 10 == major && arch % 10 <= minor).max();
    native.or_else(|| archs().max().filter(|arch| *arch <= major * 10 + minor))
}

#[cfg(test)]
mod tests {
    use super::{code_for, spell};

    #[test]
    fn uuids_are_spelt_in_groups() {
        let bytes = std::array::from_fn(|index| 0xa0 + index as u8);
        assert_eq!(spell(bytes), "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
    }

    #[test]
    fn devices_run_their_own_generation_and_newer_ones_ptx() {
        let all = "75;80;86;89;90";
        for (device, expected) in [
            ((7, 0), None),
            ((7, 5), Some(75)),
            ((8, 0), Some(80)),
            ((8, 7), Some(86)),
            ((9, 0), Some(90)),
            ((12, 0), Some(90)),
        ] {
            assert_eq!(code_for(all, device), expected, "{device:?}");
        }
        assert_eq!(code_for("86;90", (8, 0)), None);
        assert_eq!(code_for("90", (8, 9)), None);
        assert_eq!(code_for("75", (9, 0)), Some(75), "code of Turing, without bf16, whatever the device could do");
    }
}
