//! What else happens on the machine, as far as it bears on the numbers: other processes, and where the power comes from.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    providers::files::{Files, SystemFiles, text_in},
    settings::EnergySettings,
};

/// Less busy time than this (100 ms in the usual ticks of 10 ms) says nothing about shares.
const MIN_BUSY_TICKS: u64 = 10;

/// Looks at the machine now and then.
pub(crate) struct HostProbe {
    files: Arc<dyn Files>,
    power_supply_root: PathBuf,
    last: Option<Ticks>,
}

/// CPU time since the start of the machine, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    own: u64,
    busy: u64,
}

impl HostProbe {
    /// Of this machine.
    pub(crate) fn new(settings: &EnergySettings) -> Self {
        Self::with_files(settings.power_supply_root.clone(), Arc::new(SystemFiles))
    }

    fn with_files(power_supply_root: PathBuf, files: Arc<dyn Files>) -> Self {
        Self { files, power_supply_root, last: None }
    }

    /// The share of the busy CPU time of this machine that this process used since the last call that had an answer, from 0
    /// to 1. `None` at first, where the system does not say, and while there was too little busy time for a share.
    pub(crate) fn cpu_share(&mut self) -> Option<f64> {
        let now = self.ticks()?;
        let Some(last) = self.last else {
            self.last = Some(now);
            return None;
        };
        let (Some(own), Some(busy)) = (now.own.checked_sub(last.own), now.busy.checked_sub(last.busy)) else {
            self.last = Some(now);
            return None;
        };
        if busy < MIN_BUSY_TICKS {
            return None;
        }
        self.last = Some(now);
        // The two are counted in different ways, so that the share may come out a little above one.
        Some((own as f64 / busy as f64).min(1.0))
    }

    fn ticks(&self) -> Option<Ticks> {
        let own = own_ticks(&text_in(&*self.files, Path::new("/proc/self/stat")).ok()?)?;
        let busy = busy_ticks(&text_in(&*self.files, Path::new("/proc/stat")).ok()?)?;
        Some(Ticks { own, busy })
    }

    /// Whether the machine runs on mains (`ac`) or on its `battery`; `None` where nothing says so, as on most servers.
    pub(crate) fn power_supply(&self) -> Option<&'static str> {
        let (mut mains, mut discharging) = (None, None);
        for name in self.files.names(&self.power_supply_root).ok()? {
            let text = |file| text_in(&*self.files, &self.power_supply_root.join(&name).join(file)).ok();
            match text("type").as_deref() {
                Some("Mains" | "USB") => {
                    mains = Some(mains.unwrap_or(false) || text("online").as_deref() == Some("1"));
                }
                // Those of mice and headsets have the scope `Device`.
                Some("Battery") if text("scope").as_deref() != Some("Device") => {
                    let status = text("status");
                    discharging = Some(discharging.unwrap_or(false) || status.as_deref() == Some("Discharging"));
                }
                _ => {}
            }
        }
        match (mains, discharging) {
            (Some(true), _) | (None, Some(false)) => Some("ac"),
            (_, Some(true)) => Some("battery"),
            (Some(false) | None, None) | (Some(false), Some(false)) => None,
        }
    }
}

/// User and system time of all threads of the process. Its name, in brackets, may hold spaces and brackets.
fn own_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// Time in which a processor did something: user, nice, system, irq and softirq. What a hypervisor took away was not ours,
/// and guests are part of user.
fn busy_ticks(stat: &str) -> Option<u64> {
    let rest = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = rest.split_ascii_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn shares_come_from_the_differences_of_ticks() {
        let stat = "17 (a (strange) name) S 1 17 17 0 -1 4194560 9 8 7 6 250 50 3 2 20 0 4 0 100 200 300";
        assert_eq!(own_ticks(stat), Some(300));
        assert_eq!(own_ticks("17 (short) S 1"), None);
        assert_eq!(busy_ticks("cpu  100 10 50 9000 77 3 4 99 5 5\ncpu0 1 2 3\n"), Some(167));
        assert_eq!(busy_ticks("cpu  100 x 50 9000 77 3 4\n"), None);
        assert_eq!(busy_ticks(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_busy_process_sees_a_share_of_its_own() {
        let mut probe = HostProbe::new(&EnergySettings::default());
        assert_eq!(probe.cpu_share(), None);
        let start = std::time::Instant::now();
        let share = loop {
            // Not a loop of nothing: the compiler must not take it away.
            std::hint::black_box((0..100_000u64).map(std::hint::black_box).sum::<u64>());
            if let Some(share) = probe.cpu_share() {
                break share;
            }
            assert!(start.elapsed().as_secs() < 60, "no share after a minute of work");
        };
        assert!(share > 0.0 && share <= 1.0, "{share}");
    }

    #[test]
    fn mains_and_batteries_are_told_apart() {
        type Supplies<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];
        let battery = |status| [("type", "Battery"), ("status", status)];
        let mains = |online| [("type", "Mains"), ("online", online)];
        let mouse = [("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];
        let cases: [(Supplies<'_>, Option<&str>); 8] = [
            (&[], None),
            (&[("AC", &mains("1")), ("BAT0", &battery("Charging"))], Some("ac")),
            (&[("AC", &mains("0")), ("BAT0", &battery("Discharging"))], Some("battery")),
            (&[("AC", &mains("0")), ("USB", &mains("1")), ("BAT0", &battery("Full"))], Some("ac")),
            (&[("BAT0", &battery("Full"))], Some("ac")),
            (&[("BAT0", &battery("Full")), ("BAT1", &battery("Discharging"))], Some("battery")),
            (&[("mouse", &mouse)], None),
            (&[("AC", &mains("0"))], None),
        ];
        for (supplies, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            for (name, files) in supplies {
                fs::create_dir(folder.path().join(name)).unwrap();
                for (file, text) in *files {
                    fs::write(folder.path().join(name).join(file), format!("{text}\n")).unwrap();
                }
            }
            let probe = HostProbe::with_files(folder.path().into(), Arc::new(SystemFiles));
            assert_eq!(probe.power_supply(), expected, "{supplies:?}");
        }
        let nowhere = HostProbe::with_files("/nowhere/power_supply".into(), Arc::new(SystemFiles));
        assert_eq!(nowhere.power_supply(), None);
    }
}
