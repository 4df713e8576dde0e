// What the kernels need of the machine beyond plain CUDA C++: fp16 pairs, the matrix step, transposed loads.
//
// Every function has a host version, so that the same kernels run on a CPU in the tests. The host side comes from
// `shim.hpp` of the device tests, which is included before this file there.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLanes = 32;

/// The dynamic shared memory of the block, aligned to 16 bytes.
inline __device__ unsigned char* shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
#else
    return shim::shared_memory();
#endif
}

/// `value` rounded to fp16, to the nearest, ties to even.
inline __device__ uint16_t to_half(float value) {
#ifdef __CUDACC__
    return __half_as_ushort(__float2half_rn(value));
#else
    return shim::to_half(value);
#endif
}

inline __device__ float from_half(uint16_t bits) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    return shim::from_half(bits);
#endif
}

/// Two values rounded to fp16, the first in the low bits.
inline __device__ uint32_t pack_half(float low, float high) {
    return uint32_t(to_half(low)) | uint32_t(to_half(high)) << 16;
}

inline __device__ float low_half(uint32_t pair) { return from_half(uint16_t(pair & 0xffffu)); }
inline __device__ float high_half(uint32_t pair) { return from_half(uint16_t(pair >> 16)); }

/// Differences of two pairs of fp16, rounded to fp16.
inline __device__ uint32_t subtract_halves(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
    uint32_t to;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(to) : "r"(a), "r"(b));
    return to;
#else
    return pack_half(low_half(a) - low_half(b), high_half(a) - high_half(b));
#endif
}

/// `a * b + c` of pairs of fp16, for results that fp16 holds: others the host rounds twice, a device once.
inline __device__ uint32_t multiply_add_halves(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    uint32_t to;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(to) : "r"(a), "r"(b), "r"(c));
    return to;
#else
    return pack_half(low_half(a) * low_half(b) + low_half(c), high_half(a) * high_half(b) + high_half(c));
#endif
}

/// `value` rounded to bf16, to the nearest, ties to even; NaN stays NaN.
inline __device__ uint16_t to_bfloat(float value) {
#ifdef __CUDACC__
    const uint32_t bits = __float_as_uint(value);
#else
    const uint32_t bits = shim::bits(value);
#endif
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline __device__ float from_bfloat(uint16_t bits) {
#ifdef __CUDACC__
    return __uint_as_float(uint32_t(bits) << 16);
#else
    return shim::from_bits(uint32_t(bits) << 16);
#endif
}

/// `C += A B` for `A` 16 x 16 and `B` 16 x 8 in fp16, `C` in f32; all lanes of a warp take part. With `group` the lane
/// over 4 and `quad` the lane modulo 4, a lane holds
///
///   c[0..2]  row group,      columns 2 quad, 2 quad + 1        c[2..4]  the same columns of row group + 8
///   a[0]     row group,      columns 2 quad, 2 quad + 1        a[1]     row group + 8
///   a[2]     row group,      columns 2 quad + 8, 2 quad + 9    a[3]     row group + 8
///   b[0]     column group,   rows 2 quad, 2 quad + 1           b[1]     rows 2 quad + 8, 2 quad + 9
inline __device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // Turing multiplies half as deep; the halves of the fragments are its fragments.
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
#else
    shim::multiply_add(c, a, b0, b1);
#endif
}

/// The same for operands in bf16. Turing has no such step: there it traps, and the host refuses bf16 before it launches.
inline __device__ void multiply_add_bfloat(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("trap;");
#endif
#else
    shim::multiply_add_bfloat(c, a, b0, b1);
#endif
}

/// Four 8 x 8 blocks of 16-bit values in shared memory, transposed to nothing: lane `i` names row `i % 8` of block
/// `i / 8`, aligned to 16 bytes. A lane gets columns 2 quad, 2 quad + 1 of row `group` of block `j` in to[j]. All lanes of
/// a warp take part.
inline __device__ void load_blocks(uint32_t (&to)[4], const uint16_t* row) {
#ifdef __CUDACC__
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#else
    shim::load_blocks(to, row);
#endif
}

/// Starts a copy of 16 bytes, aligned, from global to shared memory; of zeros unless `wanted`, without reading. Before
/// sm_80 the copy is made at once.
inline __device__ void copy_async(void* shared, const void* global, bool wanted) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(wanted ? 16 : 0) : "memory");
#elif defined(__CUDACC__)
    *static_cast<uint4*>(shared) = wanted ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#else
    shim::copy_async(shared, global, wanted);
#endif
}

/// Ends a group of copies of this thread.
inline __device__ void commit_copies() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
    shim::commit_copies();
#endif
}

/// Waits until all but the last `pending` groups of this thread have arrived. Other threads see them after a barrier.
template <int pending>
inline __device__ void wait_copies() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#elif !defined(__CUDACC__)
    shim::wait_copies(pending);
#endif
}

/// 16 bytes, aligned, of weights: read once, so they should not push anything else out of the caches.
inline __device__ uint4 load_streamed(const void* from) {
#ifdef __CUDACC__
    uint4 to;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "l"(from));
    return to;
#else
    return *static_cast<const uint4*>(from);
#endif
}

/// Columns of a 16 x 16 block of fp16 in shared memory, rows `stride` apart and aligned to 16 bytes; all lanes of a warp
/// take part. A lane gets column `group` of rows 2 quad, 2 quad + 1 in to[0], of rows 2 quad + 8, 2 quad + 9 in to[1],
/// and column `group + 8` of the same rows in to[2] and to[3]: the `B` fragments of two matrix steps, or, with to[1] and
/// to[2] exchanged, the `A` fragment of the transposed block.
inline __device__ void load_columns(uint32_t (&to)[4], const uint16_t* block, int stride) {
    const int lane = threadIdx.x % kLanes;
#ifdef __CUDACC__
    const uint32_t row = uint32_t(__cvta_generic_to_shared(block + (lane % 16) * stride + lane / 16 * 8));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
#else
    const int group = lane / 4, quad = lane % 4;
    for (int i = 0; i < 4; ++i) {
        const uint16_t* from = block + (2 * quad + i % 2 * 8) * stride + group + i / 2 * 8;
        to[i] = uint32_t(from[0]) | uint32_t(from[stride]) << 16;
    }
#endif
}

/// Two to the power of `x`, with an error of some 2^-22; exactly 1 at zero, 0 at minus infinity and where the result is
/// subnormal.
inline __device__ float power_of_two(float x) {
#ifdef __CUDACC__
    float to;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(to) : "f"(x));
    return to;
#else
    const float to = exp2f(x);
    return to < 1.17549435e-38f ? 0.0f : to;
#endif
}

/// A product that the compiler does not fuse with what follows, where two kernels must agree on every bit.
inline __device__ float multiply(float a, float b) {
#ifdef __CUDACC__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

/// Sum over lanes that differ in the bits of `width - 1`, a power of two; the same bits in each of them.
template <int width>
inline __device__ float sum_lanes(float value) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

/// Largest over lanes that differ in the bits of `width - 1`; NaN is passed over.
template <int width>
inline __device__ float max_lanes(float value) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
    return value;
}

/// The product, rounded, and not made part of a sum that rounds once.
inline __device__ float rounded_product(float a, float b) {
#ifdef __CUDACC__
    return __fmul_rn(a, b);
#else
    return shim::rounded_product(a, b);
#endif
}

/// The natural logarithm, off by 2^-21.4 at most between a half and two, and by three units in the last place elsewhere.
inline __device__ float fast_log(float value) {
#ifdef __CUDACC__
    return __logf(value);
#else
    return logf(value);
#endif
}
