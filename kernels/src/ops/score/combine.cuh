// From the splits of a row to its record, and to the list of its likeliest tokens. One warp a row.
#pragma once

#include "adjust.cuh"
#include "partials.cuh"
#include "top.cuh"

/// The records of a row, added up: lane by lane, then over the lanes.
inline __device__ ScorePartial whole_row(const ScoreParams& params, const ScoreRow& row, const ScorePartial* parts) {
    ScorePartial whole = empty_partial();
    for (uint32_t split = threadIdx.x; split < params.num_splits; split += kLanes) {
        ScorePartial part = parts[split];
        if (part.largest > whole.largest || (part.largest == whole.largest && part.likeliest < whole.likeliest)) {
            whole.likeliest = part.likeliest;
        }
        const float largest = fmaxf(whole.largest, part.largest);
        rescale(whole, largest, row);
        rescale(part, largest, row);
        whole.log_sum += part.log_sum, whole.sum += part.sum, whole.dot += part.dot;
        whole.second = fmaxf(fmaxf(whole.second, part.second), fminf(whole.first, part.first));
        whole.first = fmaxf(whole.first, part.first);
        if (part.score > whole.score || (part.score == whole.score && part.drawn < whole.drawn)) {
            whole.score = part.score, whole.drawn = part.drawn;
        }
        whole.num_infinite += part.num_infinite, whole.num_nan += part.num_nan, whole.facts |= part.facts;
    }
    reduce<kLanes>(whole, row);
    return whole;
}

inline __device__ uint32_t choose(const ScoreRow& row, const ScorePartial& whole, uint32_t vocab) {
    if (row.given != kNoToken) return row.given;
    // Without a single number there is no likeliest token.
    const uint32_t likeliest = whole.likeliest < vocab ? whole.likeliest : 0;
    if (!(row.flags & kScoreNoise)) return likeliest;
    // The likeliest takes part whatever the filters keep.
    const double score = Draw(row).exact(whole.largest, likeliest);
    const bool is_likeliest = score > whole.score || (score == whole.score && likeliest < whole.drawn);
    return is_likeliest || whole.drawn == kNoToken ? likeliest : whole.drawn;
}

inline __device__ bool is_held(const ScoreParams& params, const ScoreRow& row, uint32_t token) {
    for (uint32_t i = row.held_start; i < row.held_end; ++i) {
        if (params.held[i] == token) return true;
    }
    return false;
}

/// How sure the row is of `token`; the lowest of the kind where that is no number.
inline __device__ float confidence_of(const ScoreParams& params, const LogitRow& source, const ScorePartial& whole,
                                      uint32_t token) {
    const ScoreRow& row = source.row;
    const auto weight = [&](float value) {
        return double(expf((value - whole.largest) / row.confidence_temperature));
    };
    double confidence;
    if (row.flags & kScoreProbability) {
        confidence = is_held(params, row, token) ? 0.0 : weight(source.value(token)) / whole.sum;
    } else if (row.flags & kScoreMargin) {
        confidence = (weight(whole.first) - weight(whole.second)) / whole.sum;
    } else {
        // Of nothing at all it is 0.
        confidence = whole.facts & kHasOpen ? whole.dot / whole.sum - log(whole.sum) : 0.0;
    }
    const bool is_number = fabs(confidence) <= 1.7976931348623157e308 && !(whole.facts & kHasPossibleNan);
    return is_number ? float(confidence) : row.flags & kScoreEntropy ? -kLargestFloat : 0.0f;
}

/// Merges the lists of the splits. A lane has at most two of them.
inline __device__ void merge_top(const ScoreParams& params, const ScoreRow& row, double normaliser) {
    static_assert(kMostSplits <= 2 * kLanes, "two a lane");
    const uint64_t first_list = uint64_t(blockIdx.x) * params.num_splits;
    uint32_t at[2] = {0, 0};
    unsigned long long head[2];
    const auto load = [&](int i) {
        const uint32_t split = threadIdx.x + i * kLanes;
        const bool is_left = split < params.num_splits && at[i] < row.num_top;
        head[i] = is_left ? params.candidates[(first_list + split) * params.top_len + at[i]] : 0;
    };
    load(0), load(1);
    for (uint32_t n = 0; n < row.num_top; ++n) {
        const unsigned long long best = largest_ranked<kLanes>(head[0] > head[1] ? head[0] : head[1]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (best != 0 && head[i] == best) ++at[i], load(i);
        }
        if (threadIdx.x == 0) {
            const float logprob = float(double(value_of(uint32_t(best >> 32))) - normaliser);
            params.top[uint64_t(blockIdx.x) * params.top_len + n] = {~uint32_t(best), logprob};
        }
    }
}

/// Grid [rows].
inline __device__ void score_combine_row(const ScoreParams& params) {
    const LogitRow source(params, blockIdx.x);
    const ScoreRow& row = source.row;
    const ScorePartial whole = whole_row(params, row, params.partials + uint64_t(blockIdx.x) * params.num_splits);
    ScoreTouched touched = {0, 0, 0, 0, 0};
    if (row.flags & kScoreAdjusted) touched = params.touched[blockIdx.x];
    const uint32_t num_infinite = whole.num_infinite + touched.infinite_before - touched.infinite_after;
    const uint32_t num_nan = whole.num_nan + touched.nan_before - touched.nan_after;
    const bool has_finite = whole.facts & kHasFinite || touched.finite_before > 0;
    const uint32_t token = choose(row, whole, params.vocab);
    ScoreRecord record = {token, 0, 0.0f, 0.0f};
    record.facts = (num_infinite > 0 || !has_finite ? 1u : 0u) | (num_nan > 0 ? 2u : 0u);
    if (row.flags & kScoreLogprob) {
        float logit = source.value(token);
        ScorePartial before = whole;
        if (row.flags & kScoreAdjusted) {
            before = whole_row(params, row, params.raw_partials + uint64_t(blockIdx.x) * params.num_splits);
            const uint32_t change = find_change(params, row, token);
            if (change < row.adjust_end && source.is_possible(token)) logit = params.raw[change];
        }
        const double normaliser = double(before.largest) + log(before.log_sum);
        record.logprob = float(double(logit) - normaliser);
        if (row.num_top > 0) merge_top(params, row, normaliser);
    }
    if (row.flags & kScoreConfidence) record.confidence = confidence_of(params, source, whole, token);
    if (threadIdx.x == 0) params.records[blockIdx.x] = record;
}
