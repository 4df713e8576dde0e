// The kernels that reduce logits, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/score/score.cu"
#include "registry.hpp"

namespace {

template <void (*kernel)(ScoreParams)>
constexpr shim::Kernel call = shim::call<ScoreParams, kernel>;

const shim::Entry kEntries[] = {
    {"score_partials", call<score_partials>, kScoreThreads, kPartialBytes},
    {"score_top", call<score_top>, kScoreThreads, kTopBytes},
    {"score_adjust", call<score_adjust>, kAdjustThreads, kAdjustBytes},
    {"score_filter", call<score_filter>, kFilterThreads, kFilterBytes},
    {"score_combine", call<score_combine>, kLanes, 0},
};

}  // namespace

shim::Table score_table() { return shim::table(kEntries); }
