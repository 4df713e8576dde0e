//! Figures of records that are made by hand, so that each must come out exact (but for the histogram's thousandth).

use std::time::Instant;

use super::{
    record::{Phase, Record},
    summary::Summary,
    tally::{Spread, Tally, Targets},
};
use crate::client::{Answer, Decoding, Failure, FailureKind, TextEvent, Usage};

const MS: u64 = 1_000_000;

/// An answer whose events come at `events` milliseconds after it was sent, with `tokens` in all.
fn record(index: u64, (due, sent): (Option<u64>, u64), events: &[u64], tokens: Option<u64>) -> Record {
    let event = |&at: &u64| TextEvent { at_ns: at * MS, num_chars: 4, num_tokens: None };
    let last = events.last().copied().unwrap_or(1);
    let answer = Answer {
        status: Some(200),
        head_ns: Some(MS),
        events: events.iter().map(event).collect(),
        is_stream: true,
        end_ns: Some((last + 1) * MS),
        closed_ns: (last + 50) * MS,
        finish_reason: Some("stop".into()),
        usage: Usage::of(tokens.map(|_| 10), tokens),
        ..Answer::empty(Instant::now())
    };
    Record { index, prompt: 0, phase: Phase::Measured, due_ns: due.map(|ms| ms * MS), sent_ns: sent * MS, answer }
}

fn failed(mut record: Record, kind: FailureKind) -> Record {
    record.answer.failure = Some(Failure { kind, message: "x".into() });
    record
}

fn summary(targets: Targets, is_closed: bool, records: &[Record]) -> Summary {
    let mut tally = Tally::new(targets, is_closed);
    records.iter().for_each(|record| tally.add(record));
    tally.summary()
}

fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 0.001 * expected + 0.001, "{got} is not {expected}");
}

fn all(spread: Option<Spread>, expected: &[f64]) {
    let spread = spread.expect("there are values");
    assert_eq!(spread.count, expected.len() as u64);
    near(spread.mean, expected.iter().sum::<f64>() / expected.len() as f64);
    near(spread.min, expected[0]);
    near(spread.max, expected[expected.len() - 1]);
}

#[test]
fn times_of_a_closed_loop() {
    // 7 tokens in three events, then 4 in two, then one.
    let records = [
        record(0, (None, 0), &[30, 50, 90], Some(7)),
        record(1, (None, 100), &[40, 100], Some(4)),
        record(2, (None, 205), &[10], Some(1)),
    ];
    let summary = summary(Targets::default(), true, &records);
    all(summary.ttft_ms, &[10.0, 30.0, 40.0]);
    // (90 - 30) / 6 and (100 - 40) / 3; a single event has none.
    all(summary.tpot_ms, &[10.0, 20.0]);
    all(summary.event_gap_ms, &[20.0, 40.0, 60.0]);
    // 20 and 40 over 7/3 tokens, twice each; 60 over 2, twice.
    all(summary.token_gap_ms, &[20.0 * 3.0 / 7.0, 20.0 * 3.0 / 7.0, 120.0 / 7.0, 120.0 / 7.0, 30.0, 30.0]);
    all(summary.e2e_ms, &[11.0, 91.0, 101.0]);
    all(summary.e2e_per_token_ms, &[11.0, 13.0, 25.25]);
    near(summary.window_s, 0.216);
    near(summary.rates.requests.unwrap(), 3.0 / 0.216);
    near(summary.rates.output_tokens.unwrap(), 12.0 / 0.216);
    near(summary.rates.total_tokens.unwrap(), 42.0 / 0.216);
    near(summary.mean_in_flight.unwrap(), (0.091 + 0.101 + 0.011) / 0.216);
    assert_eq!(summary.events.tokens_per_event(), Some(2.0));
    assert_eq!((summary.events.single, summary.events.without, summary.late_ms), (1, 0, None));
    let tokens: f64 = summary.timeline.bins.iter().map(|bin| bin.tokens).sum();
    near(tokens, 12.0);
}

#[test]
fn an_open_loop_counts_from_when_a_request_was_due() {
    let records = [record(0, (Some(0), 0), &[10], Some(1)), record(1, (Some(100), 900), &[10], Some(1))];
    let summary = summary(Targets::default(), false, &records);
    all(summary.ttft_ms, &[10.0, 810.0]);
    all(summary.ttft_from_send_ms, &[10.0, 10.0]);
    all(summary.e2e_ms, &[11.0, 811.0]);
    assert_eq!(summary.late_ms.unwrap().max.round(), 800.0);
    near(summary.window_s, 0.911);
    near(summary.offered.unwrap(), 10.0);
    assert_eq!(summary.e2e_corrected_ms, None);
}

