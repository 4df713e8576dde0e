// Bias, penalties and forbidden tokens, made in place. What they hide is counted, and the logits before are kept, since
// log-probabilities are those of the row before.
#pragma once

#include "row.cuh"

constexpr int kAdjustThreads = 256;
constexpr int kAdjustBytes = sizeof(ScoreTouched);

/// The position of a token's first change, or the end.
inline __device__ uint32_t find_change(const ScoreParams& params, const ScoreRow& row, uint32_t token) {
    uint32_t low = row.adjust_start, high = row.adjust_end;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (params.adjustments[middle].token < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < row.adjust_end && params.adjustments[low].token == token ? low : row.adjust_end;
}

/// Grid [rows]. A thread makes all changes of a token, in their order.
inline __device__ void score_adjust_row(const ScoreParams& params) {
    const ScoreRow& row = params.rows[blockIdx.x];
    if (!(row.flags & kScoreAdjusted)) return;
    ScoreTouched& touched = *reinterpret_cast<ScoreTouched*>(shared_memory());
    if (threadIdx.x == 0) touched = ScoreTouched{0, 0, 0, 0, 0};
    __syncthreads();
    float* values = params.logits + uint64_t(blockIdx.x) * params.vocab;
    for (uint32_t first = row.adjust_start + threadIdx.x; first < row.adjust_end; first += kAdjustThreads) {
        const uint32_t token = params.adjustments[first].token;
        if (first > row.adjust_start && params.adjustments[first - 1].token == token) continue;
        const float before = values[token];
        float value = before;
        for (uint32_t i = first; i < row.adjust_end && params.adjustments[i].token == token; ++i) {
            const ScoreAdjustment change = params.adjustments[i];
            if (change.change == kScoreBias) {
                value += change.amount;
            } else if (change.change == kScorePenalty) {
                value = value > 0.0f ? value / row.repetition : rounded_product(value, row.repetition);
                value -= change.amount;
            } else {
                value = -kInfinity;
            }
        }
        values[token] = value;
        params.raw[first] = before;
        if (before == kInfinity) atomicAdd(&touched.infinite_before, 1u);
        if (value == kInfinity) atomicAdd(&touched.infinite_after, 1u);
        if (before != before) atomicAdd(&touched.nan_before, 1u);
        if (value != value) atomicAdd(&touched.nan_after, 1u);
        if (is_finite(before)) atomicAdd(&touched.finite_before, 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) params.touched[blockIdx.x] = touched;
}
