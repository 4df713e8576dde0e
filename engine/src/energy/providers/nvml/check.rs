//! Whether an energy counter runs at the right rate: what it counts is compared with the integral of power.

use std::time::Duration;

use crate::energy::types::Nanos;

/// A counter that counts less than half or more than twice the integral of power is wrong.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.5..=2.0;
/// Samples further apart say nothing about the power between them.
const MAX_STEP: Duration = Duration::from_millis(500);
/// How long counter and power are compared, beyond what the sensor of power blurs.
const SPAN: Duration = Duration::from_millis(500);
/// How often to look whether a device has become busy.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Power above that at the start, by this factor, is work.
const BUSY_FACTOR: f64 = 1.5;

/// Counter and power over the same time, from one change of the counter to another.
#[derive(Debug, Default, Clone)]
pub(crate) struct Comparison {
    last: Option<Sample>,
    start: Option<(Nanos, u64)>,
    end: Option<(Nanos, u64, f64)>,
    joules: f64,
    changes: Vec<Duration>,
    changed: Option<Nanos>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Nanos,
    energy_mj: u64,
    watts: Option<f64>,
}

impl Comparison {
    /// Takes a look at both sensors. A counter that went back, or too long a time between two looks, begins anew.
    pub(crate) fn add(&mut self, at: Nanos, energy_mj: u64, watts: Option<f64>) {
        let sample = Sample { at, energy_mj, watts };
        let Some(last) = self.last.replace(sample) else { return };
        if energy_mj < last.energy_mj || at.since(last.at) > MAX_STEP {
            *self = Self { last: Some(sample), ..Self::default() };
            return;
        }
        match (last.watts, watts) {
            (Some(before), Some(now)) => self.joules += (before + now) / 2.0 * at.since(last.at).as_secs_f64(),
            _ => {
                self.start = None;
                self.end = None;
            }
        }
        if energy_mj == last.energy_mj {
            return;
        }
        if let Some(changed) = self.changed.replace(at) {
            self.changes.push(at.since(changed));
        }
        if self.start.is_some() {
            self.end = Some((at, energy_mj, self.joules));
        } else if watts.is_some() {
            self.start = Some((at, energy_mj));
            self.joules = 0.0;
        }
    }

    /// The time that both cover.
    pub(crate) fn span(&self) -> Duration {
        match (self.start, self.end) {
            (Some((start, _)), Some((end, ..))) => end.since(start),
            _ => Duration::ZERO,
        }
    }

    /// What was counted over the integral of power; `None` if there was nothing to compare.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (_, start_mj) = self.start?;
        let (_, end_mj, joules) = self.end?;
        (joules > 0.0).then(|| (end_mj - start_mj) as f64 / 1000.0 / joules)
    }

    /// Whether counter and power agree; `None` if there was nothing to compare.
    pub(crate) fn agrees(&self) -> Option<bool> {
        self.ratio().map(|ratio| PLAUSIBLE.contains(&ratio))
    }

    /// Mean power, in watts.
    pub(crate) fn watts(&self) -> Option<f64> {
        let (_, _, joules) = self.end?;
        (self.span() > Duration::ZERO).then(|| joules / self.span().as_secs_f64())
    }

    /// Number of times between two changes of the counter that were seen.
    pub(crate) fn num_changes(&self) -> usize {
        self.changes.len()
    }

    /// The median time between two changes of the counter.
    pub(crate) fn update_period(&self) -> Option<Duration> {
        let mut changes = self.changes.clone();
        changes.sort_unstable();
        changes.get(changes.len() / 2).copied()
    }
}

/// Against a mean, a comparison may fail because the load moved; not so often in a row.
const FAILURES_OF_MEANS: u32 = 3;

/// Compares once the device is busy, as an error of rate may not show at rest.
#[derive(Debug)]
pub(crate) struct BusyCheck {
    averaging: Duration,
    busy_watts: Option<f64>,
    looked: Option<Nanos>,
    busy: bool,
    comparison: Comparison,
    failures: u32,
    done: bool,
}

