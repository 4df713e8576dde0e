// Outputs of matrix products as they come: partial sums that their consumer adds.
#pragma once

#include "element.cuh"

/// `[num_splits, rows, width]` in f32; mirrored by `ops/partials.rs`.
struct PartialSums {
    const float* sums;
    /// [width], or null
    const float* bias;
    /// Values of a split: rows times width
    uint64_t split_stride;
    /// 0 where there are no partial sums, which count as zeros
    uint32_t num_splits;
    /// A multiple of 4
    uint32_t width;
};

static_assert(sizeof(PartialSums) == 32, "mirrored in partials.rs");

inline __device__ float4 add4(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

/// `start` plus columns `column..column + 4` of a row, in the order of the splits, then the bias. `column` is a multiple
/// of 4. The order depends on nothing but the number of splits, which is a property of the weight.
inline __device__ float4 add_partials(float4 start, const PartialSums& partials, uint32_t row, uint32_t column) {
    if (partials.num_splits == 0) return start;
    const float* from = partials.sums + uint64_t(row) * partials.width + column;
    float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll 4
    for (uint32_t split = 1; split < partials.num_splits; ++split) {
        sum = add4(sum, *reinterpret_cast<const float4*>(from + split * partials.split_stride));
    }
    if (partials.bias) sum = add4(sum, *reinterpret_cast<const float4*>(partials.bias + column));
    return add4(start, sum);
}

/// `value` as a 16-bit type holds it. What is beyond the range of the type becomes its largest number and stays finite;
/// NaN stays NaN.
inline __device__ uint16_t to_bits(float value, uint32_t type) {
    // The largest bf16.
    const float largest = type == kF16 ? 65504.0f : 3.3895313892515355e38f;
    if (value > largest) value = largest;
    if (value < -largest) value = -largest;
    return type == kF16 ? to_half(value) : to_bfloat(value);
}

/// Four values to an address that is aligned to 8 bytes.
inline __device__ void store_four(void* base, uint64_t index, uint32_t type, float4 value) {
    const uint32_t low = uint32_t(to_bits(value.x, type)) | uint32_t(to_bits(value.y, type)) << 16;
    const uint32_t high = uint32_t(to_bits(value.z, type)) | uint32_t(to_bits(value.w, type)) << 16;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(base) + index) = uint2{low, high};
}
