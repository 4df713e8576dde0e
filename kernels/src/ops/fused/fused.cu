// What lies between two matrix products: each kernel adds the partial sums of the product before it and writes the 16-bit
// input of the one after it. The order of every sum depends on the widths alone, so a row has the same bits whatever other
// rows are there.

#include "fused.cuh"

// One block a multiprocessor is asked for, or the compiler aims at more of them and spills.

/// Grid: one block a row of the output.
extern "C" __global__ void __launch_bounds__(kNormThreads, 1) add_norm(AddNormParams params) { normalise(params); }

/// Grid: [rows, heads of q, k and v over the warps of a block].
extern "C" __global__ void __launch_bounds__(kQkvThreads, 1) qkv_finish(QkvFinishParams params) { finish_qkv(params); }

/// Grid: [rows, columns over four a thread].
extern "C" __global__ void __launch_bounds__(kSwigluThreads, 1) swiglu_finish(SwigluFinishParams params) {
    finish_swiglu(params);
}
