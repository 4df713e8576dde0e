//! Which token is chosen.

use kernels::{
    device::{ScoreAdjustments, ScoreQuery},
    reference,
};

use crate::{
    case::{Case, ORDERS, Random, SPREADS, Spread, VOCABS, logits, query},
    skipped,
};

#[test]
fn all_features_at_once_match_the_reference() {
    if skipped() {
        return;
    }
    let mut random = Random(1);
    for (i, vocab) in VOCABS.into_iter().enumerate() {
        for spread in SPREADS {
            let mut case = Case::new(vocab);
            for _ in 0..if vocab < 2000 { 24 } else { 8 } {
                let row = logits(&mut random, spread, vocab);
                case.push(&row, query(&mut random, vocab));
            }
            case.check(ORDERS[i % 3]);
        }
    }
}

#[test]
fn draws_match_the_reference_for_thousands_of_keys() {
    if skipped() {
        return;
    }
    let mut random = Random(2);
    let mut distinct = std::collections::HashSet::new();
    for spread in [Spread::Normal, Spread::Flat, Spread::Ties, Spread::Equal, Spread::Shifted] {
        for vocab in [50, 700, 9000] {
            let row = logits(&mut random, spread, vocab);
            let mut case = Case::new(vocab);
            for _ in 0..80_000 / vocab {
                let temperature = random.pick(&[1.0, 0.5, 3.0]);
                case.push(&row, ScoreQuery { temperature, noise_key: random.next(), ..ScoreQuery::default() });
            }
            case.check(ORDERS[0]);
            distinct.extend(case.queries.iter().map(|query| reference::score(&row, query).token));
        }
    }
    assert!(distinct.len() > 300, "only {} different tokens were drawn", distinct.len());
}

/// Scores that f32 cannot tell apart, or hold.
#[test]
fn near_ties_are_settled_in_f64() {
    if skipped() {
        return;
    }
    let mut random = Random(4);
    for temperature in [1e-4, 3e-5, 1e-38, 1e-40] {
        let row: Vec<f32> = (0..9000).map(|_| (500.0 + 1e-4 * random.normal()) as f32).collect();
        let mut case = Case::new(row.len());
        for _ in 0..20 {
            case.push(&row, ScoreQuery { temperature, noise_key: random.next(), ..ScoreQuery::default() });
        }
        case.check(ORDERS[1]);
    }
}

#[test]
fn each_filter_cuts_where_the_reference_does() {
    if skipped() {
        return;
    }
    let mut random = Random(3);
    for vocab in [1, 33, 1000, 8200] {
        for spread in SPREADS {
            let row = logits(&mut random, spread, vocab);
            let mut case = Case::new(vocab);
            for _ in 0..10 {
                let base = ScoreQuery { temperature: 1.5, noise_key: random.next(), ..ScoreQuery::default() };
                let top_k = Some(1 + random.below(vocab.min(300)));
                let (top_p, min_p) = (random.uniform() as f32 * 0.99 + 0.005, random.uniform() as f32);
                case.push(&row, ScoreQuery { top_k, ..base.clone() });
                case.push(&row, ScoreQuery { top_p, ..base.clone() });
                case.push(&row, ScoreQuery { min_p, ..base.clone() });
                case.push(&row, ScoreQuery { top_k, top_p, min_p: min_p * 0.1, ..base });
            }
            case.check(ORDERS[vocab % 3]);
        }
    }
}

#[test]
fn ties_are_cut_at_the_lowest_tokens() {
    if skipped() {
        return;
    }
    let row = vec![0.5f32; 3000];
    for k in [1, 2, 1000, 2047, 2048, 2049, 2999, 3000, 5000] {
        let mut case = Case::new(row.len());
        for noise_key in 0..40 {
            case.push(&row, ScoreQuery { temperature: 1.0, top_k: Some(k), noise_key, ..ScoreQuery::default() });
        }
        case.check(ORDERS[2]);
        assert!(case.run(ORDERS[0]).iter().all(|result| (result.token as usize) < k));
    }
}

