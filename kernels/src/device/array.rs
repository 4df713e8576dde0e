//! Device memory.

use std::{fmt, ops::Range, sync::Arc};

use half::{bf16, f16};

use super::Device;
use crate::KernelError;

const OP: &str = "device array";
/// Alignment of every allocation, and of what [`Array::carve`] cuts from one.
const ALIGNMENT: usize = 256;

/// Type of the elements of an array; mirrored by `ElementType` in `element.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ElementType {
    /// f32
    F32 = 0,
    /// IEEE half precision
    F16 = 1,
    /// bfloat16
    BF16 = 2,
    /// u32
    U32 = 3,
    /// u8: bytes, or what the array's owner makes of them
    U8 = 4,
}

impl ElementType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }

    /// Whether it is one of the 16-bit floats.
    pub fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::BF16)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::U32 => "u32",
            Self::U8 => "u8",
        })
    }
}

/// A type of the host that arrays hold.
pub trait HostElement: bytemuck::Pod {
    /// The type on the device.
    const TYPE: ElementType;
}

impl HostElement for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl HostElement for f16 {
    const TYPE: ElementType = ElementType::F16;
}

impl HostElement for bf16 {
    const TYPE: ElementType = ElementType::BF16;
}

impl HostElement for u32 {
    const TYPE: ElementType = ElementType::U32;
}

impl HostElement for u8 {
    const TYPE: ElementType = ElementType::U8;
}

/// Memory that a device gave; it goes back when this is dropped.
pub trait Allocation: fmt::Debug + Send + Sync {
    /// The address of its first byte.
    fn address(&self) -> u64;
}

/// Shared memory of a device. Lives as long as an array or a launch uses it.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Held>);

#[derive(Debug)]
struct Held {
    // Dropped first: giving memory back needs the device.
    allocation: Box<dyn Allocation>,
    device: Arc<dyn Device>,
}

/// `len` elements of one type on a device. Cloning shares the memory.
#[derive(Clone)]
pub struct Array {
    memory: Memory,
    /// Bytes before the first element.
    offset: usize,
    len: usize,
    element: ElementType,
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}] at {:#x}", self.element, self.len, self.address())
    }
}

