// Attention of many rows: see `whole.cuh`.
//
// Grid: tiles times key-value heads, tile outermost.

#include "whole.cuh"

#define WHOLE(name, Type, dim) \
    extern "C" __global__ void __launch_bounds__(kThreads, 1) name(AttentionParams params) { Whole<Type, dim>(params).run(); }

WHOLE(attention_whole_f16_32, Fp16, 32)
WHOLE(attention_whole_f16_64, Fp16, 64)
WHOLE(attention_whole_f16_80, Fp16, 80)
WHOLE(attention_whole_f16_96, Fp16, 96)
WHOLE(attention_whole_f16_128, Fp16, 128)
WHOLE(attention_whole_bf16_32, Bf16, 32)
WHOLE(attention_whole_bf16_64, Bf16, 64)
WHOLE(attention_whole_bf16_80, Bf16, 80)
WHOLE(attention_whole_bf16_96, Bf16, 96)
WHOLE(attention_whole_bf16_128, Bf16, 128)
