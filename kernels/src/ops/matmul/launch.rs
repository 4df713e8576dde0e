//! Launches of the kernels, and what they are told.

use super::{
    OP,
    weight::{DeviceFormat, DeviceLinear, DeviceWeight, TILE_OUTPUTS, padded},
};
use crate::{
    KernelError,
    device::{Array, DeviceFacts, ElementType, Launch, Params},
};

/// Names of all kernels.
pub(crate) const KERNEL_NAMES: [&str; 28] = [
    "matmul_f16_8",
    "matmul_f16_16",
    "matmul_f16_32",
    "matmul_f16_64",
    "matmul_f16_128",
    "matmul_bf16_8",
    "matmul_bf16_16",
    "matmul_bf16_32",
    "matmul_bf16_64",
    "matmul_bf16_128",
    "matmul_q8_0_8",
    "matmul_q8_0_16",
    "matmul_q8_0_32",
    "matmul_q8_0_64",
    "matmul_q8_0_128",
    "matmul_q4_k_8",
    "matmul_q4_k_16",
    "matmul_q4_k_32",
    "matmul_q4_k_64",
    "matmul_q4_k_128",
    "embed_f16",
    "embed_bf16",
    "embed_q8_0",
    "embed_q4_k",
    "random_f16",
    "random_bf16",
    "random_q8_0",
    "random_q4_k",
];
/// Rows of a block of each kernel of a format, in the order of the names.
const WIDTHS: [usize; 5] = [8, 16, 32, 64, 128];
/// Where the names of the kernels of the other ops start.
const EMBED_NAMES: usize = 20;
const RANDOM_NAMES: usize = 24;
/// `kMostParts` in `params.cuh`.
const MOST_PARTS: usize = 4;
/// `kMostShared` and `kMostStages` in `matmul.cuh`.
const MOST_SHARED: usize = 99 * 1024;
const MOST_STAGES: usize = 8;
/// Bytes of a load.
const LOAD_BYTES: u64 = 16;
/// Threads of a block of the other kernels.
const EMBED_THREADS: u32 = 128;
const RANDOM_THREADS: u32 = 256;
/// Blocks of [`random`] for each multiprocessor: what may run at once.
const RANDOM_BLOCKS: u32 = 8;

/// One weight of a launch; the fields are explained in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MatmulPart {
    codes: u64,
    scales: u64,
    out_features: u32,
    first_tile: u32,
    end_tile: u32,
    first_output: u32,
}

/// Parameters of the product; the fields are explained in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct MatmulParams {
    parts: [MatmulPart; MOST_PARTS],
    xs: u64,
    out: u64,
    rows: u32,
    stride: u32,
    out_features: u32,
    num_parts: u32,
    num_stages: u32,
    num_row_tiles: u32,
    ring_len: u32,
    num_splits: u32,
}

/// Parameters of [`embed`]; the fields are explained in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct EmbedParams {
    codes: u64,
    scales: u64,
    ids: u64,
    out: u64,
    rows: u32,
    in_features: u32,
    out_features: u32,
    padded_in: u32,
}

/// Parameters of the kernels that make random weights; the fields are explained in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RandomParams {
    codes: u64,
    scales: u64,
    out_features: u32,
    in_features: u32,
    padded_in: u32,
    seed: u32,
    spread: f32,
    padding: u32,
}

impl Params for MatmulParams {}
impl Params for EmbedParams {}
impl Params for RandomParams {}

const _: () = {
    assert!(size_of::<MatmulPart>() == 32 && size_of::<MatmulParams>() == MOST_PARTS * 32 + 2 * 8 + 8 * 4);
    assert!(size_of::<EmbedParams>() == 4 * 8 + 4 * 4 && size_of::<RandomParams>() == 2 * 8 + 6 * 4);
};

impl DeviceFormat {
    fn index(self) -> usize {
        match self {
            Self::F16 => 0,
            Self::BF16 => 1,
            Self::Q8_0 => 2,
            Self::Q4_K => 3,
        }
    }

    /// Bytes of a stage in shared memory with so many rows; `MatmulLayout::kStageBytes`.
    fn stage_bytes(self, rows: usize) -> usize {
        let codes = self.stage_len() / self.slab_len() * TILE_OUTPUTS * 64;
        codes + self.record().map_or(0, |(_, bytes)| bytes * TILE_OUTPUTS) + rows * self.stage_len() * 2
    }

    /// Bytes of what is prepared of a stage; `MatmulLayout::kPreparedBytes`.
    fn prepared_bytes(self, rows: usize) -> usize {
        let chunks = self.stage_len() / 32;
        if self == Self::Q4_K { chunks * (TILE_OUTPUTS * 8 + rows * 4) } else { 0 }
    }
}

