//! Readings from a trace instead of sensors.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::trace;
use crate::energy::{
    monitor::EnergyError,
    types::{Clock, Domain, EnergyProvider, Missing, Nanos, Raw, SourceClass, Unavailable},
};

type Reading = Result<Raw, Unavailable>;

/// Reads a trace by a clock: a reading is the last one in the trace at or before now. Before the first one of a domain and
/// after its last one there is none ([`Unavailable::Stale`]).
pub(crate) struct Replay {
    found: Vec<Result<Domain, Missing>>,
    /// In the order of time.
    readings: BTreeMap<String, Vec<(Nanos, Reading)>>,
    clock: Arc<dyn Clock>,
}

impl Replay {
    /// Reads a trace that will be followed by `clock`: the sampler's, or a [`TraceClock`] of the same file.
    ///
    /// # Errors
    /// If the file cannot be read or is no trace; names the line.
    pub(crate) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, EnergyError> {
        let Trace { found, readings, .. } = Trace::read(path)?;
        Ok(Self { found, readings, clock })
    }
}

impl EnergyProvider for Replay {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        self.found.clone()
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let readings = self.readings.get(domain).ok_or(Unavailable::NoSensor)?;
        let now = self.clock.now();
        let past = readings.partition_point(|(at, _)| *at <= now);
        let (at, reading) = past.checked_sub(1).and_then(|last| readings.get(last)).ok_or(Unavailable::Stale)?;
        if past == readings.len() && *at < now { Err(Unavailable::Stale) } else { *reading }
    }
}

/// The time of a trace, moved by hand from one reading to the next: with it a sampler does again exactly what it did when
/// the trace was recorded.
#[cfg_attr(not(test), allow(dead_code, reason = "the server follows a trace by its own clock"))]
pub(crate) struct TraceClock {
    now: AtomicU64,
    times: Vec<Nanos>,
    suspended: Vec<(Nanos, Duration)>,
}

#[cfg_attr(not(test), allow(dead_code, reason = "the server follows a trace by its own clock"))]
impl TraceClock {
    /// The clock of a trace, at its first reading, or at 0 if it has none.
    ///
    /// # Errors
    /// As [`Replay::open`].
    pub(crate) fn open(path: &Path) -> Result<Self, EnergyError> {
        let Trace { readings, suspended, .. } = Trace::read(path)?;
        let mut times: Vec<Nanos> = readings.into_values().flatten().map(|(at, _)| at).collect();
        times.sort_unstable();
        times.dedup();
        let now = AtomicU64::new(times.first().copied().unwrap_or_default().0);
        Ok(Self { now, times, suspended })
    }

    /// Moves to the next reading of any domain; `false` if there is none.
    pub(crate) fn step(&self) -> bool {
        let next = self.times.get(self.times.partition_point(|at| *at <= self.now()));
        next.map(|at| self.now.store(at.0, Ordering::SeqCst)).is_some()
    }
}

impl Clock for TraceClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::SeqCst))
    }

    fn suspended(&self) -> Duration {
        let past = self.suspended.partition_point(|(at, _)| *at <= self.now());
        past.checked_sub(1).and_then(|last| self.suspended.get(last)).map_or(Duration::ZERO, |(_, asleep)| *asleep)
    }
}

/// A whole trace.
struct Trace {
    found: Vec<Result<Domain, Missing>>,
    readings: BTreeMap<String, Vec<(Nanos, Reading)>>,
    suspended: Vec<(Nanos, Duration)>,
}

impl Trace {
    fn read(path: &Path) -> Result<Self, EnergyError> {
        let unreadable = |source| EnergyError::Trace { path: path.into(), source };
        let mut trace = Self { found: Vec::new(), readings: BTreeMap::new(), suspended: Vec::new() };
        let mut classes = BTreeMap::new();
        let mut last = Nanos::default();
        let mut number = 0;
        for line in BufReader::new(File::open(path).map_err(unreadable)?).lines() {
            let line = line.map_err(unreadable)?;
            number += 1;
            let wrong = |reason| EnergyError::TraceLine { path: path.into(), line: number, reason };
            if number == 1 && line.trim_end() != trace::HEAD {
                return Err(wrong(format!("a trace begins with `{}`", trace::HEAD)));
            }
            last = trace.line(line.trim_end(), last, &mut classes).map_err(wrong)?;
        }
        if number == 0 {
            let reason = format!("a trace begins with `{}`; this file is empty", trace::HEAD);
            return Err(EnergyError::TraceLine { path: path.into(), line: 1, reason });
        }
        Ok(trace)
    }

    /// Takes one line; `last` is the time of the one before.
    fn line(&mut self, line: &str, last: Nanos, classes: &mut BTreeMap<String, SourceClass>) -> Result<Nanos, String> {
        if line.is_empty() {
            return Ok(last);
        }
        if line.starts_with('#') {
            if let Some(found) = trace::parse_description(line)? {
                if let Ok(domain) = &found {
                    if classes.insert(domain.id.clone(), domain.class).is_some() {
                        return Err(format!("the domain `{}` is described twice", domain.id));
                    }
                    self.readings.insert(domain.id.clone(), Vec::new());
                }
                self.found.push(found);
            }
            return Ok(last);
        }
        let [time, domain, raw] = line.split(',').collect::<Vec<_>>()[..] else {
            return Err("a reading is `t_ns,domain,raw`".into());
        };
        let at = Nanos(trace::number(time, "a time in nanoseconds")?);
        if at < last {
            return Err(format!("the time {} is before {}, that of the line before", at.0, last.0));
        }
        if domain == trace::SUSPENDED {
            self.suspended.push((at, Duration::from_nanos(trace::number(raw, "a time in nanoseconds")?)));
            return Ok(at);
        }
        let (Some(class), Some(readings)) = (classes.get(domain), self.readings.get_mut(domain)) else {
            return Err(format!("no line before describes the domain `{domain}`"));
        };
        readings.push((at, trace::parse_reading(raw, *class)?));
        Ok(at)
    }
}
