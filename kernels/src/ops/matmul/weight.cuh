// How weights lie in device memory, and what their bytes mean.
//
// Outputs come in tiles of 128 and k in slabs; a slab is 128 outputs of 64 bytes, one after the other, and the slabs of a
// tile follow each other along k. So a block that walks along k reads memory from one end to the other, and a slab is
// copied to shared memory as it is. A slab holds 32 k of a dense weight, 64 of Q8_0 and 128 of Q4_K: one, two or four
// chunks of 32 k.
//
// Of the 64 bytes of an output, bytes 16 q .. 16 q + 16 hold k 8 q .. 8 q + 8 of every chunk, for q = 0..4. They are what
// the lanes with `quad` q need: one load of 16 bytes, and the 32 lanes of a warp that load 8 outputs read 512 bytes in a
// row, which no bank of shared memory sees twice.
//
// A chunk is two matrix steps of 16 k. Lane `quad` gives k 8 q .. 8 q + 4 of the chunk to the first and the other four to
// the second: the order of k within a step is free as long as both operands have the same.
//
// Scales lie in a plane of their own, one record an output, 128 records together for each 64 k (Q8_0) or 256 k (Q4_K):
//   Q8_0  f16 scale of chunk 0, of chunk 1                                                       4 bytes
//   Q4_K  f16 scale, f16 scale of the minima; then for the 8 groups of 32 k, group g at bit 4 g: the low four bits of the
//         factors, the low four bits of the minima; at bit 2 g: the high two bits of the factors, and of the minima 16
//         bits further up                                                                        16 bytes
#pragma once

#include "../../cuh/element.cuh"

/// k that lie together in each format; groups of the quantised formats are chunks.
constexpr int kChunk = 32;
constexpr int kTileOutputs = 128;
/// Bytes of an output in a slab.
constexpr int kSlabRow = 64;
constexpr int kSlabBytes = kTileOutputs * kSlabRow;

/// `scale * code - minimum` is the value of a code.
struct Factor {
    float scale, minimum;
};

/// 16-bit floats.
template <bool is_bfloat>
struct Dense {
    static constexpr bool kCoded = false, kHasMinima = false;
    static constexpr int kSlabChunks = 1, kStageSlabs = 2;
    /// Bytes of a record of scales, and stages that it serves.
    static constexpr int kRecord = 0, kRecordStages = 1;
    struct Record {};

    /// The eight values of a lane in a chunk as four pairs.
    static inline __device__ void decode(uint32_t (&pairs)[4], const uint4& piece, int) {
        pairs[0] = piece.x, pairs[1] = piece.y, pairs[2] = piece.z, pairs[3] = piece.w;
    }
    static inline __device__ Record load_record(const void*) { return {}; }
    static inline __device__ Factor factor(const Record&, int) { return {1.0f, 0.0f}; }
    static inline __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        if constexpr (is_bfloat) {
            multiply_add_bfloat(c, a, b0, b1);
        } else {
            multiply_add(c, a, b0, b1);
        }
    }
    static inline __device__ float low(uint32_t pair) {
        return is_bfloat ? from_bfloat(uint16_t(pair & 0xffffu)) : low_half(pair);
    }
    static inline __device__ float high(uint32_t pair) {
        return is_bfloat ? from_bfloat(uint16_t(pair >> 16)) : high_half(pair);
    }
};

/// What the quantised formats have in common: codes become whole numbers in fp16.
struct Coded {
    static constexpr bool kCoded = true;
    static inline __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        multiply_add(c, a, b0, b1);
    }
    static inline __device__ float low(uint32_t pair) { return low_half(pair); }
    static inline __device__ float high(uint32_t pair) { return high_half(pair); }
};

struct Q8_0 : Coded {
    static constexpr bool kHasMinima = false;
    static constexpr int kSlabChunks = 2, kStageSlabs = 1;
    static constexpr int kRecord = 4, kRecordStages = 1;
    using Record = uint32_t;

    /// fp16 with the exponent of 1024 has steps of one: a code plus 128 goes below it as it is.
    static inline __device__ void decode(uint32_t (&pairs)[4], const uint4& piece, int chunk) {
        const uint32_t words[2] = {(chunk == 0 ? piece.x : piece.z) ^ 0x80808080u,
                                   (chunk == 0 ? piece.y : piece.w) ^ 0x80808080u};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t spread = __byte_perm(words[i / 2], 0x64646464u, i % 2 == 0 ? 0x4140 : 0x4342);
            pairs[i] = subtract_halves(spread, 0x64806480u);
        }
    }
    static inline __device__ Record load_record(const void* from) { return *static_cast<const uint32_t*>(from); }
    static inline __device__ Factor factor(const Record& record, int group) {
        return {group % 2 == 0 ? low_half(record) : high_half(record), 0.0f};
    }
};

struct Q4_K : Coded {
    static constexpr bool kHasMinima = true;
    static constexpr int kSlabChunks = 4, kStageSlabs = 1;
    static constexpr int kRecord = 16, kRecordStages = 2;
    using Record = uint4;

    /// Pair `i` of a chunk lies at bits 4 i and 4 i + 16. Odd pairs are not shifted but 16 times too large at first.
    static inline __device__ void decode(uint32_t (&pairs)[4], const uint4& piece, int chunk) {
        const uint32_t word = chunk == 0 ? piece.x : chunk == 1 ? piece.y : chunk == 2 ? piece.z : piece.w;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const uint32_t two = word >> (4 * i);
            pairs[i] = subtract_halves((two & 0x000f000fu) | 0x64006400u, 0x64006400u);
            // (1024 + 16 code) / 16 - 64.
            pairs[i + 1] = multiply_add_halves((two & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd400d400u);
        }
    }
    static inline __device__ Record load_record(const void* from) { return *static_cast<const uint4*>(from); }
    static inline __device__ Factor factor(const Record& record, int group) {
        const uint32_t scale = (record.y >> (4 * group) & 15u) | (record.w >> (2 * group) & 3u) << 4;
        const uint32_t minimum = (record.z >> (4 * group) & 15u) | (record.w >> (2 * group + 16) & 3u) << 4;
        // 11 bits times 6: both products are exact.
        return {low_half(record.x) * float(scale), high_half(record.x) * float(minimum)};
    }
};

/// Chunks of a stage, the step along k of the kernels.
template <class Format>
constexpr int kStageChunks = Format::kSlabChunks * Format::kStageSlabs;

/// Where the 16 bytes are that hold k `8 eighth .. 8 eighth + 8` of an output.
template <class Format>
inline __device__ uint64_t piece_offset(uint32_t output, uint32_t eighth, uint32_t padded_in) {
    const uint32_t num_slabs = padded_in / (Format::kSlabChunks * kChunk), slab = eighth / 4 / Format::kSlabChunks;
    const uint64_t row = (uint64_t(output / kTileOutputs) * num_slabs + slab) * kTileOutputs + output % kTileOutputs;
    return row * kSlabRow + eighth % 4 * 16;
}

/// Where the record is that holds the scales of chunk `chunk` of an output, for a format that has records.
template <class Format>
inline __device__ uint64_t record_offset(uint32_t output, uint32_t chunk, uint32_t padded_in) {
    constexpr uint32_t record_chunks = kStageChunks<Format> * Format::kRecordStages;
    const uint32_t num_records = padded_in / kChunk / record_chunks;
    const uint64_t record = uint64_t(output / kTileOutputs) * num_records + chunk / record_chunks;
    return (record * kTileOutputs + output % kTileOutputs) * Format::kRecord;
}
