// The two arithmetics of the kernels over a tile of keys or values in shared memory.
//
// `Half` multiplies fp16 on the matrix units and sums in f32. Left operands are split in a high and a low part where
// one is not enough. bf16 becomes fp16 on the way into shared memory, which is exact for magnitudes from 2^-14 to 65504
// and keeps three more bits of everything that is rounded than bf16 would.
//
// `Full` multiplies f32 on the ordinary units, in the same layout of values over lanes. It serves f32 tensors, and those
// of 16 bits that fp16 cannot hold.
#pragma once

#include "params.cuh"

/// Squared norm of a residual, of a right side of norm one, below which no query takes another step: smaller squares
/// underflow, and a step, a ratio of them, could have any size.
constexpr float kLeastSquares = 1e-31f;

/// Keys are at most this large for `Half`: the products that it rounds to fp16, of a key from the mean with a vector of
/// unit norm, reach `2 sqrt(128)` times as much, and that is still finite. Values are only operands.
constexpr float kLargestHalfKey = 2048.0f;
constexpr float kLargestHalf = 65504.0f;
/// If no key or no value of bf16 reaches this, their smallest bits would be lost.
constexpr float kSmallestHalf = 1.0f / 256.0f;

/// Whether fp16 holds numbers of which the largest is `peak`.
inline __device__ bool fits_half(float peak, float limit, uint32_t type) {
    return peak <= limit && (type != kBF16 || peak == 0.0f || peak >= kSmallestHalf);
}

struct Half {
    using Cell = uint16_t;
    static constexpr bool kChecksRange = true;
    /// Keys of a tile that one warp takes.
    static constexpr int kWarpKeys = 16;
    /// Cells from one row of a tile to the next, for `dim` columns: rows start four banks apart.
    static constexpr __host__ __device__ int stride(int dim) { return dim + 8; }

    static inline __device__ float value(Cell cell) { return from_half(cell); }

    static inline __device__ void store_eight(Cell* to, const float (&values)[8]) {
        const uint4 packed = {pack_half(values[0], values[1]), pack_half(values[2], values[3]),
                              pack_half(values[4], values[5]), pack_half(values[6], values[7])};
        *reinterpret_cast<uint4*>(to) = packed;
    }

    /// Part of `<query, row>` that falls to lane `quad` of four.
    template <int D>
    static inline __device__ float partial_dot(const float* query, const Cell* row, int quad) {
        float sum = 0.0f;
#pragma unroll 4
        for (int d = 2 * quad; d < D; d += 8) {
            const uint32_t pair = *reinterpret_cast<const uint32_t*>(row + d);
            sum += query[d] * low_half(pair);
            sum += query[d + 1] * high_half(pair);
        }
        return sum;
    }

    /// `scores += left keys^T` for 16 rows of `left` and the keys of a warp.
    template <int D>
    static inline __device__ void project(float (&scores)[kWarpKeys / 8][4], const Cell* left, const Cell* keys) {
        const int lane = threadIdx.x % kLanes, group = lane / 4, quad = lane % 4;
        const Cell* top = left + group * stride(D) + 2 * quad;
        const Cell* bottom = top + 8 * stride(D);
        const Cell* key = keys + group * stride(D) + 2 * quad;
#pragma unroll
        for (int d = 0; d < D; d += 16) {
            const uint32_t a[4] = {pair(top + d), pair(bottom + d), pair(top + d + 8), pair(bottom + d + 8)};
#pragma unroll
            for (int n = 0; n < kWarpKeys / 8; ++n) {
                const Cell* b = key + n * 8 * stride(D) + d;
                multiply_add(scores[n], a, pair(b), pair(b + 8));
            }
        }
    }

    /// `sums += factors rows` for 16 rows of factors and the rows of `right` that belong to a warp; `totals` grows by the
    /// sums of the factors as they were rounded, of the lane's two rows and own columns.
    template <int D>
    static inline __device__ void gather(float (&sums)[D / 8][4], float (&totals)[2],
                                         const float (&factors)[kWarpKeys / 8][4], const Cell* right, bool split) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float first = factors[i / 2][i % 2 * 2], second = factors[i / 2][i % 2 * 2 + 1];
            high[i] = pack_half(first, second);
            low[i] = split ? pack_half(first - low_half(high[i]), second - high_half(high[i])) : 0;
            totals[i % 2] += low_half(high[i]) + low_half(low[i]);
            totals[i % 2] += high_half(high[i]) + high_half(low[i]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
            uint32_t b[4];
            load_columns(b, right + n * 16, stride(D));
            multiply_add(sums[2 * n], high, b[0], b[1]);
            multiply_add(sums[2 * n + 1], high, b[2], b[3]);
            if (split) {
                multiply_add(sums[2 * n], low, b[0], b[1]);
                multiply_add(sums[2 * n + 1], low, b[2], b[3]);
            }
        }
    }

    static inline __device__ uint32_t pair(const Cell* cells) { return *reinterpret_cast<const uint32_t*>(cells); }
};

