//! Weights on a device.

use std::{fmt, sync::Arc};

use rayon::prelude::*;

use super::{
    OP,
    launch::{block_rows, random},
    pack,
};
use crate::{
    GgmlType, KernelError,
    device::{Array, Device, DeviceFacts, ElementType, run},
};

/// Outputs of a tile; `kTileOutputs` in `weight.cuh`.
pub(super) const TILE_OUTPUTS: usize = 128;
/// Host memory that an upload fills before it copies, in bytes.
const UPLOAD_BYTES: usize = 32 << 20;
/// Splits that are considered, and the fewest k of a split: below it the ring of a block is hardly filled once.
const MOST_SPLITS: usize = 16;
const SPLIT_LEN: usize = 256;
/// What a split costs for each output, in bytes of weights: a sum of 4 bytes for each of 32 rows that is written and read
/// again. That mostly happens in the L2 cache, so it counts half.
const SPLIT_BYTES: usize = 32 * 4;

/// Rows up to which reading the weights is what takes time, so that a block should have one split to read.
const FEW_ROWS: usize = 64;
/// What [`DeviceLinear::num_sums`] allows of [`idle`]: about what splits cost.
const MOST_IDLE: f64 = 1.25;

/// How weights are held on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, reason = "the names that everybody knows")]
pub enum DeviceFormat {
    /// IEEE half precision.
    F16,
    /// bfloat16; for devices whose matrix units take it.
    BF16,
    /// 8-bit codes, an f16 scale per 32: 8.5 bits.
    Q8_0,
    /// 4-bit codes, 6-bit factors and minima per 32 under two f16 per 256: 4.5 bits.
    Q4_K,
}

impl DeviceFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::F16, Self::BF16, Self::Q8_0, Self::Q4_K];

    /// The usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
        }
    }

    /// Type of the activations that such weights are multiplied with.
    pub fn activations(self) -> ElementType {
        match self {
            Self::BF16 => ElementType::BF16,
            Self::F16 | Self::Q8_0 | Self::Q4_K => ElementType::F16,
        }
    }

    /// The quantised file format with the same codes.
    pub(super) fn coded(self) -> Option<GgmlType> {
        match self {
            Self::F16 | Self::BF16 => None,
            Self::Q8_0 => Some(GgmlType::Q8_0),
            Self::Q4_K => Some(GgmlType::Q4_K),
        }
    }

    /// k of a slab, the 64 bytes that an output has together.
    pub(super) fn slab_len(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 32,
            Self::Q8_0 => 64,
            Self::Q4_K => 128,
        }
    }

    /// k of a step of the kernels.
    pub(super) fn stage_len(self) -> usize {
        self.slab_len().max(64)
    }

    /// k that share a record of scales, and the bytes of the record.
    pub(super) fn record(self) -> Option<(usize, usize)> {
        match self {
            Self::F16 | Self::BF16 => None,
            Self::Q8_0 => Some((64, 4)),
            Self::Q4_K => Some((256, 16)),
        }
    }

    /// Bytes of the codes and of the scales of a tile.
    pub(super) fn tile_bytes(self, in_features: usize) -> (usize, usize) {
        let width = padded(in_features);
        let codes = width / self.slab_len() * pack::SLAB_ROW * TILE_OUTPUTS;
        (codes, self.record().map_or(0, |(len, bytes)| width / len * bytes * TILE_OUTPUTS))
    }

    /// Refuses a device without the arithmetic for it.
    fn check_device(self, facts: &DeviceFacts) -> Result<(), KernelError> {
        if self != Self::BF16 || facts.has_bf16() {
            return Ok(());
        }
        let got =
            format!("bf16 on {} with compute capability {}.{}", facts.name, facts.capability.0, facts.capability.1);
        let supported = "F16, Q8_0, Q4_K; BF16 from 8.0 on";
        Err(KernelError::NoKernelFor { op: OP, what: "weight", got, supported })
    }

    /// Refuses a matrix that the format cannot hold.
    fn check_size(self, out_features: usize, in_features: usize) -> Result<(), KernelError> {
        if out_features == 0 || in_features == 0 {
            return Err(KernelError::EmptyWeight { out_features, in_features });
        }
        let block_len = self.coded().map_or(1, GgmlType::block_len);
        if !in_features.is_multiple_of(block_len) {
            return Err(KernelError::PartialBlock { in_features, format: self.name(), block_len });
        }
        // The kernels count outputs, k and tiles in 32 bits.
        let too_large = |size: usize| size > i32::MAX as usize;
        if too_large(out_features) || too_large(in_features) {
            return Err(KernelError::Overflow { op: OP, what: "weight" });
        }
        Ok(())
    }
}

