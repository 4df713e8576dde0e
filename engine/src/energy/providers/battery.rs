//! What leaves the battery of a laptop: slow and coarse, and known only while it leaves.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use super::files::{Files, number_in, reason, text_in};
use crate::energy::types::{Basis, Domain, EnergyProvider, Missing, Rail, Raw, Source, SourceClass, Unavailable};

const BATTERY: &[Basis] = &[Basis::Battery];
/// No laptop draws more.
const MAX_WATTS: f64 = 500.0;
const BUSY_PERIOD: Duration = Duration::from_secs(1);

/// Reads the batteries of the machine. While they do not discharge there is no reading ([`Unavailable::NotSupported`]).
pub(crate) struct Batteries {
    root: PathBuf,
    files: Arc<dyn Files>,
    folders: BTreeMap<String, PathBuf>,
}

impl Batteries {
    /// Reads the power supplies below `root`.
    pub(crate) fn new(root: PathBuf, files: Arc<dyn Files>) -> Self {
        Self { root, files, folders: BTreeMap::new() }
    }

    fn is_battery(&self, folder: &std::path::Path) -> bool {
        let text = |file| text_in(&*self.files, &folder.join(file)).ok();
        text("type").as_deref() == Some("Battery") && text("scope").as_deref() != Some("Device")
    }
}

impl EnergyProvider for Batteries {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let names = self.files.names(&self.root).unwrap_or_default();
        for name in names {
            let folder = self.root.join(&name);
            if self.is_battery(&folder) {
                self.folders.insert(format!("battery:{name}"), folder);
            }
        }
        if self.folders.is_empty() {
            return vec![Err(Missing {
                domain: "battery".into(),
                source: Source::Battery,
                reason: Unavailable::NoSensor,
                remedy: "this machine has no battery".into(),
                bases: BATTERY,
            })];
        }
        let domains = self.folders.keys().map(|id| Domain {
            id: id.clone(),
            source: Source::Battery,
            class: SourceClass::InstantPower { averaging: None },
            bases: BATTERY,
            exclusive: false,
            shared: false,
            max_watts: MAX_WATTS,
            update_period: None,
            busy_period: BUSY_PERIOD,
            rail: Rail::Host,
        });
        domains.map(Ok).collect()
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let folder = self.folders.get(domain).ok_or(Unavailable::NoSensor)?;
        let status = text_in(&*self.files, &folder.join("status")).map_err(|error| reason(&error))?;
        if status != "Discharging" {
            return Err(Unavailable::NotSupported);
        }
        // Some drivers give what leaves the battery a minus sign.
        let micro = |file: &str| {
            let path = folder.join(file);
            let text = text_in(&*self.files, &path).ok()?;
            text.strip_prefix('-').map_or_else(|| number_in(&*self.files, &path).ok(), |text| text.parse().ok())
        };
        let watts = match micro("power_now") {
            Some(power) => power as f64 / 1e6,
            None => match (micro("current_now"), micro("voltage_now")) {
                (Some(current), Some(voltage)) => current as f64 * voltage as f64 / 1e12,
                _ => return Err(Unavailable::ReadFailed),
            },
        };
        // A machine that runs uses something.
        if watts > 0.0 { Ok(Raw::Watts(watts)) } else { Err(Unavailable::Implausible) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::energy::providers::files::SystemFiles;

    fn batteries(files: &[(&str, &str)]) -> (tempfile::TempDir, Batteries) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let provider = Batteries::new(folder.path().into(), Arc::new(SystemFiles));
        (folder, provider)
    }

    #[test]
    fn power_is_read_while_a_battery_discharges() {
        let (folder, mut provider) = batteries(&[
            ("BAT0/type", "Battery"),
            ("BAT0/status", "Discharging"),
            ("BAT0/power_now", "12345000"),
            ("BAT1/type", "Battery"),
            ("BAT1/status", "Discharging"),
            ("BAT1/current_now", "-2000000"),
            ("BAT1/voltage_now", "12000000"),
            ("AC/type", "Mains"),
            ("mouse/type", "Battery"),
            ("mouse/scope", "Device"),
        ]);
        let found: Vec<String> = provider.discover().into_iter().map(|found| found.unwrap().id).collect();
        assert_eq!(found, ["battery:BAT0", "battery:BAT1"]);
        assert_eq!(provider.read("battery:BAT0"), Ok(Raw::Watts(12.345)));
        assert_eq!(provider.read("battery:BAT1"), Ok(Raw::Watts(24.0)));
        for (file, text, expected) in [
            ("power_now", "0", Unavailable::Implausible),
            ("power_now", "", Unavailable::ReadFailed),
            ("status", "Charging", Unavailable::NotSupported),
            ("status", "Full", Unavailable::NotSupported),
        ] {
            fs::write(folder.path().join("BAT0").join(file), text).unwrap();
            assert_eq!(provider.read("battery:BAT0"), Err(expected), "{file} {text}");
        }
    }

    #[test]
    fn a_machine_without_a_battery_says_so() {
        let (_folder, mut provider) = batteries(&[("AC/type", "Mains")]);
        let found = provider.discover();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].as_ref().unwrap_err().reason, Unavailable::NoSensor);
        assert_eq!(provider.read("battery:BAT0"), Err(Unavailable::NoSensor));
    }
}
