//! What the monitor tells: plain values, one consistent moment each.

use std::time::Duration;

use super::types::{Basis, Source, Unavailable};

/// Names the energy of one request in the ledger. The last event of a request carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// How much of a request's energy is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// At least 95 % of its time.
    Measured,
    /// Less than that; the numbers cover the measured part only.
    Partial,
    /// Less than half, or no sensor.
    Unavailable(Unavailable),
}

/// The energy of one request, or of several that answer one call.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestEnergy {
    /// How much is known.
    pub status: Status,
    /// Whether every sensor has been read after the end, so that nothing will change any more.
    pub is_final: bool,
    /// The rails that the numbers cover.
    pub basis: Basis,
    /// Attributed to the request, in microjoules.
    pub energy_uj: Option<u64>,
    /// Of these, for reading the prompt.
    pub prefill_uj: Option<u64>,
    /// Of these, for the rest.
    pub decode_uj: Option<u64>,
    /// Attributed minus the idle power of the request's share of the time, in joules; may be a little below zero.
    pub net_joules: Option<f64>,
    /// What the rails used between the first step and the end, whoever caused it, in joules.
    pub window_joules: Option<f64>,
    /// Idle power of the basis, in watts.
    pub idle_watts: Option<f64>,
    /// Every domain that is part of the basis, readable or not, and other exclusive domains that passes of the request
    /// ran on.
    pub domains: Vec<DomainEnergy>,
    /// How energy was divided: `tokens`, `equal` or `flops`.
    pub policy: &'static str,
    /// Requests that shared its passes, itself included: the mean over time; `None` if it had no pass.
    pub mean_concurrency: Option<f64>,
    /// The most.
    pub max_concurrency: usize,
    /// Share of the time from the first step to the end that is not in a gap; `None` without sensors.
    pub coverage: Option<f64>,
    /// Whether the request took less than two update periods of a sensor.
    pub resolution_limited: bool,
    /// Whether nothing else used the rails, as far as can be told.
    pub exclusive: Option<bool>,
    /// From the first step to the end.
    pub active: Duration,
}

/// One domain's part of [`RequestEnergy`].
#[derive(Debug, Clone, PartialEq)]
pub struct DomainEnergy {
    /// Its id.
    pub domain: String,
    /// What reads it.
    pub source: Source,
    /// How it is read, if it is.
    pub method: Option<&'static str>,
    /// Microjoules.
    pub energy_uj: Option<u64>,
    /// Of these, for reading the prompt.
    pub prefill_uj: Option<u64>,
    /// Of these, for the rest.
    pub decode_uj: Option<u64>,
    /// How often the sensor changes.
    pub update_period: Option<Duration>,
    /// Why there are no numbers.
    pub reason: Option<Unavailable>,
}

/// The state of everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Nanoseconds since the monitor began.
    pub monotonic_ns: u64,
    /// The basis of requests.
    pub basis: Basis,
    /// Whether all members of the basis are read.
    pub status: Result<(), Unavailable>,
    /// Every domain, readable or not.
    pub domains: Vec<DomainState>,
    /// Where the energy of the exclusive domains went, summed over them.
    pub accounts: Accounts,
    /// Energy and tokens of each model.
    pub models: Vec<ModelEnergy>,
    /// Share of the busy CPU time of this machine that this process used lately.
    pub cpu_share: Option<f64>,
    /// Processes of others on the GPUs that are read.
    pub foreign_gpu_processes: Option<usize>,
    /// Whether the machine runs on mains (`ac`) or on its `battery`.
    pub power_supply: Option<&'static str>,
}

/// One domain of a [`Snapshot`].
#[derive(Debug, Clone, PartialEq)]
pub struct DomainState {
    /// Its id.
    pub domain: String,
    /// What reads it.
    pub source: Source,
    /// How it is read, if it is.
    pub class: Option<&'static str>,
    /// Whether it can be read now.
    pub status: Result<(), Unavailable>,
    /// Whether it may be summed with other exclusive domains.
    pub exclusive: bool,
    /// Whether it is part of the basis of requests.
    pub in_basis: bool,
    /// Measured since the start, in microjoules; `None` if it was never read.
    pub energy_uj: Option<u64>,
    /// Moment up to which that counts, in nanoseconds since the monitor began.
    pub measured_ns: Option<u64>,
    /// Mean power of the last closed interval.
    pub watts: Option<f64>,
    /// Power without work.
    pub idle_watts: Option<f64>,
    /// Age of that measurement.
    pub idle_age: Option<Duration>,
    /// How often the sensor changes.
    pub update_period: Option<Duration>,
    /// Times that the counter started again at its end.
    pub wraps: u64,
    /// Times that the counter started again in between.
    pub resets: u64,
    /// Time without a measurement.
    pub gap: Duration,
}

/// Sums of microjoules by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Requests.
    pub requests_uj: u64,
    /// Nothing to do.
    pub idle_uj: u64,
    /// Loading models.
    pub load_uj: u64,
    /// Measuring what a pass costs.
    pub warmup_uj: u64,
    /// Passes of nobody.
    pub other_uj: u64,
}

/// What a model has used and made since the start.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelEnergy {
    /// Its id.
    pub model: String,
    /// Attributed on the rails of the basis, for reading prompts; `None` unless the basis is available.
    pub prefill_uj: Option<u64>,
    /// The same for the rest.
    pub decode_uj: Option<u64>,
    /// Prompt tokens of requests that have ended.
    pub prompt_tokens: u64,
    /// Completion tokens of requests that have ended.
    pub completion_tokens: u64,
    /// Requests that have ended.
    pub requests: u64,
}