impl Array {
    /// An array of unspecified values.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn new(device: &Arc<dyn Device>, element: ElementType, len: usize) -> Result<Self, KernelError> {
        let bytes = len.checked_mul(element.size()).ok_or(KernelError::Overflow { op: OP, what: "array" })?;
        // A device refuses to allocate nothing.
        let allocation = device.alloc(bytes.max(1))?;
        let memory = Memory(Arc::new(Held { allocation, device: Arc::clone(device) }));
        Ok(Self { memory, offset: 0, len, element })
    }

    /// An array of zeros.
    ///
    /// # Errors
    /// If there is not enough memory, or the driver refuses.
    pub fn zeros(device: &Arc<dyn Device>, element: ElementType, len: usize) -> Result<Self, KernelError> {
        let array = Self::new(device, element, len)?;
        array.clear()?;
        Ok(array)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Array::zeros`].
    pub fn from_slice<T: HostElement>(device: &Arc<dyn Device>, values: &[T]) -> Result<Self, KernelError> {
        let array = Self::new(device, T::TYPE, values.len())?;
        array.write(0, values)?;
        Ok(array)
    }

    /// Cuts the array, of bytes, into arrays of the given types and lengths, each aligned as an allocation is.
    ///
    /// # Errors
    /// If it is too short, or not an array of bytes.
    pub fn carve(&self, parts: &[(ElementType, usize)]) -> Result<Vec<Self>, KernelError> {
        self.expect("array", ElementType::U8, 0)?;
        let mut start = 0usize;
        let mut cut = Vec::with_capacity(parts.len());
        for &(element, len) in parts {
            let end = len.checked_mul(element.size()).and_then(|bytes| bytes.checked_add(start));
            let end = end.filter(|end| *end <= self.len).ok_or(KernelError::Length {
                op: OP,
                what: "bytes",
                expected: Self::carved_bytes(parts),
                got: self.len,
            })?;
            cut.push(Self { memory: self.memory.clone(), offset: self.offset + start, len, element });
            start = end.next_multiple_of(ALIGNMENT);
        }
        Ok(cut)
    }

    /// Bytes that [`Array::carve`] needs; the largest number if that overflows.
    pub fn carved_bytes(parts: &[(ElementType, usize)]) -> usize {
        parts.iter().fold(0usize, |sum, &(element, len)| {
            let bytes = len.saturating_mul(element.size());
            sum.saturating_add(bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX))
        })
    }

    /// Elements `range`.
    ///
    /// # Errors
    /// If they are not all there.
    pub fn slice(&self, range: Range<usize>) -> Result<Self, KernelError> {
        if range.start > range.end || range.end > self.len {
            return Err(KernelError::OutOfRange { op: OP, what: "element", index: range.end, len: self.len + 1 });
        }
        let offset = self.offset + range.start * self.element.size();
        Ok(Self { memory: self.memory.clone(), offset, len: range.len(), element: self.element })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.len * self.element.size()
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.memory.0.allocation.address() + self.offset as u64
    }

    /// The memory behind it.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.memory.0.device
    }

    /// Copies `values` to elements `start..`.
    ///
    /// # Errors
    /// If the type differs, they do not fit, or the driver refuses.
    pub fn write<T: HostElement>(&self, start: usize, values: &[T]) -> Result<(), KernelError> {
        let end = start.checked_add(values.len()).ok_or(KernelError::Overflow { op: OP, what: "write" })?;
        self.expect("array", T::TYPE, end)?;
        self.write_bytes(start * size_of::<T>(), bytemuck::cast_slice(values))
    }

    /// Copies bytes to the bytes from `start` on, whatever the type of the elements.
    ///
    /// # Errors
    /// If they do not fit, or the driver refuses.
    pub fn write_bytes(&self, start: usize, bytes: &[u8]) -> Result<(), KernelError> {
        let end = start.checked_add(bytes.len()).ok_or(KernelError::Overflow { op: OP, what: "write" })?;
        if end > self.bytes() {
            return Err(KernelError::Length { op: OP, what: "bytes", expected: end, got: self.bytes() });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: checked above to lie in this array, whose memory lives as long as it.
        unsafe { self.device().write(self.address() + start as u64, bytes) }
    }

    /// Copies all elements to another array of the same type and length, on the same device.
    ///
    /// # Errors
    /// If they differ, are on different devices or in the same memory, or the driver refuses.
    pub fn copy_to(&self, to: &Self) -> Result<(), KernelError> {
        to.expect("copy", self.element, self.len)?;
        if to.len != self.len {
            return Err(KernelError::Length { op: OP, what: "copy", expected: self.len, got: to.len });
        }
        if Arc::ptr_eq(&self.memory.0, &to.memory.0) || !Arc::ptr_eq(self.device(), to.device()) {
            return Err(KernelError::SameMemory { op: OP });
        }
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: checked above to be as long as each other and not in one allocation.
        unsafe { self.device().copy(self.address(), to.address(), self.bytes()) }
    }

    /// Sets all elements to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear(&self) -> Result<(), KernelError> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: all bytes of this array, whose memory lives as long as it.
        unsafe { self.device().zero(self.address(), self.bytes()) }
    }

    /// Copies all elements from the device, after all work given so far.
    ///
    /// # Errors
    /// If the type differs, the driver refuses, or work given before has failed.
    pub fn read<T: HostElement>(&self) -> Result<Vec<T>, KernelError> {
        self.expect("array", T::TYPE, 0)?;
        let mut values = vec![T::zeroed(); self.len];
        self.read_bytes(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Copies the first bytes from the device, after all work given so far.
    ///
    /// # Errors
    /// If there are not as many, the driver refuses, or work given before has failed.
    pub fn read_bytes(&self, bytes: &mut [u8]) -> Result<(), KernelError> {
        if bytes.len() > self.bytes() {
            return Err(KernelError::Length { op: OP, what: "bytes", expected: bytes.len(), got: self.bytes() });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: checked above to lie in this array, whose memory lives as long as it.
        unsafe { self.device().read(self.address(), bytes) }
    }

    /// Refuses an array of another type, or with fewer elements than `len`.
    pub(crate) fn expect(&self, what: &'static str, element: ElementType, len: usize) -> Result<(), KernelError> {
        if self.element != element {
            return Err(KernelError::Element { op: OP, what, expected: element, got: self.element });
        }
        if self.len < len {
            return Err(KernelError::Length { op: OP, what, expected: len, got: self.len });
        }
        Ok(())
    }
}