#[test]
fn failures_are_in_their_own_figures_alone() {
    let records = [
        record(0, (None, 0), &[10, 20], Some(3)),
        failed(record(1, (None, 5), &[], None), FailureKind::Timeout),
        failed(record(2, (None, 5), &[], None), FailureKind::Interrupted),
    ];
    let summary = summary(Targets { e2e_ms: Some(50.0), ..Targets::default() }, true, &records);
    assert_eq!((summary.sent, summary.ok, summary.failed, summary.interrupted), (2, 1, 1, 1));
    near(summary.window_s, 0.021);
    all(summary.e2e_ms, &[21.0]);
    all(summary.failed_after_ms, &[51.0]);
    assert_eq!(summary.goodput.unwrap().good, 1);
    assert_eq!((summary.failures[0].kind, summary.failures[0].count), (FailureKind::Timeout, 1));
}

#[test]
fn a_good_request_meets_every_target_and_can_show_it() {
    let targets = Targets { ttft_ms: Some(20.0), tpot_ms: Some(10.0), e2e_ms: Some(100.0) };
    let good = |events: &[u64], tokens: Option<u64>| {
        summary(targets, true, &[record(0, (None, 0), events, tokens)]).goodput.unwrap().good
    };
    assert_eq!(good(&[20, 40], Some(3)), 1);
    assert_eq!(good(&[21, 40], Some(3)), 0, "begins late");
    assert_eq!(good(&[20, 41], Some(3)), 0, "slow");
    assert_eq!(good(&[20, 99], Some(30)), 1);
    assert_eq!(good(&[20, 100], Some(30)), 0, "ends late");
    assert_eq!(good(&[20, 40], None), 0, "nobody knows its tokens");
    assert_eq!(good(&[20], Some(1)), 1, "one token has no time between tokens");
    assert_eq!(good(&[], Some(0)), 0, "no first text");
}

#[test]
fn tokens_are_unknown_as_soon_as_one_answer_does_not_tell_them() {
    let records = [record(0, (None, 0), &[10, 20], Some(3)), record(1, (None, 0), &[10, 20], None)];
    let summary = summary(Targets::default(), true, &records);
    assert_eq!((summary.rates.output_tokens, summary.tokens.answers_without), (None, 1));
    assert!(summary.rates.requests.is_some());
}

#[test]
fn counts_of_a_lying_server_do_not_overflow() {
    let records: Vec<Record> = (0..3).map(|index| record(index, (None, 0), &[10, 20], Some(u64::MAX))).collect();
    assert_eq!(summary(Targets::default(), true, &records).tokens.completion, u64::MAX);
}

#[test]
fn passes_without_a_token_count() {
    let mut answer = record(0, (None, 0), &[10], Some(5));
    // Four passes, one of which committed nothing.
    let decoding = Decoding { forward_passes: Some(4), acceptance_histogram: vec![1, 2], ..Decoding::default() };
    answer.answer.decoding = Some(decoding);
    let passes = summary(Targets::default(), true, &[answer]).passes.unwrap();
    assert_eq!((passes.committed_tokens, passes.forward_passes, passes.tokens_per_forward), (5, 4, Some(1.25)));
}

#[test]
fn requests_that_pile_up_are_seen_and_slow_ones_are_not_taken_for_them() {
    // Ten a second against a server that does five: each waits 100 ms longer than the one before.
    let piling: Vec<Record> = (0..40).map(|i| record(i, (Some(100 * i), 100 * i), &[200 + 100 * i], Some(1))).collect();
    assert!(summary(Targets::default(), false, &piling).is_falling_behind());
    // Three seconds for every answer, and room for all.
    let slow: Vec<Record> = (0..40).map(|i| record(i, (Some(100 * i), 100 * i), &[3000], Some(1))).collect();
    let summary = summary(Targets::default(), false, &slow);
    assert!(!summary.is_falling_behind(), "{:?}", summary.growth);
    near(summary.offered.unwrap(), 10.0);
}

#[test]
fn long_timelines_keep_their_sums() {
    let records: Vec<Record> = (0..5000).map(|i| record(i, (None, 1000 * i), &[10, 20], Some(4))).collect();
    let timeline = summary(Targets::default(), true, &records).timeline;
    assert!(timeline.bins.len() <= 600);
    assert_eq!(timeline.bins.iter().map(|bin| bin.finished).sum::<u64>(), 5000);
    near(timeline.bins.iter().map(|bin| bin.tokens).sum(), 20_000.0);
}

#[test]
fn a_closed_loop_is_corrected_by_its_median() {
    let mut records: Vec<Record> = (0..200).map(|i| record(i, (None, 11 * i), &[9], Some(1))).collect();
    records.push(record(200, (None, 2200), &[999], Some(1)));
    let summary = summary(Targets::default(), true, &records);
    near(summary.e2e_ms.unwrap().p99, 10.0);
    // 1000, 990, ... 10 are added to 200 times 10: 301 values, of which 4 lie above the 99th percentile.
    let corrected = summary.e2e_corrected_ms.unwrap();
    assert_eq!(corrected.count, 300);
    assert!((960.0..=980.0).contains(&corrected.p99), "{corrected:?}");
}
