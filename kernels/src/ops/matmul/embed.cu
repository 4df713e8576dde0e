// Rows of a weight by token, as f32. Grid: [rows, pieces of 8 values over the threads of a block]. A token that the weight
// has no row for becomes NaN: tokens lie on the device, where nobody can refuse them.

#include "params.cuh"
#include "weight.cuh"

constexpr uint32_t kEmbedThreads = 128;

template <class Format>
inline __device__ void embed(const EmbedParams& params) {
    const uint32_t eighth = blockIdx.y * kEmbedThreads + threadIdx.x, row = blockIdx.x;
    if (eighth * 8 >= params.in_features) return;
    const uint32_t id = params.ids[row];
    float values[8];
    if (id < params.out_features) {
        const uint32_t chunk = eighth / 4;
        const unsigned char* piece = static_cast<const unsigned char*>(params.codes) +
                                     piece_offset<Format>(id, eighth, params.padded_in);
        uint32_t pairs[4];
        Format::decode(pairs, *reinterpret_cast<const uint4*>(piece), int(chunk % Format::kSlabChunks));
        Factor factor = {1.0f, 0.0f};
        if constexpr (Format::kCoded) {
            const unsigned char* record = static_cast<const unsigned char*>(params.scales) +
                                          record_offset<Format>(id, chunk, params.padded_in);
            const int group = int(chunk % (kStageChunks<Format> * Format::kRecordStages));
            factor = Format::factor(Format::load_record(record), group);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float code = i % 2 == 0 ? Format::low(pairs[i / 2]) : Format::high(pairs[i / 2]);
            values[i] = Format::kHasMinima ? fmaf(factor.scale, code, -factor.minimum) : factor.scale * code;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = __uint_as_float(0x7fc00000u);
    }
    float* to = params.out + uint64_t(row) * params.in_features + eighth * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (eighth * 8 + i < params.in_features) to[i] = values[i];
    }
}

#define EMBED(name, Format)                                                                \
    extern "C" __global__ void __launch_bounds__(kEmbedThreads) name(EmbedParams params) { \
        embed<Format>(params);                                                             \
    }

EMBED(embed_f16, Dense<false>)
EMBED(embed_bf16, Dense<true>)
EMBED(embed_q8_0, Q8_0)
EMBED(embed_q4_k, Q4_K)
