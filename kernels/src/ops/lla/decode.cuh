// Local linear attention of few rows: the second moments of the keys once, a dense solve, one more pass.
//
// An iteration over the keys would need the whole grid to agree at each step. Instead every query splits its keys over
// blocks, each of which sums `w (k - mean) (k - mean)^T` about its own mean, so that keys far from zero do not cancel;
// the system that they add up to is small enough for one block.
//
//   lla_moments    [query, split]  largest score, sums of weights, of weighted keys and of their outer products
//   lla_combine    [query]         merges the splits and solves `(C + lam I) x = kbar - q` in f32
//   lla_output     [query, split]  sums of weights and of weighted slopes times values, in f32
//   lla_merge      [query]         merges the splits and writes the output
//
// A query is a row and a head, `row * heads + head`. Nothing is shared between queries, so a result does not depend on
// what else is in the launch. Parallax takes the same way without the outer products.
#pragma once

#include "arithmetic.cuh"

/// Positions of a split at most.
constexpr int kSplitLen = 256;
constexpr int kMomentKeys = 64;
constexpr int kOutputThreads = 128;
constexpr int kMergeThreads = 128;
/// Queries and probes of up to 128 dimensions; weight, slope and slot of each position; two sums of 8 values a thread.
constexpr int kOutputBytes = (2 * 128 + 3 * kSplitLen + 2 * 8 * kOutputThreads) * 4;

/// Head sizes are padded with zeros to one that the kernels are made for.
inline __device__ int padded_dim(const LlaParams& params) {
    return int(max(params.key_dim, params.value_dim) + 31) / 32 * 32;
}

/// Where the parts of a record lie, in floats. Moments: D x D outer products of which the blocks of 16 x 16 on and above
/// the diagonal are written, D sums of keys, largest score, sum of weights. Outputs: D sums of weighted values, D of
/// weighted slopes times values, sum of weighted slopes; they take the place of the moments.
inline __device__ int record_len(int dim) { return dim * dim + dim + 4; }
/// `x`, then `<x, kbar>`, largest score, sum of weights, and whether the probe was not finite.
inline __device__ int solution_len(int dim) { return dim + 4; }

/// The query, its split and the positions of both; by `blockIdx`.
struct Split {
    uint32_t row, head, kv_head, start, end;

    inline __device__ explicit Split(const LlaParams& params) {
        row = blockIdx.x / params.num_heads;
        head = blockIdx.x % params.num_heads;
        kv_head = head / (params.num_heads / params.num_kv_heads);
        const LlaVisible seen = params.visible[row];
        const uint32_t skip = min(blockIdx.y * params.split_len, seen.end - seen.start);
        start = seen.start + skip;
        end = start + min(params.split_len, seen.end - start);
    }

    inline __device__ int slot(const LlaParams& params, uint32_t position) const {
        return slot_of(params, params.visible[row].table, position, kv_head);
    }
};

template <class Math, int D>
struct MomentsLayout {
    /// A warp for every 16 rows of the outer products.
    static constexpr int kThreads = 2 * D;
    static constexpr int kWarps = D / 16;
    static constexpr int kTile = kMomentKeys * Math::stride(D) * int(sizeof(typename Math::Cell));
    static constexpr int kBytes = kTile + D * 4 + kSplitLen * 4 + kMomentKeys * 4 + 16 + kSplitLen;
};

/// The rows of the outer products that a warp takes. Warps four apart share a scheduler: one with many columns on and
/// above the diagonal goes with one that has few.
template <int D>
inline __device__ int outer_block(int warp) {
    return warp < 4 ? warp : D / 16 + 3 - warp;
}

