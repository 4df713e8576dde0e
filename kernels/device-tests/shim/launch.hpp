// Starting a kernel on the host.
#pragma once

#include <cstddef>
#include <string>

namespace shim {

/// Calls a kernel with the parameters behind the pointer.
using Kernel = void (*)(const void* params);

/// The order in which threads run between two waits; mirrored in `src/lib.rs`.
enum class Order : unsigned { Forward = 0, Backward = 1, Shuffled = 2 };

/// Runs all blocks of a grid, one after the other. Returns what went wrong, or nothing.
std::string launch(Kernel kernel, const void* params, const unsigned (&grid)[2], unsigned block_dim, size_t shared_bytes,
                   Order order);

}  // namespace shim
