// What a row comes to, in one pass: each block reduces a split of it to one record.
//
// Sums of exponentials are relative to the largest value that the thread has seen, then to that of its warp, its block,
// its row: one scale each. Within a thread they are in f32, over at most 32 tokens; everything further is f64.
#pragma once

#include "noise.cuh"

/// The record of a warp, one bit a token for those that are held down.
constexpr int kPartialBytes = kScoreThreads / kLanes * int(sizeof(ScorePartial)) + kSplitTokens / 8;

/// Largest, and the lowest token that has it, over lanes that differ in the bits of `width - 1`.
template <int width>
inline __device__ void reduce_likeliest(float& largest, uint32_t& token) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) {
        const float value = __shfl_xor_sync(kAllLanes, largest, step);
        const uint32_t id = __shfl_xor_sync(kAllLanes, token, step);
        if (value > largest || (value == largest && id < token)) largest = value, token = id;
    }
}

template <int width>
inline __device__ double sum_doubles(double value) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

template <int width>
inline __device__ uint32_t sum_counts(uint32_t value) {
#pragma unroll
    for (int step = 1; step < width; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
    return value;
}

/// Makes the sums of `part` relative to `largest`, which is not below its own largest.
inline __device__ void rescale(ScorePartial& part, float largest, const ScoreRow& row) {
    if (part.largest == largest) return;
    if (part.largest == -kInfinity) {
        part.log_sum = 0.0, part.sum = 0.0, part.dot = 0.0;
    } else {
        const float below = part.largest - largest;
        if (row.flags & kScoreLogprob) part.log_sum *= double(expf(below));
        if (row.flags & kScoreConfidence) {
            const double scaled = double(below / row.confidence_temperature), factor = exp(scaled);
            // What has no weight adds nothing, however far below it is.
            part.dot = factor > 0.0 ? factor * (part.dot + scaled * part.sum) : 0.0;
            part.sum *= factor;
        }
    }
    part.largest = largest;
}

/// Adds up the records of lanes that differ in the bits of `width - 1`; each of them gets the sum. Nothing is shared
/// between rows and the tree is fixed.
template <int width>
inline __device__ void reduce(ScorePartial& part, const ScoreRow& row) {
    float largest = part.largest;
    reduce_likeliest<width>(largest, part.likeliest);
    rescale(part, largest, row);
    if (row.flags & kScoreLogprob) part.log_sum = sum_doubles<width>(part.log_sum);
    if (row.flags & kScoreConfidence) part.sum = sum_doubles<width>(part.sum);
    if (row.flags & kScoreEntropy) part.dot = sum_doubles<width>(part.dot);
    if (row.flags & kScoreMargin) {
#pragma unroll
        for (int step = 1; step < width; step *= 2) {
            const float first = __shfl_xor_sync(kAllLanes, part.first, step);
            const float second = __shfl_xor_sync(kAllLanes, part.second, step);
            part.second = fmaxf(fmaxf(part.second, second), fminf(part.first, first));
            part.first = fmaxf(part.first, first);
        }
    }
    if (row.flags & kScoreNoise) {
#pragma unroll
        for (int step = 1; step < width; step *= 2) {
            const double score = __shfl_xor_sync(kAllLanes, part.score, step);
            const uint32_t token = __shfl_xor_sync(kAllLanes, part.drawn, step);
            if (score > part.score || (score == part.score && token < part.drawn)) part.score = score, part.drawn = token;
        }
    }
    const unsigned finite = __ballot_sync(kAllLanes, (part.facts & kHasFinite) != 0);
    const unsigned nan = __ballot_sync(kAllLanes, (part.facts & kHasPossibleNan) != 0);
    const unsigned open = __ballot_sync(kAllLanes, (part.facts & kHasOpen) != 0);
    part.facts = (finite ? kHasFinite : 0u) | (nan ? kHasPossibleNan : 0u) | (open ? kHasOpen : 0u);
    if (__ballot_sync(kAllLanes, (part.num_infinite | part.num_nan) != 0)) {
        part.num_infinite = sum_counts<width>(part.num_infinite);
        part.num_nan = sum_counts<width>(part.num_nan);
    }
}

/// A record of nothing.
inline __device__ ScorePartial empty_partial() {
    return {0.0, 0.0, 0.0, -double(kInfinity), -kInfinity, kNoToken, kNoToken, -kInfinity, -kInfinity, 0, 0, 0};
}

/// What exponents are relative to: nothing has a weight where there is no value.
inline __device__ float reference_of(float largest) { return largest == -kInfinity ? 0.0f : largest; }

/// The sums of a thread, relative to the largest value it has seen.
struct ThreadSums {
    float log_sum = 0.0f, sum = 0.0f, dot = 0.0f, first = -kInfinity, second = -kInfinity;

    /// From relative to `from` to relative to `to`, which is larger.
    inline __device__ void rescale(float from, float to, const ScoreRow& row, float inverse) {
        if (from == -kInfinity) {
            log_sum = 0.0f, sum = 0.0f, dot = 0.0f;
            return;
        }
        if (row.flags & kScoreLogprob) log_sum *= expf(from - to);
        const float scaled = (from - to) * inverse, factor = expf(scaled);
        dot = factor > 0.0f ? factor * (dot + scaled * sum) : 0.0f;
        sum *= factor;
    }
};

/// One thread's view of a split.
struct ScoreSplit {
    const ScoreParams& params;
    const LogitRow& source;
    const ScoreRow& row;
    const ScoreCut cut;
    const uint32_t* held;
    ScorePartial part;
    ThreadSums sums;
    float inverse;

    inline __device__ ScoreSplit(const ScoreParams& params, const LogitRow& source, const uint32_t* held)
        : params(params),
          source(source),
          row(source.row),
          cut(row.flags & kScoreFilter && !params.is_raw ? params.cuts[blockIdx.y] : ScoreCut{0, kNoToken, 0, kNoToken}),
          held(held),
          part(empty_partial()),
          inverse(1.0f / row.confidence_temperature) {}

    /// The first of the four tokens that a thread takes in step `step` of a group.
    static inline __device__ uint32_t token_of(int group, int step) {
        return uint32_t(blockIdx.x * kSplitTokens + ((group * kGroup / 4 + step) * kScoreThreads + threadIdx.x) * 4);
    }

    /// Takes note of values that are not finite, before the impossible are hidden; returns whether one is not a number.
    inline __device__ bool note(const float (&values)[kGroup]) {
        float largest = -kInfinity;
        bool has_nan = false;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            largest = fmaxf(largest, values[i]);
            has_nan |= values[i] != values[i];
        }
        if (is_finite(largest)) part.facts |= kHasFinite;
        if (largest == kInfinity || has_nan) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                part.num_infinite += values[i] == kInfinity;
                part.num_nan += values[i] != values[i];
            }
        }
        return has_nan;
    }

    /// Takes note of the largest; rescales the sums to it.
    template <bool kSums>
    inline __device__ void raise(const float (&values)[kGroup], int group) {
        float largest = -kInfinity;
#pragma unroll
        for (int i = 0; i < kGroup; ++i) largest = fmaxf(largest, values[i]);
        if (!(largest > part.largest || part.likeliest == kNoToken)) return;
        if (kSums && largest > part.largest) sums.rescale(part.largest, largest, row, inverse);
        part.likeliest = kNoToken;
#pragma unroll
        for (int i = kGroup - 1; i >= 0; --i) {
            if (values[i] == largest) part.likeliest = token_of(group, i / 4) + i % 4;
        }
        part.largest = largest;
    }

    inline __device__ bool is_held(uint32_t token) const {
        const uint32_t bit = token % kSplitTokens;
        return row.held_start < row.held_end && (held[bit / 32] >> bit % 32 & 1u);
    }

    inline __device__ void add_confidence(float value, bool is_open) {
        const float scaled = (value - reference_of(part.largest)) * inverse;
        const float weight = is_open ? expf(scaled) : 0.0f;
        sums.sum += weight;
        if (row.flags & kScoreEntropy) {
            sums.dot += weight > 0.0f ? weight * scaled : 0.0f;
            part.facts |= is_open ? kHasOpen : 0u;
        }
        if (row.flags & kScoreMargin && is_open) {
            sums.second = fmaxf(sums.second, fminf(sums.first, value));
            sums.first = fmaxf(sums.first, value);
        }
    }

    /// Draws from a group once more, in f64.
    inline __device__ void settle(Draw& draw, int group) const {
        double best = draw.token == kNoToken ? -double(kInfinity) : draw.exact(draw.value, draw.token);
#pragma unroll 1
        for (int i = 0; i < kGroup; ++i) {
            const uint32_t token = token_of(group, i / 4) + i % 4;
            const float value = token < source.vocab ? source.value(token) : -kInfinity;
            if (!(row.flags & kScoreFilter) || keeps(cut, value, token)) draw.offer_exact(value, token, best);
        }
        const float scaled = draw.value * draw.inverse;
        draw.rough = float(best), draw.error = Draw::error_of(scaled), draw.is_close = false;
    }

    /// Reduces the thread's tokens.
    template <bool kSums, bool kNoise>
    inline __device__ void read() {
        Draw draw(row);
        const bool is_confident = row.flags & kScoreConfidence && !params.is_raw;
#pragma unroll 1
        for (int group = 0; group < kGroupsPerSplit; ++group) {
            float values[kGroup];
            if (token_of(group, 0) - threadIdx.x * 4 >= source.vocab) break;
#pragma unroll
            for (int i = 0; i < kGroup / 4; ++i) source.load_four(values + 4 * i, token_of(group, i));
            const bool has_nan = note(values);
#pragma unroll
            for (int i = 0; i < kGroup / 4; ++i) source.hide_four(values + 4 * i, token_of(group, i));
            if (has_nan) {
#pragma unroll
                for (int i = 0; i < kGroup; ++i) part.facts |= values[i] != values[i] ? kHasPossibleNan : 0u;
            }
            raise<kSums>(values, group);
            if (kSums && row.flags & kScoreLogprob) {
                const float base = reference_of(part.largest);
#pragma unroll
                for (int i = 0; i < kGroup; ++i) sums.log_sum += expf(values[i] - base);
            }
            if (kSums && is_confident) {
#pragma unroll
                for (int i = 0; i < kGroup; ++i) {
                    const uint32_t token = token_of(group, i / 4) + i % 4;
                    const bool passes = !(row.flags & kScoreConfidenceFiltered) || keeps(cut, values[i], token);
                    add_confidence(values[i], passes && token < source.vocab && !is_held(token));
                }
            }
            if (kNoise) {
#pragma unroll
                for (int i = 0; i < kGroup; ++i) {
                    const uint32_t token = token_of(group, i / 4) + i % 4;
                    if (!(row.flags & kScoreFilter) || keeps(cut, values[i], token)) draw.offer(values[i], token);
                }
                if (draw.is_close) settle(draw, group);
                draw.share_floor();
            }
        }
        part.log_sum = double(sums.log_sum), part.sum = double(sums.sum), part.dot = double(sums.dot);
        part.first = sums.first, part.second = sums.second;
        if (kNoise && draw.token != kNoToken) part.score = draw.exact(draw.value, draw.token), part.drawn = draw.token;
    }
};

