//! What requests cost in joules, from the sensors of this machine.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use engine::energy::{Basis, EnergyMonitor, EnergySettings, Mode, Status, Ticket};

/// Longer than any run, so that no ticket is forgotten before it is asked for.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How energy is metered.
#[derive(Debug, Args)]
pub(crate) struct EnergyArgs {
    /// Joules: where there are sensors (auto), only with sensors (require), or never (off).
    #[arg(long = "energy", default_value = "auto", value_name = "auto|require|off")]
    mode: String,
    /// Power rails that the energy covers: cpu, soc, platform or battery [default: what fits the processor].
    #[arg(long = "energy-basis", value_name = "BASIS")]
    basis: Option<String>,
    /// Folder of the RAPL counters [default: /sys/class/powercap].
    #[arg(long, value_name = "DIR")]
    powercap_root: Option<PathBuf>,
}

impl EnergyArgs {
    /// What the options mean.
    pub(super) fn settings(&self) -> anyhow::Result<EnergySettings> {
        let defaults = EnergySettings::default();
        let mode = match self.mode.as_str() {
            "auto" => Mode::Auto,
            "require" => Mode::Require,
            "off" => Mode::Off,
            other => bail!("--energy {other}: there are auto, require and off"),
        };
        Ok(EnergySettings {
            mode,
            basis: self.basis.as_deref().map(basis).transpose()?,
            // Power without work is not reported, and measuring it would mean to wait.
            idle_window: None,
            retention: RETENTION,
            powercap_root: self.powercap_root.clone().unwrap_or(defaults.powercap_root),
            ..EnergySettings::default()
        })
    }
}

fn basis(name: &str) -> anyhow::Result<Basis> {
    let found = Basis::ALL.into_iter().find(|basis| basis.name() == name);
    let names: Vec<&str> = Basis::ALL.into_iter().map(Basis::name).collect();
    found.with_context(|| format!("--energy-basis {name}: there are {}", names.join(", ")))
}

/// The energy of one request, in joules, or why it is unknown.
pub(super) type Joules = Result<f64, String>;

/// Asks for the energy of requests that have ended.
#[derive(Debug)]
pub(super) struct Meter {
    monitor: EnergyMonitor,
    runtime: tokio::runtime::Runtime,
}

impl Meter {
    pub(super) fn start(settings: &EnergySettings) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self { monitor: EnergyMonitor::start(settings)?, runtime })
    }

    /// For engines to report to.
    pub(super) fn monitor(&self) -> &EnergyMonitor {
        &self.monitor
    }

    /// What is read and what is not, for people.
    pub(super) fn lines(&self) -> Vec<String> {
        self.monitor.lines()
    }

    /// The rails that the joules cover, or why there are none.
    pub(super) fn basis(&self) -> Result<&'static str, String> {
        let snapshot = self.monitor.snapshot();
        match snapshot.status {
            Ok(()) => Ok(snapshot.basis.name()),
            Err(reason) => {
                let lines = self.monitor.lines();
                let absent = lines.iter().find(|line| line.contains("is not read"));
                Err(absent.map_or_else(|| reason.name().to_owned(), |line| line.replacen("energy: ", "", 1)))
            }
        }
    }

    /// Waits for the next reading where that is needed.
    pub(super) fn joules(&self, ticket: Option<Ticket>) -> Joules {
        let ticket = ticket.ok_or("off")?;
        let energy = self.runtime.block_on(self.monitor.settled(&[ticket])).ok_or("forgotten")?;
        match (energy.status, energy.energy_uj) {
            (Status::Measured, Some(microjoules)) => Ok(microjoules as f64 * 1e-6),
            (Status::Unavailable(reason), _) => Err(reason.name().to_owned()),
            (Status::Measured | Status::Partial, _) => Err("only a part of it was measured".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_errors_that_list_the_right_ones() {
        let args = |mode: &str, basis: Option<&str>| EnergyArgs {
            mode: mode.into(),
            basis: basis.map(String::from),
            powercap_root: None,
        };
        assert_eq!(args("off", Some("cpu")).settings().unwrap().basis, Some(Basis::Cpu));
        assert!(args("always", None).settings().unwrap_err().to_string().contains("require"));
        assert!(args("auto", Some("cpus")).settings().unwrap_err().to_string().contains("gpu+cpu"));
    }
}
