//! Statistics of records as they come, in constant memory.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    record::Record,
    summary::{Events, Failures, Goodput, Passes, Rates, Summary, Tokens},
};
use crate::client::FailureKind;

/// Least and greatest time that is told apart, in nanoseconds: 1 us and an hour.
const RANGE_NS: (u64, u64) = (1_000, 3_600_000_000_000);
/// Significant digits: a figure is wrong by a thousandth at most, or by 1 us.
const DIGITS: u8 = 3;
/// Events that are read within this time came in one piece, or as good as that.
const TOGETHER_NS: u64 = 100_000;
/// Different causes of failures that are counted apart.
const MOST_CAUSES: usize = 40;

/// An empty histogram of times.
#[expect(clippy::expect_used, reason = "the bounds are constants, and right")]
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(RANGE_NS.0, RANGE_NS.1, DIGITS).expect("bounds of a histogram")
}

/// How a time is spread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without values.
    pub(crate) fn of(times: &Histogram<u64>) -> Option<Self> {
        if times.is_empty() {
            return None;
        }
        let at = |quantile: f64| millis(times.value_at_quantile(quantile));
        Some(Self {
            count: times.len(),
            mean: times.mean() / 1e6,
            min: millis(times.min()),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: millis(times.max()),
        })
    }
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// Most that times may be for a request to be good, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Targets {
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) tpot_ms: Option<f64>,
    pub(crate) e2e_ms: Option<f64>,
}

impl Targets {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A stretch of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Bin {
    /// Requests that were sent.
    pub(crate) sent: u64,
    /// Answers that ended.
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    /// Tokens that came; where the server does not tell them event by event, an answer's are spread over its events.
    pub(crate) tokens: f64,
    /// Sum and maximum of the end-to-end times of the answers that ended, in milliseconds.
    pub(crate) e2e_sum_ms: f64,
    pub(crate) e2e_max_ms: f64,
}

impl Bin {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.finished += other.finished;
        self.failed += other.failed;
        self.tokens += other.tokens;
        self.e2e_sum_ms += other.e2e_sum_ms;
        self.e2e_max_ms = self.e2e_max_ms.max(other.e2e_max_ms);
    }
}

/// The run in stretches of equal length, which doubles when there are too many.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Timeline {
    pub(crate) bin_s: f64,
    pub(crate) bins: Vec<Bin>,
}

impl Timeline {
    const MOST_BINS: usize = 600;

    fn new() -> Self {
        Self { bin_s: 0.1, bins: Vec::new() }
    }

    fn at(&mut self, at_ns: u64) -> &mut Bin {
        let at_s = at_ns as f64 / 1e9;
        while at_s / self.bin_s >= Self::MOST_BINS as f64 {
            self.bin_s *= 2.0;
            let merge = |pair: &[Bin]| {
                let mut sum = pair[0];
                pair.iter().skip(1).for_each(|bin| sum.add(bin));
                sum
            };
            self.bins = self.bins.chunks(2).map(merge).collect();
        }
        let index = (at_s / self.bin_s) as usize;
        if self.bins.len() <= index {
            self.bins.resize(index + 1, Bin::default());
        }
        &mut self.bins[index]
    }
}

/// Everything counted so far.
#[derive(Debug)]
pub(crate) struct Tally {
    targets: Targets,
    is_closed: bool,
    first_ns: Option<u64>,
    last_ns: u64,
    ok: u64,
    interrupted: u64,
    good: u64,
    failures: BTreeMap<(FailureKind, String), u64>,
    tokens: Tokens,
    events: Events,
    passes: Passes,
    joules: f64,
    metered: u64,
    busy_s: f64,
    times: Times,
    timeline: Timeline,
}

/// One histogram for each time.
#[derive(Debug, Clone)]
struct Times {
    ttft: Histogram<u64>,
    ttft_sent: Histogram<u64>,
    head: Histogram<u64>,
    tpot: Histogram<u64>,
    event_gap: Histogram<u64>,
    token_gap: Histogram<u64>,
    e2e: Histogram<u64>,
    e2e_sent: Histogram<u64>,
    per_token: Histogram<u64>,
    late: Histogram<u64>,
    failed_after: Histogram<u64>,
}

impl Times {
    fn new() -> Self {
        let empty = histogram();
        let another = || empty.clone();
        Self {
            ttft: another(),
            ttft_sent: another(),
            head: another(),
            tpot: another(),
            event_gap: another(),
            token_gap: another(),
            e2e: another(),
            e2e_sent: another(),
            per_token: another(),
            late: another(),
            failed_after: empty,
        }
    }
}

