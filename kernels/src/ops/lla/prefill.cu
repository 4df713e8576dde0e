// Local linear attention over many rows, and Parallax: see `prefill.cuh`.
//
// One launch solves everything: the loop over the steps is in the kernel, so the host neither waits nor launches for
// queries that have finished. 16-bit tensors take two launches, `half` and then `full` with `only_marked`, whose blocks
// return at once unless fp16 was too narrow for theirs.
//
// Grid: x is tiles times key-value heads, tile outermost. Block: `PrefillLayout::kThreads`. Shared: `kBytes`.

#include "prefill.cuh"

// One block per multiprocessor is enough to ask for: a target above it makes the compiler spill.
#define PREFILL(name, Math, dim)                                                                             \
    extern "C" __global__ void __launch_bounds__(PrefillLayout<Math, dim>::kThreads, 1) name(LlaParams params) { \
        Prefill<Math, dim>(params).run();                                                                    \
    }

PREFILL(lla_prefill_half_32, Half, 32)
PREFILL(lla_prefill_half_64, Half, 64)
PREFILL(lla_prefill_half_96, Half, 96)
PREFILL(lla_prefill_half_128, Half, 128)
PREFILL(lla_prefill_full_32, Full, 32)
PREFILL(lla_prefill_full_64, Full, 64)
PREFILL(lla_prefill_full_96, Full, 96)
PREFILL(lla_prefill_full_128, Full, 128)
