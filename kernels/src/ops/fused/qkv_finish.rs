//! Queries, keys and values: normalised, rotated, and put where attention reads them.

use crate::{
    KernelError,
    device::{Array, DevicePlan, ElementType, Launch, Params, PartialSums, PlanShape},
    ops::{
        attention::{
            device_plan::{PlanParams, check_heads},
            reference::HeadShape,
        },
        partials::{PartialParams, check_array, check_half, narrow},
    },
};

const OP: &str = "qkv_finish";
/// `kQkvWarps`, `kQkvThreads`, `kMostFeatures` and `kQkvBytes` in `fused.cuh`.
const WARPS: usize = 4;
const THREADS: u32 = 128;
const MOST_FEATURES: usize = 256;
const SHARED_BYTES: u32 = (WARPS * MOST_FEATURES * 4) as u32;

/// Normalisation of each head of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// f32, `[head_dim]`
    pub q_weight: &'a Array,
    /// f32, `[head_dim]`
    pub k_weight: &'a Array,
    /// Added to the mean square.
    pub eps: f32,
}

/// Tables of the rotation, one row for each position below the limit of the plan.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// f32, `[positions, half]`
    pub cos: &'a Array,
    /// f32, `[positions, half]`
    pub sin: &'a Array,
    /// Pairs of features that are rotated: feature `i` with `i + half`.
    pub half: usize,
}

/// A call of [`qkv_finish`]; arrays may be longer.
#[derive(Debug, Clone, Copy)]
pub struct QkvFinish<'a> {
    /// `[rows, (heads + 2 kv_heads) * head_dim]`: the heads of the queries, of the keys, of the values.
    pub partials: &'a PartialSums,
    /// Where rows go.
    pub plan: &'a DevicePlan,
    /// The shape of the steps that the launch is for.
    pub shape: PlanShape,
    /// Sizes; `head_dim` is a multiple of 8 up to 256.
    pub heads: HeadShape,
    /// Before the rotation.
    pub norm: Option<HeadNorm<'a>>,
    /// The rotation.
    pub rotary: Option<Rotary<'a>>,
    /// f16 or bf16, `[rows, heads, head_dim]`, written.
    pub q: &'a Array,
    /// Of the type of `q`, `[pages, kv_heads, page_len, head_dim]`, written at the rows' positions.
    pub keys: &'a Array,
    /// As `keys`.
    pub values: &'a Array,
}

/// Mirrored by `QkvFinishParams` in `params.cuh`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct QkvFinishParams {
    partials: PartialParams,
    plan: PlanParams,
    q_weight: u64,
    k_weight: u64,
    cos: u64,
    sin: u64,
    q: u64,
    keys: u64,
    values: u64,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    element_type: u32,
    half: u32,
    eps: f32,
}

impl Params for QkvFinishParams {}
const _: () = assert!(size_of::<QkvFinishParams>() == 32 + 64 + 7 * 8 + 6 * 4);

/// Adds the partial sums; normalises and rotates the heads of queries and keys; writes the queries, and the keys and
/// values of each row to its position. Nothing is written for rows that only fill the shape. Two rows with the same
/// position of the same table are a mistake of the plan: whose key stays is not said.
///
/// # Errors
/// If an array is too short or of another type, or the heads have a size without a kernel.
pub fn qkv_finish(call: &QkvFinish<'_>) -> Result<Launch, KernelError> {
    let &QkvFinish { partials, plan, shape, heads, norm, rotary, q, keys, values } = call;
    let HeadShape { num_heads, num_kv_heads, head_dim } = heads;
    check_half(OP, "q", q)?;
    if head_dim == 0 || head_dim % 8 != 0 || head_dim > MOST_FEATURES {
        let (got, supported) = (head_dim.to_string(), "multiples of 8 up to 256");
        return Err(KernelError::NoKernelFor { op: OP, what: "head_dim", got, supported });
    }
    let lens = check_heads(OP, plan, shape, heads)?;
    for (what, array, len) in [("q", q, lens.queries), ("keys", keys, lens.cache), ("values", values, lens.cache)] {
        check_array(OP, what, array, (q.element(), len))?;
    }
    if let Some(HeadNorm { q_weight, k_weight, .. }) = norm {
        q_weight.expect("q_weight", ElementType::F32, head_dim)?;
        k_weight.expect("k_weight", ElementType::F32, head_dim)?;
    }
    if let Some(Rotary { cos, sin, half }) = rotary {
        if half == 0 || 2 * half > head_dim {
            return Err(KernelError::OutOfRange { op: OP, what: "half", index: half, len: head_dim / 2 + 1 });
        }
        cos.expect("cos", ElementType::F32, plan.limits().max_positions * half)?;
        sin.expect("sin", ElementType::F32, plan.limits().max_positions * half)?;
    }
    let total_heads = num_heads + 2 * num_kv_heads;
    let params = QkvFinishParams {
        partials: partials.params(OP, shape.num_rows(), total_heads * head_dim)?,
        plan: plan.params(shape)?,
        q_weight: norm.map_or(0, |norm| norm.q_weight.address()),
        k_weight: norm.map_or(0, |norm| norm.k_weight.address()),
        cos: rotary.map_or(0, |rotary| rotary.cos.address()),
        sin: rotary.map_or(0, |rotary| rotary.sin.address()),
        q: q.address(),
        keys: keys.address(),
        values: values.address(),
        num_heads: num_heads as u32,
        num_kv_heads: num_kv_heads as u32,
        head_dim: head_dim as u32,
        element_type: q.element() as u32,
        half: rotary.map_or(0, |rotary| rotary.half as u32),
        eps: norm.map_or(0.0, |norm| norm.eps),
    };
    let grid = [shape.num_rows() as u32, narrow(OP, "heads", total_heads.div_ceil(WARPS))?];
    let mut arrays = vec![plan.memory(), q, keys, values];
    arrays.extend(partials.arrays());
    arrays.extend(norm.iter().flat_map(|norm| [norm.q_weight, norm.k_weight]));
    arrays.extend(rotary.iter().flat_map(|rotary| [rotary.cos, rotary.sin]));
    Ok(Launch::new("qkv_finish", (grid, THREADS, SHARED_BYTES), params, &arrays))
}
