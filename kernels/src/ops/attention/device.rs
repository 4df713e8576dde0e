//! Attention on a device.
//!
//! # Choices
//!
//! *Splits at absolute positions.* A row's keys are cut into splits of 256 positions, whatever the batch, and the splits
//! are merged in their order. So a row has the same bits alone and in a block, in a short batch and in a long one.
//!
//! *Two kernels, one arithmetic.* Few rows take split tiles: 16 queries and one split in a block, so that one row of a long
//! context keeps all multiprocessors busy, and a kernel that merges. Long runs of rows take whole tiles: 64 queries and all
//! their positions in a block, which merges in registers. A query goes through the same operations in both.
//!
//! *Few shapes.* Grids follow from the [`PlanShape`] alone; blocks whose tile or split is not there return at once.

use super::{
    device_plan::{PlanParams, SPLIT_LEN, SPLIT_QUERIES, WHOLE_QUERIES, check_heads},
    reference::HeadShape,
};
use crate::{
    KernelError,
    device::{Array, DevicePlan, ElementType, Launch, Params, PlanShape},
    ops::partials::{check_array, check_half, narrow, padded},
};

const OP: &str = "attention on the device";
/// Head sizes that there are kernels for; others are padded with zeros.
const HEAD_DIMS: [usize; 5] = [32, 64, 80, 96, 128];
/// `kThreads`, `kTileKeys` and `kRecordExtra` in `params.cuh`.
const THREADS: u32 = 128;
const TILE_KEYS: usize = 64;
const RECORD_EXTRA: usize = 4;

/// A call of [`attention`]; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// f16 or bf16, `[rows, heads, head_dim]`.
    pub q: &'a Array,
    /// Of the type of `q`, `[pages, kv_heads, page_len, head_dim]`.
    pub keys: &'a Array,
    /// As `keys`.
    pub values: &'a Array,
    /// Of the type of `q`, `[rows, padded]` with `padded` the width `heads * head_dim` rounded up to a multiple of 64;
    /// written, with zeros past the width.
    pub output: &'a Array,
    /// f32, [`attention_records`] values: work space that calls one after the other may share.
    pub records: &'a Array,
    /// What rows see.
    pub plan: &'a DevicePlan,
    /// The shape of the steps that the launches are for.
    pub shape: PlanShape,
    /// Sizes; `head_dim` is a multiple of 8 up to 128.
    pub heads: HeadShape,
    /// Factor of the scores.
    pub scale: f32,
}

/// Mirrored by `AttentionParams` in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct AttentionParams {
    plan: PlanParams,
    q: u64,
    keys: u64,
    values: u64,
    output: u64,
    records: u64,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    padded: u32,
    element_type: u32,
    scale_log2: f32,
}

impl Params for AttentionParams {}
const _: () = assert!(size_of::<AttentionParams>() == 64 + 5 * 8 + 6 * 4);

/// f32 values of the work space of a shape: for each query of split tiles and each split the sums of one head.
pub fn attention_records(shape: PlanShape, heads: HeadShape) -> usize {
    let of_tiles = shape.split_tiles().saturating_mul(SPLIT_QUERIES).saturating_mul(heads.num_kv_heads);
    let queries = of_tiles.min(shape.num_rows().saturating_mul(heads.num_heads));
    queries.saturating_mul(shape.num_splits()).saturating_mul(heads.head_dim + RECORD_EXTRA)
}

