//! A device, by the driver that is found at run time.

use std::{collections::HashMap, sync::Arc};

pub use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use cudarc::{
    driver::{
        CudaContext, CudaFunction, DevicePtr, DevicePtrMut, DriverError, LaunchConfig, PushKernelArg, SyncOnDrop,
        sys::CUfunction_attribute_enum,
    },
    nvrtc::Ptx,
};

use crate::{
    KernelError,
    device::{KERNEL_NAMES, LlaCounters, LlaLaunch, LlaParams, LlaTile, LlaVisible},
};

/// Ends the use of a slice by the work that was given to a stream.
pub type Use<'a> = SyncOnDrop<'a>;

/// Device code for every architecture of [`ARCHS`], by source file.
const IMAGES: [&[u8]; 2] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/prefill.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decode.fatbin")),
];
/// Compute capabilities that the build compiled for, such as `75;80`; newer devices run the last one's PTX.
const ARCHS: &str = env!("LEAPFROG_CUDA_ARCHS");
/// What a block may have of shared memory without asking.
const USUAL_SHARED_BYTES: u32 = 48 * 1024;

// SAFETY: all are `repr(C)` structs of numbers without padding that is read, laid out as in `params.cuh`, which both
// sides assert.
unsafe impl DeviceRepr for LlaParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for LlaTile {}
// SAFETY: as above.
unsafe impl DeviceRepr for LlaVisible {}
// SAFETY: as above.
unsafe impl DeviceRepr for LlaCounters {}

/// The kernels of this crate on one device.
#[derive(Debug)]
pub struct DeviceKernels {
    functions: HashMap<&'static str, CudaFunction>,
}

/// The default stream of a device.
///
/// # Errors
/// If there is no such device, or no driver.
pub fn open(ordinal: usize) -> Result<Arc<CudaStream>, KernelError> {
    // SAFETY: only looks for the library; the driver is loaded by what follows in any case.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(KernelError::CudaDriverMissing);
    }
    Ok(CudaContext::new(ordinal).map_err(driver("open a device"))?.default_stream())
}

impl DeviceKernels {
    /// Loads the kernels for the device of a stream.
    ///
    /// # Errors
    /// If they were not compiled for it, or the driver refuses.
    pub fn load(stream: &Arc<CudaStream>) -> Result<Self, KernelError> {
        let context = stream.context();
        let (major, minor) = context.compute_capability().map_err(driver("ask for the compute capability"))?;
        if !runs_on(ARCHS, (major, minor)) {
            return Err(KernelError::Capability { device: (major, minor), compiled: ARCHS });
        }
        let mut functions = HashMap::new();
        for image in IMAGES {
            let module = context.load_module(Ptx::from_binary(image.to_vec())).map_err(driver("load kernels"))?;
            // A kernel that is in no image is noticed below.
            functions.extend(KERNEL_NAMES.iter().filter_map(|name| Some((*name, module.load_function(name).ok()?))));
        }
        match KERNEL_NAMES.iter().find(|name| !functions.contains_key(*name)) {
            Some(kernel) => Err(KernelError::KernelMissing { kernel }),
            None => Ok(Self { functions }),
        }
    }

    /// # Safety
    /// The addresses in the parameters must be those of device memory of the lengths that the plan asks for, in use by
    /// the stream until the launch.
    pub(crate) unsafe fn launch(&self, stream: &Arc<CudaStream>, launch: &LlaLaunch) -> Result<(), KernelError> {
        let function = self.functions.get(launch.kernel).ok_or(KernelError::KernelMissing { kernel: launch.kernel })?;
        if launch.shared_bytes > USUAL_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let asked = function.set_attribute(attribute, launch.shared_bytes as i32);
            asked.map_err(driver("ask for shared memory"))?;
        }
        let config = LaunchConfig {
            grid_dim: (launch.grid[0], launch.grid[1], 1),
            block_dim: (launch.block_dim, 1, 1),
            shared_mem_bytes: launch.shared_bytes,
        };
        let mut builder = stream.launch_builder(function);
        builder.arg(&launch.params);
        // SAFETY: the kernel takes exactly this argument; the caller answers for the memory behind it.
        unsafe { builder.launch(config) }.map_err(driver("launch a kernel"))?;
        Ok(())
    }
}

pub(crate) fn len<T>(slice: &CudaSlice<T>) -> usize {
    slice.len()
}

pub(crate) fn read<'a, T>(slice: &'a CudaSlice<T>, stream: &'a CudaStream) -> (u64, Use<'a>) {
    slice.device_ptr(stream)
}

pub(crate) fn write<'a, T>(slice: &'a mut CudaSlice<T>, stream: &'a CudaStream) -> (u64, Use<'a>) {
    slice.device_ptr_mut(stream)
}

/// Copies values to a device.
///
/// # Errors
/// If the driver refuses.
pub fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, values: &[T]) -> Result<CudaSlice<T>, KernelError> {
    let mut slice = reserve(stream, values.len())?;
    if !values.is_empty() {
        stream.memcpy_htod(values, &mut slice).map_err(driver("copy to the device"))?;
    }
    Ok(slice)
}

/// Copies values from a device, once the work of the stream is done.
///
/// # Errors
/// If the driver refuses.
pub fn download<T: DeviceRepr + Clone>(stream: &Arc<CudaStream>, slice: &CudaSlice<T>) -> Result<Vec<T>, KernelError> {
    let values = stream.clone_dtoh(slice).map_err(driver("copy from the device"))?;
    stream.synchronize().map_err(driver("wait for the device"))?;
    Ok(values)
}

/// An array of unspecified values.
///
/// # Errors
/// If the driver refuses.
pub fn reserve<T: DeviceRepr>(stream: &Arc<CudaStream>, len: usize) -> Result<CudaSlice<T>, KernelError> {
    // SAFETY: every bit pattern is a value of the numbers that this crate keeps on a device, and what is not written by
    // a copy or a kernel is not read. Nothing is an allocation of one element, since the driver refuses none.
    unsafe { stream.alloc(len.max(1)) }.map_err(driver("allocate device memory"))
}

fn driver(call: &'static str) -> impl Fn(DriverError) -> KernelError {
    move |error| KernelError::Driver { call, code: error.0 as u32 }
}

/// Whether code for `archs` runs on a device: that of the same generation and no newer revision, or the last one's PTX.
fn runs_on(archs: &str, (major, minor): (i32, i32)) -> bool {
    let archs: Vec<i32> = archs.split(';').filter_map(|arch| arch.parse().ok()).collect();
    let native = archs.iter().any(|arch| arch / 10 == major && arch % 10 <= minor);
    native || archs.iter().max().is_some_and(|arch| *arch <= major * 10 + minor)
}

#[cfg(test)]
mod tests {
    use super::runs_on;

    #[test]
    fn devices_run_their_own_generation_and_newer_ones_ptx() {
        for (device, expected) in
            [((7, 0), false), ((7, 5), true), ((8, 0), true), ((8, 7), true), ((9, 0), true), ((12, 0), true)]
        {
            assert_eq!(runs_on("75;80;86;89;90", device), expected, "{device:?}");
        }
        assert!(!runs_on("86;90", (8, 0)));
        assert!(!runs_on("90", (8, 9)));
    }
}
