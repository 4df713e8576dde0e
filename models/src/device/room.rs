//! Everything that a pass needs beside the weights. Allocated once, before the first pass; nothing later.

use std::sync::Arc;

use kernels::{
    KernelError,
    device::{
        Array, Device, DevicePlan, ElementType, HeadShape, LlaLimits, LlaRoom, PlanLimits, ScoreBatch, ScoreSizes,
        attention_records, padded,
    },
    reference::LlaShape,
};

use super::layer::Sizes;
use crate::{
    BackboneSpec, Capacity, KvCache, ModelConfig, ModelError, config::MixerConfig, kv::DeviceKv, layers::rope_values,
};

const MIB: u64 = 1 << 20;
/// Rows whose logits are there at a time. More are scored in turns, so that a canvas of thousands of rows does not
/// need gigabytes of logits.
pub(super) const MOST_SCORED: usize = 256;

/// Memory that is left to the driver, for graphs and what else it makes while passes run: at most this, and no more than
/// this share of the device.
const SPARE_BYTES: usize = 512 << 20;
const SPARE_SHARE: usize = 16;
/// f32 values of the moments of local linear attention, 256 MiB: rows that need more are taken in turns.
const MOST_MOMENTS: usize = 1 << 26;
/// Likeliest tokens of a row that can be asked for.
const MOST_TOP: usize = 64;

/// Work space of passes of one model.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) capacity: Capacity,
    /// Keys and values of all layers.
    pages: Array,
    pub(super) plan: DevicePlan,
    /// u32, `[rows]`
    pub(super) tokens: Array,
    /// u32, `[rows]`: the rows that are scored, in order.
    pub(super) scored: Array,
    /// Cosines and sines of the rotation, f32, `[positions, rotary / 2]`.
    pub(super) rotary: [Array; 2],
    /// f32, `[rows, hidden]`
    pub(super) residual: Array,
    /// `[rows, padded hidden]`
    pub(super) normed: Array,
    /// f32, the partial sums of the matrix product that was the last.
    pub(super) sums: Array,
    /// `[rows, heads, head_dim]`
    pub(super) q: Array,
    /// `[rows, padded heads * head_dim]`
    pub(super) mixed: Array,
    /// `[rows, padded inner]`
    pub(super) inner: Array,
    /// `[rows, padded hidden]`: the scored rows, normalised for the head.
    pub(super) last: Array,
    /// f32, `[scored at a time, vocab]`
    pub(super) logits: Array,
    /// f32: what the splits of softmax attention leave for each other.
    pub(super) records: Array,
    /// Of models with local linear attention.
    pub(super) lla: Option<LlaRoom>,
    pub(super) score: ScoreBatch,
}

/// Sizes that depend on the model, for a capacity.
struct Needs {
    limits: PlanLimits,
    score: ScoreSizes,
    lla: Option<LlaLimits>,
    arrays: Vec<(ElementType, usize)>,
    cache_bytes: usize,
}

impl Room {
    /// Reserves the cache and the room, or refuses with the sizes of everything. `most_sums` is the number of partial sums
    /// that a matrix product leaves at most.
    pub(super) fn new(
        device: &Arc<dyn Device>,
        (spec, config, sizes): (&BackboneSpec, &ModelConfig, &Sizes),
        (capacity, most_sums): (Capacity, usize),
    ) -> Result<(Self, KvCache), ModelError> {
        let needs = Needs::of(spec, config, sizes, (capacity, most_sums))?;
        let lla_bytes = needs.lla.map_or(Ok(0), |limits| limits.bytes())?;
        let arrays_bytes = Array::carved_bytes(&needs.arrays).saturating_add(lla_bytes);
        let free = device.free_bytes()?;
        let spare = SPARE_BYTES.min(device.facts().total_bytes / SPARE_SHARE);
        let refusal = |others: usize| ModelError::DeviceMemory {
            device: device.facts().name.clone(),
            weights_mib: (spec.weight_bytes as u64).div_ceil(MIB),
            cache_mib: (needs.cache_bytes as u64).div_ceil(MIB),
            workspace_mib: (arrays_bytes.saturating_add(others).saturating_add(spare) as u64).div_ceil(MIB),
            available_mib: (free + spec.weight_bytes) as u64 / MIB,
        };
        // What is free may be in pieces, or be taken by someone else meanwhile.
        let refused = |error: ModelError| match error {
            ModelError::Kernel(KernelError::DeviceMemory { .. }) => refusal(0),
            other => other,
        };
        let plan = DevicePlan::new(device, needs.limits).map_err(|error| refused(error.into()))?;
        let score = ScoreBatch::new(device, needs.score).map_err(|error| refused(error.into()))?;
        let left = device.free_bytes()?;
        if needs.cache_bytes.saturating_add(arrays_bytes).saturating_add(spare) > left {
            return Err(refusal(free.saturating_sub(left)));
        }
        Self::allocate(device, (spec, config, sizes), capacity, (&needs, plan, score)).map_err(refused)
    }

