//! What the kernels are told; mirrored by `params.cuh`, which explains the fields. Pointers are device addresses.

use bytemuck::{Pod, Zeroable};

use crate::device::Params;

/// Where there is no token.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// Tokens of a split; `kSplitTokens` in `row.cuh`.
pub(super) const SPLIT_TOKENS: usize = 8192;
/// The largest vocabulary: `kMostSplits` splits.
pub(super) const MAX_VOCAB: usize = 64 * SPLIT_TOKENS;

/// `ScoreFlag`
pub(super) mod flag {
    pub(crate) const NOISE: u32 = 1;
    pub(crate) const FILTER: u32 = 2;
    pub(crate) const LOGPROB: u32 = 4;
    pub(crate) const ADJUSTED: u32 = 8;
    pub(crate) const CONFIDENCE_FILTERED: u32 = 16;
    pub(crate) const PROBABILITY: u32 = 32;
    pub(crate) const MARGIN: u32 = 64;
    pub(crate) const ENTROPY: u32 = 128;
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Row {
    pub(super) noise_key: u64,
    pub(super) temperature: f32,
    pub(super) filter_temperature: f32,
    pub(super) confidence_temperature: f32,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    pub(super) top_k: u32,
    pub(super) repetition: f32,
    pub(super) num_tokens: u32,
    pub(super) mask_id: u32,
    pub(super) given: u32,
    pub(super) flags: u32,
    pub(super) num_top: u32,
    pub(super) adjust_start: u32,
    pub(super) adjust_end: u32,
    pub(super) held_start: u32,
    pub(super) held_end: u32,
}

/// `ScoreChange`
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(super) enum Change {
    Bias = 0,
    Penalty = 1,
    Forbid = 2,
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Adjustment {
    pub(super) token: u32,
    pub(super) change: u32,
    pub(super) amount: f32,
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Record {
    pub(super) token: u32,
    pub(super) facts: u32,
    pub(super) logprob: f32,
    pub(super) confidence: f32,
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Top {
    pub(super) token: u32,
    pub(super) logprob: f32,
}

/// Lengths, in bytes, of what only the kernels look into.
pub(super) const PARTIAL_LEN: usize = 64;
pub(super) const CUT_LEN: usize = 16;
pub(super) const TOUCHED_LEN: usize = 20;
pub(super) const CANDIDATE_LEN: usize = 8;

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct ScoreParams {
    pub(super) logits: u64,
    pub(super) rows: u64,
    pub(super) adjustments: u64,
    pub(super) raw: u64,
    pub(super) held: u64,
    pub(super) partials: u64,
    pub(super) raw_partials: u64,
    pub(super) cuts: u64,
    pub(super) touched: u64,
    pub(super) candidates: u64,
    pub(super) records: u64,
    pub(super) top: u64,
    pub(super) vocab: u32,
    pub(super) num_splits: u32,
    pub(super) top_len: u32,
    pub(super) is_raw: u32,
}

impl Params for ScoreParams {}

const _: () = {
    assert!(size_of::<Row>() == 72 && size_of::<Adjustment>() == 12);
    assert!(size_of::<Record>() == 16 && size_of::<Top>() == 8);
    assert!(size_of::<ScoreParams>() == 12 * 8 + 4 * 4);
};
