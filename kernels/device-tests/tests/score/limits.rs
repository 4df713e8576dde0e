//! The largest sizes, and what is refused.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use kernels::{
    KernelError,
    device::{Array, Device, ElementType, ScoreAdjustments, ScoreBatch, ScoreQuery, ScoreSizes},
};

use crate::{
    case::{Case, ORDERS, Random, Spread, logits, query},
    skipped,
};

fn batch(max_rows: usize, vocab: usize, max_top: usize) -> Result<ScoreBatch, KernelError> {
    let device: Arc<dyn Device> = HostDevice::new(1 << 30, Order::Forward);
    ScoreBatch::new(&device, ScoreSizes { max_rows, vocab, max_top })
}

#[test]
fn the_vocabularies_of_models() {
    if skipped() {
        return;
    }
    let mut random = Random(41);
    for vocab in [32_000, 49_152, 126_464, 151_669] {
        let mut case = Case::new(vocab);
        for _ in 0..6 {
            let row = logits(&mut random, Spread::Normal, vocab);
            case.push(&row, query(&mut random, vocab));
        }
        case.check(ORDERS[vocab % 3]);
    }
}

#[test]
fn the_largest_vocabulary_with_all_tokens_equal() {
    if skipped() {
        return;
    }
    let row = vec![0.25f32; 1 << 19];
    let query = ScoreQuery { temperature: 1.0, top_p: 0.75, noise_key: 3, ..ScoreQuery::default() };
    Case::of(&row, query).check(ORDERS[0]);
}

#[test]
fn more_changes_than_there_was_room_for() {
    if skipped() {
        return;
    }
    let mut random = Random(42);
    let row = logits(&mut random, Spread::Normal, 9000);
    let seen: Vec<(u32, u32)> = (0..9000).map(|token| (token, token % 3)).collect();
    let adjustments =
        ScoreAdjustments { seen, repetition_penalty: 1.2, frequency_penalty: 0.3, ..ScoreAdjustments::default() };
    let query = ScoreQuery { adjustments, logprobs: Some(4), temperature: 1.0, ..ScoreQuery::default() };
    Case::of(&row, query.clone()).check(ORDERS[2]);

    let device: Arc<dyn Device> = HostDevice::new(1 << 28, Order::Forward);
    let mut batch = ScoreBatch::new(&device, ScoreSizes { max_rows: 1, vocab: 9000, max_top: 4 }).unwrap();
    let logits = Array::from_slice(&device, &row).unwrap();
    let before = batch.prepare(&[ScoreQuery::default()]).unwrap();
    let after = batch.prepare(&[query]).unwrap();
    assert_ne!(before, after);
    assert!(matches!(batch.launches(&before, &logits), Err(KernelError::StaleShape { .. })));
    assert!(batch.launches(&after, &logits).is_ok());
}

#[test]
fn what_is_refused() {
    if skipped() {
        return;
    }
    assert!(matches!(batch(0, 10, 0), Err(KernelError::Zero { what: "rows", .. })));
    assert!(matches!(batch(1, (1 << 19) + 1, 0), Err(KernelError::OutOfRange { what: "vocab", .. })));
    let mut batch = batch(2, 10, 4).unwrap();
    let ask = ScoreQuery::default;
    let mut refused = |query: ScoreQuery| batch.prepare(&[query]).unwrap_err().to_string();
    let cases = [
        (ScoreQuery { temperature: f32::NAN, ..ask() }, "`temperature` must be finite and at least 0, got NaN"),
        (ScoreQuery { top_p: 0.0, ..ask() }, "`top_p` must be above 0 and at most 1, got 0"),
        (ScoreQuery { min_p: 1.5, ..ask() }, "`min_p` must be between 0 and 1, got 1.5"),
        (ScoreQuery { top_k: Some(0), ..ask() }, "top_k must not be zero"),
        (ScoreQuery { mask_id: Some(10), ..ask() }, "token 10 is out of range, there are 10"),
        (ScoreQuery { given: Some(11), ..ask() }, "token 11 is out of range, there are 10"),
        (ScoreQuery { logprobs: Some(5), ..ask() }, "number of likeliest tokens 5 is out of range, there are 5"),
    ];
    for (query, expected) in cases {
        let message = refused(query);
        assert!(message.contains(expected), "{message}");
    }
    let rows = vec![ask(); 3];
    assert!(matches!(batch.prepare(&rows), Err(KernelError::OutOfRange { what: "rows", index: 3, len: 3, .. })));
    let shape = batch.prepare(&rows[..2]).unwrap();
    let device: Arc<dyn Device> = HostDevice::new(1 << 20, Order::Forward);
    let short = Array::zeros(&device, ElementType::F32, 19).unwrap();
    assert!(matches!(batch.launches(&shape, &short), Err(KernelError::Length { expected: 20, got: 19, .. })));
    let half = Array::zeros(&device, ElementType::F16, 20).unwrap();
    assert!(matches!(batch.launches(&shape, &half), Err(KernelError::Element { what: "logits", .. })));
    assert!(batch.prepare(&[]).is_ok());
}
