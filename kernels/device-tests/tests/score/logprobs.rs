//! Log-probabilities, of the row before it is adjusted.

use kernels::device::{ScoreAdjustments, ScoreQuery};

use crate::{
    case::{Case, ORDERS, Random, SPREADS, Spread, logits},
    skipped,
};

#[test]
fn lists_of_any_length_match_the_reference() {
    if skipped() {
        return;
    }
    let mut random = Random(21);
    for vocab in [1, 5, 64, 1000, 8193, 20_001] {
        for spread in SPREADS {
            let row = logits(&mut random, spread, vocab);
            let mut case = Case::new(vocab);
            for k in [0, 1, 2, 20, 64] {
                case.push(&row, ScoreQuery { logprobs: Some(k), ..ScoreQuery::default() });
            }
            case.push(&row, ScoreQuery { given: Some(random.below(vocab) as u32), ..ScoreQuery::default() });
            case.check(ORDERS[vocab % 3]);
        }
    }
}

#[test]
fn they_are_those_before_the_adjustments() {
    if skipped() {
        return;
    }
    let mut random = Random(22);
    let row = logits(&mut random, Spread::Normal, 9000);
    let best = Case::of(&row, ScoreQuery::default()).run(ORDERS[0])[0].token;
    let other = (best + 4000) % 9000;
    let adjustments =
        ScoreAdjustments { bias: vec![(other, 60.0)], forbidden: vec![best], ..ScoreAdjustments::default() };
    let query = ScoreQuery { adjustments, logprobs: Some(3), ..ScoreQuery::default() };
    let case = Case::of(&row, query);
    case.check(ORDERS[1]);
    let result = &case.run(ORDERS[0])[0];
    assert_eq!((result.token, result.top[0].0), (other, best));
    assert!(result.logprob.unwrap() < result.top[2].1);
}

#[test]
fn nan_stands_where_the_total_order_puts_it() {
    if skipped() {
        return;
    }
    let row = [1.0, f32::NAN, 2.0, -f32::NAN, f32::NEG_INFINITY];
    let query = ScoreQuery { logprobs: Some(5), ..ScoreQuery::default() };
    let tokens: Vec<u32> = Case::of(&row, query).run(ORDERS[0])[0].top.iter().map(|top| top.0).collect();
    assert_eq!(tokens, [1, 2, 0, 4, 3]);
}
