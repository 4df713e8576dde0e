// The matrix product for weights in f16: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits or 1].

#include "matmul.cuh"

MATMUL_WIDTHS(f16, Dense<false>)
