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

const shim::Entry kEntries[] = {
    WIDTHS(f16, Dense<false>), WIDTHS(bf16, Dense<true>), WIDTHS(q8_0, Q8_0),    WIDTHS(q4_k, Q4_K),
    ROWS_AND_RANDOM(f16),      ROWS_AND_RANDOM(bf16),     ROWS_AND_RANDOM(q8_0), ROWS_AND_RANDOM(q4_k),
};

}  // namespace

shim::Table matmul_table() { return shim::table(kEntries); }