#[test]
fn the_lowest_of_equals_wins_and_nan_never_does() {
    if skipped() {
        return;
    }
    let mut row = vec![-1.0f32; 20_000];
    for at in [19_999, 8192, 8191, 12_000] {
        row[at] = 3.0;
    }
    let greedy = ScoreQuery::default;
    assert_eq!(Case::of(&row, greedy()).run(ORDERS[1])[0].token, 8191);
    row[5] = f32::NAN;
    row[6] = -f32::NAN;
    let result = &Case::of(&row, greedy()).run(ORDERS[1])[0];
    assert_eq!((result.token, result.has_nan, result.is_broken), (8191, true, false));
    for sign in [1.0, -1.0] {
        let mut zeros = vec![-1.0f32; 300];
        (zeros[200], zeros[100]) = (sign * 0.0, sign * -0.0);
        assert_eq!(Case::of(&zeros, greedy()).run(ORDERS[0])[0].token, 100, "0 and -0 are equal");
    }
}

#[test]
fn broken_rows_are_marked_and_leave_others_alone() {
    if skipped() {
        return;
    }
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut random = Random(5);
    for vocab in [2, 40, 9001] {
        let normal = logits(&mut random, Spread::Normal, vocab);
        let at = random.below(vocab);
        let with = |value: f32| {
            let mut row = normal.clone();
            row[at] = value;
            row
        };
        let rows =
            [vec![nan; vocab], vec![-inf; vocab], vec![inf; vocab], with(inf), with(nan), with(-nan), with(-inf)];
        let queries = [
            ScoreQuery::default(),
            ScoreQuery { temperature: 1.0, logprobs: Some(2), ..ScoreQuery::default() },
            ScoreQuery { temperature: 1.0, top_p: 0.5, top_k: Some(3), ..ScoreQuery::default() },
            ScoreQuery { temperature: 1.0, min_p: 0.5, ..ScoreQuery::default() },
        ];
        for query in queries {
            let mut case = Case::new(vocab);
            for row in rows.iter().chain([&normal]) {
                case.push(row, query.clone());
            }
            let results = case.run(ORDERS[2]);
            for (i, result) in results.iter().enumerate() {
                let expected = reference::score(case.row(i), &query);
                assert_eq!((result.is_broken, result.has_nan), (expected.is_broken, expected.has_nan), "row {i}");
                if !expected.is_broken {
                    assert_eq!(result.token, expected.token, "row {i} of {vocab}: {query:?}");
                }
            }
        }
    }
}

#[test]
fn what_adjustments_hide_is_still_told() {
    if skipped() {
        return;
    }
    let forbid = |tokens: &[u32]| ScoreQuery {
        adjustments: ScoreAdjustments { forbidden: tokens.to_vec(), ..ScoreAdjustments::default() },
        ..ScoreQuery::default()
    };
    let rows: [[f32; 4]; 4] = [
        [1.0, f32::INFINITY, 0.0, 2.0],
        [1.0, f32::NAN, 0.0, 2.0],
        [f32::NEG_INFINITY, 5.0, f32::NEG_INFINITY, f32::NEG_INFINITY],
        [f32::NAN, f32::NAN, f32::NAN, f32::NEG_INFINITY],
    ];
    for row in rows {
        Case::of(&row, forbid(&[1])).check(ORDERS[0]);
    }
    // Grows beyond all numbers only by its adjustment.
    let bias = vec![(2, f32::MAX), (2, f32::MAX)];
    let query = ScoreQuery { adjustments: ScoreAdjustments { bias, ..ScoreAdjustments::default() }, ..forbid(&[]) };
    Case::of(&[1.0, 2.0, 0.5], query).check(ORDERS[0]);
}

#[test]
fn adjustments_of_one_token_are_made_in_order() {
    if skipped() {
        return;
    }
    // In f32 (1 + 2^24) - 2^24 is 0, not 1.
    let large = 16_777_216.0f32;
    let bias = vec![(7, large), (3, 0.25), (7, -large)];
    let adjustments = ScoreAdjustments { bias, ..ScoreAdjustments::default() };
    let mut row = vec![0.5f32; 100];
    row[7] = 1.0;
    let query = ScoreQuery { adjustments, ..ScoreQuery::default() };
    assert_eq!(Case::of(&row, query.clone()).run(ORDERS[0])[0].token, 3);
    Case::of(&row, query).check(ORDERS[1]);
}
