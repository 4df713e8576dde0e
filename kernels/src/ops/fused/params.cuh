// What a launch of a fused op is told; mirrored in the Rust file of the op. All pointers are device memory.
#pragma once

#include "../../cuh/partials.cuh"
#include "../../cuh/plan.cuh"

/// Mirrored in `add_norm.rs`.
struct AddNormParams {
    PartialSums partials;
    /// [num_rows, hidden], f32
    float* residual;
    /// [hidden], f32
    const float* weight;
    /// [blocks, padded], 16 bit
    void* output;
    /// [blocks]: the row of each block, or null for row `i` in block `i`
    const uint32_t* row_index;
    uint32_t num_rows, hidden, padded, type;
    float eps;
    /// Whether the residual takes the sum
    uint32_t writes_residual;
};

/// Mirrored in `qkv_finish.rs`.
struct QkvFinishParams {
    /// Columns: the heads of q, then of k, then of v
    PartialSums partials;
    DevicePlan plan;
    /// [head_dim], f32, or null where heads are not normalised
    const float* q_weight;
    const float* k_weight;
    /// [positions, half], f32
    const float* cos;
    const float* sin;
    /// [rows, heads, head_dim], 16 bit
    void* q;
    /// [pages, kv_heads, page_len, head_dim], 16 bit
    void* keys;
    void* values;
    uint32_t num_heads, num_kv_heads, head_dim, type;
    /// Pairs of features that are rotated
    uint32_t half;
    float eps;
};

/// Mirrored in `swiglu_finish.rs`.
struct SwigluFinishParams {
    /// Columns: the gate, then up
    PartialSums partials;
    /// [rows, padded], 16 bit
    void* output;
    uint32_t ffn, padded, type, num_rows;
};

static_assert(sizeof(AddNormParams) == 32 + 4 * 8 + 6 * 4, "mirrored in add_norm.rs");
static_assert(sizeof(QkvFinishParams) == 32 + 64 + 7 * 8 + 6 * 4, "mirrored in qkv_finish.rs");
static_assert(sizeof(SwigluFinishParams) == 32 + 8 + 4 * 4, "mirrored in swiglu_finish.rs");
