// From rows of logits to one record a row.
//
//   score_top        [splits, rows]  the likeliest tokens of each split, before adjustments
//   score_partials   [splits, rows]  one pass over a row; with `is_raw` over rows that are about to be adjusted
//   score_adjust     [rows]          bias, penalties and forbidden tokens, in place
//   score_filter     [rows]          where top-k, top-p and min-p cut
//   score_combine    [rows]          adds up the splits of a row
//
// Only `score_partials` and `score_combine` run always. A split is a fixed number of tokens, so the order of every sum
// depends on the vocabulary alone.

#include "combine.cuh"
#include "filter.cuh"

// Four blocks a multiprocessor: enough loads in flight to hide the memory behind.
extern "C" __global__ void __launch_bounds__(kScoreThreads, 4) score_partials(ScoreParams params) { score_split(params); }

extern "C" __global__ void __launch_bounds__(kScoreThreads, 4) score_top(ScoreParams params) { score_top_split(params); }

extern "C" __global__ void __launch_bounds__(kAdjustThreads, 1) score_adjust(ScoreParams params) {
    score_adjust_row(params);
}

extern "C" __global__ void __launch_bounds__(kFilterThreads, 1) score_filter(ScoreParams params) {
    score_filter_row(params);
}

extern "C" __global__ void __launch_bounds__(kLanes, 1) score_combine(ScoreParams params) { score_combine_row(params); }
