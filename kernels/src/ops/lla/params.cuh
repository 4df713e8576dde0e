// What a launch of a kernel of local linear attention is told; mirrored by `device.rs`. All pointers are device memory.
#pragma once

#include "../../cuh/element.cuh"

/// Positions `start..end` that a row sees through page table `table`.
struct LlaVisible {
    uint32_t table, start, end;
};

/// Consecutive queries of one page table that share a block. A query is a row and a head of the group of heads that read
/// one key-value head: query `i` is head `i % group` of the group in row `i / group`.
struct LlaTile {
    uint32_t first_query, num_queries;
    /// The table, and the positions `start..end` that some query of the tile sees.
    LlaVisible visible;
};

/// How solving went, summed over queries.
struct LlaCounters {
    unsigned long long iterations;
    uint32_t largest_iterations;
    /// Queries that returned softmax attention because their probe, or its output, was not finite.
    uint32_t fallbacks;
    /// Queries that ran out of steps.
    uint32_t capped;
    /// Blocks whose inputs were outside the range of fp16 and that were computed in f32.
    uint32_t wide;
};

/// What the arrays of a step are for, and the grids of its launches.
struct LlaStepShape {
    uint32_t num_rows, num_splits;
};

struct LlaParams {
    /// [rows, heads, key_dim]
    const void* q;
    /// [pages, kv_heads, page_len, key_dim]
    const void* keys;
    /// [pages, kv_heads, page_len, value_dim]
    const void* values;
    /// [rows, heads, key_dim], or null to solve for it
    const void* probe;
    /// [rows, output_stride]: heads * value_dim values and zeros after them
    void* output;
    /// [heads], or [rows, heads] if `ridge_per_row`; null with a probe
    const float* ridge;
    /// [tiles]; prefill only
    const LlaTile* tiles;
    /// [rows]
    const LlaVisible* visible;
    /// The pages of all tables, one table after the other, and where each table starts
    const uint32_t* pages;
    const uint32_t* table_starts;
    /// Prefill: [tiles, kv_heads]. Decode: [rows, heads, splits]. 1 where fp16 was too narrow
    uint32_t* marks;
    LlaCounters* counters;
    /// Decode: [rows, heads, splits, record_len], see `decode.cu`
    float* records;
    /// Decode: [rows, heads, solution_len]
    float* solutions;
    /// Decode: the shape of the step that is there, or null where the arrays never change
    const LlaStepShape* held;
    uint32_t type, num_heads, num_kv_heads, key_dim, value_dim, page_len, ridge_per_row;
    /// Whether only blocks that are marked are to be computed
    uint32_t only_marked;
    /// Decode: positions per split, at most `kSplitLen`, and splits per query
    uint32_t split_len, num_splits;
    /// Values from one row of the output to the next
    uint32_t output_stride;
    /// Rows of a step whose shape is `held`; a launch may be for some of them
    uint32_t num_rows;
    /// Steps per round at most, and rounds; each round starts from the residual as it is
    uint32_t max_steps, num_rounds;
    /// The residual at which a round ends, relative to its start
    float tolerance;
    /// The scale of the scores times log2(e)
    float scale_log2;
};

static_assert(sizeof(LlaVisible) == 12 && sizeof(LlaTile) == 20 && sizeof(LlaCounters) == 24, "mirrored in device.rs");
static_assert(sizeof(LlaStepShape) == 8, "mirrored in room.rs");
static_assert(sizeof(LlaParams) == 15 * 8 + 16 * 4, "mirrored in device.rs");

/// Whether the arrays hold a step of the shape of the launch, so that what is read from them is what it seems.
inline __device__ bool step_is_held(const LlaParams& params) {
    return !params.held || (params.held->num_rows == params.num_rows && params.held->num_splits == params.num_splits);
}

/// Where the value `d` of a head of a row lies in the output.
inline __device__ uint64_t output_place(const LlaParams& params, uint32_t row, uint32_t head, int d) {
    return uint64_t(row) * params.output_stride + head * params.value_dim + uint32_t(d);
}

/// Zeros the rest of a row of the output. The threads of its last head call it, `thread` of `threads`.
inline __device__ void pad_output(const LlaParams& params, uint32_t row, uint32_t thread, uint32_t threads) {
    for (uint32_t at = params.num_heads * params.value_dim + thread; at < params.output_stride; at += threads) {
        store_element(params.output, uint64_t(row) * params.output_stride + at, params.type, 0.0f);
    }
}

/// Where `position` of a table lies in a cache, in rows of its dimension.
inline __device__ int slot_of(const LlaParams& params, uint32_t table, uint32_t position, uint32_t kv_head) {
    const uint32_t page = params.pages[params.table_starts[table] + position / params.page_len];
    return int((page * params.num_kv_heads + kv_head) * params.page_len + position % params.page_len);
}

/// The weight of a score below the largest one, both in powers of two.
inline __device__ float weight_of(float score, float largest) { return exp2f(score - largest); }

/// `lam` of a row and head.
inline __device__ float ridge_of(const LlaParams& params, uint32_t row, uint32_t head) {
    return params.ridge[params.ridge_per_row ? row * params.num_heads + head : head];
}
