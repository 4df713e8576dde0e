//! Everything that can go wrong in a kernel call. All of it is checked before the first value is written.

use candle_core::{DType, Shape};

use crate::device::ElementType;

/// An error of calling a kernel with data it cannot run on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A tensor or buffer of the wrong length.
    #[error("{op}: `{what}` must have {expected} elements, got {got}")]
    Length {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A tensor of the wrong shape.
    #[error("{op}: `{what}` must be {expected}, got {got:?}")]
    Shape {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The shape needed, in words.
        expected: String,
        /// The shape given.
        got: Shape,
    },
    /// A tensor that is not f32.
    #[error("{op}: `{what}` must be f32, got {got:?}")]
    DType {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The type given.
        got: DType,
    },
    /// A tensor with gaps.
    #[error("{op}: `{what}` must be contiguous")]
    NotContiguous {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
    },
    /// A storage that is not in host memory where a host kernel was asked for.
    #[error("{op}: `{what}` is not in host memory")]
    NotOnHost {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
    },
    /// A GGUF type code without a kernel.
    #[error("GGUF tensor type {code} is not supported; supported are {supported}")]
    UnknownGgmlType {
        /// The code in the file.
        code: u32,
        /// Names of the supported types.
        supported: &'static str,
    },
    /// A row that is not a whole number of quantisation blocks.
    #[error("rows of {in_features} values are not a whole number of {format} blocks of {block_len}")]
    PartialBlock {
        /// Values in a row.
        in_features: usize,
        /// The format.
        format: &'static str,
        /// Values in a block.
        block_len: usize,
    },
    /// A weight matrix without rows or columns.
    #[error("a weight matrix of {out_features} x {in_features} has no values")]
    EmptyWeight {
        /// Rows.
        out_features: usize,
        /// Columns.
        in_features: usize,
    },
    /// Weight matrices that cannot share one activation.
    #[error("cannot stack weights: {what} is {first} in the first part and {other} in another")]
    Unstackable {
        /// The property that differs.
        what: &'static str,
        /// Its value in the first part.
        first: usize,
        /// Its value in the other part.
        other: usize,
    },
    /// Weights that are multiplied with activations of different types.
    #[error("cannot stack weights: the first part takes activations of {first} and another of {other}")]
    MixedActivations {
        /// The type of the first part.
        first: ElementType,
        /// The type of the other part.
        other: ElementType,
    },
    /// A format of weights that is not made from what a file holds.
    #[error(
        "weights of {stored} cannot be held as {format} on a device: only {format} can, and all types as F16 or BF16"
    )]
    NoConversion {
        /// The format in the file.
        stored: &'static str,
        /// The format asked for.
        format: &'static str,
    },
    /// A stack of nothing.
    #[error("cannot stack zero weight matrices")]
    EmptyStack,
    /// An index past the end.
    #[error("{op}: {what} {index} is out of range, there are {len}")]
    OutOfRange {
        /// The op.
        op: &'static str,
        /// What is indexed.
        what: &'static str,
        /// The index.
        index: usize,
        /// One past the largest index allowed.
        len: usize,
    },
    /// A count that must be at least one.
    #[error("{op}: {what} must not be zero")]
    Zero {
        /// The op.
        op: &'static str,
        /// The count.
        what: &'static str,
    },
    /// A number that an op is not defined for.
    #[error("{op}: `{what}` must be {expected}, got {got} at index {index}")]
    Domain {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Where the number stands; 0 if it stands alone.
        index: usize,
        /// The numbers allowed, in words.
        expected: &'static str,
        /// The number given.
        got: f32,
    },
    /// Query heads that do not divide among the key-value heads.
    #[error("{heads} query heads do not divide among {kv_heads} key-value heads")]
    HeadGroups {
        /// Query heads.
        heads: usize,
        /// Key-value heads.
        kv_heads: usize,
    },
    /// A product of sizes that does not fit in memory.
    #[error("{op}: the size of `{what}` overflows")]
    Overflow {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
    },
    /// A device was asked for in a build that has none.
    #[error("this build has no CUDA: the feature `cuda` of leapfrog-kernels is off")]
    CudaMissing,
    /// A device was asked for on a machine without a driver.
    #[error("no CUDA driver on this machine: libcuda was not found")]
    CudaDriverMissing,
    /// Device memory that is not there.
    #[error("{needed} bytes of device memory were asked for, {free} are free")]
    DeviceMemory {
        /// Bytes asked for.
        needed: usize,
        /// Bytes free.
        free: usize,
    },
    /// An array of the wrong type.
    #[error("{op}: `{what}` must hold {expected}, got {got}")]
    Element {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The type needed.
        expected: ElementType,
        /// The type given.
        got: ElementType,
    },
    /// A type of elements that an op has no kernel for.
    #[error("{op}: there is no kernel for `{what}` of {got}; supported are {supported}")]
    NoKernelFor {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The type, size or format given.
        got: String,
        /// Those that there are kernels for.
        supported: &'static str,
    },
    /// An array that starts where a kernel cannot load from.
    #[error("{op}: `{what}` must start at a multiple of {alignment} bytes, got {address:#x}")]
    Alignment {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// What the address must be a multiple of, in bytes.
        alignment: u64,
        /// The address given.
        address: u64,
    },
    /// The driver refused a launch.
    #[error("CUDA could not launch `{kernel}`: error {code}")]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// Its `CUresult`.
        code: u32,
    },
    /// A kernel that did what would hang or be undefined on a device, found where kernels run on the host.
    #[error("{0}")]
    HostRun(String),
    /// Recorded work of another device.
    #[error("the work was recorded by another device")]
    ForeignRecording,
    /// The driver of a device refused.
    #[error("CUDA could not {call}: error {code}")]
    Driver {
        /// What was asked for, in words.
        call: &'static str,
        /// Its `CUresult`.
        code: u32,
    },
    /// A device that the kernels were not compiled for.
    #[error("the device has compute capability {}.{}, the kernels were compiled for {compiled}", device.0, device.1)]
    Capability {
        /// Major and minor number of the device.
        device: (i32, i32),
        /// The list of the build.
        compiled: &'static str,
    },
    /// A kernel that is not in the device code of the build.
    #[error("the device code of this build has no kernel `{kernel}`")]
    KernelMissing {
        /// Its name.
        kernel: &'static str,
    },
    /// An error of the tensor library, such as a device without an implementation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
