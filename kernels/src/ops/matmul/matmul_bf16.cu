// The matrix product for weights in `Dense<true>`: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits].

#include "matmul.cuh"

MATMUL_WIDTHS(bf16, Dense<true>)