impl fmt::Display for DeviceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The width of activations for `in_features` inputs: the next multiple of 64. What is past the inputs must be zero.
pub fn padded(in_features: usize) -> usize {
    in_features.next_multiple_of(64)
}

/// A weight matrix `[out_features, in_features]` on a device. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct DeviceWeight {
    pub(super) format: DeviceFormat,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    /// `[tiles, slabs, 128, 64 bytes]`
    pub(super) codes: Array,
    /// `[tiles, records along k, 128, record]`; quantised formats only
    pub(super) scales: Option<Array>,
}

impl DeviceWeight {
    /// Copies `bytes`, `out_features` rows of ggml blocks of type `stored`, row-major. The quantised formats take their own
    /// codes as they are and nothing else; the 16-bit floats take the values of every type, rounded to the nearest.
    ///
    /// # Errors
    /// If the matrix is empty, `bytes` has the wrong length, there is no such conversion, a finite value is too large for
    /// f16, or the device has no arithmetic for the format, too little memory, or refuses.
    pub fn upload(
        device: &Arc<dyn Device>,
        format: DeviceFormat,
        (stored, bytes): (GgmlType, &[u8]),
        (out_features, in_features): (usize, usize),
    ) -> Result<Self, KernelError> {
        if format.coded().is_some_and(|coded| coded != stored) {
            return Err(KernelError::NoConversion { stored: stored.name(), format: format.name() });
        }
        format.check_device(device.facts())?;
        format.check_size(out_features, in_features)?;
        let block_len = stored.block_len();
        if !in_features.is_multiple_of(block_len) {
            return Err(KernelError::PartialBlock { in_features, format: stored.name(), block_len });
        }
        let row_bytes = in_features / block_len * stored.block_bytes();
        let expected = row_bytes.checked_mul(out_features).ok_or(KernelError::Overflow { op: OP, what: "weight" })?;
        if bytes.len() != expected {
            return Err(KernelError::Length { op: OP, what: "bytes", expected, got: bytes.len() });
        }
        let weight = Self::new(device, format, (out_features, in_features))?;
        weight.fill(stored, bytes, row_bytes)?;
        Ok(weight)
    }

    /// A weight of random values around zero with a standard deviation of about `1 / sqrt(in_features)`, made by the
    /// device.
    ///
    /// # Errors
    /// If the matrix is empty or has partial blocks, or the device has no arithmetic for the format, too little memory, or
    /// refuses.
    pub fn random(
        device: &Arc<dyn Device>,
        format: DeviceFormat,
        (out_features, in_features): (usize, usize),
        seed: u32,
    ) -> Result<Self, KernelError> {
        format.check_device(device.facts())?;
        format.check_size(out_features, in_features)?;
        let weight = Self::new(device, format, (out_features, in_features))?;
        run(&**device, &[random(&weight, seed)])?;
        Ok(weight)
    }

