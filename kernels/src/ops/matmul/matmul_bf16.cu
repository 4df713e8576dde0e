// The matrix product for weights in bf16: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits or 1].

#include "matmul.cuh"

MATMUL_WIDTHS(bf16, Dense<true>)
