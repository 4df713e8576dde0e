//! One domain: its meter, its state, and where its energy went.

use std::{collections::BTreeMap, time::Duration};

use super::{
    baseline::Baseline,
    counter::{Advance, Counter},
    monitor::SystemCause,
    power::{Implausible, Power},
    types::{Domain, Nanos, Raw, SourceClass, Unavailable},
};

/// Shortest silence of a sensor of power that makes a gap.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Meter {
    Counter(Counter),
    Power(Power),
}

/// Microjoules that belong to no request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SystemAccounts {
    pub(crate) idle: u64,
    pub(crate) load: u64,
    pub(crate) warmup: u64,
    pub(crate) other: u64,
}

impl SystemAccounts {
    pub(crate) fn charge(&mut self, cause: SystemCause, energy_uj: u64) {
        *match cause {
            SystemCause::Load => &mut self.load,
            SystemCause::Warmup => &mut self.warmup,
            SystemCause::Other => &mut self.other,
        } += energy_uj;
    }

    #[cfg(test)]
    pub(crate) fn sum(&self) -> u64 {
        self.idle + self.load + self.warmup + self.other
    }
}

/// A domain that is read.
#[derive(Debug, Clone)]
pub(crate) struct Track {
    pub(crate) domain: Domain,
    meter: Meter,
    /// Wraps and resets of the counter that was found wrong.
    retired: (u64, u64),
    /// Time between readings at the last one.
    period: Duration,
    /// Whether it can be read; before the first reading nothing is known against it.
    pub(crate) state: Result<(), Unavailable>,
    /// Everything up to here is either measured or a gap.
    pub(crate) resolved: Nanos,
    /// Measured since the start, in microjoules.
    pub(crate) measured_uj: u64,
    /// Whether it was ever read.
    pub(crate) was_read: bool,
    pub(crate) system: SystemAccounts,
    pub(crate) baseline: Baseline,
    /// Mean power of the last closed interval, in watts.
    pub(crate) watts: Option<f64>,
    pub(crate) gap: Duration,
    pub(crate) errors: BTreeMap<Unavailable, u64>,
    /// The last reason why it could not be read.
    pub(crate) last_failure: Option<Unavailable>,
    /// Processes of others on the device, if that is known.
    pub(crate) foreign_processes: Option<usize>,
}

/// What a reading did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The interval stays open.
    Open,
    /// It is closed: with so many microjoules, or as a gap.
    Closed(Option<u64>),
}

impl Track {
    /// `start` is when reading begins.
    pub(crate) fn new(domain: Domain, idle_window: Option<Duration>, start: Nanos) -> Self {
        let meter = match domain.class {
            SourceClass::Counter { modulus_uj } => Meter::Counter(Counter::new(modulus_uj, domain.max_watts)),
            SourceClass::IntervalMean => Meter::Power(Power::new(true, domain.max_watts)),
            SourceClass::InstantPower { .. } => Meter::Power(Power::new(false, domain.max_watts)),
        };
        Self {
            domain,
            meter,
            retired: (0, 0),
            period: Duration::ZERO,
            state: Ok(()),
            resolved: start,
            measured_uj: 0,
            was_read: false,
            system: SystemAccounts::default(),
            baseline: Baseline::new(idle_window),
            watts: None,
            gap: Duration::ZERO,
            errors: BTreeMap::new(),
            last_failure: None,
            foreign_processes: None,
        }
    }

    /// How finely the domain tells times apart: its update period, or how often it is read where that is not known.
    pub(crate) fn resolution(&self) -> Duration {
        self.domain.update_period.unwrap_or(self.domain.busy_period)
    }

    /// Time between two readings while steps run, if `interval` is asked for.
    pub(crate) fn busy_period(&self, interval: Duration) -> Duration {
        match self.domain.update_period {
            // It changes faster than anybody reads.
            Some(update_period) if update_period <= interval => interval,
            _ => self.domain.busy_period.max(interval),
        }
    }

    pub(crate) fn wraps(&self) -> u64 {
        self.counted().0
    }

    pub(crate) fn resets(&self) -> u64 {
        self.counted().1
    }

    /// Wraps and resets; those of a counter that is not read any more stay.
    fn counted(&self) -> (u64, u64) {
        match &self.meter {
            Meter::Counter(counter) => (counter.wraps, counter.resets),
            Meter::Power(_) => self.retired,
        }
    }

    /// Whether the machine slept or steps were forgotten: what the meter says next tells nothing of the time until then.
    pub(crate) fn forget(&mut self) {
        match &mut self.meter {
            Meter::Counter(counter) => counter.forget(),
            Meter::Power(power) => power.forget(),
        }
    }

