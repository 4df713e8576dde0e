//! RAPL: the energy counters of Intel and AMD processors, through the powercap files of Linux.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::files::{Files, ReadFromStart, number, number_in, reason, text_in};
use super::{CPU, CPU_AND_PLATFORM, PLATFORM};
use crate::energy::types::{Basis, Domain, EnergyProvider, Missing, Rail, Raw, Source, SourceClass, Unavailable};

/// Laptops boost to several times their rated power, so nothing is derived from that.
const MAX_WATTS: f64 = 1000.0;
const UPDATE_PERIOD: Duration = Duration::from_millis(1);
const BUSY_PERIOD: Duration = Duration::from_millis(20);

const PERMISSION_REMEDY: &str = "the kernel lets only root read these counters; to let a group read them, run as root \
    `groupadd -f energy && usermod -aG energy USER`, write to /etc/udev/rules.d/70-energy.rules the line \
    `SUBSYSTEM==\"powercap\", ACTION==\"add\", KERNEL==\"intel-rapl:*\", RUN+=\"/bin/chgrp energy /sys%p/energy_uj\", \
    RUN+=\"/bin/chmod g+r /sys%p/energy_uj\"`, run `udevadm control --reload && udevadm trigger --action=add \
    --subsystem-match=powercap`, and log in again as USER; or start the server as root";
const MASKED_REMEDY: &str = "the container hides the counters of its host; start it with \
    `-v /sys/devices/virtual/powercap:/powercap:ro` and the server with `--powercap-root /powercap`";
const NO_SENSOR_REMEDY: &str = "this machine shows no energy counters of its processor: virtual machines have none, and \
    Linux needs the module intel_rapl_msr (`modprobe intel_rapl_msr`) for processors of Intel and AMD";
const READ_REMEDY: &str = "the file is there but gives no number; the log of the kernel may say why";
const PSYS_REMEDY: &str = "the processor has no sensor of the whole machine (`psys`); measure another basis";

/// What `/proc/cpuinfo` says about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// A guest of a hypervisor.
    Virtual,
    /// A processor of Intel or AMD without a hypervisor.
    Physical,
    /// Another processor, or another system.
    Unknown,
}

impl Machine {
    /// From the text of `/proc/cpuinfo`.
    pub(crate) fn from_cpuinfo(text: &str) -> Self {
        let flags = text.lines().find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'));
        match flags {
            None => Self::Unknown,
            Some(flags) if flags.split_ascii_whitespace().any(|flag| flag == "hypervisor") => Self::Virtual,
            Some(_) => Self::Physical,
        }
    }

    /// Of this machine.
    pub(crate) fn read(files: &dyn Files) -> Self {
        text_in(files, Path::new("/proc/cpuinfo")).map_or(Self::Unknown, |text| Self::from_cpuinfo(&text))
    }
}

/// Reads a powercap tree.
pub(crate) struct Powercap {
    root: PathBuf,
    files: Arc<dyn Files>,
    machine: Machine,
    /// Whether a missing sensor of the whole machine is worth a word.
    platform: bool,
    counters: BTreeMap<String, Counter>,
}

struct Counter {
    path: PathBuf,
    /// `None` after a failed read: the next one opens the file again.
    file: Option<Box<dyn ReadFromStart>>,
}

/// A folder of the tree, by the numbers in its name: `[0]` is `intel-rapl:0`, `[0, 2]` is `intel-rapl:0:2`.
type Zones = BTreeMap<Vec<usize>, PathBuf>;

impl Powercap {
    /// Reads the tree at `root`; nothing is opened yet. `basis` is what will be asked for.
    pub(crate) fn new(root: PathBuf, files: Arc<dyn Files>, machine: Machine, basis: Basis) -> Self {
        Self { root, files, machine, platform: basis == Basis::Platform, counters: BTreeMap::new() }
    }

    /// Every zone of the control type `intel-rapl`. The kernel's class folder is flat; below `/sys/devices` zones lie in
    /// one another.
    fn zones(&self) -> io::Result<(Zones, bool)> {
        let mut zones = Zones::new();
        let names = self.files.names(&self.root)?;
        let empty = names.is_empty();
        self.collect(&self.root, names, &mut zones);
        let control_type = self.root.join("intel-rapl");
        for folder in std::iter::once(control_type).chain(zones.values().cloned().collect::<Vec<_>>()) {
            // No folder, or a link into nothing: what it would hold is missed where its name is read.
            if let Ok(names) = self.files.names(&folder) {
                self.collect(&folder, names, &mut zones);
            }
        }
        for folder in zones.values().cloned().collect::<Vec<_>>() {
            if let Ok(names) = self.files.names(&folder) {
                self.collect(&folder, names, &mut zones);
            }
        }
        Ok((zones, empty))
    }

    fn collect(&self, folder: &Path, names: Vec<String>, zones: &mut Zones) {
        for name in names {
            let Some(numbers) = name.strip_prefix("intel-rapl:") else { continue };
            if let Ok(numbers) = numbers.split(':').map(str::parse).collect() {
                zones.entry(numbers).or_insert_with(|| folder.join(&name));
            }
        }
    }

