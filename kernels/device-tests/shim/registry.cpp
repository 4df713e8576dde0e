// Launching kernels by name, for the tests; and kernels that are wrong on purpose.

#include "registry.hpp"

#include "shim.hpp"

shim::Table attention_table();
shim::Table fused_table();
shim::Table lla_table();
shim::Table matmul_table();
shim::Table score_table();

namespace {

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

void writes_past_shared_memory(const void*) { shim::shared_memory()[64] = 1; }

const shim::Entry kWrong[] = {
    {"leaves_before_the_barrier", leaves_before_the_barrier, 32, 64},
    {"meets_different_barriers", meets_different_barriers, 32, 64},
    {"shuffles_without_a_lane", shuffles_without_a_lane, 32, 64},
    {"writes_past_shared_memory", writes_past_shared_memory, 32, 64},
};

const shim::Entry* find(const char* name) {
    const shim::Table tables[] = {
        attention_table(), fused_table(), lla_table(), matmul_table(), score_table(), shim::table(kWrong),
    };
    for (const shim::Table& table : tables) {
        for (size_t i = 0; i < table.count; ++i) {
            if (std::strcmp(table.entries[i].name, name) == 0) return &table.entries[i];
        }
    }
    return nullptr;
}

}  // namespace

/// Runs a kernel; returns 0, or writes what went wrong to `message`, which has room for `room` bytes, and returns 1.
extern "C" int leapfrog_shim_launch(const char* name, const void* params, unsigned grid_x, unsigned grid_y,
                                    unsigned block_dim, size_t shared_bytes, unsigned order, char* message, size_t room) {
    const shim::Entry* entry = find(name);
    std::string error = "no such kernel";
    if (entry && (entry->block_dim != block_dim ||
                  (entry->shared_bytes != shim::kAnyBytes && entry->shared_bytes != shared_bytes))) {
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

extern "C" uint16_t leapfrog_shim_to_half(float value) { return shim::to_half(value); }
