// The matrix product for weights in Q4_K: see `matmul.cuh`. Grid: [tiles of outputs and, faster, of rows; splits or 1].

#include "matmul.cuh"

MATMUL_WIDTHS(q4_k, Q4_K)
