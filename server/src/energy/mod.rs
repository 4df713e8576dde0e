//! What requests cost, over HTTP: `usage.energy` in replies and the routes under `/v1/energy`. How it is measured is the
//! engine's business.
//!
//! | module | holds |
//! |---|---|
//! | `usage` | the object that says what one call cost |
//! | `calls` | calls that have ended, by the id of their reply |
//! | `meter` | what one call carries along to say so |
//! | `state` | `GET /v1/energy` |
//! | `evaluations` | `POST /v1/energy/evaluations` |

pub(crate) mod calls;
pub(crate) mod evaluations;
pub(crate) mod meter;
pub(crate) mod state;
pub(crate) mod usage;

use engine::energy::EnergyMonitor;
use tracing::info;

/// Logs what is read, what is not and why.
pub(crate) fn announce(energy: &EnergyMonitor) {
    for line in energy.lines() {
        // The log names its source by itself.
        info!("{}", line.trim_start_matches("energy: "));
    }
}