    fn allocate(
        device: &Arc<dyn Device>,
        (spec, config, sizes): (&BackboneSpec, &ModelConfig, &Sizes),
        capacity: Capacity,
        (needs, plan, score): (&Needs, DevicePlan, ScoreBatch),
    ) -> Result<(Self, KvCache), ModelError> {
        let memory = Array::new(device, ElementType::U8, Array::carved_bytes(&needs.arrays))?;
        let parts = memory.carve(&needs.arrays)?;
        let Ok([tokens, scored, cos, sin, residual, normed, sums, q, mixed, inner, last, logits, records]) =
            <[Array; 13]>::try_from(parts)
        else {
            unreachable!("as many arrays are cut as `Needs` lists")
        };
        let [cosines, sines] = rope_values(config, needs.limits.max_positions);
        cos.write(0, &cosines)?;
        sin.write(0, &sines)?;
        let lla = needs.lla.map(|limits| LlaRoom::new(device, limits)).transpose()?;
        let rotary = [cos, sin];
        let (pages, cache) = cache(device, spec, sizes, capacity)?;
        let room = Self {
            capacity,
            pages,
            plan,
            tokens,
            scored,
            rotary,
            residual,
            normed,
            sums,
            q,
            mixed,
            inner,
            last,
            logits,
            records,
            lla,
            score,
        };
        Ok((room, cache))
    }

    /// Whether a cache is the one that was made with the room. Recorded passes know no other.
    pub(super) fn owns(&self, layers: &[DeviceKv]) -> bool {
        layers.first().is_some_and(|layer| layer.keys.address() == self.pages.address())
    }

    /// Rows whose logits are there at a time.
    pub(super) fn most_scored(&self) -> usize {
        self.capacity.max_rows.min(MOST_SCORED)
    }
}

impl Needs {
    fn of(
        spec: &BackboneSpec,
        config: &ModelConfig,
        sizes: &Sizes,
        (capacity, most_sums): (Capacity, usize),
    ) -> Result<Self, ModelError> {
        let Capacity { max_rows: rows, max_tables, context_len, num_pages, page_len } = capacity;
        let (hidden, half) = (config.hidden_size, config.rotary_dims / 2);
        let max_positions = context_len.min(num_pages.saturating_mul(page_len));
        let pages_of_table = max_positions.div_ceil(page_len);
        let limits = PlanLimits {
            max_rows: rows,
            max_tables,
            max_pages: max_tables.saturating_mul(pages_of_table),
            max_positions,
            num_pages,
            page_len,
            group: sizes.heads.num_heads / sizes.heads.num_kv_heads,
        };
        let (lla, records) = match config.mixer {
            MixerConfig::Softmax => (None, attention_records(limits.largest_shape()?, sizes.heads)),
            MixerConfig::LocalLinear(_) => {
                let HeadShape { num_heads, num_kv_heads, head_dim } = sizes.heads;
                let shape = LlaShape { num_heads, num_kv_heads, key_dim: head_dim, value_dim: head_dim };
                (Some(LlaLimits { plan: limits, shape, most_records: MOST_MOMENTS }), 0)
            }
        };
        let most_scored = rows.min(MOST_SCORED);
        let of = |width: usize| rows.saturating_mul(width);
        let element = sizes.precision;
        let attention_dim = sizes.heads.num_heads * sizes.heads.head_dim;
        let arrays = vec![
            (ElementType::U32, rows),
            (ElementType::U32, rows),
            (ElementType::F32, max_positions.saturating_mul(half)),
            (ElementType::F32, max_positions.saturating_mul(half)),
            (ElementType::F32, of(hidden)),
            (element, of(padded(hidden))),
            (ElementType::F32, most_sums),
            (element, of(attention_dim)),
            (element, of(padded(attention_dim))),
            (element, of(padded(config.intermediate_size))),
            (element, of(padded(hidden))),
            (ElementType::F32, most_scored.saturating_mul(spec.vocab_size)),
            (ElementType::F32, records),
        ];
        let score = ScoreSizes { max_rows: most_scored, vocab: spec.vocab_size, max_top: MOST_TOP };
        Ok(Self { limits, score, lla, arrays, cache_bytes: capacity.kv_bytes(spec.kv) })
    }
}

/// All pages, and the cache over them.
fn cache(
    device: &Arc<dyn Device>,
    spec: &BackboneSpec,
    sizes: &Sizes,
    Capacity { num_pages, page_len, .. }: Capacity,
) -> Result<(Array, KvCache), ModelError> {
    let layout = spec.kv;
    let len = num_pages * page_len * layout.num_kv_heads * layout.head_dim;
    // Nobody reads a position before it was written.
    let pages = Array::new(device, sizes.precision, 2 * layout.num_layers * len)?;
    let part = |index: usize| pages.slice(index * len..(index + 1) * len);
    let layers = (0..layout.num_layers)
        .map(|layer| Ok(DeviceKv { keys: part(2 * layer)?, values: part(2 * layer + 1)? }))
        .collect::<Result<Vec<_>, KernelError>>()?;
    Ok((pages, KvCache::on_device(layout, num_pages, page_len, layers)))
}
