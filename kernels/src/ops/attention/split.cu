// Attention of few rows: see `split.cuh`.
//
// Grids: split tiles [tiles times key-value heads, splits], combine [rows, heads].

#include "split.cuh"

#define SPLIT(name, Type, dim) \
    extern "C" __global__ void __launch_bounds__(kThreads, 1) name(AttentionParams params) { Split<Type, dim>(params).run(); }

SPLIT(attention_split_f16_32, Fp16, 32)
SPLIT(attention_split_f16_64, Fp16, 64)
SPLIT(attention_split_f16_80, Fp16, 80)
SPLIT(attention_split_f16_96, Fp16, 96)
SPLIT(attention_split_f16_128, Fp16, 128)
SPLIT(attention_split_bf16_32, Bf16, 32)
SPLIT(attention_split_bf16_64, Bf16, 64)
SPLIT(attention_split_bf16_80, Bf16, 80)
SPLIT(attention_split_bf16_96, Bf16, 96)
SPLIT(attention_split_bf16_128, Bf16, 128)

extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_combine(AttentionParams params) { combine(params); }