/// The kernel of a format for a number of rows.
struct Kernel {
    name: &'static str,
    /// Rows of a block.
    width: usize,
    threads: u32,
    /// Stages that shared memory holds, and its bytes.
    ring_len: usize,
    shared_bytes: usize,
}

/// Rows of a block for a number of rows, which is the same for all formats.
pub(super) fn block_rows(rows: usize, facts: &DeviceFacts) -> usize {
    WIDTHS[width_index(rows, facts)]
}

fn width_index(rows: usize, facts: &DeviceFacts) -> usize {
    // Turing has no room for two stages of 128 rows.
    let widest = if has_async_copies(facts) { WIDTHS.len() - 1 } else { WIDTHS.len() - 2 };
    WIDTHS.iter().position(|width| *width >= rows).map_or(widest, |at| at.min(widest))
}

fn has_async_copies(facts: &DeviceFacts) -> bool {
    facts.capability >= (8, 0)
}

impl Kernel {
    fn new(format: DeviceFormat, rows: usize, facts: &DeviceFacts) -> Self {
        let at = width_index(rows, facts);
        let width = WIDTHS[at];
        let (prepared, stage) = (format.prepared_bytes(width), format.stage_bytes(width));
        // Where copies are made at once a second stage is all that helps.
        let ring_len = if has_async_copies(facts) { ((MOST_SHARED - prepared) / stage).min(MOST_STAGES) } else { 2 };
        Self {
            name: KERNEL_NAMES[format.index() * WIDTHS.len() + at],
            width,
            threads: if width > 64 || width <= 16 && format.coded().is_some() { 256 } else { 128 },
            ring_len,
            shared_bytes: prepared + ring_len * stage,
        }
    }
}

/// The launches of `xs W^T`.
///
/// `xs` is `[rows, padded(in_features)]`, of type [`DeviceLinear::activations`], with zeros past the inputs. `out` is f32
/// `[sums, rows, out_features]` with [`DeviceLinear::num_sums`] partial sums, which the reader adds one after the other,
/// from the first on, in f32. Arrays may be longer. The total of a row has the same bits whatever other rows there are.
///
/// # Errors
/// If an array is too short or of another type, or `xs` does not start at a multiple of 16 bytes.
pub fn matmul(linear: &DeviceLinear, xs: &Array, out: &Array, rows: usize) -> Result<Vec<Launch>, KernelError> {
    let facts = out.device().facts();
    let (stride, out_features) = (padded(linear.in_features()), linear.out_features());
    let (splits, sums) = (linear.num_splits(facts), linear.num_sums(facts, rows));
    let overflow = |what| KernelError::Overflow { op: OP, what };
    let xs_len = rows.checked_mul(stride).ok_or(overflow("xs"))?;
    let out_len = sums.checked_mul(rows).and_then(|len| len.checked_mul(out_features)).ok_or(overflow("out"))?;
    xs.expect("xs", linear.activations(), xs_len)?;
    out.expect("out", ElementType::F32, out_len)?;
    if !xs.address().is_multiple_of(LOAD_BYTES) {
        let (alignment, address) = (LOAD_BYTES, xs.address());
        return Err(KernelError::Alignment { op: OP, what: "xs", alignment, address });
    }
    let mut launches = Vec::new();
    for format in DeviceFormat::ALL {
        let mut first_output = 0;
        let mut parts = Vec::new();
        for weight in &linear.parts {
            if weight.format == format {
                parts.push((weight, first_output));
            }
            first_output += weight.out_features;
        }
        for parts in parts.chunks(MOST_PARTS) {
            launches.push(product(format, parts, (xs, out, rows), (out_features, splits, sums))?);
        }
    }
    Ok(launches)
}

/// One launch for parts of one format, each with the place of its first output.
fn product(
    format: DeviceFormat,
    parts: &[(&DeviceWeight, usize)],
    (xs, out, rows): (&Array, &Array, usize),
    (out_features, splits, sums): (usize, usize, usize),
) -> Result<Launch, KernelError> {
    let kernel = Kernel::new(format, rows, out.device().facts());
    let num_row_tiles = rows.div_ceil(kernel.width);
    let mut params = MatmulParams {
        xs: xs.address(),
        out: out.address(),
        rows: narrow("rows", rows)?,
        stride: padded(parts[0].0.in_features) as u32,
        out_features: out_features as u32,
        num_parts: parts.len() as u32,
        num_stages: (padded(parts[0].0.in_features) / format.stage_len()) as u32,
        num_row_tiles: num_row_tiles as u32,
        ring_len: kernel.ring_len as u32,
        num_splits: splits as u32,
        ..bytemuck::Zeroable::zeroed()
    };
    let mut arrays = vec![xs, out];
    let mut num_tiles = 0;
    for (to, (weight, first_output)) in params.parts.iter_mut().zip(parts) {
        *to = MatmulPart {
            codes: weight.codes.address(),
            scales: weight.scales.as_ref().map_or(0, Array::address),
            out_features: weight.out_features as u32,
            first_tile: num_tiles as u32,
            end_tile: (num_tiles + weight.num_tiles()) as u32,
            first_output: *first_output as u32,
        };
        num_tiles += weight.num_tiles();
        arrays.push(&weight.codes);
        arrays.extend(&weight.scales);
    }
    let blocks = num_tiles.checked_mul(num_row_tiles).filter(|blocks| i32::try_from(*blocks).is_ok());
    let blocks = blocks.ok_or(KernelError::Overflow { op: OP, what: "rows" })?;
    let config = ([blocks as u32, sums as u32], kernel.threads, kernel.shared_bytes as u32);
    Ok(Launch::new(kernel.name, config, params, &arrays))
}

