// The fused kernels, by name, for the tests.

#include "shim.hpp"

#include "../../src/ops/fused/fused.cu"
#include "registry.hpp"

namespace {

const shim::Entry kEntries[] = {
    {"add_norm", shim::call<AddNormParams, add_norm>, kNormThreads, kNormBytes},
    {"qkv_finish", shim::call<QkvFinishParams, qkv_finish>, kQkvThreads, kQkvBytes},
    {"swiglu_finish", shim::call<SwigluFinishParams, swiglu_finish>, kSwigluThreads, 0},
};

}  // namespace

shim::Table fused_table() { return shim::table(kEntries); }