/// Adds `sum_j a_j k_j^T` with `a_j = w_j (k_j - mean)` over the keys of a tile: 16 rows from `16 block`, columns from
/// there on. `totals` grows by what `a_j`, as rounded, sum to in the lane's two rows and over its own keys. Split, since
/// the small spread of keys far from zero would be lost in single fp16.
template <int D>
inline __device__ void add_outer(Half, float (&sums)[D / 8][4], float (&totals)[2], const uint16_t* keys,
                                 const float* weights, const float* mean, int block) {
    const int group = threadIdx.x % kLanes / 4, quad = threadIdx.x % 4;
    const float means[2] = {mean[block * 16 + group], mean[block * 16 + group + 8]};
#pragma unroll 1
    for (int key = 0; key < kMomentKeys; key += 16) {
        const uint16_t* rows = keys + key * Half::stride(D);
        uint32_t plain[4], high[4], low[4];
        load_columns(plain, rows + block * 16, Half::stride(D));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            // Registers 1 and 2 change places: rows of the operand are columns of the tile.
            const int at = i == 1 ? 2 : i == 2 ? 1 : i;
            const float* w = weights + key + 2 * quad + i % 2 * 8;
            const float first = w[0] * (low_half(plain[i]) - means[i / 2]);
            const float second = w[1] * (high_half(plain[i]) - means[i / 2]);
            high[at] = pack_half(first, second);
            low[at] = pack_half(first - low_half(high[at]), second - high_half(high[at]));
            totals[i / 2] += low_half(high[at]) + low_half(low[at]);
            totals[i / 2] += high_half(high[at]) + high_half(low[at]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            if (n < block) continue;
            uint32_t b[4];
            load_columns(b, rows + n * 16, Half::stride(D));
            multiply_add(sums[2 * n], high, b[0], b[1]);
            multiply_add(sums[2 * n + 1], high, b[2], b[3]);
            multiply_add(sums[2 * n], low, b[0], b[1]);
            multiply_add(sums[2 * n + 1], low, b[2], b[3]);
        }
    }
}

template <int D>
inline __device__ void add_outer(Full, float (&sums)[D / 8][4], float (&totals)[2], const float* keys,
                                 const float* weights, const float* mean, int block) {
    const int group = threadIdx.x % kLanes / 4, quad = threadIdx.x % 4, row = block * 16 + group;
#pragma unroll 1
    for (int key = quad; key < kMomentKeys; key += 4) {
        totals[0] += weights[key] * (keys[key * Full::stride(D) + row] - mean[row]);
        totals[1] += weights[key] * (keys[key * Full::stride(D) + row + 8] - mean[row + 8]);
    }
#pragma unroll 1
    for (int key = 0; key < kMomentKeys; ++key) {
        const float* from = keys + key * Full::stride(D);
        const float top = weights[key] * (from[row] - mean[row]);
        const float bottom = weights[key] * (from[row + 8] - mean[row + 8]);
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            if (n < 2 * block) continue;
            const float2 value = *reinterpret_cast<const float2*>(from + n * 8 + 2 * quad);
            sums[n][0] += top * value.x, sums[n][1] += top * value.y;
            sums[n][2] += bottom * value.x, sums[n][3] += bottom * value.y;
        }
    }
}

