// What the kernels that reduce logits are told; mirrored by `params.rs`. All pointers are device memory.
#pragma once

#include "../../cuh/element.cuh"

/// Where there is no token.
constexpr uint32_t kNoToken = 0xffffffffu;

/// What is wanted of a row.
enum ScoreFlag : uint32_t {
    /// Draw with noise; without it the likeliest token is taken
    kScoreNoise = 1,
    /// There is a cut: only tokens above it are drawn
    kScoreFilter = 2,
    /// Log-probability of the token, of the logits before they are adjusted
    kScoreLogprob = 4,
    /// The row has adjustments
    kScoreAdjusted = 8,
    /// Only tokens above the cut count for the confidence
    kScoreConfidenceFiltered = 16,
    /// The kind of confidence; at most one
    kScoreProbability = 32,
    kScoreMargin = 64,
    kScoreEntropy = 128,
};
constexpr uint32_t kScoreConfidence = kScoreProbability | kScoreMargin | kScoreEntropy;

/// What is wanted of one row.
struct ScoreRow {
    uint64_t noise_key;
    /// Of the draw, of the filters, of the confidence; all above zero where they are used
    float temperature, filter_temperature, confidence_temperature;
    float top_p, min_p;
    /// 0 for all
    uint32_t top_k;
    float repetition;
    /// Tokens from here on, and the mask, count as impossible
    uint32_t num_tokens, mask_id;
    /// A token whose log-probability is wanted instead of a choice
    uint32_t given;
    uint32_t flags;
    /// Length of the list of the likeliest
    uint32_t num_top;
    /// Its parts of the lists of all rows
    uint32_t adjust_start, adjust_end, held_start, held_end;
};

/// What is done to the logit of a token.
enum ScoreChange : uint32_t { kScoreBias = 0, kScorePenalty = 1, kScoreForbid = 2 };

/// One change. Those of a row are sorted by token, and stand in the order in which they are made.
struct ScoreAdjustment {
    uint32_t token, change;
    /// Bias: added. Penalty: subtracted after the division or multiplication by the repetition penalty
    float amount;
};

/// What the changes of a row hid: numbers of values among the tokens that they touch, before and after.
struct ScoreTouched {
    uint32_t infinite_before, infinite_after, nan_before, nan_after, finite_before;
};

/// The tokens that filters keep: those not below either cut. A token is below a cut if its key is smaller, or equal and
/// its id larger. The second cut takes -0 for 0.
struct ScoreCut {
    uint32_t key, id, canonical_key, canonical_id;
};

/// What a part of a row comes to.
struct ScorePartial {
    /// Relative to `largest`: sum of exponentials; of those that count for the confidence; of the latter times exponent
    double log_sum, sum, dot;
    /// The best noisy score
    double score;
    /// The largest value and the lowest token that has it
    float largest;
    uint32_t likeliest;
    uint32_t drawn;
    /// The two largest values that count for the confidence
    float first, second;
    /// Numbers of values in the row as it lies in memory
    uint32_t num_infinite, num_nan;
    /// Whether there is a finite value, a possible token whose value is not a number, a token that counts for the entropy
    uint32_t facts;
};
constexpr uint32_t kHasFinite = 1, kHasPossibleNan = 2, kHasOpen = 4;

struct ScoreRecord {
    uint32_t token;
    /// Bit 0: the largest value of the row is not finite. Bit 1: a value is not a number
    uint32_t facts;
    float logprob, confidence;
};

/// One of the likeliest tokens.
struct ScoreTop {
    uint32_t token;
    float logprob;
};

struct ScoreParams {
    /// [rows, vocab]; adjusted in place
    float* logits;
    /// [rows]
    const ScoreRow* rows;
    const ScoreAdjustment* adjustments;
    /// Logits before their first adjustment, beside `adjustments`
    float* raw;
    const uint32_t* held;
    /// [rows, splits]: of the adjusted row; of the row before
    ScorePartial* partials;
    ScorePartial* raw_partials;
    /// [rows]
    ScoreCut* cuts;
    ScoreTouched* touched;
    /// [rows, splits, top_len]: the likeliest tokens of each split, descending; see `ranked`
    unsigned long long* candidates;
    /// [rows]
    ScoreRecord* records;
    /// [rows, top_len]
    ScoreTop* top;
    uint32_t vocab, num_splits, top_len;
    /// Whether the rows have not been adjusted yet, and only those that will be are of interest
    uint32_t is_raw;
};

static_assert(sizeof(ScoreRow) == 72 && sizeof(ScoreAdjustment) == 12 && sizeof(ScoreTouched) == 20, "mirrored in params.rs");
static_assert(sizeof(ScoreCut) == 16 && sizeof(ScorePartial) == 64 && sizeof(ScoreRecord) == 16, "mirrored in params.rs");
static_assert(sizeof(ScoreTop) == 8 && sizeof(ScoreParams) == 12 * 8 + 4 * 4, "mirrored in params.rs");