/// The launch that writes row `ids[i]` of `weight`, as f32, to row `i` of `out`, `[rows, in_features]`. `ids` is u32
/// `[rows]`. Rows of tokens that the weight does not have become NaN. Arrays may be longer.
///
/// # Errors
/// If an array is too short or of another type.
pub fn embed(weight: &DeviceWeight, ids: &Array, out: &Array, rows: usize) -> Result<Launch, KernelError> {
    let out_len = rows.checked_mul(weight.in_features).ok_or(KernelError::Overflow { op: OP, what: "out" })?;
    ids.expect("ids", ElementType::U32, rows)?;
    out.expect("out", ElementType::F32, out_len)?;
    let params = EmbedParams {
        codes: weight.codes.address(),
        scales: weight.scales.as_ref().map_or(0, Array::address),
        ids: ids.address(),
        out: out.address(),
        rows: narrow("rows", rows)?,
        in_features: weight.in_features as u32,
        out_features: weight.out_features as u32,
        padded_in: padded(weight.in_features) as u32,
    };
    let blocks = weight.in_features.div_ceil(8 * EMBED_THREADS as usize);
    if blocks > usize::from(u16::MAX) {
        return Err(KernelError::Overflow { op: OP, what: "in_features" });
    }
    let mut arrays = vec![ids, out, &weight.codes];
    arrays.extend(&weight.scales);
    let config = ([params.rows, blocks as u32], EMBED_THREADS, 0);
    Ok(Launch::new(KERNEL_NAMES[EMBED_NAMES + weight.format.index()], config, params, &arrays))
}

/// The launch that fills a weight with random values; see [`DeviceWeight::random`].
pub(super) fn random(weight: &DeviceWeight, seed: u32) -> Launch {
    let params = RandomParams {
        codes: weight.codes.address(),
        scales: weight.scales.as_ref().map_or(0, Array::address),
        out_features: weight.out_features as u32,
        in_features: weight.in_features as u32,
        padded_in: padded(weight.in_features) as u32,
        seed,
        spread: spread(weight.format, weight.in_features),
        padding: 0,
    };
    let mut arrays = vec![&weight.codes];
    arrays.extend(&weight.scales);
    // A thread makes 16 bytes at a time.
    let needed = weight.bytes().div_ceil(16 * RANDOM_THREADS as usize);
    let most = weight.codes.device().facts().num_multiprocessors.max(1) * RANDOM_BLOCKS;
    let blocks = needed.min(most as usize) as u32;
    let config = ([blocks, 1], RANDOM_THREADS, 0);
    Launch::new(KERNEL_NAMES[RANDOM_NAMES + weight.format.index()], config, params, &arrays)
}

/// What random values, or their scales, are multiplied with, so that values deviate by `1 / sqrt(in_features)`.
pub(super) fn spread(format: DeviceFormat, in_features: usize) -> f32 {
    // Scales are uniform from 1/2 to 3/2, whose root mean square is sqrt(13/12). Codes of Q8_0 are uniform over 256
    // numbers. In Q4_K `factor * code - 7.5 * minimum` deviates by 258.3, with factors and minima uniform in 0..64 and
    // codes in 0..16.
    let deviation = match format {
        DeviceFormat::F16 | DeviceFormat::BF16 => 1.0,
        DeviceFormat::Q8_0 => 73.9 * 1.0408,
        DeviceFormat::Q4_K => 258.3 * 1.0408,
    };
    1.0 / (deviation * (in_features as f32).sqrt())
}

fn narrow(what: &'static str, size: usize) -> Result<u32, KernelError> {
    // The kernels add up to a tile of rows to it.
    let fits = u32::try_from(size).ok().filter(|size| *size <= i32::MAX as u32);
    fits.ok_or(KernelError::Overflow { op: OP, what })
}
