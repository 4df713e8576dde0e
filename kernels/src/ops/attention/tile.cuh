// The arithmetic of attention, which split and whole tiles share so that a row has the same bits in both.
//
// A row's keys are cut at absolute positions into splits of `kSplitLen`, and those into tiles of `kTileKeys`. Within a
// split the softmax runs over the tiles: sums are rescaled when a larger score comes. The splits of a row are then merged
// in their order. A tile or split that a row does not see changes nothing in it, so it does not matter whether it was
// computed. Products that the compiler could fuse with a sum in one kernel and not in the other are written out.
#pragma once

#include "params.cuh"

/// The two types of operands.
struct Fp16 {
    static constexpr uint32_t kInfinity = 0x7c00;
    static __device__ void step(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        multiply_add(c, a, b0, b1);
    }
    static __device__ uint16_t narrow(float value) { return to_half(value); }
    static __device__ float widen(uint16_t bits) { return from_half(bits); }
};

struct Bf16 {
    static constexpr uint32_t kInfinity = 0x7f80;
    static __device__ void step(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        multiply_add_bfloat(c, a, b0, b1);
    }
    static __device__ uint16_t narrow(float value) { return to_bfloat(value); }
    static __device__ float widen(uint16_t bits) { return from_bfloat(bits); }
};

template <class Type>
inline __device__ uint32_t pack(float low, float high) {
    return uint32_t(Type::narrow(low)) | uint32_t(Type::narrow(high)) << 16;
}

template <class Type>
inline __device__ bool is_finite_bits(uint32_t bits) {
    return (bits & Type::kInfinity) != Type::kInfinity;
}

/// Values between rows in shared memory: an odd number of 16 bytes, so that eight rows lie in different banks.
constexpr __host__ __device__ int stride_of(int dim) { return dim + 8; }

/// The heads that a block reads and writes.
struct Heads {
    uint32_t kv_head, group, first_query;

    /// Row of the batch, and head, of query `i` of the tile.
    __device__ uint32_t row(uint32_t i) const { return (first_query + i) / group; }
    __device__ uint32_t head(uint32_t i) const { return kv_head * group + (first_query + i) % group; }
};

/// Starts to load the queries of a tile; rows past the last one are zero.
template <int D, int kQueries>
inline __device__ void load_queries(uint16_t* to, const AttentionParams& params, const Heads& heads, uint32_t count) {
    for (int chunk = threadIdx.x; chunk < kQueries * (D / 8); chunk += kThreads) {
        const uint32_t i = chunk / (D / 8), column = chunk % (D / 8) * 8;
        const bool wanted = i < count && column < params.head_dim;
        const uint64_t at = (uint64_t(heads.row(i)) * params.num_heads + heads.head(i)) * params.head_dim + column;
        copy_async(to + i * stride_of(D) + column, params.q + (wanted ? at : 0), wanted);
    }
}

/// Looks up where the positions `first..first + kSplitLen` lie; `kNoSlot` from `end` on.
inline __device__ void find_slots(uint32_t* slots, const AttentionParams& params, const DeviceTile& tile, uint32_t first,
                                  uint32_t kv_head) {
    for (uint32_t i = threadIdx.x; i < kSplitLen; i += kThreads) {
        const bool seen = first + i < tile.longest_end;
        slots[i] = seen ? slot_of(params.plan, tile.first_page, first + i, params.num_kv_heads, kv_head) : kNoSlot;
    }
}

/// Starts to load a tile of keys or values; zeros where there is no slot.
template <int D>
inline __device__ void load_tile(uint16_t* to, const uint16_t* cache, const uint32_t* slots, uint32_t head_dim) {
    // Before sm_80 more copies at once would take registers that there are not.
#pragma unroll 4
    for (int n = 0; n < kTileKeys * (D / 8); n += kThreads) {
        const int chunk = n + threadIdx.x, key = chunk / (D / 8);
        const uint32_t slot = slots[key], column = chunk % (D / 8) * 8;
        const bool wanted = slot != kNoSlot && column < head_dim;
        copy_async(to + key * stride_of(D) + column, cache + (wanted ? uint64_t(slot) * head_dim + column : 0), wanted);
    }
}

/// Products of 16 queries with the 8 `n` keys from `keys` on.
template <class Type, int D, int n>
inline __device__ void multiply_keys(float (&scores)[n][4], const uint16_t* queries, const uint16_t* keys) {
    const int lane = threadIdx.x % kLanes, stride = stride_of(D);
    queries += (lane % 16) * stride + lane / 16 * 8;
    keys += (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        load_blocks(a, queries + k);
#pragma unroll
        for (int j = 0; j < n; j += 2) {
            uint32_t b[4];
            load_blocks(b, keys + j * 8 * stride + k);
            Type::step(scores[j], a, b[0], b[1]);
            Type::step(scores[j + 1], a, b[2], b[3]);
        }
    }
}

