// The kernels of local linear attention, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/lla/decode.cu"
#include "../../src/ops/lla/prefill.cu"
#include "launch.hpp"

namespace {

struct Entry {
    const char* name;
    shim::Kernel kernel;
    unsigned block_dim;
    size_t shared_bytes;
};

template <void (*kernel)(LlaParams)>
void call(const void* params) {
    kernel(*static_cast<const LlaParams*>(params));
}

#define SIZES(entry) entry(32), entry(64), entry(96), entry(128)
#define PREFILL_HALF(d) \
    {"lla_prefill_half_" #d, call<lla_prefill_half_##d>, PrefillLayout<Half, d>::kThreads, PrefillLayout<Half, d>::kBytes}
#define PREFILL_FULL(d) \
    {"lla_prefill_full_" #d, call<lla_prefill_full_##d>, PrefillLayout<Full, d>::kThreads, PrefillLayout<Full, d>::kBytes}
#define MOMENTS_HALF(d) \
    {"lla_moments_half_" #d, call<lla_moments_half_##d>, MomentsLayout<Half, d>::kThreads, MomentsLayout<Half, d>::kBytes}
#define MOMENTS_FULL(d) \
    {"lla_moments_full_" #d, call<lla_moments_full_##d>, MomentsLayout<Full, d>::kThreads, MomentsLayout<Full, d>::kBytes}
#define COMBINE_SIZE(d) \
    {"lla_combine_" #d, call<lla_combine_##d>, CombineLayout<d>::kThreads, CombineLayout<d>::kBytes}

const Entry kEntries[] = {
    SIZES(PREFILL_HALF),
    SIZES(PREFILL_FULL),
    SIZES(MOMENTS_HALF),
    SIZES(MOMENTS_FULL),
    SIZES(COMBINE_SIZE),
    {"lla_output", call<lla_output>, kOutputThreads, kOutputBytes},
    {"lla_merge", call<lla_merge>, kMergeThreads, 0},
};

// Kernels that are wrong in one way each: the tests that the shim notices.

void leaves_before_the_barrier(const void*) {
    if (threadIdx.x == 3) return;
    __syncthreads();
}

void meets_different_barriers(const void*) {
    if (threadIdx.x == 3) {
        __syncthreads_or(1);
    } else {
        __syncthreads();
    }
}

void shuffles_without_a_lane(const void*) {
    if (threadIdx.x != 7) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    __syncthreads();
}

void writes_past_shared_memory(const void*) { shared_memory()[64] = 1; }

const Entry kWrong[] = {
    {"leaves_before_the_barrier", leaves_before_the_barrier, 32, 64},
    {"meets_different_barriers", meets_different_barriers, 32, 64},
    {"shuffles_without_a_lane", shuffles_without_a_lane, 32, 64},
    {"writes_past_shared_memory", writes_past_shared_memory, 32, 64},
};

const Entry* find(const char* name) {
    for (const Entry& entry : kEntries) {
        if (std::strcmp(entry.name, name) == 0) return &entry;
    }
    for (const Entry& entry : kWrong) {
        if (std::strcmp(entry.name, name) == 0) return &entry;
    }
    return nullptr;
}

}  // namespace

/// Runs a kernel; returns 0, or writes what went wrong to `message`, which has room for `room` bytes, and returns 1.
extern "C" int leapfrog_shim_launch(const char* name, const void* params, unsigned grid_x, unsigned grid_y,
                                    unsigned block_dim, size_t shared_bytes, unsigned order, char* message, size_t room) {
    const Entry* entry = find(name);
    std::string error = "no such kernel";
    if (entry && (entry->block_dim != block_dim || entry->shared_bytes != shared_bytes)) {
        error = "the kernel is made for " + std::to_string(entry->block_dim) + " threads and " +
                std::to_string(entry->shared_bytes) + " bytes, the launch has " + std::to_string(block_dim) + " and " +
                std::to_string(shared_bytes);
    } else if (entry) {
        error = shim::launch(entry->kernel, params, {grid_x, grid_y}, block_dim, shared_bytes, shim::Order(order));
    }
    if (error.empty()) return 0;
    error = std::string(name) + ": " + error;
    const size_t length = error.size() < room - 1 ? error.size() : room - 1;
    std::memcpy(message, error.data(), length);
    message[length] = 0;
    return 1;
}

extern "C" size_t leapfrog_shim_params_len() { return sizeof(LlaParams); }
extern "C" uint16_t leapfrog_shim_to_half(float value) { return shim::to_half(value); }
extern "C" uint16_t leapfrog_shim_to_bfloat(float value) { return to_bfloat(value); }