    /// Takes a reading of `at`; `period` is the time between readings now.
    pub(crate) fn read(&mut self, at: Nanos, reading: Result<Raw, Unavailable>, period: Duration) -> Outcome {
        // The first reading of a busy time follows one of an idle time.
        let period = period.max(std::mem::replace(&mut self.period, period));
        if let (Ok(Raw::Watts(_)), Meter::Counter(_)) = (&reading, &self.meter) {
            tracing::warn!(domain = self.domain.id, "the energy counter is wrong; power is read instead");
            self.retired = self.counted();
            self.domain.class = SourceClass::InstantPower { averaging: None };
            self.meter = Meter::Power(Power::new(false, self.domain.max_watts));
        }
        let advance = match (reading, &mut self.meter) {
            (Ok(Raw::Counter(energy_uj)), Meter::Counter(counter)) => counter.advance(energy_uj, at),
            (Ok(Raw::Watts(watts)), Meter::Power(power)) => match power.advance(watts, at, SILENCE.max(5 * period)) {
                Ok(advance) => advance,
                Err(Implausible) => return self.dropped(at, period),
            },
            // A provider that answers with what the domain is not has failed.
            (Ok(_), _) => return self.failed(at, Unavailable::ReadFailed),
            (Err(reason), _) => return self.failed(at, reason),
        };
        self.was_read = true;
        self.changed(Ok(()));
        match advance {
            Advance::Open => Outcome::Open,
            Advance::Energy(energy_uj) => Outcome::Closed(Some(energy_uj)),
            Advance::First | Advance::Gap => Outcome::Closed(None),
        }
    }

    /// A value that cannot be true: it is ignored until too many of them leave a gap.
    fn dropped(&mut self, at: Nanos, period: Duration) -> Outcome {
        if at.since(self.resolved) > SILENCE.max(5 * period) {
            return self.failed(at, Unavailable::Implausible);
        }
        *self.errors.entry(Unavailable::Implausible).or_default() += 1;
        Outcome::Open
    }

    fn failed(&mut self, at: Nanos, reason: Unavailable) -> Outcome {
        *self.errors.entry(reason).or_default() += 1;
        self.last_failure = Some(reason);
        self.watts = None;
        self.forget();
        self.changed(Err(reason));
        if at > self.resolved { Outcome::Closed(None) } else { Outcome::Open }
    }

    /// Says so once if the state is a new one.
    fn changed(&mut self, state: Result<(), Unavailable>) {
        if self.state == state {
            return;
        }
        match state {
            Ok(()) => tracing::info!(domain = self.domain.id, "the energy sensor can be read again"),
            Err(reason) => tracing::warn!(domain = self.domain.id, %reason, "the energy sensor cannot be read"),
        }
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::energy::types::{Basis, Rail, Source};

    const MS: u64 = 1_000_000;
    const PERIOD: Duration = Duration::from_millis(50);

    fn track(class: SourceClass) -> Track {
        let domain = Domain {
            id: "test:0".into(),
            source: Source::Rapl,
            class,
            bases: &[Basis::Cpu],
            exclusive: true,
            shared: false,
            max_watts: 1000.0,
            update_period: None,
            busy_period: PERIOD,
            rail: Rail::Host,
        };
        Track::new(domain, None, Nanos(0))
    }

    #[test]
    fn a_sensor_that_fails_and_comes_back_leaves_a_gap() {
        let mut track = track(SourceClass::Counter { modulus_uj: None });
        let mut read = |millis: u64, reading| track.read(Nanos(millis * MS), reading, PERIOD);
        assert_eq!(read(0, Ok(Raw::Counter(5))), Outcome::Closed(None), "nothing is known of before");
        assert_eq!(read(50, Ok(Raw::Counter(9))), Outcome::Closed(Some(4)));
        assert_eq!(read(100, Err(Unavailable::PermissionDenied)), Outcome::Closed(None));
        assert_eq!(read(150, Ok(Raw::Counter(1000))), Outcome::Closed(None));
        assert_eq!(read(200, Ok(Raw::Counter(1001))), Outcome::Closed(Some(1)));
        assert_eq!(read(250, Ok(Raw::Watts(1.0))), Outcome::Closed(None), "the counter was found wrong");
        assert_eq!(read(350, Ok(Raw::Watts(3.0))), Outcome::Closed(Some(200_000)));
        assert_eq!(read(400, Ok(Raw::Counter(7))), Outcome::Closed(None), "not what it is");
        assert_eq!(track.state, Err(Unavailable::ReadFailed));
        assert_eq!(track.errors[&Unavailable::PermissionDenied], 1);
    }

    #[test]
    fn powers_that_cannot_be_true_count_and_in_the_end_fail() {
        let mut track = track(SourceClass::InstantPower { averaging: None });
        assert_eq!(track.read(Nanos(0), Ok(Raw::Watts(10.0)), PERIOD), Outcome::Closed(None));
        for tick in 1..=20 {
            assert_eq!(track.read(Nanos(tick * 50 * MS), Ok(Raw::Watts(f64::NAN)), PERIOD), Outcome::Open);
        }
        assert_eq!(track.read(Nanos(1001 * MS), Ok(Raw::Watts(-1.0)), PERIOD), Outcome::Closed(None));
        assert_eq!((track.state, track.errors[&Unavailable::Implausible]), (Err(Unavailable::Implausible), 21));
    }
}
