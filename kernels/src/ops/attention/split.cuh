// A block of a split tile: 16 queries against one split, for few rows. The warps share the keys of a tile for the scores,
// and the features of the values for the sums, so that each score and each sum takes the same steps as in a whole tile.
#pragma once

#include "tile.cuh"

template <int D>
struct SplitLayout {
    static constexpr int kWeightStride = kTileKeys + 8;
    /// Queries, keys, values, weights, in values of 16 bits
    static constexpr int kKeys = kSplitQueries * stride_of(D);
    static constexpr int kValues = kKeys + kTileKeys * stride_of(D);
    static constexpr int kWeights = kValues + kTileKeys * stride_of(D);
    static constexpr int kEnd = kWeights + kSplitQueries * kWeightStride;
    /// Then the slots, and the largest score of each warp and query
    static constexpr int kBytes = kEnd * 2 + kSplitLen * 4 + kWarps * kSplitQueries * 4;
    /// Blocks of 16 features that a warp has at most
    static constexpr int kOwnBlocks = (D / 16 + kWarps - 1) / kWarps;
};

template <class Type, int D>
struct Split {
    using Layout = SplitLayout<D>;

    const AttentionParams& params;
    uint16_t* const queries = reinterpret_cast<uint16_t*>(shared_memory());
    uint16_t* const keys = queries + Layout::kKeys;
    uint16_t* const values = queries + Layout::kValues;
    uint16_t* const weights = queries + Layout::kWeights;
    uint32_t* const slots = reinterpret_cast<uint32_t*>(queries + Layout::kEnd);
    float* const peaks = reinterpret_cast<float*>(slots + kSplitLen);
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, row = lane / 4, quad = lane % 4;
    float sums[2 * Layout::kOwnBlocks][4] = {}, totals[2] = {0.0f, 0.0f}, tops[2] = {-INFINITY, -INFINITY};
    uint32_t ends[2];

    __device__ explicit Split(const AttentionParams& params) : params(params) {}

    /// Calls `body` with the number and the sums of each block of 16 features of this warp.
    template <class Body>
    __device__ void each_block(Body body) {
#pragma unroll
        for (int i = 0; i < Layout::kOwnBlocks; ++i) {
            const int block = warp + i * kWarps;
            if (block < D / 16) body(block, sums[2 * i], sums[2 * i + 1]);
        }
    }

    __device__ void run() {
        const bool held = plan_is_held(params.plan);
        const uint32_t kv_head = blockIdx.x % params.num_kv_heads;
        const DeviceTile tile = params.plan.split_tiles[blockIdx.x / params.num_kv_heads];
        const uint32_t start = blockIdx.y * kSplitLen;
        if (!held || start >= tile.longest_end) return;
        const Heads heads = {kv_head, params.plan.group, tile.first_query};
        find_slots(slots, params, tile, start, kv_head);
        load_queries<D, kSplitQueries>(queries, params, heads, tile.num_queries);
        for (int r = 0; r < 2; ++r) {
            const uint32_t i = row + 8 * r;
            ends[r] = i < tile.num_queries ? params.plan.rows[heads.row(i)].visible_end : 0;
        }
        __syncthreads();
        load_tile<D>(keys, params.keys, slots, params.head_dim);
        commit_copies();
        const uint32_t end = min(tile.longest_end, start + kSplitLen);
        for (uint32_t first = start; first < end; first += kTileKeys) {
            score(first, start);
            if (first + kTileKeys < end) {
                load_tile<D>(keys, params.keys, slots + (first + kTileKeys - start), params.head_dim);
            }
            commit_copies();
            add(first, tile);
        }
        write(tile, kv_head, start);
    }

