// The likeliest tokens of each split, descending: as many rounds as tokens, and only the thread that had the last one
// looks at its tokens again.
#pragma once

#include "row.cuh"

constexpr int kTopBytes = kScoreThreads / kLanes * 8;

template <int width>
inline __device__ unsigned long long largest_ranked(unsigned long long value) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) {
        const unsigned long long other = __shfl_xor_sync(kAllLanes, value, step);
        value = other > value ? other : value;
    }
    return value;
}

/// The best of the thread's tokens that is not above `limit`; 0 if there is none.
inline __device__ unsigned long long best_up_to(const LogitRow& source, unsigned long long limit) {
    unsigned long long best = 0;
#pragma unroll 1
    for (int step = 0; step < kSplitTokens / 4 / kScoreThreads; ++step) {
        const uint32_t token = blockIdx.x * kSplitTokens + (step * kScoreThreads + threadIdx.x) * 4;
        if (token >= source.vocab) break;
        float values[4];
        source.load_four(values, token);
        source.hide_four(values, token);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned long long candidate = token + i < source.vocab ? ranked(values[i], token + i) : 0;
            if (candidate <= limit && candidate > best) best = candidate;
        }
    }
    return best;
}

/// Grid [splits, rows].
inline __device__ void score_top_split(const ScoreParams& params) {
    const LogitRow source(params, blockIdx.y);
    const uint32_t count = source.row.num_top;
    if (count == 0) return;
    unsigned long long* warps = reinterpret_cast<unsigned long long*>(shared_memory());
    unsigned long long* to =
        params.candidates + (uint64_t(blockIdx.y) * params.num_splits + blockIdx.x) * params.top_len;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    unsigned long long mine = best_up_to(source, ~0ull);
    for (uint32_t i = 0; i < count; ++i) {
        const unsigned long long best_of_warp = largest_ranked<kLanes>(mine);
        if (lane == 0) warps[warp] = best_of_warp;
        __syncthreads();
        unsigned long long best = 0;
#pragma unroll
        for (int w = 0; w < kScoreThreads / kLanes; ++w) best = warps[w] > best ? warps[w] : best;
        __syncthreads();
        if (threadIdx.x == 0) to[i] = best;
        if (best != 0 && best == mine) mine = best_up_to(source, best - 1);
    }
}
