// Tensors in global memory whose element type is known at run time. Only loads and stores look at it, so that one
// instance of a kernel serves all types.
#pragma once

#include "intrinsics.cuh"

/// Element types; mirrored by `ElementType` in `device/array.rs`.
enum ElementType : uint32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kU32 = 3, kU8 = 4 };

constexpr float kLargestFloat = 3.402823466e38f;

/// False for infinities and NaN.
inline __device__ bool is_finite(float value) { return fabsf(value) <= kLargestFloat; }

inline __device__ float load_element(const void* base, uint64_t index, uint32_t type) {
    if (type == kF32) return static_cast<const float*>(base)[index];
    const uint16_t bits = static_cast<const uint16_t*>(base)[index];
    return type == kF16 ? from_half(bits) : from_bfloat(bits);
}

inline __device__ void store_element(void* base, uint64_t index, uint32_t type, float value) {
    if (type == kF32) {
        static_cast<float*>(base)[index] = value;
    } else {
        static_cast<uint16_t*>(base)[index] = type == kF16 ? to_half(value) : to_bfloat(value);
    }
}

/// Values `column..column + 8` of row `row` of a matrix of `dim` columns; zero past the last column. `base` is aligned to
/// 16 bytes and `column` is a multiple of 8.
inline __device__ void load_eight(float (&to)[8], const void* base, uint64_t row, int column, int dim, uint32_t type) {
    const uint64_t first = row * uint64_t(dim) + uint64_t(column);
    if (dim % 8 != 0 || column >= dim) {
#pragma unroll
        for (int i = 0; i < 8; ++i) to[i] = column + i < dim ? load_element(base, first + i, type) : 0.0f;
    } else if (type == kF32) {
        const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(base) + first);
        const float4 low = from[0], high = from[1];
        to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
        to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
    } else {
        const uint4 from = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + first);
        const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (type == kF16) {
                to[2 * i] = low_half(pairs[i]), to[2 * i + 1] = high_half(pairs[i]);
            } else {
                to[2 * i] = from_bfloat(uint16_t(pairs[i] & 0xffffu)), to[2 * i + 1] = from_bfloat(uint16_t(pairs[i] >> 16));
            }
        }
    }
}