impl Tally {
    /// `is_closed` is whether clients wait for answers before they ask again.
    pub(crate) fn new(targets: Targets, is_closed: bool) -> Self {
        Self {
            targets,
            is_closed,
            first_ns: None,
            last_ns: 0,
            ok: 0,
            interrupted: 0,
            good: 0,
            failures: BTreeMap::new(),
            tokens: Tokens::default(),
            events: Events::default(),
            passes: Passes::default(),
            joules: 0.0,
            metered: 0,
            busy_s: 0.0,
            times: Times::new(),
            timeline: Timeline::new(),
        }
    }

    pub(crate) fn add(&mut self, record: &Record) {
        let wanted = record.wanted_ns();
        if record.answer.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Interrupted) {
            self.interrupted += 1;
            return;
        }
        self.first_ns = Some(self.first_ns.map_or(wanted, |first| first.min(wanted)));
        self.last_ns = self.last_ns.max(record.ended_ns());
        self.timeline.at(record.sent_ns).sent += 1;
        self.times.late.saturating_record(record.late_ns());
        self.busy_s += (record.ended_ns() - record.sent_ns) as f64 / 1e9;
        match &record.answer.failure {
            None => self.add_answer(record),
            Some(failure) => {
                self.times.failed_after.saturating_record(record.ended_ns() - wanted);
                self.timeline.at(record.ended_ns()).failed += 1;
                let cause = (failure.kind, failure.message.clone());
                let is_known = self.failures.contains_key(&cause) || self.failures.len() < MOST_CAUSES;
                let cause = if is_known { cause } else { (failure.kind, "other causes".into()) };
                *self.failures.entry(cause).or_default() += 1;
            }
        }
    }

    fn add_answer(&mut self, record: &Record) {
        let answer = &record.answer;
        let (late, times) = (record.late_ns(), &mut self.times);
        let sent_to_end = record.ended_ns() - record.sent_ns;
        let e2e = late + sent_to_end;
        self.ok += 1;
        times.e2e.saturating_record(e2e);
        times.e2e_sent.saturating_record(sent_to_end);
        if let Some(head) = answer.head_ns {
            times.head.saturating_record(late + head);
        }
        let ttft = answer.events.first().filter(|_| answer.is_stream).map(|first| first.at_ns);
        if let Some(ttft) = ttft {
            times.ttft.saturating_record(late + ttft);
            times.ttft_sent.saturating_record(ttft);
        }
        let tokens = answer.usage.completion_tokens;
        if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
            times.per_token.saturating_record(e2e / tokens);
        }
        self.tokens.add(&answer.usage);
        let tpot = self.add_events(record);
        if let Some(tpot) = tpot {
            self.times.tpot.saturating_record(tpot);
        }
        if let Some(decoding) = &answer.decoding {
            self.passes.add(decoding);
        }
        if let Some(joules) = answer.usage.joules() {
            self.joules += joules;
            self.metered += 1;
        }
        let within = |most: Option<f64>, time: Option<u64>| {
            most.is_none_or(|most| time.is_none_or(|nanos| millis(nanos) <= most))
        };
        let Targets { ttft_ms, tpot_ms, e2e_ms } = self.targets;
        // An answer without a first text cannot have it in time.
        let begins = ttft_ms.is_none() || ttft.is_some();
        let is_good = begins && within(ttft_ms, ttft.map(|ttft| late + ttft)) && within(tpot_ms, tpot);
        self.good += u64::from(is_good && within(e2e_ms, Some(e2e)));
        let bin = self.timeline.at(record.ended_ns());
        bin.finished += 1;
        bin.e2e_sum_ms += millis(e2e);
        bin.e2e_max_ms = bin.e2e_max_ms.max(millis(e2e));
    }

    /// Counts the events of an answer; its time for each token behind the first event, if it has one.
    fn add_events(&mut self, record: &Record) -> Option<u64> {
        let answer = &record.answer;
        let events = &answer.events;
        let tokens = answer.usage.completion_tokens;
        if !answer.is_stream || events.is_empty() {
            self.events.without += 1;
            if let (Some(tokens), true) = (tokens, !answer.is_stream) {
                self.timeline.at(record.ended_ns()).tokens += tokens as f64;
            }
            return None;
        }
        self.events.count += events.len() as u64;
        let each = tokens.map(|tokens| tokens as f64 / events.len() as f64);
        if let Some(tokens) = tokens {
            self.events.tokens += tokens;
            self.events.counted += events.len() as u64;
        }
        for event in events {
            let tokens = event.num_tokens.map(f64::from).or(each).unwrap_or(0.0);
            self.timeline.at(record.sent_ns + event.at_ns).tokens += tokens;
        }
        for pair in events.windows(2) {
            let gap = pair[1].at_ns - pair[0].at_ns;
            self.times.event_gap.saturating_record(gap);
            self.events.bundled += u64::from(gap < TOGETHER_NS);
            // A token's share of the gap before its event.
            let tokens = pair[1].num_tokens.map(f64::from).or(each).filter(|tokens| *tokens > 0.0);
            if let Some(tokens) = tokens {
                let (share, count) = ((gap as f64 / tokens) as u64, (tokens.round() as u64).max(1));
                self.times.token_gap.saturating_record_n(share, count);
            }
        }
        let (first, last) = (events.first()?, events.last()?);
        if events.len() < 2 {
            self.events.single += 1;
            return None;
        }
        let behind_first = tokens?.checked_sub(1).filter(|count| *count > 0)?;
        Some((last.at_ns - first.at_ns) / behind_first)
    }

    /// Failures so far.
    fn num_failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// End-to-end and first-text times at `quantiles`, in milliseconds: for plots.
    pub(crate) fn curve(&self, quantiles: &[f64]) -> Vec<(f64, f64, f64)> {
        let at = |times: &Histogram<u64>, quantile| millis(times.value_at_quantile(quantile));
        quantiles.iter().map(|&q| (q, at(&self.times.ttft, q), at(&self.times.e2e, q))).collect()
    }

    pub(crate) fn summary(&self) -> Summary {
        let window_s = self.last_ns.saturating_sub(self.first_ns.unwrap_or(0)) as f64 / 1e9;
        let times = &self.times;
        let failed = self.num_failed();
        let per_second = |count: f64| (window_s > 0.0).then(|| count / window_s);
        let all_counted = self.tokens.answers_without == 0 && self.ok > 0;
        let known = |count: u64| if all_counted { per_second(count as f64) } else { None };
        Summary {
            window_s,
            sent: self.ok + failed,
            ok: self.ok,
            failed,
            interrupted: self.interrupted,
            failures: self
                .failures
                .iter()
                .map(|((kind, message), &count)| Failures { kind: *kind, message: message.clone(), count })
                .collect(),
            rates: Rates {
                requests: per_second(self.ok as f64),
                output_tokens: known(self.tokens.completion),
                total_tokens: known(self.tokens.completion + self.tokens.prompt),
            },
            mean_in_flight: per_second(self.busy_s),
            tokens: self.tokens.clone(),
            ttft_ms: Spread::of(&times.ttft),
            ttft_from_send_ms: Spread::of(&times.ttft_sent),
            head_ms: Spread::of(&times.head),
            tpot_ms: Spread::of(&times.tpot),
            event_gap_ms: Spread::of(&times.event_gap),
            token_gap_ms: Spread::of(&times.token_gap),
            e2e_ms: Spread::of(&times.e2e),
            e2e_from_send_ms: Spread::of(&times.e2e_sent),
            e2e_corrected_ms: self.is_closed.then(|| Spread::of(&corrected(&times.e2e))).flatten(),
            e2e_per_token_ms: Spread::of(&times.per_token),
            late_ms: (!self.is_closed).then(|| Spread::of(&times.late)).flatten(),
            failed_after_ms: Spread::of(&times.failed_after),
            events: self.events.clone(),
            goodput: (!self.targets.is_empty()).then(|| Goodput {
                targets: self.targets,
                good: self.good,
                per_second: per_second(self.good as f64),
            }),
            passes: self.passes.summary(),
            request_joules: (self.metered == self.ok && self.ok > 0).then_some(self.joules),
            timeline: self.timeline.clone(),
        }
    }
}

/// What a closed loop would have seen if its clients had gone on asking while they waited: for an answer that took `t`,
/// answers of `t - m`, `t - 2m`, ... are added, where `m` is the median (the correction of HdrHistogram).
fn corrected(times: &Histogram<u64>) -> Histogram<u64> {
    match times.value_at_quantile(0.5) {
        0 => times.clone(),
        median => times.clone_correct(median),
    }
}
