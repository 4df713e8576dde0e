// Reading a row of logits, and the order of its values.
//
// Which thread takes which token depends on the token alone, never on where the row starts in memory: so the order of
// every sum is the same wherever the row stands in a batch.
#pragma once

#include "params.cuh"

constexpr float kInfinity = __builtin_huge_valf();
/// Threads of a block that reads a split, and tokens of a split.
constexpr int kScoreThreads = 256;
constexpr int kSplitTokens = 8192;
constexpr int kMostSplits = 64;
/// Tokens that a thread reads before it looks at them: four times four in a row.
constexpr int kGroup = 16;
constexpr int kGroupsPerSplit = kSplitTokens / (kGroup * kScoreThreads);

/// An integer in the order of `value`: -NaN, -infinity, numbers with -0 below 0, infinity, NaN.
inline __device__ uint32_t key_of(float value) {
    const uint32_t bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline __device__ float value_of(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// `key_of` that takes -0 for 0.
inline __device__ uint32_t canonical_key_of(float value) { return key_of(value == 0.0f ? 0.0f : value); }

/// Larger for larger values, then for lower tokens. Never 0.
inline __device__ unsigned long long ranked(float value, uint32_t token) {
    return (unsigned long long)(key_of(value)) << 32 | uint32_t(~token);
}

/// A row of logits.
struct LogitRow {
    const float* values;
    const ScoreRow& row;
    uint32_t vocab;

    inline __device__ LogitRow(const ScoreParams& params, uint32_t index)
        : values(params.logits + uint64_t(index) * params.vocab), row(params.rows[index]), vocab(params.vocab) {}

    inline __device__ bool is_possible(uint32_t token) const { return token < row.num_tokens && token != row.mask_id; }

    /// The logit of a token, -infinity if it is impossible.
    inline __device__ float value(uint32_t token) const { return is_possible(token) ? values[token] : -kInfinity; }

    /// The logits of `token..token + 4` as they lie in memory; -infinity past the last. In 16-byte loads wherever the row
    /// starts: a row that starts elsewhere is put together from two of them.
    inline __device__ void load_four(float* to, uint32_t token) const {
        const float* from = values + token;
        const uint32_t shift = uint32_t(reinterpret_cast<uint64_t>(from) / 4 % 4);
        if (token + 8 > vocab) {
#pragma unroll
            for (int i = 0; i < 4; ++i) to[i] = token + i < vocab ? from[i] : -kInfinity;
            return;
        }
        const float4* aligned = reinterpret_cast<const float4*>(from - shift);
        const float4 low = aligned[0];
        if (shift == 0) {
            to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
            return;
        }
        const float4 high = aligned[1];
        to[0] = shift == 1 ? low.y : shift == 2 ? low.z : low.w;
        to[1] = shift == 1 ? low.z : shift == 2 ? low.w : high.x;
        to[2] = shift == 1 ? low.w : shift == 2 ? high.x : high.y;
        to[3] = shift == 1 ? high.x : shift == 2 ? high.y : high.z;
    }

    /// Makes the impossible among four tokens from `token` on so.
    inline __device__ void hide_four(float* values, uint32_t token) const {
        if (token + 4 <= row.num_tokens && row.mask_id - token >= 4) return;
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = is_possible(token + i) ? values[i] : -kInfinity;
    }
};

/// Whether the filters keep a token.
inline __device__ bool keeps(const ScoreCut& cut, float value, uint32_t token) {
    const uint32_t key = key_of(value), canonical = canonical_key_of(value);
    const bool first = key > cut.key || (key == cut.key && token <= cut.id);
    return first && (canonical > cut.canonical_key || (canonical == cut.canonical_key && token <= cut.canonical_id));
}
