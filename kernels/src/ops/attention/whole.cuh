// A block of a whole tile: 64 queries, 16 in each warp, against all positions that they see, for many rows. The sums of
// the splits before stay in registers beside those of the split that runs. While scores are computed the values are on
// their way, and while values are summed the next keys are, so keys and values take one tile of shared memory each: 54 KB
// for the largest heads, on every architecture.
#pragma once

#include "tile.cuh"

template <int D>
struct WholeLayout {
    /// Queries, keys, values, in values of 16 bits
    static constexpr int kKeys = kWholeQueries * stride_of(D);
    static constexpr int kValues = kKeys + kTileKeys * stride_of(D);
    static constexpr int kEnd = kValues + kTileKeys * stride_of(D);
    /// Then the slots of this split and the next
    static constexpr int kBytes = kEnd * 2 + 2 * kSplitLen * 4;
};

template <class Type, int D>
struct Whole {
    using Layout = WholeLayout<D>;

    const AttentionParams& params;
    uint16_t* const queries = reinterpret_cast<uint16_t*>(shared_memory());
    uint16_t* const keys = queries + Layout::kKeys;
    uint16_t* const values = queries + Layout::kValues;
    uint32_t* const slots = reinterpret_cast<uint32_t*>(queries + Layout::kEnd);
    const int warp = threadIdx.x / kLanes, row = warp * 16 + threadIdx.x % kLanes / 4, quad = threadIdx.x % 4;
    /// Of the split that runs, and of all before it
    float sums[D / 8][4] = {}, totals[2] = {0.0f, 0.0f}, tops[2] = {-INFINITY, -INFINITY};
    float all_sums[D / 8][4] = {}, all_totals[2] = {0.0f, 0.0f}, all_tops[2] = {-INFINITY, -INFINITY};
    uint32_t ends[2];

    __device__ explicit Whole(const AttentionParams& params) : params(params) {}

    __device__ void run() {
        const bool held = plan_is_held(params.plan);
        const DeviceTile tile = params.plan.whole_tiles[blockIdx.x / params.num_kv_heads];
        if (!held || tile.num_queries == 0) return;
        const uint32_t kv_head = blockIdx.x % params.num_kv_heads;
        const Heads heads = {kv_head, params.plan.group, tile.first_query};
        find_slots(slots, params, tile, 0, kv_head);
        load_queries<D, kWholeQueries>(queries, params, heads, tile.num_queries);
        for (int r = 0; r < 2; ++r) {
            const uint32_t i = row + 8 * r;
            ends[r] = i < tile.num_queries ? params.plan.rows[heads.row(i)].visible_end : 0;
        }
        // What some row of the warp sees.
        uint32_t end = max(ends[0], ends[1]);
        for (int flip = 4; flip < kLanes; flip *= 2) end = max(end, __shfl_xor_sync(kAllLanes, end, flip));
        __syncthreads();
        load_tile<D>(keys, params.keys, slots, params.head_dim);
        commit_copies();
        for (uint32_t first = 0; first < tile.longest_end; first += kTileKeys) {
            pass(first, first < end, tile, kv_head);
            const bool last = first + kTileKeys >= tile.longest_end;
            if (last || (first + kTileKeys) % kSplitLen == 0) merge();
        }
        write(heads, tile.num_queries);
    }

    /// Slots of the tile of keys that starts at `first`.
    __device__ const uint32_t* slots_of(uint32_t first) const { return slots + first % (2 * kSplitLen); }

    /// One tile of keys. A warp whose rows do not see it is not `active`: it only loads.
    __device__ void pass(uint32_t first, bool active, const DeviceTile& tile, uint32_t kv_head) {
        const uint32_t next = first + kTileKeys;
        wait_copies<0>();
        __syncthreads();
        load_tile<D>(values, params.values, slots_of(first), params.head_dim);
        commit_copies();
        if (first % kSplitLen == 0 && first + kSplitLen < tile.longest_end) {
            const uint32_t split = first + kSplitLen;
            find_slots(slots + split % (2 * kSplitLen), params, tile, split, kv_head);
        }
        float scores[kTileKeys / 8][4] = {};
        if (active) multiply_keys<Type, D>(scores, queries + warp * 16 * stride_of(D), keys);
        __syncthreads();
        if (next < tile.longest_end) load_tile<D>(keys, params.keys, slots_of(next), params.head_dim);
        commit_copies();

        uint32_t packed[kTileKeys / 16][4];
        if (active) weigh(packed, scores, first);
        wait_copies<1>();
        __syncthreads();
        if (ends_differ(tile, first) && __syncthreads_or(has_bad_values<Type, D>(values))) {
#pragma unroll
            for (int b = 0; b < D / 16; ++b) {
                poison<Type, D>(sums[2 * b], sums[2 * b + 1], values, b, ends, first);
            }
            clear_bad_values<Type, D>(values);
        }
        if (!active) return;
#pragma unroll
        for (int b = 0; b < D / 16; ++b) {
            add_values<Type, D>(sums[2 * b], sums[2 * b + 1], packed, values, b);
        }
    }

    /// Weights of scores, and what they do to the sums so far.
    __device__ void weigh(uint32_t (&packed)[kTileKeys / 16][4], float (&scores)[kTileKeys / 8][4], uint32_t first) {
        float now[2] = {tops[0], tops[1]};
        mask_scores(scores, now, ends, first, params.scale_log2);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float factor = rescaling(tops[r], now[r]);
            tops[r] = now[r];
            totals[r] = multiply(totals[r], factor);
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                sums[i][2 * r] = multiply(sums[i][2 * r], factor);
                sums[i][2 * r + 1] = multiply(sums[i][2 * r + 1], factor);
            }
        }
#pragma unroll
        for (int i = 0; i < kTileKeys / 4; ++i) {
            // Registers of an operand: both rows of eight keys, then of the next eight.
            const int j = i / 4 * 2 + i % 4 / 2, r = i % 2;
            packed[i / 4][i % 4] = pack<Type>(weight_of(scores[j][2 * r], now[r]), weight_of(scores[j][2 * r + 1], now[r]));
        }
        float own[2];
        sum_weights<Type>(own, packed);
        for (int r = 0; r < 2; ++r) totals[r] += own[r];
    }

    /// The end of a split.
    __device__ void merge() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const Merge merge(all_tops[r], tops[r]);
            all_tops[r] = merge.top;
            all_totals[r] = merge(all_totals[r], totals[r]);
            tops[r] = -INFINITY;
            totals[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
#pragma unroll
                for (int c = 2 * r; c < 2 * r + 2; ++c) {
                    all_sums[i][c] = merge(all_sums[i][c], sums[i][c]);
                    sums[i][c] = 0.0f;
                }
            }
        }
    }

    __device__ void write(const Heads& heads, uint32_t num_queries) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const uint32_t i = row + 8 * r;
            if (i >= num_queries) continue;
            const uint32_t head = heads.head(i);
            uint16_t* output = params.output + uint64_t(heads.row(i)) * params.padded;
            const float inverse = 1.0f / all_totals[r];
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                if (8 * n >= int(params.head_dim)) continue;
                const float low = finish(all_sums[n][2 * r], inverse), high = finish(all_sums[n][2 * r + 1], inverse);
                *reinterpret_cast<uint32_t*>(output + head * params.head_dim + 8 * n + 2 * quad) = pack<Type>(low, high);
            }
            if (head + 1 < params.num_heads) continue;
            for (uint32_t c = params.num_heads * params.head_dim + 2 * quad; c < params.padded; c += 8) {
                *reinterpret_cast<uint32_t*>(output + c) = 0;
            }
        }
    }
};