template <class Math, int D>
inline __device__ void moments(const LlaParams& params) {
    using Layout = MomentsLayout<Math, D>;
    using Cell = typename Math::Cell;
    unsigned char* shared = shared_memory();
    Cell* keys = reinterpret_cast<Cell*>(shared);
    float* query = reinterpret_cast<float*>(shared + Layout::kTile);
    float* weights = query + D;
    int* slots = reinterpret_cast<int*>(weights + kSplitLen);
    int* peak_bits = slots + kMomentKeys;
    uint8_t* poisoned = reinterpret_cast<uint8_t*>(peak_bits + 4);

    const uint64_t index = uint64_t(blockIdx.x) * params.num_splits + blockIdx.y;
    if (params.only_marked && params.marks[index] == 0) return;
    if (params.only_marked && threadIdx.x == 0) atomicAdd(&params.counters->wide, 1u);
    const Split split(params);
    const int count = int(split.end - split.start), tid = threadIdx.x;
    const int warp = tid / kLanes, lane = tid % kLanes, group = lane / 4, quad = lane % 4;
    float* record = params.records + index * record_len(D);
    float *key_sums = record + D * D, *scalars = key_sums + D;

    if (tid == 0) *peak_bits = 0;
    for (int d = tid; d < D; d += Layout::kThreads) {
        query[d] = d < int(params.key_dim)
                       ? load_element(params.q, uint64_t(blockIdx.x) * params.key_dim + d, params.type)
                       : 0.0f;
    }
    for (int i = tid; i < kSplitLen; i += Layout::kThreads) poisoned[i] = 0;

    const auto load = [&](int first) {
        __syncthreads();
        if (tid < kMomentKeys) {
            slots[tid] = first + tid < count ? split.slot(params, split.start + uint32_t(first + tid)) : -1;
        }
        __syncthreads();
        const float peak = load_tile<Math, D>(keys, poisoned + first, params.keys, slots, kMomentKeys,
                                              int(params.key_dim), params.type);
        __syncthreads();
        return peak;
    };

    float peak = 0.0f;
    for (int first = 0; first < kSplitLen; first += kMomentKeys) {
        if (first >= count) {
            for (int i = first + tid; i < first + kMomentKeys; i += Layout::kThreads) weights[i] = -INFINITY;
            continue;
        }
        peak = fmaxf(peak, load(first));
        for (int key = warp * 8 + group; key < kMomentKeys; key += Layout::kWarps * 8) {
            const float dot = sum_lanes<4>(Math::template partial_dot<D>(query, keys + key * Math::stride(D), quad));
            const float score = poisoned[first + key] ? NAN : dot * params.scale_log2;
            if (quad == 0) weights[first + key] = first + key < count ? score : -INFINITY;
        }
    }
    if (Math::kChecksRange) {
        atomicMax(peak_bits, __float_as_int(peak));
        __syncthreads();
        const bool fits = fits_half(__int_as_float(*peak_bits), kLargestHalfKey, params.type);
        if (tid == 0 && params.marks) params.marks[index] = fits ? 0 : 1;
        if (!fits) return;
    } else {
        __syncthreads();
    }

    // Every warp finds the same numbers, in the same order.
    float top = -INFINITY, omega = 0.0f;
    for (int i = lane; i < kSplitLen; i += kLanes) top = fmaxf(top, weights[i]);
    top = max_lanes<kLanes>(top);
    for (int i = lane; i < kSplitLen; i += kLanes) omega += i < count ? weight_of(weights[i], top) : 0.0f;
    omega = sum_lanes<kLanes>(omega);
    if (tid == 0) {
        scalars[0] = top;
        scalars[1] = count > 0 ? omega : 0.0f;
    }
    __syncthreads();
    for (int i = tid; i < kSplitLen; i += Layout::kThreads) weights[i] = i < count ? weight_of(weights[i], top) : 0.0f;
    __syncthreads();
    if (count == 0) return;

    float key_sum = 0.0f;
    for (int first = 0; first < count; first += kMomentKeys) {
        if (count > kMomentKeys) load(first);
        if (tid < D) {
            for (int key = 0; key < kMomentKeys; ++key) {
                key_sum += weights[first + key] * Math::value(keys[key * Math::stride(D) + tid]);
            }
        }
    }
    if (tid < D) key_sums[tid] = key_sum;
    if (params.probe) return;
    // The queries are no longer needed.
    float* mean = query;
    if (tid < D) mean[tid] = key_sum / omega;
    __syncthreads();

    float sums[D / 8][4] = {}, totals[2] = {0.0f, 0.0f};
    const int block = outer_block<D>(warp);
    for (int first = 0; first < count; first += kMomentKeys) {
        if (count > kMomentKeys) load(first);
        add_outer<D>(Math(), sums, totals, keys, weights + first, mean, block);
    }
    for (float& total : totals) total = sum_lanes<4>(total);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        if (n < 2 * block) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // The factors sum to zero but for rounding, which would meet keys far from zero.
            const int column = n * 8 + 2 * quad;
            float* to = record + (block * 16 + group + half * 8) * D + column;
            *reinterpret_cast<float2*>(to) = float2{sums[n][2 * half] - totals[half] * mean[column],
                                                    sums[n][2 * half + 1] - totals[half] * mean[column + 1]};
        }
    }
}
