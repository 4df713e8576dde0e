//! What requests cost in joules: sensors are read by one thread, and the energy of every interval is divided between the
//! requests whose passes ran in it. Sums are exact: measured = requests + idle + load + warmup + other, in microjoules.

#[allow(dead_code, reason = "the sampler will use it")]
mod host;
mod monitor;
#[allow(dead_code, reason = "the sampler will open them")]
mod providers;
mod report;
mod settings;
mod types;

pub use monitor::{Activity, EnergyError, EnergyMonitor, Evaluation, EvaluationError, SystemCause};
pub use report::{Accounts, DomainEnergy, DomainState, ModelEnergy, RequestEnergy, Snapshot, Status, Ticket};
pub use settings::{Attribution, EnergySettings, Mode};
pub use types::{Basis, Clock, Domain, EnergyProvider, Missing, Nanos, Rail, Raw, Source, SourceClass, Unavailable};
