//! What requests cost in joules: sensors are read by one thread, and the energy of every interval is divided between the
//! requests whose passes ran in it. Sums are exact: measured = requests + idle + load + warmup + other, in microjoules.
//! `engine/specs/energy.md` has the rules.

mod apportion;
mod attribution;
mod baseline;
mod clock;
mod core;
mod counter;
mod counts;
mod evaluations;
mod expose;
mod host;
mod lines;
mod meter;
mod monitor;
mod power;
mod providers;
mod report;
mod reports;
mod requests;
mod sampler;
mod settings;
mod steps;
#[cfg(test)]
mod tests;
mod track;
mod types;

#[cfg(feature = "testing")]
pub(crate) use self::{clock::SystemClock, sampler::Sampler};
pub(crate) use self::{
    core::{Arithmetic, Positions},
    meter::{EngineMeter, Running},
};
pub use monitor::{Activity, EnergyError, EnergyMonitor, Evaluation, EvaluationError, SystemCause};
pub use report::{Accounts, DomainEnergy, DomainState, ModelEnergy, RequestEnergy, Snapshot, Status, Ticket};
pub use settings::{Attribution, EnergySettings, Mode};
pub use types::{Basis, Clock, Domain, EnergyProvider, Missing, Nanos, Rail, Raw, Source, SourceClass, Unavailable};
