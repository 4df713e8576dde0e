//! What the load generator itself costs, so that it is known when it was the bottleneck.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::tally::{self, Spread};

/// Between two looks at how late the event loop is.
const TICK: Duration = Duration::from_millis(10);

/// Begun at the start of a run.
#[derive(Debug)]
pub(crate) struct Gauge {
    began: Instant,
    cpu_began: Duration,
    resident_began: Option<u64>,
    ticks: JoinHandle<()>,
    lags: Arc<Mutex<Histogram<u64>>>,
}

/// What it cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cost {
    /// Time of the processor, of all threads of this program.
    pub(crate) cpu_s: f64,
    /// The same over the length of the run: 1 is a whole core.
    pub(crate) cores: f64,
    /// Seconds of the processor for a thousand events with text; `None` without events.
    pub(crate) cpu_s_per_1000_events: Option<f64>,
    /// Resident memory at the start, at the end, and the most of this process so far; where the system tells it.
    pub(crate) resident_start_bytes: Option<u64>,
    pub(crate) resident_end_bytes: Option<u64>,
    pub(crate) resident_peak_bytes: Option<u64>,
    /// How late the event loop came to its work, in milliseconds: so much may a time be wrong.
    pub(crate) loop_lag_ms: Option<Spread>,
}

impl Gauge {
    /// Starts to watch. Needs a runtime.
    pub(crate) fn start() -> Self {
        let lags = Arc::new(Mutex::new(tally::histogram()));
        let seen = lags.clone();
        let ticks = tokio::spawn(async move {
            let mut due = Instant::now() + TICK;
            let mut ticks = interval_at(due, TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let late = Instant::now().saturating_duration_since(due);
                due = Instant::now() + TICK;
                let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
                seen.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(late);
            }
        });
        Self { began: Instant::now(), cpu_began: cpu(), resident_began: resident("VmRSS"), ticks, lags }
    }

    /// What the run cost that brought `num_events` events.
    pub(crate) fn stop(self, num_events: u64) -> Cost {
        self.ticks.abort();
        let cpu_s = cpu().saturating_sub(self.cpu_began).as_secs_f64();
        Cost {
            cpu_s,
            cores: cpu_s / self.began.elapsed().as_secs_f64(),
            cpu_s_per_1000_events: (num_events > 0).then(|| cpu_s * 1000.0 / num_events as f64),
            resident_start_bytes: self.resident_began,
            resident_end_bytes: resident("VmRSS"),
            resident_peak_bytes: resident("VmHWM"),
            loop_lag_ms: Spread::of(&self.lags.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A size from the system's account of this process; `None` where there is none.
fn resident(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
