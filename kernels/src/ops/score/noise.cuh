// Counter-based Gumbel noise, as `SlotNoise` of the engine defines it: a function of the key and the token alone.
#pragma once

#include "row.cuh"

/// One step of splitmix64 (Steele, Lea, Flood 2014).
inline __device__ uint64_t mix(uint64_t value) {
    uint64_t z = value + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/// Standard Gumbel variate `-ln(-ln u)` with `u` uniform on the centres of 2^52 cells of (0, 1).
inline __device__ double gumbel_of(uint64_t hash) {
    const double uniform = (double(hash >> 12) + 0.5) * 0x1p-52;
    return -log(-log(uniform));
}

/// The same in f32, to within `kGumbelError`: near 1 the logarithm of `u` comes from what is missing to 1.
inline __device__ float rough_gumbel_of(uint64_t hash) {
    const float missing = (float(~hash >> 12) + 0.5f) * 0x1p-52f;
    const float uniform = (float(hash >> 12) + 0.5f) * 0x1p-52f;
    const float series = missing * (1.0f + missing * (0.5f + missing * (1.0f / 3.0f + missing * 0.25f)));
    return -fast_log(missing < 0.0625f ? series : -fast_log(uniform));
}
// The series leaves out less than missing^4 / 5 < 3.1e-6 of itself. `fast_log` is off by at most 2^-21.4 where its
// argument is between a half and two, and three parts in 2^23 of its result elsewhere: at most 6e-6 of the inner
// logarithm (0.064 at least), and 14e-6 of a result of up to 37.
constexpr float kGumbelError = 4e-5f;
/// Rounded up: 53 ln 2, the largest noise.
constexpr float kLargestGumbel = 36.75f;

/// The token with the largest `logit / temperature + gumbel` among those offered to one thread; the lowest of equals.
///
/// Exact, though most scores are compared in f32: whoever offers a group of tokens offers it again, for comparison in f64,
/// if the error of f32 could have decided (`is_close`).
struct Draw {
    uint64_t key;
    float temperature, inverse;
    /// A score that is reached: what cannot come up to it is not looked at
    float floor;
    /// The best so far: its score in f32 and the error of that, its logit
    float rough, error, value;
    uint32_t token;
    bool is_close;

    inline __device__ explicit Draw(const ScoreRow& row)
        : key(row.noise_key),
          temperature(row.temperature),
          inverse(1.0f / row.temperature),
          floor(-kInfinity),
          rough(-kInfinity),
          error(0.0f),
          value(-kInfinity),
          token(kNoToken),
          is_close(false) {}

    inline __device__ double exact(float logit, uint32_t id) const {
        return double(logit) / double(temperature) + gumbel_of(mix(key ^ id));
    }

    /// Error of a rough score, and of what is compared with it: the scaled logit is rounded twice, the sums once more.
    static inline __device__ float error_of(float scaled) { return kGumbelError + 1e-6f * fabsf(scaled); }

    inline __device__ void offer(float logit, uint32_t id) {
        // Not a number, and impossible.
        if (!(logit > -kInfinity)) return;
        const float scaled = logit * inverse, off = error_of(scaled);
        if (scaled + off + kLargestGumbel < floor) return;
        const uint64_t hash = mix(key ^ id);
        // With z leading ones in the hash, 1 - u > 2^-(z+1), so the noise is below (z+1) ln 2.
        const float bound = float(__clzll((long long)(~hash)) + 1) * 0.693148f;
        if (scaled + off + bound < floor) return;
        const float score = scaled + rough_gumbel_of(hash), margin = error + off;
        const bool is_better = score > rough + margin;
        is_close |= !is_better && !(score < rough - margin);
        if (is_better) rough = score, error = off, value = logit, token = id;
    }

    /// Offers a token that was offered before, for comparison with `best`, the exact score of `token`.
    inline __device__ void offer_exact(float logit, uint32_t id, double& best) {
        if (!(logit > -kInfinity)) return;
        const double score = exact(logit, id);
        if (score > best || (score == best && id < token)) best = score, value = logit, token = id;
    }

    /// Lets the lanes of a warp skip what cannot beat the best of them.
    inline __device__ void share_floor() {
        const float reached = rough - error;
        // Infinite scores have no error that could be named.
        floor = fmaxf(floor, max_lanes<kLanes>(fabsf(reached) <= kLargestFloat ? reached : -kInfinity));
    }
};
