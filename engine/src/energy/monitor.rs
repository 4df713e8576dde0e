//! The handle that engines and the server share.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::sync::Notify;

use super::{
    clock::SystemClock,
    core::Core,
    expose::Exposed,
    host::HostProbe,
    lines::lines,
    meter::Running,
    providers::default_basis,
    report::{RequestEnergy, Snapshot, Ticket},
    sampler::{Sampler, Waker},
    settings::{EnergySettings, Mode},
    steps::{Account, Share},
    track::Track,
    types::{Basis, Clock, EnergyProvider, Missing, Unavailable},
};

/// Longest wait for a last reading if nothing is said.
const MAX_SETTLE: Duration = Duration::from_millis(200);

/// Why metering could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnergyError {
    /// Energy is required and a rail of the basis cannot be read.
    #[error("the energy of the basis `{basis}` cannot be measured ({reason}): {remedy}")]
    Required {
        /// The basis.
        basis: Basis,
        /// The first reason.
        reason: Unavailable,
        /// What to do about it.
        remedy: String,
    },
    /// A trace cannot be read or written.
    #[error("{}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line of a trace is not one.
    #[error("{}, line {line}: {reason}", path.display())]
    TraceLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The sampler's thread did not start.
    #[error("cannot start the energy sampler: {0}")]
    Thread(io::Error),
}

/// What the machine works on if not on requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SystemCause {
    /// Loading a model.
    Load,
    /// Measuring what a pass costs.
    Warmup,
    /// Passes of nobody.
    Other,
}

/// Work that belongs to no request; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the work ends when this is dropped"]
pub struct Activity {
    _running: Option<Running>,
}

/// A judgement of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation<'a> {
    /// The request, as clients name it; a second judgement of the same request changes nothing.
    pub request_id: &'a str,
    /// Its energy.
    pub tickets: &'a [Ticket],
    /// Its model.
    pub model: &'a str,
    /// The set of questions that it is from.
    pub dataset: &'a str,
    /// From 0 to 1; `None` if it could not be judged.
    pub score: Option<f64>,
}

/// Why a judgement is not counted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// A score that is not one.
    #[error("the score {0} is not between 0 and 1")]
    Score(f64),
    /// One data set too many.
    #[error("more than {limit} data sets; `{dataset}` is one too many")]
    TooManyDatasets {
        /// The most.
        limit: usize,
        /// The new one.
        dataset: String,
    },
}

/// Meters energy. Clones share it; reading ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct EnergyMonitor(pub(crate) Arc<Shared>);

/// What the monitor, the engines and the sampler share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) waker: Arc<Waker>,
    /// Told whenever the sampler has been by.
    pub(crate) settled: Notify,
    settle: Option<Duration>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Shared {
    /// The state. A thread that panicked under the lock left whole numbers behind.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.waker.stop();
    }
}

