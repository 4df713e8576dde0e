// Where top-k, top-p and min-p cut a row: a radix selection over keys in the order of the values, then over tokens, since
// the lower of equals comes first. Nothing is sorted, and every sum is of integers, so that its order does not matter.
//
// Top-p sums weights in units of 2^-44: over 2^19 tokens they fit 64 bits, and a sum is off by 2^-26 at most, typically by
// 10^-11, of a total that is at least 1. Weights that are equal in f64 although the values differ (by less than 10^-16 of
// the largest) are taken in the order of the values; -0 and 0 are equal.
#pragma once

#include "row.cuh"

constexpr int kFilterThreads = 1024;
constexpr int kDigitBits = 11;
constexpr int kBuckets = 1 << kDigitBits;
constexpr int kTokenBits = 23;
constexpr int kDigits = 5;
/// The digit that ends with the key.
constexpr int kLastKeyDigit = 2;
static_assert(32 + kTokenBits == kDigits * kDigitBits, "a key and a token");
static_assert(kBuckets == 2 * kFilterThreads, "two buckets a thread");
static_assert(kMostSplits * kSplitTokens <= 1 << 19, "sums fit");
constexpr double kMassUnit = 0x1p-44;

struct FilterShared {
    unsigned long long buckets[kBuckets];
    unsigned long long warps[kFilterThreads / kLanes];
    unsigned long long above, total;
    uint32_t digit;
    float largest[kFilterThreads / kLanes];
};
constexpr int kFilterBytes = sizeof(FilterShared);

struct Filter {
    const LogitRow& source;
    const ScoreRow& row;
    FilterShared& shared;
    double temperature, top;
    ScoreCut cut;

    inline __device__ Filter(const LogitRow& source, FilterShared& shared)
        : source(source),
          row(source.row),
          shared(shared),
          temperature(double(row.filter_temperature)),
          top(0.0),
          cut{0, kNoToken, 0, kNoToken} {}

    inline __device__ double weight(float value) const { return exp(double(value) / temperature - top); }

    /// In units of `kMassUnit`; nothing for what is not a number.
    inline __device__ unsigned long long mass(float value) const {
        const double w = weight(value);
        return w > 0.0 ? (unsigned long long)(w / kMassUnit + 0.5) : 0ull;
    }

