// The matrix product for weights in `Dense<false>`: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits].

#include "matmul.cuh"

MATMUL_WIDTHS(f16, Dense<false>)