    fn new(device: &Arc<dyn Device>, format: DeviceFormat, (out, inp): (usize, usize)) -> Result<Self, KernelError> {
        let num_tiles = out.div_ceil(TILE_OUTPUTS);
        let (codes, scales) = format.tile_bytes(inp);
        let plane = |bytes: usize| {
            let bytes = bytes.checked_mul(num_tiles).ok_or(KernelError::Overflow { op: OP, what: "weight" })?;
            Array::new(device, ElementType::U8, bytes)
        };
        Ok(Self {
            format,
            out_features: out,
            in_features: inp,
            codes: plane(codes)?,
            scales: if scales == 0 { None } else { Some(plane(scales)?) },
        })
    }

    /// Packs and copies some tiles at a time.
    fn fill(&self, stored: GgmlType, bytes: &[u8], row_bytes: usize) -> Result<(), KernelError> {
        let (code_bytes, scale_bytes) = self.format.tile_bytes(self.in_features);
        let some = (UPLOAD_BYTES / code_bytes).max(1);
        for (group, bytes) in bytes.chunks(some * TILE_OUTPUTS * row_bytes).enumerate() {
            let tiles = bytes.par_chunks(TILE_OUTPUTS * row_bytes).enumerate().map(|(at, rows)| {
                let mut tile = (vec![0u8; code_bytes], vec![0u8; scale_bytes]);
                let first_row = (group * some + at) * TILE_OUTPUTS;
                pack::pack_tile(self, (stored, rows, row_bytes), first_row, &mut tile)?;
                Ok(tile)
            });
            let tiles: Vec<_> = tiles.collect::<Result<_, KernelError>>()?;
            for (at, (codes, scales)) in tiles.iter().enumerate() {
                self.codes.write_bytes((group * some + at) * code_bytes, codes)?;
                if let Some(plane) = &self.scales {
                    plane.write_bytes((group * some + at) * scale_bytes, scales)?;
                }
            }
        }
        Ok(())
    }

    /// How it is held.
    pub fn format(&self) -> DeviceFormat {
        self.format
    }

    /// Number of outputs.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.codes.bytes() + self.scales.as_ref().map_or(0, Array::bytes)
    }

    /// What [`DeviceWeight::bytes`] will be for such a matrix; the largest number if that overflows.
    pub fn bytes_of(format: DeviceFormat, out_features: usize, in_features: usize) -> usize {
        let (codes, scales) = format.tile_bytes(in_features);
        (codes + scales).saturating_mul(out_features.div_ceil(TILE_OUTPUTS))
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.codes.device()
    }

    /// Tiles of 128 outputs.
    pub(super) fn num_tiles(&self) -> usize {
        self.out_features.div_ceil(TILE_OUTPUTS)
    }
}

/// Weights side by side, with one input. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct DeviceLinear {
    pub(super) parts: Vec<DeviceWeight>,
    bias: Option<Array>,
    splits: Option<usize>,
}

impl DeviceLinear {
    /// One weight.
    pub fn new(weight: DeviceWeight) -> Self {
        Self { parts: vec![weight], bias: None, splits: None }
    }