/// Softmax attention of each row over the positions that it sees. Query head `h` reads key-value head
/// `h / (heads / kv_heads)`. What lies in positions that a row does not see never reaches its result, and pages past
/// them are not read. Rows that only fill the shape get zeros. A feature of a result that is not finite is NaN.
///
/// # Errors
/// If an array is too short or of another type, the heads have a size without a kernel, the scale is not finite, or the
/// device has no matrix units for the type.
pub fn attention(call: &Attention<'_>) -> Result<Vec<Launch>, KernelError> {
    let &Attention { q, keys, values, output, records, plan, shape, heads, scale } = call;
    let HeadShape { num_heads, num_kv_heads, head_dim } = heads;
    let element = q.element();
    check_half(OP, "q", q)?;
    if element == ElementType::BF16 && !q.device().facts().has_bf16() {
        let (got, supported) = ("bf16 before compute capability 8.0".to_owned(), "f16");
        return Err(KernelError::NoKernelFor { op: OP, what: "q", got, supported });
    }
    let size = HEAD_DIMS.iter().position(|&dim| dim >= head_dim);
    let size = size.filter(|_| head_dim > 0 && head_dim % 8 == 0).ok_or_else(|| KernelError::NoKernelFor {
        op: OP,
        what: "head_dim",
        got: head_dim.to_string(),
        supported: "multiples of 8 up to 128",
    })?;
    if !scale.is_finite() {
        return Err(KernelError::Domain { op: OP, what: "scale", index: 0, expected: "finite", got: scale });
    }
    let lens = check_heads(OP, plan, shape, heads)?;
    let width = padded(num_heads * head_dim);
    let output_len = shape.num_rows().checked_mul(width).ok_or(KernelError::Overflow { op: OP, what: "output" })?;
    for (what, array, len) in [
        ("q", q, lens.queries),
        ("keys", keys, lens.cache),
        ("values", values, lens.cache),
        ("output", output, output_len),
    ] {
        check_array(OP, what, array, (element, len))?;
    }
    check_array(OP, "records", records, (ElementType::F32, attention_records(shape, heads)))?;
    let params = AttentionParams {
        plan: plan.params(shape)?,
        q: q.address(),
        keys: keys.address(),
        values: values.address(),
        output: output.address(),
        records: records.address(),
        num_heads: num_heads as u32,
        num_kv_heads: num_kv_heads as u32,
        head_dim: head_dim as u32,
        padded: narrow(OP, "output", width)?,
        element_type: element as u32,
        scale_log2: scale * std::f32::consts::LOG2_E,
    };
    let blocks = |tiles: usize| narrow(OP, "blocks", tiles.saturating_mul(num_kv_heads));
    let kernel = |is_whole: bool| {
        let family = 2 * usize::from(is_whole) + usize::from(element == ElementType::BF16);
        KERNEL_NAMES[family * HEAD_DIMS.len() + size]
    };
    let launches = [
        (kernel(true), [blocks(shape.whole_tiles())?, 1], whole_bytes(HEAD_DIMS[size])),
        (kernel(false), [blocks(shape.split_tiles())?, shape.num_splits() as u32], split_bytes(HEAD_DIMS[size])),
        ("attention_combine", [shape.num_rows() as u32, params.num_heads], 0),
    ];
    let arrays = [q, keys, values, output, records, plan.memory()];
    let launches = launches.into_iter().filter(|(_, grid, _)| grid[0] > 0);
    Ok(launches.map(|(name, grid, bytes)| Launch::new(name, (grid, THREADS, bytes as u32), params, &arrays)).collect())
}

/// Bytes of `rows` rows of heads in shared memory.
fn row_bytes(rows: usize, dim: usize) -> usize {
    rows * (dim + 8) * 2
}

/// `WholeLayout::kBytes`
fn whole_bytes(dim: usize) -> usize {
    row_bytes(WHOLE_QUERIES + 2 * TILE_KEYS, dim) + 2 * SPLIT_LEN * 4
}

/// `SplitLayout::kBytes`
fn split_bytes(dim: usize) -> usize {
    let weights = row_bytes(SPLIT_QUERIES, TILE_KEYS);
    row_bytes(SPLIT_QUERIES + 2 * TILE_KEYS, dim) + weights + SPLIT_LEN * 4 + 4 * SPLIT_QUERIES * 4
}

/// All kernels: five head sizes of each family, split tiles first, f16 first, then the one for all.
pub(crate) const KERNEL_NAMES: [&str; 21] = [
    "attention_split_f16_32",
    "attention_split_f16_64",
    "attention_split_f16_80",
    "attention_split_f16_96",
    "attention_split_f16_128",
    "attention_split_bf16_32",
    "attention_split_bf16_64",
    "attention_split_bf16_80",
    "attention_split_bf16_96",
    "attention_split_bf16_128",
    "attention_whole_f16_32",
    "attention_whole_f16_64",
    "attention_whole_f16_80",
    "attention_whole_f16_96",
    "attention_whole_f16_128",
    "attention_whole_bf16_32",
    "attention_whole_bf16_64",
    "attention_whole_bf16_80",
    "attention_whole_bf16_96",
    "attention_whole_bf16_128",
    "attention_combine",
];