/// Sets the bits of the tokens of this split that are held down. Ends with a barrier.
inline __device__ void mark_held(const ScoreParams& params, const ScoreRow& row, uint32_t* bits) {
    static_assert(kSplitTokens / 32 <= kScoreThreads, "a word a thread");
    if (row.held_start == row.held_end) return;
    if (threadIdx.x < kSplitTokens / 32) {
        uint32_t word = 0;
        for (uint32_t i = row.held_start; i < row.held_end; ++i) {
            const uint32_t token = params.held[i];
            if (token / 32 == blockIdx.x * (kSplitTokens / 32) + threadIdx.x) word |= 1u << token % 32;
        }
        bits[threadIdx.x] = word;
    }
    __syncthreads();
}

/// Grid [splits, rows].
inline __device__ void score_split(const ScoreParams& params) {
    const LogitRow source(params, blockIdx.y);
    const ScoreRow& row = source.row;
    const uint32_t of_raw = kScoreAdjusted | kScoreLogprob;
    if (params.is_raw && (row.flags & of_raw) != of_raw) return;
    ScorePartial* warps = reinterpret_cast<ScorePartial*>(shared_memory());
    uint32_t* held = reinterpret_cast<uint32_t*>(warps + kScoreThreads / kLanes);
    if (!params.is_raw) mark_held(params, row, held);
    ScoreSplit split(params, source, held);
    const bool wants_sums = row.flags & kScoreLogprob || (row.flags & kScoreConfidence && !params.is_raw);
    const bool wants_noise = row.flags & kScoreNoise && !params.is_raw;
    if (wants_sums) {
        if (wants_noise) {
            split.read<true, true>();
        } else {
            split.read<true, false>();
        }
    } else if (wants_noise) {
        split.read<false, true>();
    } else {
        split.read<false, false>();
    }
    reduce<kLanes>(split.part, row);
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    if (lane == 0) warps[warp] = split.part;
    __syncthreads();
    if (warp != 0) return;
    constexpr int kWarps = kScoreThreads / kLanes;
    split.part = warps[lane % kWarps];
    reduce<kWarps>(split.part, row);
    ScorePartial* to = params.is_raw ? params.raw_partials : params.partials;
    if (lane == 0) to[blockIdx.y * params.num_splits + blockIdx.x] = split.part;
}