    /// Calls `body` with each value of the row and its token. Eight values are on their way at a time.
    template <class Body>
    inline __device__ void for_each(Body body) const {
#pragma unroll 1
        for (uint32_t first = threadIdx.x * 4; first < source.vocab; first += 8 * kFilterThreads) {
            float values[8];
#pragma unroll
            for (int i = 0; i < 2; ++i) source.load_four(values + 4 * i, first + i * 4 * kFilterThreads);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t token = first + i / 4 * 4 * kFilterThreads + i % 4;
                if (token < source.vocab) body(source.is_possible(token) ? values[i] : -kInfinity, token);
            }
        }
    }

    inline __device__ float largest_value() {
        float largest = -kInfinity;
        for_each([&](float value, uint32_t) { largest = fmaxf(largest, value); });
        largest = max_lanes<kLanes>(largest);
        if (threadIdx.x % kLanes == 0) shared.largest[threadIdx.x / kLanes] = largest;
        __syncthreads();
        largest = shared.largest[threadIdx.x % kLanes];
        return max_lanes<kLanes>(largest);
    }

    /// What the buckets above those of this thread sum to; the total in `shared`. Ends with a barrier.
    inline __device__ unsigned long long sum_above(unsigned long long mine) {
        const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
        unsigned long long from_here = mine;
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) {
            const unsigned long long other = __shfl_sync(kAllLanes, from_here, min(lane + step, kLanes - 1));
            if (lane + step < kLanes) from_here += other;
        }
        if (lane == 0) shared.warps[warp] = from_here;
        __syncthreads();
        unsigned long long above = 0;
        for (int other = warp + 1; other < kFilterThreads / kLanes; ++other) above += shared.warps[other];
        if (threadIdx.x == 0) shared.total = above + shared.warps[0];
        __syncthreads();
        return above + from_here - mine;
    }

    /// The rank of a token: larger for larger values, then for lower tokens.
    template <bool kMass>
    static inline __device__ unsigned long long rank_of(float value, uint32_t token) {
        const uint32_t key = kMass ? canonical_key_of(value) : key_of(value);
        return (unsigned long long)(key) << kTokenBits | ((1u << kTokenBits) - 1 - token);
    }

    /// Sums the tokens whose rank starts with `prefix` by their next digit. Ends with a barrier.
    template <bool kMass>
    inline __device__ void fill(unsigned long long prefix, int shift) {
        shared.buckets[threadIdx.x] = 0;
        shared.buckets[threadIdx.x + kFilterThreads] = 0;
        __syncthreads();
        for_each([&](float value, uint32_t token) {
            const unsigned long long rank = rank_of<kMass>(value, token);
            if (rank >> (shift + kDigitBits) != prefix || (kMass && !keeps(cut, value, token))) return;
            const unsigned long long amount = kMass ? mass(value) : 1ull;
            if (amount) atomicAdd(&shared.buckets[rank >> shift & (kBuckets - 1)], amount);
        });
        __syncthreads();
    }

    /// The rank at which the sum from the top first reaches a target: `wanted` tokens, or that part of all weights.
    template <bool kMass>
    inline __device__ void select(double wanted, uint32_t& cut_key, uint32_t& cut_token) {
        unsigned long long prefix = 0, above = 0;
        double target = wanted;
        for (int digit = kDigits - 1; digit >= 0; --digit) {
            const int shift = digit * kDigitBits;
            fill<kMass>(prefix, shift);
            const int bucket = 2 * int(threadIdx.x);
            const unsigned long long low = shared.buckets[bucket], high = shared.buckets[bucket + 1];
            const unsigned long long before = above + sum_above(low + high);
            if (kMass && digit == kDigits - 1) target = wanted * double(shared.total);
            const bool starts = double(before) < target;
            if (starts && double(before + high) >= target) {
                shared.digit = uint32_t(bucket + 1), shared.above = before;
            } else if (starts && double(before + high + low) >= target) {
                shared.digit = uint32_t(bucket), shared.above = before + high;
            }
            __syncthreads();
            above = shared.above;
            prefix = prefix << kDigitBits | shared.digit;
            const unsigned long long inside = shared.buckets[shared.digit];
            __syncthreads();
            if (digit != kLastKeyDigit) continue;
            cut_key = uint32_t(prefix >> (kTokenBits - kLastKeyDigit * kDigitBits));
            // All tokens of this value are wanted, mostly because there is one: no need to tell them apart.
            const unsigned long long unit = kMass ? mass(value_of(cut_key)) : 1ull;
            if (double(above + inside - unit) < target) {
                cut_token = kNoToken;
                return;
            }
        }
        cut_token = (1u << kTokenBits) - 1 - (uint32_t(prefix) & ((1u << kTokenBits) - 1));
    }

    /// Whether the first cut keeps what is not a number.
    inline __device__ bool keeps_nan() {
        bool found = false;
        for_each([&](float value, uint32_t token) { found |= value != value && keeps(cut, value, token); });
        return __syncthreads_or(found);
    }

    /// The smallest key whose weight is at least `min_p`; one warp.
    inline __device__ uint32_t lowest_key(float largest) const {
        uint32_t low = 0, high = canonical_key_of(largest);
        while (high - low > 1) {
            const uint32_t step = uint32_t(uint64_t(high - low) * (threadIdx.x + 1) / (kLanes + 1));
            const unsigned enough = __ballot_sync(kAllLanes, weight(value_of(low + step)) >= double(row.min_p));
            // Lanes from `first` on have enough.
            const uint32_t first = uint32_t(kLanes - __popc(enough));
            const uint64_t range = high - low;
            const uint32_t from = low;
            if (first < kLanes) high = from + uint32_t(range * (first + 1) / (kLanes + 1));
            low = from + uint32_t(range * first / (kLanes + 1));
        }
        return high;
    }

    inline __device__ void nothing() { cut.canonical_key = 0xffffffffu, cut.canonical_id = 0; }

    inline __device__ void run() {
        const float largest = largest_value();
        top = double(largest) / temperature;
        if (row.top_k > 0 && row.top_k < source.vocab) select<false>(double(row.top_k), cut.key, cut.id);
        if (row.top_p < 1.0f) {
            // A total that is not a number keeps nothing.
            if (!is_finite(largest) || keeps_nan()) return nothing();
            uint32_t key, token;
            select<true>(double(row.top_p), key, token);
            cut.canonical_key = key, cut.canonical_id = token;
        }
        if (row.min_p > 0.0f && !is_finite(largest)) return nothing();
        if (row.min_p > 0.0f && threadIdx.x < kLanes) {
            const uint32_t key = lowest_key(largest);
            if (key > cut.canonical_key) cut.canonical_key = key, cut.canonical_id = kNoToken;
        }
    }
};

/// Grid [rows].
inline __device__ void score_filter_row(const ScoreParams& params) {
    const LogitRow source(params, blockIdx.x);
    if (!(source.row.flags & kScoreFilter)) return;
    Filter filter(source, *reinterpret_cast<FilterShared*>(shared_memory()));
    filter.run();
    if (threadIdx.x == 0) params.cuts[blockIdx.x] = filter.cut;
}
