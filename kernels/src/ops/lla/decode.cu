// Local linear attention of few rows: see `decode.cuh`.
//
// Grids: moments and output [queries, splits], combine and merge [queries]. 16-bit tensors take `lla_moments_half`, then
// `lla_moments_full` with `only_marked`; the rest is f32 for all types. Every kernel leaves at once if the arrays hold a
// step of another shape than the launch's.

#include "combine.cuh"

#define MOMENTS(name, Math, dim)                                                                             \
    extern "C" __global__ void __launch_bounds__(MomentsLayout<Math, dim>::kThreads, 1) name(LlaParams params) { \
        if (step_is_held(params)) moments<Math, dim>(params);                                                \
    }

MOMENTS(lla_moments_half_32, Half, 32)
MOMENTS(lla_moments_half_64, Half, 64)
MOMENTS(lla_moments_half_96, Half, 96)
MOMENTS(lla_moments_half_128, Half, 128)
MOMENTS(lla_moments_full_32, Full, 32)
MOMENTS(lla_moments_full_64, Full, 64)
MOMENTS(lla_moments_full_96, Full, 96)
MOMENTS(lla_moments_full_128, Full, 128)

#define COMBINE(name, dim)                                                                                 \
    extern "C" __global__ void __launch_bounds__(CombineLayout<dim>::kThreads, 1) name(LlaParams params) { \
        if (step_is_held(params)) Combine<dim>(params).run();                                              \
    }

COMBINE(lla_combine_32, 32)
COMBINE(lla_combine_64, 64)
COMBINE(lla_combine_96, 96)
COMBINE(lla_combine_128, 128)

extern "C" __global__ void __launch_bounds__(kOutputThreads, 1) lla_output(LlaParams params) {
    if (step_is_held(params)) output_decode(params);
}

extern "C" __global__ void __launch_bounds__(kMergeThreads, 1) lla_merge(LlaParams params) {
    if (step_is_held(params)) merge_decode(params);
}
