//! What a run must say, from the script and from what the server noted: computed in another way than the load generator does.

use std::time::{Duration, Instant};

use super::script::{Seen, Stall};

/// A figure and what it must be.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) expected: f64,
    /// `None` if the run does not say it.
    pub(crate) measured: Option<f64>,
    pub(crate) allowed: f64,
}

impl Finding {
    pub(crate) fn is_right(&self) -> bool {
        self.measured.is_some_and(|measured| (measured - self.expected).abs() <= self.allowed)
    }

    /// Whether it is not too small. What is slow makes times longer, never shorter.
    #[cfg(test)]
    pub(crate) fn is_not_short(&self) -> bool {
        self.measured.is_some_and(|measured| measured >= self.expected - self.allowed)
    }
}

/// The smallest value that at least the share `quantile` of `values` do not exceed.
pub(crate) fn rank(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted[rank - 1]
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn millis(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

/// Times of answers in milliseconds, as the server noted them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Noted {
    pub(crate) ttft: Vec<f64>,
    pub(crate) e2e: Vec<f64>,
    pub(crate) tpot: Vec<f64>,
    pub(crate) event_gap: Vec<f64>,
    pub(crate) token_gap: Vec<f64>,
    pub(crate) tokens: f64,
    pub(crate) events: f64,
    /// From the first request to the end of the last answer, in seconds.
    pub(crate) window_s: f64,
}

impl Noted {
    pub(crate) fn of(seen: &[Seen]) -> Self {
        let mut noted = Self::default();
        for answer in seen {
            let (first, last) = (answer.events[0], answer.events[answer.events.len() - 1]);
            let tokens = answer.events.len() as f64 * f64::from(answer.tokens_per_event);
            noted.ttft.push(millis(answer.received, first));
            noted.e2e.push(millis(answer.received, answer.end));
            noted.tpot.push(millis(first, last) / (tokens - 1.0));
            for pair in answer.events.windows(2) {
                let gap = millis(pair[0], pair[1]);
                noted.event_gap.push(gap);
                let share = gap / f64::from(answer.tokens_per_event);
                noted.token_gap.extend((0..answer.tokens_per_event).map(|_| share));
            }
            noted.tokens += tokens;
            noted.events += answer.events.len() as f64;
        }
        let began = seen.iter().map(|answer| answer.received).min();
        let ended = seen.iter().map(|answer| answer.end).max();
        noted.window_s = began.zip(ended).map_or(0.0, |(began, ended)| millis(began, ended) / 1000.0);
        noted
    }
}

/// End-to-end times in milliseconds that requests at a constant rate must have on a server that stalls and otherwise
/// answers after `service`: what is due in the stall waits for its end.
pub(crate) fn under_stall(rate: f64, count: usize, stall: Stall, service: Duration) -> Vec<f64> {
    let ends = stall.from + stall.length;
    let e2e = |index: usize| {
        let due = Duration::from_secs_f64(index as f64 / rate);
        let waits = if due >= stall.from { ends.saturating_sub(due) } else { Duration::ZERO };
        (waits + service).as_secs_f64() * 1000.0
    };
    (0..count).map(e2e).collect()
}

/// The times of a closed loop with those that its clients would have seen had they asked every `interval` while they waited.
pub(crate) fn with_omitted(times: &[f64], interval: f64) -> Vec<f64> {
    let omitted = |&time: &f64| {
        let count = ((time / interval).floor() - 1.0).max(0.0) as usize;
        (0..=count).map(move |index| time - index as f64 * interval)
    };
    times.iter().flat_map(omitted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_omitted_times() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((rank(&values, 0.5), rank(&values, 0.99), rank(&values, 1.0)), (50.0, 99.0, 100.0));
        assert_eq!(with_omitted(&[10.0, 35.0], 10.0), [10.0, 35.0, 25.0, 15.0]);
        let stall = Stall { from: Duration::from_secs(1), length: Duration::from_secs(1) };
        let times = under_stall(10.0, 30, stall, Duration::from_millis(5));
        for (index, expected) in [(9, 5.0), (10, 1005.0), (15, 505.0), (20, 5.0)] {
            assert!((times[index] - expected).abs() < 1e-6, "{}: {}", index, times[index]);
        }
    }
}
