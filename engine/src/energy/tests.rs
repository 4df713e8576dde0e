//! The whole of metering with sensors and clocks that the tests set.

mod engine;
mod sampler;
mod trace;

use std::{sync::Arc, time::Duration};

use prometheus_client::{encoding::text, registry::Registry};

use super::{EnergyMonitor, EnergySettings, monitor::EnergyMonitor as Monitor};
use crate::testing::{HandSampler, ManualClock, ScriptedMeter, metered_by_hand};

const MS: Duration = Duration::from_millis(1);

/// A clock, sensors on it, and a monitor of them once they are there.
struct Bench {
    clock: ManualClock,
    meter: ScriptedMeter,
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::new();
        let meter = ScriptedMeter::new(Arc::new(clock.clone()));
        Self { clock, meter }
    }

    fn start(&self) -> (EnergyMonitor, HandSampler) {
        metered_by_hand(&settings(), &self.meter)
    }
}

fn settings() -> EnergySettings {
    EnergySettings { interval: 20 * MS, ..EnergySettings::default() }
}

/// Measured equals given, in each domain. What each has measured.
fn check_sums(monitor: &Monitor) -> Vec<u64> {
    let sums = monitor.0.core().sums();
    for (measured, given) in &sums {
        assert_eq!(measured, given, "{sums:?}");
    }
    sums.into_iter().map(|(measured, _)| measured).collect()
}

/// What `/metrics` says.
fn page(monitor: &EnergyMonitor) -> String {
    let mut registry = Registry::default();
    monitor.register_metrics(&mut registry);
    let mut page = String::new();
    text::encode(&mut page, &registry).unwrap();
    page
}

/// The value of the only line that begins so.
fn sample(page: &str, series: &str) -> Option<f64> {
    let mut lines = page.lines().filter(|line| line.starts_with(series));
    let line = lines.next()?;
    assert!(lines.next().is_none(), "`{series}` is not one series");
    line.rsplit(' ').next()?.parse().ok()
}
