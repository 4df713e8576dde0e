//! How sure a row is.

use kernels::device::{ScoreConfidence, ScoreConfidenceKind, ScoreQuery};

use crate::{
    case::{Case, ORDERS, Random, SPREADS, logits},
    skipped,
};

const KINDS: [ScoreConfidenceKind; 3] =
    [ScoreConfidenceKind::Probability, ScoreConfidenceKind::Margin, ScoreConfidenceKind::Entropy];

#[test]
fn every_kind_matches_the_reference() {
    if skipped() {
        return;
    }
    let mut random = Random(11);
    for vocab in [1, 2, 33, 1000, 8193, 17_000] {
        for spread in SPREADS {
            let row = logits(&mut random, spread, vocab);
            let mut case = Case::new(vocab);
            for kind in KINDS {
                for filtered in [false, true] {
                    for temperature in [0.0, 0.4, 2.0] {
                        let held_down = if random.one_in(2) { random.tokens(vocab, 5) } else { Vec::new() };
                        let rule = ScoreConfidence { kind, filtered, held_down };
                        let (top_k, top_p) = random.pick(&[(None, 1.0), (Some(5), 1.0), (None, 0.8), (Some(40), 0.7)]);
                        case.push(
                            &row,
                            ScoreQuery {
                                temperature,
                                noise_key: random.next(),
                                top_k,
                                top_p,
                                confidence: Some(rule),
                                ..ScoreQuery::default()
                            },
                        );
                    }
                }
            }
            case.check(ORDERS[vocab % 3]);
        }
    }
}

#[test]
fn held_tokens_and_nan_have_the_lowest() {
    if skipped() {
        return;
    }
    let mut row = vec![0.0f32; 10_000];
    row[9000] = 30.0;
    for kind in KINDS {
        let ask = |held_down: Vec<u32>| ScoreQuery {
            confidence: Some(ScoreConfidence { kind, filtered: false, held_down }),
            ..ScoreQuery::default()
        };
        Case::of(&row, ask(vec![9000])).check(ORDERS[0]);
        Case::of(&row, ask((0..10_000).collect())).check(ORDERS[0]);
        let mut broken = row.clone();
        broken[77] = f32::NAN;
        Case::of(&broken, ask(Vec::new())).check(ORDERS[0]);
        let result = &Case::of(&broken, ask(Vec::new())).run(ORDERS[0])[0];
        let lowest = if kind == ScoreConfidenceKind::Entropy { f32::MIN } else { 0.0 };
        assert_eq!((result.token, result.confidence), (9000, Some(lowest)));
        // A value that is not a number, and not possible, does no harm.
        let masked = ScoreQuery { mask_id: Some(77), ..ask(Vec::new()) };
        Case::of(&broken, masked).check(ORDERS[0]);
    }
}
