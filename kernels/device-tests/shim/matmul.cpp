// The kernels of the matrix product, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/matmul/embed.cu"
#include "../../src/ops/matmul/matmul_bf16.cu"
#include "../../src/ops/matmul/matmul_f16.cu"
#include "../../src/ops/matmul/matmul_q4_k.cu"
#include "../../src/ops/matmul/matmul_q8_0.cu"
#include "../../src/ops/matmul/random.cu"
#include "registry.hpp"

namespace {

// A ring is as long as the launch says, so any number of bytes may be asked for.
#define WIDTH(format, Format, rows, tiles, columns)                                          \
    {"matmul_" #format "_" #rows, shim::call<MatmulParams, matmul_##format##_##rows>,        \
     MatmulLayout<Format, tiles, columns>::kThreads, shim::kAnyBytes}
#define WIDTHS(format, Format)                                                                          \
    WIDTH(format, Format, 8, 1, 1), WIDTH(format, Format, 16, 2, 1), WIDTH(format, Format, 32, 4, 1),   \
        WIDTH(format, Format, 64, 8, 1), WIDTH(format, Format, 128, 8, 2)
#define ROWS_AND_RANDOM(format)                                                                     \
    {"embed_" #format, shim::call<EmbedParams, embed_##format>, kEmbedThreads, 0},                  \
        {"random_" #format, shim::call<RandomParams, random_##format>, kRandomThreads, 0}

// What `rings_fill_shared_memory` expects of the host.
template <class Format>
constexpr bool rings_are(int a, int b, int c, int d, int e) {
    return MatmulLayout<Format, 1, 1>::kRing == a && MatmulLayout<Format, 2, 1>::kRing == b &&
           MatmulLayout<Format, 4, 1>::kRing == c && MatmulLayout<Format, 8, 1>::kRing == d &&
           MatmulLayout<Format, 8, 2>::kRing == e;
}
static_assert(rings_are<Dense<false>>(5, 5, 4, 4, 3) && rings_are<Dense<true>>(5, 5, 4, 4, 3), "as the host has it");
static_assert(rings_are<Q8_0>(8, 8, 7, 6, 4) && rings_are<Q4_K>(7, 6, 5, 3, 2), "as the host has it");

const shim::Entry kEntries[] = {
    WIDTHS(f16, Dense<false>), WIDTHS(bf16, Dense<true>), WIDTHS(q8_0, Q8_0),    WIDTHS(q4_k, Q4_K),
    ROWS_AND_RANDOM(f16),      ROWS_AND_RANDOM(bf16),     ROWS_AND_RANDOM(q8_0), ROWS_AND_RANDOM(q4_k),
};

}  // namespace

shim::Table matmul_table() { return shim::table(kEntries); }
