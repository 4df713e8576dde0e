// The kernels of local linear attention, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/lla/decode.cu"
#include "../../src/ops/lla/prefill.cu"
#include "registry.hpp"

namespace {

template <void (*kernel)(LlaParams)>
constexpr shim::Kernel call = shim::call<LlaParams, kernel>;

#define SIZES(entry) entry(32), entry(64), entry(96), entry(128)
#define PREFILL_HALF(d) \
    {"lla_prefill_half_" #d, call<lla_prefill_half_##d>, PrefillLayout<Half, d>::kThreads, PrefillLayout<Half, d>::kBytes}
#define PREFILL_FULL(d) \
    {"lla_prefill_full_" #d, call<lla_prefill_full_##d>, PrefillLayout<Full, d>::kThreads, PrefillLayout<Full, d>::kBytes}
#define MOMENTS_HALF(d) \
    {"lla_moments_half_" #d, call<lla_moments_half_##d>, MomentsLayout<Half, d>::kThreads, MomentsLayout<Half, d>::kBytes}
#define MOMENTS_FULL(d) \
    {"lla_moments_full_" #d, call<lla_moments_full_##d>, MomentsLayout<Full, d>::kThreads, MomentsLayout<Full, d>::kBytes}
#define COMBINE_SIZE(d) \
    {"lla_combine_" #d, call<lla_combine_##d>, CombineLayout<d>::kThreads, CombineLayout<d>::kBytes}

const shim::Entry kEntries[] = {
    SIZES(PREFILL_HALF),
    SIZES(PREFILL_FULL),
    SIZES(MOMENTS_HALF),
    SIZES(MOMENTS_FULL),
    SIZES(COMBINE_SIZE),
    {"lla_output", call<lla_output>, kOutputThreads, kOutputBytes},
    {"lla_merge", call<lla_merge>, kMergeThreads, 0},
};

}  // namespace

shim::Table lla_table() { return shim::table(kEntries); }

extern "C" size_t leapfrog_shim_params_len() { return sizeof(LlaParams); }
extern "C" uint16_t leapfrog_shim_to_bfloat(float value) { return to_bfloat(value); }
