// What a launch of attention is told; mirrored by `device.rs`. All pointers are device memory.
#pragma once

#include "../../cuh/plan.cuh"

struct AttentionParams {
    DevicePlan plan;
    /// [rows, heads, head_dim], 16 bit
    const uint16_t* q;
    /// [pages, kv_heads, page_len, head_dim], 16 bit
    const uint16_t* keys;
    const uint16_t* values;
    /// [rows, padded], 16 bit
    uint16_t* output;
    /// [queries of split tiles, kv_heads, num_splits, head_dim + kRecordExtra]: the sum of weighted values, then the
    /// largest score and the sum of the weights
    float* records;
    uint32_t num_heads, num_kv_heads, head_dim;
    /// Columns of the output, those of all heads and then zeros
    uint32_t padded;
    uint32_t type;
    /// The scale of the scores times log2(e)
    float scale_log2;
};

static_assert(sizeof(AttentionParams) == 64 + 5 * 8 + 6 * 4, "mirrored in device.rs");

/// Positions of a split, and of a tile of keys; both start at multiples of their length.
constexpr int kSplitLen = 256;
constexpr int kTileKeys = 64;
/// Queries of a split tile and of a whole tile.
constexpr int kSplitQueries = 16;
constexpr int kWholeQueries = 64;
constexpr int kRecordExtra = 4;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kLanes;

/// Where the record of a query and split starts.
inline __device__ float* record_of(const AttentionParams& params, uint32_t slot, uint32_t kv_head, uint32_t split) {
    const uint64_t index = (uint64_t(slot) * params.num_kv_heads + kv_head) * params.plan.shape.num_splits + split;
    return params.records + index * (params.head_dim + kRecordExtra);
}
