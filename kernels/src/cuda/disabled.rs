//! No device: nothing here can be made, so nothing here can be called.

use std::{convert::Infallible, marker::PhantomData, sync::Arc};

use crate::{KernelError, device::LlaLaunch};

/// A value that a device can hold.
pub trait DeviceRepr {}

impl<T> DeviceRepr for T {}

/// A queue of work of a device.
#[derive(Debug)]
pub struct CudaStream(Infallible);

/// An array on a device.
#[derive(Debug)]
pub struct CudaSlice<T> {
    never: Infallible,
    elements: PhantomData<T>,
}

/// Ends the use of a slice by the work that was given to a stream.
#[derive(Debug)]
pub struct Use<'a>(PhantomData<&'a Infallible>);

/// The kernels of this crate on one device.
#[derive(Debug)]
pub struct DeviceKernels(Infallible);

/// The default stream of a device.
///
/// # Errors
/// Always: the build lacks the feature `cuda`.
pub fn open(_: usize) -> Result<Arc<CudaStream>, KernelError> {
    Err(KernelError::CudaMissing)
}

impl DeviceKernels {
    /// Loads the kernels for the device of a stream.
    ///
    /// # Errors
    /// Never: there is no stream.
    pub fn load(stream: &Arc<CudaStream>) -> Result<Self, KernelError> {
        match stream.0 {}
    }

    pub(crate) unsafe fn launch(&self, _: &Arc<CudaStream>, _: &LlaLaunch) -> Result<(), KernelError> {
        match self.0 {}
    }
}

pub(crate) fn len<T>(slice: &CudaSlice<T>) -> usize {
    match slice.never {}
}

pub(crate) fn read<'a, T>(slice: &'a CudaSlice<T>, _: &'a CudaStream) -> (u64, Use<'a>) {
    match slice.never {}
}

#[expect(clippy::needless_pass_by_ref_mut, reason = "as where there is a device")]
pub(crate) fn write<'a, T>(slice: &'a mut CudaSlice<T>, _: &'a CudaStream) -> (u64, Use<'a>) {
    match slice.never {}
}

/// Copies values to a device.
///
/// # Errors
/// Never: there is no stream.
pub fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, _: &[T]) -> Result<CudaSlice<T>, KernelError> {
    match stream.0 {}
}

/// Copies values from a device, once the work of the stream is done.
///
/// # Errors
/// Never: there is no stream.
pub fn download<T: DeviceRepr + Clone>(stream: &Arc<CudaStream>, _: &CudaSlice<T>) -> Result<Vec<T>, KernelError> {
    match stream.0 {}
}

/// An array of unspecified values.
///
/// # Errors
/// Never: there is no stream.
pub fn reserve<T: DeviceRepr>(stream: &Arc<CudaStream>, _: usize) -> Result<CudaSlice<T>, KernelError> {
    match stream.0 {}
}