/// Scales products to scores in powers of two, -inf for keys that a row does not see, and takes the largest of each row
/// into `tops`. `first` is the position of the first key.
template <int n>
inline __device__ void mask_scores(float (&scores)[n][4], float (&tops)[2], const uint32_t (&ends)[2], uint32_t first,
                                   float scale_log2) {
    const uint32_t own = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < n * 4; ++i) {
        const int r = i % 4 / 2;
        float& score = scores[i / 4][i % 4];
        score = own + i / 4 * 8 + i % 2 < ends[r] ? multiply(score, scale_log2) : -INFINITY;
        tops[r] = fmaxf(tops[r], score);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) tops[r] = max_lanes<4>(tops[r]);
}

/// What sums under the largest score `old` are multiplied by when it becomes `top`.
inline __device__ float rescaling(float old, float top) { return old == top ? 1.0f : power_of_two(old - top); }

/// The weight of a score; zero as long as a row has seen nothing.
inline __device__ float weight_of(float score, float top) {
    return top == -INFINITY ? 0.0f : power_of_two(score - top);
}

/// Sums of the weights of each row, as they are rounded: in the order of the keys of a lane, then of the lanes.
template <class Type>
inline __device__ void sum_weights(float (&sums)[2], const uint32_t (&weights)[kTileKeys / 16][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        sums[r] = 0.0f;
#pragma unroll
        for (int t = 0; t < kTileKeys / 16; ++t) {
#pragma unroll
            for (int i = r; i < 4; i += 2) {
                sums[r] += Type::widen(uint16_t(weights[t][i] & 0xffffu)) + Type::widen(uint16_t(weights[t][i] >> 16));
            }
        }
        sums[r] = sum_lanes<4>(sums[r]);
    }
}

/// Adds weighted values of features `16 block..16 block + 16`.
template <class Type, int D>
inline __device__ void add_values(float (&low)[4], float (&high)[4], const uint32_t (&weights)[kTileKeys / 16][4],
                                  const uint16_t* values, int block) {
#pragma unroll
    for (int t = 0; t < kTileKeys / 16; ++t) {
        uint32_t b[4];
        load_columns(b, values + t * 16 * stride_of(D) + block * 16, stride_of(D));
        Type::step(low, weights[t], b[0], b[1]);
        Type::step(high, weights[t], b[2], b[3]);
    }
}

/// Whether the tile of keys that starts at `first` holds positions that one row of the tile sees and another does not.
inline __device__ bool ends_differ(const DeviceTile& tile, uint32_t first) {
    return tile.shortest_end < min(first + kTileKeys, tile.longest_end);
}

/// Whether this thread's part of a tile of values holds one that is not finite.
template <class Type, int D>
inline __device__ bool has_bad_values(const uint16_t* values) {
    bool found = false;
    for (int chunk = threadIdx.x; chunk < kTileKeys * (D / 8); chunk += kThreads) {
        const uint16_t* at = values + chunk / (D / 8) * stride_of(D) + chunk % (D / 8) * 8;
        const uint4 eight = *reinterpret_cast<const uint4*>(at);
        for (const uint32_t pair : {eight.x, eight.y, eight.z, eight.w}) {
            found = found || !is_finite_bits<Type>(pair) || !is_finite_bits<Type>(pair >> 16);
        }
    }
    return found;
}

/// Values that are not finite, in a tile that some row does not see to its end: a weight of zero does not keep them out of a
/// sum. Sums of rows that see one become NaN here. `block` is as in `add_values`.
template <class Type, int D>
inline __device__ void poison(float (&low)[4], float (&high)[4], const uint16_t* values, int block,
                              const uint32_t (&ends)[2], uint32_t first) {
    const int column = block * 16 + threadIdx.x % 4 * 2;
    for (int key = 0; key < kTileKeys; ++key) {
        const uint16_t* at = values + key * stride_of(D) + column;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (first + key >= ends[i / 2]) continue;
            if (!is_finite_bits<Type>(at[i % 2])) low[i] = NAN;
            if (!is_finite_bits<Type>(at[8 + i % 2])) high[i] = NAN;
        }
    }
}

/// The second half: zeros in their place, once all threads have looked.
template <class Type, int D>
inline __device__ void clear_bad_values(uint16_t* values) {
    __syncthreads();
    for (int chunk = threadIdx.x; chunk < kTileKeys * (D / 8); chunk += kThreads) {
        uint16_t* at = values + chunk / (D / 8) * stride_of(D) + chunk % (D / 8) * 8;
        for (int i = 0; i < 8; ++i) {
            if (!is_finite_bits<Type>(at[i])) at[i] = 0;
        }
    }
    __syncthreads();
}

/// How the sums of the splits so far, under `top`, and those of the next split are merged.
struct Merge {
    float top, before, next;

    __device__ Merge(float old, float split) {
        top = fmaxf(old, split);
        // A split that the row does not see.
        const bool seen = split != -INFINITY;
        before = seen ? rescaling(old, top) : 1.0f;
        next = seen ? rescaling(split, top) : 0.0f;
    }

    __device__ float operator()(float sum, float split) const { return fmaf(sum, before, multiply(split, next)); }
};

/// A value of the output. What is not finite is NaN, however it came about, and zero has no sign.
inline __device__ float finish(float sum, float inverse) {
    const float value = multiply(sum, inverse) + 0.0f;
    return is_finite(value) ? value : NAN;
}