impl BusyCheck {
    /// For a sensor of power that takes the mean over `averaging`; `watts` is the power of the device at the start.
    pub(crate) fn new(averaging: Option<Duration>, watts: Option<f64>) -> Self {
        Self {
            averaging: averaging.unwrap_or_default(),
            busy_watts: watts.map(|watts| watts * BUSY_FACTOR),
            looked: None,
            busy: false,
            comparison: Comparison::default(),
            failures: 0,
            done: false,
        }
    }

    /// Whether power is to be read along with the counter now.
    pub(crate) fn wants_power(&self, now: Nanos) -> bool {
        let looked = self.looked.is_some_and(|looked| now.since(looked) < LOOK_PERIOD);
        !self.done && (self.busy || !looked)
    }

    /// Takes counter and power; `Some(false)` if the counter is wrong.
    pub(crate) fn add(&mut self, now: Nanos, energy_mj: u64, watts: f64) -> Option<bool> {
        let paused = self.looked.replace(now).is_none_or(|looked| now.since(looked) > MAX_STEP);
        if paused || !self.busy {
            self.busy = self.busy_watts.is_none_or(|busy| watts >= busy);
            self.comparison = Comparison::default();
        }
        if !self.busy {
            return None;
        }
        self.comparison.add(now, energy_mj, Some(watts));
        // A mean lags by half its time: over this span that is an error of a fifth at most when work begins.
        if self.comparison.span() < SPAN + 2 * self.averaging {
            return None;
        }
        let agrees = std::mem::take(&mut self.comparison).agrees()?;
        self.busy = false;
        self.failures = if agrees { 0 } else { self.failures + 1 };
        let enough = if self.averaging.is_zero() { 1 } else { FAILURES_OF_MEANS };
        self.done = agrees || self.failures >= enough;
        self.done.then_some(agrees)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(20);
    const NOTHING: [bool; 0] = [];

    /// Looks every 20 ms for `steps`; returns what was decided and when the time is over.
    fn look(check: &mut BusyCheck, from: usize, steps: usize, watts: f64, counted: f64) -> Vec<bool> {
        let at = |step: usize| Nanos(u64::try_from(STEP.as_nanos()).unwrap() * step as u64);
        let energy = |step: usize| (counted * STEP.as_secs_f64() * 1000.0) as u64 * step as u64;
        (from..from + steps)
            .filter_map(
                |step| {
                    if check.wants_power(at(step)) { check.add(at(step), energy(step), watts) } else { None }
                },
            )
            .collect()
    }

    #[test]
    fn a_device_at_rest_is_only_looked_at() {
        let mut check = BusyCheck::new(None, Some(50.0));
        assert_eq!(look(&mut check, 0, 500, 60.0, 600.0), NOTHING);
        assert!(!check.wants_power(Nanos(9_999_000_000)), "once a second");
        assert_eq!(look(&mut check, 500, 500, 100.0, 100.0), [true]);
        assert!(!check.wants_power(Nanos(99_000_000_000)), "and never again");
    }

    #[test]
    fn against_the_power_of_the_moment_one_comparison_decides() {
        let mut check = BusyCheck::new(None, None);
        assert_eq!(look(&mut check, 0, 30, 100.0, 400.0), [false]);
    }

    #[test]
    fn against_a_mean_one_comparison_is_not_enough() {
        let averaging = Some(Duration::from_secs(1));
        let mut check = BusyCheck::new(averaging, Some(50.0));
        assert_eq!(look(&mut check, 0, 150, 100.0, 400.0), NOTHING);
        assert_eq!(look(&mut check, 150, 250, 100.0, 100.0), [true]);
        let mut check = BusyCheck::new(averaging, Some(50.0));
        assert_eq!(look(&mut check, 0, 1000, 100.0, 400.0), [false]);
    }

    #[test]
    fn a_pause_or_a_counter_that_went_back_begins_anew() {
        let mut comparison = Comparison::default();
        for (at_ms, energy) in [(0, 0), (100, 10_000), (200, 20_000), (900, 90_000), (1000, 5)] {
            comparison.add(Nanos(at_ms * 1_000_000), energy, Some(100.0));
            assert_eq!(comparison.ratio(), (at_ms == 200).then_some(1.0), "{at_ms} ms");
        }
    }
}
