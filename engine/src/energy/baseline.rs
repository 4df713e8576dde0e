//! Power without work.

use std::{collections::VecDeque, time::Duration};

use super::types::Nanos;

/// How long nothing must have run before a measurement begins.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// Measurements whose median counts.
const KEPT: usize = 5;
/// Largest standard deviation of a measurement, as a share of its mean.
const MAX_VARIATION: f64 = 0.1;
/// Fewest intervals of a measurement.
const MIN_INTERVALS: usize = 3;

/// The idle power of one domain.
#[derive(Debug, Clone)]
pub(crate) struct Baseline {
    /// Length of a measurement; `None` measures nothing.
    window: Option<Duration>,
    /// Energy in microjoules and length of the intervals of the measurement that is under way.
    intervals: Vec<(u64, Duration)>,
    /// Results in watts, oldest first.
    results: VecDeque<f64>,
    measured_at: Option<Nanos>,
}

impl Baseline {
    pub(crate) fn new(window: Option<Duration>) -> Self {
        Self { window, intervals: Vec::new(), results: VecDeque::new(), measured_at: None }
    }

    /// Median of the last measurements, in watts.
    pub(crate) fn watts(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.results.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            len if len % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// Time since the last measurement.
    pub(crate) fn age(&self, now: Nanos) -> Option<Duration> {
        self.measured_at.map(|at| now.since(at))
    }

    /// Breaks off the measurement.
    pub(crate) fn disturb(&mut self) {
        self.intervals.clear();
    }

    /// Takes a closed interval in which nothing ran, with [`QUIET`] before it.
    pub(crate) fn observe(&mut self, from: Nanos, to: Nanos, energy_uj: u64) {
        let Some(window) = self.window else { return };
        self.intervals.push((energy_uj, to.since(from)));
        let seconds: f64 = self.intervals.iter().map(|(_, length)| length.as_secs_f64()).sum();
        if seconds < window.as_secs_f64() || self.intervals.len() < MIN_INTERVALS {
            return;
        }
        let mean = self.intervals.iter().map(|(uj, _)| *uj as f64).sum::<f64>() * 1e-6 / seconds;
        // By time, so that a short interval with its coarse power says little.
        let deviation = |(uj, length): &(u64, Duration)| {
            let length = length.as_secs_f64();
            (*uj as f64 * 1e-6 / length - mean).powi(2) * length
        };
        let variance = self.intervals.iter().map(deviation).sum::<f64>() / seconds;
        self.intervals.clear();
        if variance.sqrt() <= MAX_VARIATION * mean {
            if self.results.len() == KEPT {
                self.results.pop_front();
            }
            self.results.push_back(mean);
            self.measured_at = Some(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(index: u64) -> Nanos {
        Nanos(index * 1_000_000_000)
    }

    fn measure(baseline: &mut Baseline, from: u64, watts: &[f64]) {
        for (index, watts) in (from..).zip(watts) {
            baseline.observe(second(index), second(index + 1), (watts * 1e6) as u64);
        }
    }

    #[test]
    fn a_steady_window_counts_and_an_unsteady_one_does_not() {
        let mut baseline = Baseline::new(Some(Duration::from_secs(10)));
        measure(&mut baseline, 0, &[8.0; 9]);
        assert_eq!(baseline.watts(), None);
        measure(&mut baseline, 9, &[8.0]);
        assert_eq!(baseline.watts(), Some(8.0));
        measure(&mut baseline, 10, &[4.0, 16.0, 4.0, 16.0, 4.0, 16.0, 4.0, 16.0, 4.0, 16.0]);
        assert_eq!(baseline.watts(), Some(8.0));
        assert_eq!(baseline.age(second(25)), Some(Duration::from_secs(15)));
    }

    #[test]
    fn the_median_of_the_last_five_counts() {
        let mut baseline = Baseline::new(Some(Duration::from_secs(10)));
        for (index, watts) in [50.0, 8.0, 9.0, 10.0, 7.0, 6.0].into_iter().enumerate() {
            measure(&mut baseline, index as u64 * 10, &[watts; 10]);
        }
        assert_eq!(baseline.watts(), Some(8.0));
    }

    #[test]
    fn a_disturbed_window_begins_again() {
        let mut baseline = Baseline::new(Some(Duration::from_secs(10)));
        measure(&mut baseline, 0, &[8.0; 9]);
        baseline.disturb();
        measure(&mut baseline, 20, &[5.0; 9]);
        assert_eq!(baseline.watts(), None);
        measure(&mut baseline, 29, &[5.0]);
        assert_eq!(baseline.watts(), Some(5.0));
    }

    #[test]
    fn off_measures_nothing() {
        let mut baseline = Baseline::new(None);
        measure(&mut baseline, 0, &[8.0; 100]);
        assert_eq!(baseline.watts(), None);
    }
}