struct Full {
    using Cell = float;
    static constexpr bool kChecksRange = false;
    static constexpr int kWarpKeys = 8;
    static constexpr __host__ __device__ int stride(int dim) { return dim + 4; }

    static inline __device__ float value(Cell cell) { return cell; }

    static inline __device__ void store_eight(Cell* to, const float (&values)[8]) {
        reinterpret_cast<float4*>(to)[0] = float4{values[0], values[1], values[2], values[3]};
        reinterpret_cast<float4*>(to)[1] = float4{values[4], values[5], values[6], values[7]};
    }

    template <int D>
    static inline __device__ float partial_dot(const float* query, const Cell* row, int quad) {
        float sum = 0.0f;
#pragma unroll 4
        for (int d = quad; d < D; d += 4) sum += query[d] * row[d];
        return sum;
    }

    template <int D>
    static inline __device__ void project(float (&scores)[1][4], const Cell* left, const Cell* keys) {
        const int lane = threadIdx.x % kLanes, group = lane / 4, quad = lane % 4;
        const Cell *top = left + group * stride(D), *bottom = top + 8 * stride(D);
        const Cell *first = keys + 2 * quad * stride(D), *second = first + stride(D);
#pragma unroll 2
        for (int d = 0; d < D; d += 4) {
            const float4 a = *reinterpret_cast<const float4*>(top + d), b = *reinterpret_cast<const float4*>(bottom + d);
            const float4 x = *reinterpret_cast<const float4*>(first + d), y = *reinterpret_cast<const float4*>(second + d);
            scores[0][0] += a.x * x.x + a.y * x.y + a.z * x.z + a.w * x.w;
            scores[0][1] += a.x * y.x + a.y * y.y + a.z * y.z + a.w * y.w;
            scores[0][2] += b.x * x.x + b.y * x.y + b.z * x.z + b.w * x.w;
            scores[0][3] += b.x * y.x + b.y * y.y + b.z * y.z + b.w * y.w;
        }
    }

    template <int D>
    static inline __device__ void gather(float (&sums)[D / 8][4], float (&totals)[2], const float (&factors)[1][4],
                                         const Cell* right, bool) {
        const int lane = threadIdx.x % kLanes, quad = lane % 4;
        totals[0] += factors[0][0] + factors[0][1];
        totals[1] += factors[0][2] + factors[0][3];
#pragma unroll
        for (int key = 0; key < kWarpKeys; ++key) {
            // The factor of this key lies in the lane of the same rows that holds its column.
            const int from = lane / 4 * 4 + key / 2;
            const float top = __shfl_sync(kAllLanes, factors[0][key % 2], from);
            const float bottom = __shfl_sync(kAllLanes, factors[0][key % 2 + 2], from);
            const Cell* row = right + key * stride(D) + 2 * quad;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const float2 value = *reinterpret_cast<const float2*>(row + n * 8);
                sums[n][0] += top * value.x, sums[n][1] += top * value.y;
                sums[n][2] += bottom * value.x, sums[n][3] += bottom * value.y;
            }
        }
    }
};

/// Loads `num_rows` rows of a cache, row `i` from `slots[i]` or zeros if that is negative. Numbers that are not finite
/// become zero, so that they cannot reach a row that does not see them, and set `poisoned[i]`. Returns the largest
/// magnitude that this thread saw.
template <class Math, int D>
inline __device__ float load_tile(typename Math::Cell* tile, uint8_t* poisoned, const void* cache, const int* slots,
                                  int num_rows, int dim, uint32_t type) {
    float peak = 0.0f;
    for (int i = threadIdx.x; i < num_rows * (D / 8); i += blockDim.x) {
        const int row = i / (D / 8), column = i % (D / 8) * 8;
        float values[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        if (slots[row] >= 0) load_eight(values, cache, uint64_t(slots[row]), column, dim, type);
#pragma unroll
        for (float& value : values) {
            if (!is_finite(value)) {
                value = 0.0f;
                poisoned[row] = 1;
            }
            peak = fmaxf(peak, fabsf(value));
        }
        Math::store_eight(tile + row * Math::stride(D) + column, values);
    }
    return peak;
}
