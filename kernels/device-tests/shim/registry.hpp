// Kernels by name. Each op has a file here that lists its kernels; `registry.cpp` lists the files.
#pragma once

#include <cstddef>

#include "launch.hpp"

namespace shim {

/// A kernel that a launch can name.
struct Entry {
    const char* name;
    Kernel kernel;
    /// What the kernel is made for; a launch of anything else is refused.
    unsigned block_dim;
    size_t shared_bytes;
};

/// Where the launch decides how much shared memory it wants.
constexpr size_t kAnyBytes = size_t(-1);

struct Table {
    const Entry* entries;
    size_t count;
};

template <size_t count>
Table table(const Entry (&entries)[count]) {
    return {entries, count};
}

/// Calls a kernel whose only parameter is a `Params`.
template <class Params, void (*kernel)(Params)>
void call(const void* params) {
    kernel(*static_cast<const Params*>(params));
}

}  // namespace shim