impl EnergyMonitor {
    /// Finds the sensors of this machine and starts to read them. Without sensors it says so, unless the settings
    /// require them.
    ///
    /// # Errors
    /// If energy is required and a rail of the basis cannot be read, if a trace cannot be opened or read, or if the
    /// thread does not start.
    pub fn start(settings: &EnergySettings) -> Result<Self, EnergyError> {
        if settings.mode == Mode::Off {
            return Ok(Self::off());
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Self::start_with(settings, super::providers::open(settings, &clock)?, clock)
    }

    /// A monitor that reads `provider` instead of the sensors of this machine.
    #[cfg(feature = "testing")]
    pub(crate) fn of(settings: &EnergySettings, provider: Box<dyn EnergyProvider>) -> Result<Self, EnergyError> {
        Self::start_with(settings, vec![provider], Arc::new(SystemClock::new()))
    }

    /// The same with sensors and time of the caller's.
    pub(crate) fn start_with(
        settings: &EnergySettings,
        providers: Vec<Box<dyn EnergyProvider>>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EnergyError> {
        let (monitor, mut sampler) = Self::new(settings, providers, clock);
        if monitor.0.core().tracks.is_empty() {
            monitor.check(settings)?;
            return Ok(monitor);
        }
        // Whether the files that exist can be read is known only then.
        sampler.tick(true);
        monitor.check(settings)?;
        sampler.spawn(monitor.0.waker.clone()).map_err(EnergyError::Thread)?;
        Ok(monitor)
    }

    /// A monitor whose sampler the caller drives.
    pub(crate) fn new(
        settings: &EnergySettings,
        mut providers: Vec<Box<dyn EnergyProvider>>,
        clock: Arc<dyn Clock>,
    ) -> (Self, Sampler) {
        let basis = settings.basis.unwrap_or_else(default_basis);
        let now = clock.now();
        let (mut tracks, mut sources, mut missing) = (Vec::new(), Vec::new(), Vec::<Missing>::new());
        for (provider, sensors) in providers.iter_mut().enumerate() {
            for sensor in sensors.discover() {
                match sensor {
                    Ok(domain) => {
                        sources.push((provider, domain.id.clone()));
                        tracks.push(Track::new(domain, settings.idle_window, now));
                    }
                    Err(absent) => missing.push(absent),
                }
            }
        }
        let core = Core::new(settings, basis, tracks, missing, Unavailable::NoSensor);
        let shared = Shared {
            core: Mutex::new(core),
            clock,
            waker: Arc::default(),
            settled: Notify::new(),
            settle: settings.settle,
        };
        let monitor = Self(Arc::new(shared));
        let sampler = Sampler::new(&monitor.0, providers, sources, HostProbe::new(settings));
        (monitor, sampler)
    }

    /// Opens no sensor: all energy is unavailable because it is disabled.
    pub fn off() -> Self {
        let settings = EnergySettings::default();
        let core = Core::new(&settings, default_basis(), Vec::new(), Vec::new(), Unavailable::Disabled);
        Self(Arc::new(Shared {
            core: Mutex::new(core),
            clock: Arc::new(SystemClock::new()),
            waker: Arc::default(),
            settled: Notify::new(),
            settle: None,
        }))
    }

    fn check(&self, settings: &EnergySettings) -> Result<(), EnergyError> {
        let core = self.0.core();
        match core.basis_status() {
            Err(reason) if settings.mode == Mode::Require => {
                let basis = core.basis;
                let remedy = core.missing.iter().find(|missing| missing.bases.contains(&basis));
                let remedy = remedy.map(|missing| missing.remedy.clone()).filter(|remedy| !remedy.is_empty());
                let remedy = remedy.unwrap_or_else(|| {
                    "choose a basis that this machine can measure, or start without `--energy require`".into()
                });
                Err(EnergyError::Required { basis, reason, remedy })
            }
            _ => Ok(()),
        }
    }

    /// What is read, what is not and why, and what to do about it: lines for people.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.0.core())
    }

    /// Work that belongs to no request begins.
    pub fn begin(&self, cause: SystemCause) -> Activity {
        let share = Share { account: Account::System(cause), weight: 1 };
        Activity { _running: Running::begin(&self.0, &[], &[share]) }
    }

    /// Everything, at one moment.
    pub fn snapshot(&self) -> Snapshot {
        let core = self.0.core();
        core.snapshot(self.0.clock.now())
    }

    /// What the requests behind `tickets` have used so far; if only some of them are remembered it is unavailable.
    /// `None` if none of them is.
    pub fn request(&self, tickets: &[Ticket]) -> Option<RequestEnergy> {
        let core = self.0.core();
        core.request(tickets, self.0.clock.now())
    }

    /// The same after every sensor of the basis has been read once more, or when the settle time is over.
    pub async fn settled(&self, tickets: &[Ticket]) -> Option<RequestEnergy> {
        // The wait is bounded, so an error only says that it was too short.
        let _ = tokio::time::timeout(self.settle_time(), async {
            loop {
                // Before the look, so that nothing is missed between the two.
                let notified = self.0.settled.notified();
                match self.request(tickets) {
                    Some(energy) if !energy.is_final => notified.await,
                    _ => return,
                }
            }
        })
        .await;
        self.request(tickets)
    }

    /// How long [`EnergyMonitor::settled`] waits at most.
    pub fn settle_time(&self) -> Duration {
        let core = self.0.core();
        let slowest = core.in_basis().map(Track::resolution).max().unwrap_or_default();
        self.0.settle.unwrap_or_else(|| (2 * slowest).clamp(Duration::from_millis(20), MAX_SETTLE))
    }

    /// Counts a judgement. A second one of the same request changes nothing.
    ///
    /// # Errors
    /// If the score is not between 0 and 1, or there are too many data sets.
    pub fn evaluate(&self, evaluation: &Evaluation<'_>) -> Result<(), EvaluationError> {
        let now = self.0.clock.now();
        let mut core = self.0.core();
        let mut evaluations = std::mem::take(&mut core.evaluations);
        let result = evaluations.add(evaluation, |tickets| core.request(tickets, now));
        core.evaluations = evaluations;
        result
    }

    /// Registers the `ipw_` metrics and `leapfrog_request_energy_joules`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Exposed(self.clone())));
    }
}
