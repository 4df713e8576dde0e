// The matrix product for weights in Q8_0: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits or 1].

#include "matmul.cuh"

MATMUL_WIDTHS(q8_0, Q8_0)
