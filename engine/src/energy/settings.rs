//! How energy is metered.

use std::{path::PathBuf, time::Duration};

use super::types::{Basis, Source};

/// What happens without sensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Requests are served and their energy is unavailable.
    #[default]
    Auto,
    /// The server does not start.
    Require,
    /// No sensor is opened.
    Off,
}

/// How the energy of a pass is divided between the requests in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attribution {
    /// By the positions computed for each.
    #[default]
    Tokens,
    /// In equal parts.
    Equal,
    /// By an estimate of the arithmetic for each, the attention over long contexts included.
    Flops,
}

impl Attribution {
    /// The name in replies and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Equal => "equal",
            Self::Flops => "flops",
        }
    }
}

/// Settings of an [`super::EnergyMonitor`]. Start from `default()`.
#[derive(Debug, Clone, PartialEq)]
pub struct EnergySettings {
    /// What happens without sensors.
    pub mode: Mode,
    /// The rails that a request's energy covers; `None` is what fits the device of the model: `cpu` on a CPU.
    pub basis: Option<Basis>,
    /// What may be read; `None` is everything that the basis can need, and no battery.
    pub sources: Option<Vec<Source>>,
    /// Time between readings while passes run.
    pub interval: Duration,
    /// How the energy of a pass is divided.
    pub attribution: Attribution,
    /// How long the machine must be quiet for a measurement of its idle power; `None` measures none.
    pub idle_window: Option<Duration>,
    /// How long the end of a reply may wait for the last reading; `None` is twice the update period of the slowest
    /// sensor, at most 200 ms.
    pub settle: Option<Duration>,
    /// How long the energy of a request can be asked for.
    pub retention: Duration,
    /// The powercap tree.
    pub powercap_root: PathBuf,
    /// The hwmon tree.
    pub hwmon_root: PathBuf,
    /// The power-supply tree.
    pub power_supply_root: PathBuf,
    /// A trace to read instead of sensors.
    pub replay: Option<PathBuf>,
    /// Where to write all readings as a trace.
    pub record: Option<PathBuf>,
}

impl Default for EnergySettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            basis: None,
            sources: None,
            interval: Duration::from_millis(50),
            attribution: Attribution::Tokens,
            idle_window: Some(Duration::from_secs(10)),
            settle: None,
            retention: Duration::from_secs(600),
            powercap_root: "/sys/class/powercap".into(),
            hwmon_root: "/sys/class/hwmon".into(),
            power_supply_root: "/sys/class/power_supply".into(),
            replay: None,
            record: None,
        }
    }
}
