// The kernels of attention, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/attention/split.cu"
#include "../../src/ops/attention/whole.cu"
#include "registry.hpp"

namespace {

template <void (*kernel)(AttentionParams)>
constexpr shim::Kernel call = shim::call<AttentionParams, kernel>;

#define SPLIT_ENTRY(type, d) \
    {"attention_split_" #type "_" #d, call<attention_split_##type##_##d>, kThreads, SplitLayout<d>::kBytes}
#define WHOLE_ENTRY(type, d) \
    {"attention_whole_" #type "_" #d, call<attention_whole_##type##_##d>, kThreads, WholeLayout<d>::kBytes}
#define SIZES(entry, type) entry(type, 32), entry(type, 64), entry(type, 80), entry(type, 96), entry(type, 128)

const shim::Entry kEntries[] = {
    SIZES(SPLIT_ENTRY, f16),
    SIZES(SPLIT_ENTRY, bf16),
    SIZES(WHOLE_ENTRY, f16),
    SIZES(WHOLE_ENTRY, bf16),
    {"attention_combine", call<attention_combine>, kThreads, 0},
};

}  // namespace

shim::Table attention_table() { return shim::table(kEntries); }