    /// Several weights; their outputs lie side by side in the order given. Formats may differ, inputs and the type of the
    /// activations may not.
    ///
    /// # Errors
    /// If there are none, or they do not fit together.
    pub fn stack(parts: Vec<DeviceWeight>) -> Result<Self, KernelError> {
        let first = parts.first().ok_or(KernelError::EmptyStack)?;
        for part in &parts {
            if part.in_features != first.in_features {
                let (first, other) = (first.in_features, part.in_features);
                return Err(KernelError::Unstackable { what: "the input width", first, other });
            }
            let (first, other) = (first.format.activations(), part.format.activations());
            if first != other {
                return Err(KernelError::MixedActivations { first, other });
            }
        }
        let out_features = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.out_features));
        match out_features.filter(|sum| i32::try_from(*sum).is_ok()) {
            Some(_) => Ok(Self { parts, bias: None, splits: None }),
            None => Err(KernelError::Overflow { op: OP, what: "weight" }),
        }
    }

    /// With a bias, f32 `[out_features]`. It is kept here and added by whoever adds the splits.
    ///
    /// # Errors
    /// If it has another length or type.
    pub fn with_bias(self, bias: Array) -> Result<Self, KernelError> {
        bias.expect("bias", ElementType::F32, 0)?;
        if bias.len() != self.out_features() {
            let (expected, got) = (self.out_features(), bias.len());
            return Err(KernelError::Length { op: OP, what: "bias", expected, got });
        }
        Ok(Self { bias: Some(bias), ..self })
    }

    /// With a number of splits that does not depend on the device.
    ///
    /// # Errors
    /// If it is zero, or more than the kernels take steps along k.
    pub fn with_splits(self, splits: usize) -> Result<Self, KernelError> {
        if splits == 0 {
            return Err(KernelError::Zero { op: OP, what: "splits" });
        }
        let most = self.parts.iter().map(|part| padded(part.in_features) / part.format.stage_len()).min().unwrap_or(1);
        let most = most.min(usize::from(u16::MAX));
        if splits > most {
            return Err(KernelError::OutOfRange { op: OP, what: "split", index: splits, len: most + 1 });
        }
        Ok(Self { splits: Some(splits), ..self })
    }

    /// The bias.
    pub fn bias(&self) -> Option<&Array> {
        self.bias.as_ref()
    }

    /// The weights.
    pub fn parts(&self) -> &[DeviceWeight] {
        &self.parts
    }

    /// Number of outputs of all weights.
    pub fn out_features(&self) -> usize {
        self.parts.iter().map(DeviceWeight::out_features).sum()
    }

    /// Number of inputs.
    pub fn in_features(&self) -> usize {
        self.parts[0].in_features
    }

    /// Type of the activations.
    pub fn activations(&self) -> ElementType {
        self.parts[0].format.activations()
    }

    /// Bytes of device memory of the weights.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(DeviceWeight::bytes).sum()
    }

    /// How many partial sums [`matmul`](super::matmul) writes for so many rows: one for each split, or a single one where
    /// tiles of many rows fill the device and blocks add the splits themselves. The total is the same.
    pub fn num_sums(&self, facts: &DeviceFacts, rows: usize) -> usize {
        let blocks = self.num_tiles().saturating_mul(rows.div_ceil(block_rows(rows, facts)));
        if rows > FEW_ROWS && idle(blocks, facts.num_multiprocessors) <= MOST_IDLE { 1 } else { self.num_splits(facts) }
    }

    /// Tiles of 128 outputs of all weights.
    fn num_tiles(&self) -> usize {
        self.parts.iter().map(DeviceWeight::num_tiles).sum()
    }

    /// Into how many sums k is split. Depends on the weights and the device, not on the rows, so that
    /// a row is summed in the same order whatever rows it comes with.
    ///
    /// Blocks should fill all multiprocessors in the same number of waves; but each split costs traffic of its own.
    pub fn num_splits(&self, facts: &DeviceFacts) -> usize {
        if let Some(splits) = self.splits {
            return splits;
        }
        let num_tiles = self.num_tiles();
        // Blocks of quantised weights have fewer bytes on the way and wait for arithmetic: two should run side by side.
        let beside = if self.parts.iter().any(|part| part.format.coded().is_some()) { 2 } else { 1 };
        let places = beside * facts.num_multiprocessors;
        let output_bytes = self.bytes() / (num_tiles * TILE_OUTPUTS);
        let cost = |splits: usize| {
            idle(num_tiles * splits, places) * (1.0 + (splits * SPLIT_BYTES) as f64 / output_bytes as f64)
        };
        let most = (self.in_features() / SPLIT_LEN).clamp(1, MOST_SPLITS);
        (1..=most).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(1)
    }
}

/// How much longer `blocks` take on so many places than if they filled all of them to the end.
fn idle(blocks: usize, places: u32) -> f64 {
    let places = places.max(1) as usize;
    (blocks.div_ceil(places) * places) as f64 / blocks.max(1) as f64
}
