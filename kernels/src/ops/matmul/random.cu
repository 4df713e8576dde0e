// Random weights, made where they are used. Each 16 bytes of a plane come from a hash of where they stand, so that the
// result does not depend on the grid; `reference.rs` has the same numbers. Grid: any; threads stride over the planes.

#include "params.cuh"
#include "weight.cuh"

constexpr uint32_t kRandomThreads = 256;

/// Bits of `hash`, which differ in half of them from those of any other counter or seed.
inline __device__ uint64_t mix(uint64_t counter, uint32_t seed) {
    uint64_t x = counter * 0x9e3779b97f4a7c15ull + uint64_t(seed) * 0xd1342543de82ef95ull + 0x2545f4914f6cdd1dull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/// Nearly normal, with a standard deviation of 1: the sum of four uniform numbers of 16 bits.
inline __device__ float normal(uint64_t bits) {
    const uint32_t sum = uint32_t(bits & 0xffff) + uint32_t(bits >> 16 & 0xffff) + uint32_t(bits >> 32 & 0xffff) +
                         uint32_t(bits >> 48);
    // A uniform number of 16 bits has a deviation of 2^16 / sqrt(12), the sum of four twice that.
    return float(int32_t(sum) - 131070) * 2.6429e-5f;
}

/// Between a half and one and a half.
inline __device__ float about_one(uint64_t bits) { return 0.5f + float(bits & 0xffff) * (1.0f / 65536.0f); }

/// The number of the first counter of the scales: no plane of codes is as long.
constexpr uint64_t kScaleCounters = 1ull << 48;

template <bool is_bfloat>
inline __device__ void random_dense(const RandomParams& params) {
    const uint64_t num_tiles = (params.out_features + kTileOutputs - 1) / kTileOutputs;
    const uint64_t num_pieces = num_tiles * kTileOutputs * (params.padded_in / 8);
    const uint32_t num_slabs = params.padded_in / kChunk;
    for (uint64_t at = uint64_t(blockIdx.x) * kRandomThreads + threadIdx.x; at < num_pieces;
         at += uint64_t(gridDim.x) * kRandomThreads) {
        const uint32_t slab = uint32_t(at / (4 * kTileOutputs) % num_slabs);
        const uint32_t first = slab * kChunk + uint32_t(at % 4) * 8;
        uint32_t pairs[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            uint32_t pair = 0;
#pragma unroll
            for (uint32_t j = 0; j < 2; ++j) {
                const float value = normal(mix(at * 8 + 2 * i + j, params.seed)) * params.spread;
                const uint32_t bits = is_bfloat ? to_bfloat(value) : to_half(value);
                if (first + 2 * i + j < params.in_features) pair |= bits << (16 * j);
            }
            pairs[i] = pair;
        }
        static_cast<uint4*>(params.codes)[at] = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
}

template <class Format>
inline __device__ void random_coded(const RandomParams& params) {
    const uint64_t num_tiles = (params.out_features + kTileOutputs - 1) / kTileOutputs;
    constexpr uint32_t slab_k = Format::kSlabChunks * kChunk;
    const uint64_t num_pieces = num_tiles * (params.padded_in / slab_k) * (kSlabBytes / 16);
    constexpr uint32_t record_k = kStageChunks<Format> * Format::kRecordStages * kChunk;
    const uint64_t num_records = num_tiles * (params.padded_in / record_k) * kTileOutputs;
    const uint64_t stride = uint64_t(gridDim.x) * kRandomThreads;
    for (uint64_t at = uint64_t(blockIdx.x) * kRandomThreads + threadIdx.x; at < num_pieces; at += stride) {
        const uint64_t low = mix(2 * at, params.seed), high = mix(2 * at + 1, params.seed);
        uint4 piece = {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
        // Only the second chunk of the last slab of Q8_0 can be past the end.
        if (slab_k > kChunk && (at / (kSlabBytes / 16) % (params.padded_in / slab_k) + 1) * slab_k > params.in_features) {
            piece.z = piece.w = 0;
        }
        static_cast<uint4*>(params.codes)[at] = piece;
    }
    for (uint64_t at = uint64_t(blockIdx.x) * kRandomThreads + threadIdx.x; at < num_records; at += stride) {
        const uint64_t low = mix(kScaleCounters + 2 * at, params.seed);
        const uint64_t high = mix(kScaleCounters + 2 * at + 1, params.seed);
        if constexpr (Format::kHasMinima) {
            // Factors and minima have a mean of 31.5, codes one of 7.5: values are around zero.
            const float scale = params.spread * about_one(low);
            static_cast<uint4*>(params.scales)[at] = {pack_half(scale, 7.5f * scale), uint32_t(low >> 32), uint32_t(high),
                                                      uint32_t(high >> 32)};
        } else {
            static_cast<uint32_t*>(params.scales)[at] =
                pack_half(params.spread * about_one(low), params.spread * about_one(high));
        }
    }
}

#define RANDOM(name, call)                                                                   \
    extern "C" __global__ void __launch_bounds__(kRandomThreads) name(RandomParams params) { \
        call(params);                                                                        \
    }

RANDOM(random_f16, random_dense<false>)
RANDOM(random_bf16, random_dense<true>)
RANDOM(random_q8_0, random_coded<Q8_0>)
RANDOM(random_q4_k, random_coded<Q4_K>)
