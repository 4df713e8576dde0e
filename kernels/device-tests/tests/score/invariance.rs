//! A row has the same bits wherever it stands and whatever stands beside it.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use kernels::device::{Array, Device, Recording, ScoreBatch, ScoreQuery, ScoreSizes};

use crate::{
    case::{Case, ORDERS, Random, Spread, logits, query},
    skipped,
};

#[test]
fn a_row_alone_equals_the_row_in_a_batch() {
    if skipped() {
        return;
    }
    let mut random = Random(31);
    // Odd: rows start at every offset from 16 bytes.
    for vocab in [33, 1001, 9001] {
        let mut case = Case::new(vocab);
        for _ in 0..9 {
            let row = logits(&mut random, Spread::Normal, vocab);
            case.push(&row, query(&mut random, vocab));
        }
        let together = case.run(Order::Forward);
        for (i, expected) in together.iter().enumerate() {
            for order in ORDERS {
                let alone = Case::of(case.row(i), case.queries[i].clone()).run(order);
                assert_eq!(&alone[0], expected, "row {i} of {vocab}, {order:?}");
            }
        }
    }
}

/// The launches of a shape serve every batch of the shape.
#[test]
fn a_recording_serves_the_next_batch() {
    if skipped() {
        return;
    }
    let mut random = Random(32);
    let (vocab, rows) = (1003, 5);
    let device: Arc<dyn Device> = HostDevice::new(1 << 28, Order::Shuffled);
    let sizes = ScoreSizes { max_rows: 8, vocab, max_top: 64 };
    let mut batch = ScoreBatch::new(&device, sizes).unwrap();
    let array = Array::zeros(&device, kernels::device::ElementType::F32, 8 * vocab).unwrap();
    let mut recorded: Vec<(_, Recording)> = Vec::new();
    let mut reused = 0;
    for _ in 0..40 {
        let mut case = Case::new(vocab);
        for _ in 0..rows {
            let row = logits(&mut random, Spread::Normal, vocab);
            case.push(&row, query(&mut random, vocab));
        }
        let shape = batch.prepare(&case.queries).unwrap();
        array.write(0, &case.logits).unwrap();
        if recorded.iter().any(|(known, _)| *known == shape) {
            reused += 1;
        } else {
            let launches = batch.launches(&shape, &array).unwrap();
            recorded.push((shape, Recording::new(&device, launches).unwrap()));
        }
        let recording = &recorded.iter().find(|(known, _)| *known == shape).unwrap().1;
        recording.replay().unwrap();
        assert_eq!(batch.read().unwrap(), case.run(Order::Forward));
    }
    assert!(reused > 10, "{reused} of 40 batches had a shape that was known");
}

#[test]
fn what_nobody_asks_for_is_not_launched() {
    if skipped() {
        return;
    }
    let device: Arc<dyn Device> = HostDevice::new(1 << 28, Order::Forward);
    let mut batch = ScoreBatch::new(&device, ScoreSizes { max_rows: 4, vocab: 100, max_top: 20 }).unwrap();
    let logits = Array::zeros(&device, kernels::device::ElementType::F32, 400).unwrap();
    let mut names = |query: ScoreQuery| {
        let shape = batch.prepare(&[ScoreQuery::default(), query]).unwrap();
        let launches = batch.launches(&shape, &logits).unwrap();
        launches.iter().map(|launch| launch.kernel()).collect::<Vec<_>>()
    };
    let plain = ScoreQuery { temperature: 1.0, logprobs: Some(0), ..ScoreQuery::default() };
    assert_eq!(names(plain.clone()), ["score_partials", "score_combine"]);
    let filtered = ScoreQuery { top_p: 0.9, ..plain.clone() };
    assert_eq!(names(filtered), ["score_filter", "score_partials", "score_combine"]);
    let greedy = ScoreQuery { top_p: 0.9, ..ScoreQuery::default() };
    assert_eq!(names(greedy), ["score_partials", "score_combine"]);
    let mut all = ScoreQuery { top_p: 0.9, logprobs: Some(3), ..plain };
    all.adjustments.forbidden = vec![3];
    assert_eq!(
        names(all),
        ["score_top", "score_partials", "score_adjust", "score_filter", "score_partials", "score_combine"]
    );
}
