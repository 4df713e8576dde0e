// Enough of CUDA C++ to compile and run our kernels on a CPU. Included before every kernel source.
//
// A thread block runs cooperatively on one thread of the host: every CUDA thread is a fiber that runs until it waits for
// others. What would hang or be undefined on a device is an error here: threads that leave while others wait for them,
// lanes that meet in different collectives, writes past the shared memory that the launch asked for. Shared memory
// starts as NaN, and the order in which threads run can be turned round, so that what depends on either shows.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace shim {

/// What lanes do together.
enum class Collective { Wait, Shuffle, ShuffleXor, Ballot, MultiplyAdd, MultiplyAddBfloat, LoadBlocks };

/// Where the running thread stands.
struct Place {
    uint3 thread, block, block_dim, grid_dim;
};

// Not `thread_local`, whose every use from another file calls a function.
extern __thread Place running;
extern __thread unsigned char* shared;

inline unsigned char* shared_memory() { return shared; }
/// Waits for all threads of the block; returns whether `value` holds for any.
bool barrier(bool is_vote, bool value);
/// Meets the lanes of `mask` with `words` of data, and leaves with what the collective gives this lane in the same place.
void meet(Collective kind, unsigned mask, uint32_t* data, int words);

/// Copies 16 bytes, or zeros, to shared memory: at once if threads run forward, as late as is allowed if not. A device may
/// do either.
void copy_async(void* shared, const void* global, bool wanted);
void commit_copies();
void wait_copies(int pending);

inline uint32_t bits(float value) {
    uint32_t to;
    std::memcpy(&to, &value, 4);
    return to;
}

inline float from_bits(uint32_t value) {
    float to;
    std::memcpy(&to, &value, 4);
    return to;
}

uint16_t to_half(float value);
float from_half(uint16_t bits);

/// The data of a lane: c, a, b.
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t data[10];
    for (int i = 0; i < 4; ++i) data[i] = bits(c[i]), data[4 + i] = a[i];
    data[8] = b0, data[9] = b1;
    meet(Collective::MultiplyAdd, 0xffffffffu, data, 10);
    for (int i = 0; i < 4; ++i) c[i] = from_bits(data[i]);
}

/// The same in bf16.
inline void multiply_add_bfloat(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t data[10];
    for (int i = 0; i < 4; ++i) data[i] = bits(c[i]), data[4 + i] = a[i];
    data[8] = b0, data[9] = b1;
    meet(Collective::MultiplyAddBfloat, 0xffffffffu, data, 10);
    for (int i = 0; i < 4; ++i) c[i] = from_bits(data[i]);
}

/// Data: where the row of the lane starts; then four registers.
inline void load_blocks(uint32_t (&to)[4], const uint16_t* row) {
    const uint64_t address = reinterpret_cast<uint64_t>(row);
    uint32_t data[4] = {uint32_t(address), uint32_t(address >> 32), 0, 0};
    meet(Collective::LoadBlocks, 0xffffffffu, data, 4);
    for (int i = 0; i < 4; ++i) to[i] = data[i];
}

/// A shuffle of anything made of words.
template <class T>
inline T shuffle(Collective kind, unsigned mask, T value, uint32_t lane) {
    static_assert(sizeof(T) % 4 == 0, "words");
    uint32_t words[sizeof(T) / 4];
    std::memcpy(words, &value, sizeof(T));
    for (uint32_t& word : words) {
        uint32_t data[2] = {word, lane};
        meet(kind, mask, data, 2);
        word = data[0];
    }
    std::memcpy(&value, words, sizeof(T));
    return value;
}

}  // namespace shim

#define threadIdx (shim::running.thread)
#define blockIdx (shim::running.block)
#define blockDim (shim::running.block_dim)
#define gridDim (shim::running.grid_dim)

inline void __syncthreads() { shim::barrier(false, false); }
inline int __syncthreads_or(int value) { return shim::barrier(true, value != 0); }

inline void __syncwarp() {
    uint32_t nothing = 0;
    shim::meet(shim::Collective::Wait, 0xffffffffu, &nothing, 1);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return shim::shuffle(shim::Collective::Shuffle, mask, value, uint32_t(lane) % 32);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
    return shim::shuffle(shim::Collective::ShuffleXor, mask, value, uint32_t(flip));
}

/// The lanes of `mask` for which `holds`.
inline unsigned __ballot_sync(unsigned mask, int holds) {
    uint32_t data[2] = {holds != 0 ? 1u : 0u, 0};
    shim::meet(shim::Collective::Ballot, mask, data, 2);
    return data[0];
}

/// Blocks of one launch run one after the other and threads of a block do not overlap, so plain operations are atomic.
template <class T>
T atomicAdd(T* to, T value) {
    const T old = *to;
    *to = old + value;
    return old;
}

template <class T>
T atomicMax(T* to, T value) {
    const T old = *to;
    if (value > old) *to = value;
    return old;
}

/// For the order of writes between blocks, which run one after the other.
inline void __threadfence() {}

/// Byte `i` of the result is byte `selector >> 4 i & 7` of `low` and `high`, read as one number of eight bytes.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t to = 0;
    for (int i = 0; i < 4; ++i) to |= uint32_t(bytes >> (selector >> (4 * i) & 7u) * 8 & 0xffu) << (8 * i);
    return to;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll((unsigned long long)(value)); }
inline unsigned __float_as_uint(float value) { return shim::bits(value); }
inline float __uint_as_float(unsigned value) { return shim::from_bits(value); }
inline int __float_as_int(float value) { return int(shim::bits(value)); }
inline float __int_as_float(int value) { return shim::from_bits(uint32_t(value)); }

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