    fn nothing(&self, reason: Unavailable) -> Missing {
        missing("rapl", reason, CPU_AND_PLATFORM)
    }

    /// Opens a counter; it is a domain only if it can be read now.
    fn counter(&mut self, id: String, folder: &Path, bases: &'static [Basis]) -> Result<Domain, Missing> {
        let path = folder.join("energy_uj");
        let opened = self.files.open(&path).map_err(|error| reason(&error));
        let file = opened.and_then(|mut file| number(&mut *file).map(|_| file));
        let file = file.map_err(|reason| missing(&id, reason, bases))?;
        // The kernel's counter starts again one unit (15 to 61 µJ) after this; the spec accepts that error.
        let range = number_in(&*self.files, &folder.join("max_energy_range_uj")).ok().filter(|range| *range > 0);
        self.counters.insert(id.clone(), Counter { path, file: Some(file) });
        Ok(Domain {
            id,
            source: Source::Rapl,
            class: SourceClass::Counter { modulus_uj: range },
            bases,
            exclusive: bases == CPU,
            shared: false,
            max_watts: MAX_WATTS,
            update_period: Some(UPDATE_PERIOD),
            busy_period: BUSY_PERIOD,
            rail: Rail::Host,
        })
    }
}

fn missing(domain: &str, reason: Unavailable, bases: &'static [Basis]) -> Missing {
    let remedy = match reason {
        Unavailable::PermissionDenied => PERMISSION_REMEDY,
        Unavailable::Masked => MASKED_REMEDY,
        Unavailable::NoSensor => NO_SENSOR_REMEDY,
        _ => READ_REMEDY,
    };
    Missing { domain: domain.into(), source: Source::Rapl, reason, remedy: remedy.into(), bases }
}

/// `rapl:package-1-die-0` for `package-1-die-0`, `rapl:dram-1-die-0` for the memory in it. Cores and graphics are part of
/// their package: `None`.
fn domain(name: &str, parent: Option<&str>) -> Option<(String, &'static [Basis])> {
    match (name, parent) {
        ("dram", Some(parent)) => Some((format!("rapl:dram-{}", parent.strip_prefix("package-")?), CPU)),
        ("psys", None) => Some(("rapl:psys".into(), PLATFORM)),
        (package, None) if package.starts_with("package-") => Some((format!("rapl:{package}"), CPU)),
        _ => None,
    }
}

impl EnergyProvider for Powercap {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let (zones, empty) = match self.zones() {
            Ok(zones) => zones,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return vec![Err(self.nothing(Unavailable::NoSensor))];
            }
            Err(error) => return vec![Err(self.nothing(reason(&error)))],
        };
        if zones.is_empty() {
            // Run times of containers cover the folder with an empty one.
            let hidden = empty && self.machine == Machine::Physical;
            let reason = if hidden { Unavailable::Masked } else { Unavailable::NoSensor };
            return vec![Err(self.nothing(reason))];
        }
        let mut found: Vec<Result<Domain, Missing>> = Vec::new();
        let mut names: BTreeMap<&[usize], String> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut hidden = false;
        for (numbers, folder) in &zones {
            let name = match text_in(&*self.files, &folder.join("name")) {
                Ok(name) => name,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    hidden = true;
                    continue;
                }
                Err(error) => {
                    let zone = folder.file_name().unwrap_or_default().to_string_lossy();
                    found.push(Err(missing(&format!("rapl:{zone}"), reason(&error), CPU)));
                    continue;
                }
            };
            let parent = (numbers.len() == 2).then(|| names.get(&numbers[..1]).map_or("", String::as_str));
            if let Some((mut id, bases)) = domain(&name, parent).filter(|_| numbers.len() <= 2) {
                // Several zones of one name, such as `psys` of each socket.
                if !seen.insert(id.clone()) {
                    id = format!("{id}@{}", numbers[0]);
                }
                found.push(self.counter(id, folder, bases));
            }
            names.insert(numbers, name);
        }
        if hidden {
            found.push(Err(self.nothing(Unavailable::Masked)));
        }
        let has = |basis| found.iter().any(|domain| bases(domain).contains(&basis));
        let (cpu, platform) = (has(Basis::Cpu), has(Basis::Platform));
        if !cpu {
            found.push(Err(missing("rapl", Unavailable::NoSensor, CPU)));
        }
        if !platform && self.platform {
            let lacking = missing("rapl:psys", Unavailable::NoSensor, PLATFORM);
            found.push(Err(Missing { remedy: PSYS_REMEDY.into(), ..lacking }));
        }
        found
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let counter = self.counters.get_mut(domain).ok_or(Unavailable::NoSensor)?;
        let mut file = match counter.file.take() {
            Some(file) => file,
            None => self.files.open(&counter.path).map_err(|error| reason(&error))?,
        };
        let value = number(&mut *file)?;
        counter.file = Some(file);
        Ok(Raw::Counter(value))
    }
}

fn bases(domain: &Result<Domain, Missing>) -> &'static [Basis] {
    match domain {
        Ok(domain) => domain.bases,
        Err(missing) => missing.bases,
    }
}

#[cfg(test)]
mod tests;