    /// Scores of a tile of keys: their weights in shared memory, and what they do to the sums so far.
    __device__ void score(uint32_t first, uint32_t start) {
        constexpr int kOwnKeys = kTileKeys / kWarps;
        wait_copies<0>();
        __syncthreads();
        load_tile<D>(values, params.values, slots + (first - start), params.head_dim);
        commit_copies();
        float scores[kOwnKeys / 8][4] = {}, own[2] = {-INFINITY, -INFINITY};
        multiply_keys<Type, D>(scores, queries, keys + warp * kOwnKeys * stride_of(D));
        mask_scores(scores, own, ends, first + warp * kOwnKeys, params.scale_log2);
        for (int r = 0; r < 2; ++r) {
            if (quad == 0) peaks[warp * kSplitQueries + row + 8 * r] = own[r];
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = tops[r];
            for (int w = 0; w < kWarps; ++w) top = fmaxf(top, peaks[w * kSplitQueries + row + 8 * r]);
            const float factor = rescaling(tops[r], top);
            tops[r] = top;
            totals[r] = multiply(totals[r], factor);
#pragma unroll
            for (int i = 0; i < 2 * Layout::kOwnBlocks; ++i) {
                sums[i][2 * r] = multiply(sums[i][2 * r], factor);
                sums[i][2 * r + 1] = multiply(sums[i][2 * r + 1], factor);
            }
            uint16_t* to = weights + (row + 8 * r) * Layout::kWeightStride + warp * kOwnKeys + 2 * quad;
#pragma unroll
            for (int j = 0; j < kOwnKeys / 8; ++j) {
                const float low = weight_of(scores[j][2 * r], top), high = weight_of(scores[j][2 * r + 1], top);
                *reinterpret_cast<uint32_t*>(to + 8 * j) = pack<Type>(low, high);
            }
        }
    }

    /// Adds the values of a tile.
    __device__ void add(uint32_t first, const DeviceTile& tile) {
        wait_copies<1>();
        // What other threads have loaded is there after this.
        __syncthreads();
        if (ends_differ(tile, first) && __syncthreads_or(has_bad_values<Type, D>(values))) {
            each_block([&](int block, float (&low)[4], float (&high)[4]) {
                poison<Type, D>(low, high, values, block, ends, first);
            });
            clear_bad_values<Type, D>(values);
        }
        uint32_t packed[kTileKeys / 16][4];
        const uint16_t* from = weights + lane % 16 * Layout::kWeightStride + lane / 16 * 8;
#pragma unroll
        for (int t = 0; t < kTileKeys / 16; ++t) load_blocks(packed[t], from + 16 * t);
        float own[2];
        sum_weights<Type>(own, packed);
        for (int r = 0; r < 2; ++r) totals[r] += own[r];
        each_block([&](int block, float (&low)[4], float (&high)[4]) {
            add_values<Type, D>(low, high, packed, values, block);
        });
    }

    /// The record of each query that sees something of the split.
    __device__ void write(const DeviceTile& tile, uint32_t kv_head, uint32_t start) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t i = row + 8 * r;
            if (i >= tile.num_queries || ends[r] <= start) continue;
            float* record = record_of(params, tile.first_slot + i, kv_head, start / kSplitLen);
            each_block([&](int block, float (&low)[4], float (&high)[4]) {
                const uint32_t column = block * 16 + 2 * quad;
                if (column < params.head_dim) {
                    *reinterpret_cast<float2*>(record + column) = float2{low[2 * r], low[2 * r + 1]};
                }
                if (column + 8 < params.head_dim) {
                    *reinterpret_cast<float2*>(record + column + 8) = float2{high[2 * r], high[2 * r + 1]};
                }
            });
            if (warp == 0 && quad == 0) {
                *reinterpret_cast<float2*>(record + params.head_dim) = float2{tops[r], totals[r]};
            }
        }
    }
};

/// Merges the splits of one head of a row of split tiles. Rows that only fill the shape get zeros.
inline __device__ void combine(const AttentionParams& params) {
    const bool held = plan_is_held(params.plan);
    const uint32_t index = blockIdx.x, head = blockIdx.y, group = params.plan.group;
    const DeviceRow row = params.plan.rows[index];
    if (!held || (row.slot == kNoSlot && row.visible_end != 0)) return;
    uint16_t* output = params.output + uint64_t(index) * params.padded;
    const uint32_t d = threadIdx.x, width = params.num_heads * params.head_dim;
    if (head + 1 == params.num_heads && width + d < params.padded) output[width + d] = 0;
    if (d >= params.head_dim) return;
    float sum = 0.0f, total = 0.0f, top = -INFINITY;
    const uint32_t num_splits = (row.visible_end + kSplitLen - 1) / kSplitLen;
#pragma unroll 4
    for (uint32_t split = 0; split < num_splits; ++split) {
        const float* record = record_of(params, row.slot + head % group, head / group, split);
        const float2 own = *reinterpret_cast<const float2*>(record + params.head_dim);
        const Merge merge(top, own.x);
        total = merge(total, own.y);
        sum = merge(sum, record[d]);
        top = merge.top;
    }
    const float value = row.visible_end == 0 ? 0.0f : finish(sum, 1.0f / total);
    output[head * params.head_dim + d] = params.type == kF16 ? to_half(value) : to_bfloat(value);
}
