//! GPUs of NVIDIA, through its management library. The library is loaded when it is needed; nothing links to it.

mod api;
mod check;
#[cfg(test)]
mod tests;
mod visible;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(crate) use self::api::Library;
use self::{
    api::{Address, Fault, NvmlApi},
    check::{BusyCheck, Comparison},
    visible::visible,
};
use super::{
    GPU,
    files::{Files, text_in},
};
use crate::energy::types::{
    Clock, Domain, EnergyProvider, Missing, Nanos, Rail, Raw, Source, SourceClass, Unavailable,
};

const BUSY_PERIOD: Duration = Duration::from_millis(20);
/// The plain call for power gives the mean over this, on most devices.
const AVERAGING: Duration = Duration::from_secs(1);
const MIN_MAX_WATTS: f64 = 1500.0;
/// The longest look at the counters at the start, for all devices together.
const PROBE: Duration = Duration::from_secs(1);
const PROBE_STEP: Duration = Duration::from_millis(1);
/// Enough to stop looking.
const PROBE_SPAN: Duration = Duration::from_millis(500);
const PROBE_CHANGES: usize = 8;
/// A shorter comparison at the start decides nothing.
const MIN_SPAN: Duration = Duration::from_millis(250);

const DRIVER_REMEDY: &str = "NVIDIA's management library (libnvidia-ml.so.1) or its driver is not there: install the driver; \
    in a container, start it with the GPUs and with NVIDIA_DRIVER_CAPABILITIES=compute,utility";
const SUSPENDED_REMEDY: &str =
    "the GPU sleeps and a reading would wake it; it can be read at a start while it is awake";
const HIDDEN_REMEDY: &str = "CUDA_VISIBLE_DEVICES names no GPU that is here; instances (MIG) share the sensor of their GPU, \
    which must be named in their place";

/// Loads the library.
pub(crate) type Load = Box<dyn FnMut() -> Result<Box<dyn NvmlApi>, Fault> + Send>;

/// What is needed besides the library.
pub(crate) struct Surroundings {
    /// The files of this machine.
    pub(crate) files: Arc<dyn Files>,
    /// The folder of PCI devices.
    pub(crate) pci_root: PathBuf,
    /// The value of `CUDA_VISIBLE_DEVICES`.
    pub(crate) visible: Option<String>,
    /// The time of the sampler.
    pub(crate) clock: Arc<dyn Clock>,
    /// This process.
    pub(crate) process: u32,
}

/// Reads the GPUs of NVIDIA that CUDA sees.
pub(crate) struct NvmlGpus {
    load: Load,
    surroundings: Surroundings,
    api: Option<Box<dyn NvmlApi>>,
    devices: BTreeMap<String, Device>,
}

struct Device {
    address: Address,
    method: Method,
    power: Option<Power>,
    check: BusyCheck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Counter,
    Power,
}

/// The call that gives power on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    Instant,
    Mean,
}

impl Power {
    fn averaging(self) -> Option<Duration> {
        (self == Self::Mean).then_some(AVERAGING)
    }

    fn watts(self, api: &mut dyn NvmlApi, device: &Address) -> Result<f64, Fault> {
        let milliwatts = match self {
            Self::Instant => api.instant_power_mw(device),
            Self::Mean => api.power_mw(device),
        };
        milliwatts.map(|milliwatts| milliwatts / 1000.0)
    }
}

/// A device that will be read, before it is known how.
struct Candidate {
    id: String,
    address: Address,
    index: usize,
    counter: bool,
    power: Option<Power>,
    comparison: Comparison,
}

impl NvmlGpus {
    /// Loads nothing yet.
    pub(crate) fn new(load: Load, surroundings: Surroundings) -> Self {
        Self { load, surroundings, api: None, devices: BTreeMap::new() }
    }

    /// The PCI addresses of the GPUs of NVIDIA, in the order of the library; empty where the system does not tell them.
    fn addresses(&self) -> Vec<Address> {
        let (files, root) = (&*self.surroundings.files, &self.surroundings.pci_root);
        let names = files.names(root).unwrap_or_default();
        let is_gpu = |name: &String| {
            let says =
                |file, start| text_in(files, &root.join(name).join(file)).is_ok_and(|text| text.starts_with(start));
            says("vendor", "0x10de") && says("class", "0x03")
        };
        names.into_iter().filter(is_gpu).map(Address::Pci).collect()
    }

    fn all(&mut self) -> Result<(Vec<Address>, Vec<Option<String>>), Missing> {
        let mut addresses = self.addresses();
        let asleep: Vec<bool> = addresses.iter().map(|address| self.surroundings.suspended(address)).collect();
        if !addresses.is_empty() && asleep.iter().all(|asleep| *asleep) {
            // The library would wake them.
            let uuids = vec![None; addresses.len()];
            return Ok((addresses, uuids));
        }
        let fault = |fault: Fault| match &fault {
            Fault::DriverMissing(_) => missing("nvml", fault.reason(), &format!("{DRIVER_REMEDY} ({fault})")),
            _ => missing("nvml", fault.reason(), &fault.to_string()),
        };
        let mut api = (self.load)().map_err(fault)?;
        if addresses.is_empty() {
            addresses = (0..api.count().map_err(fault)?).map(Address::Index).collect();
        }
        let (mut seen, mut uuids) = (Vec::new(), Vec::new());
        for (index, address) in addresses.into_iter().enumerate() {
            let asleep = asleep.get(index).copied().unwrap_or(false);
            match if asleep { Ok(None) } else { api.uuid(&address).map(Some) } {
                Ok(uuid) => {
                    uuids.push(uuid);
                    seen.push(address);
                }
                // A container may hide devices that the system lists, and a driver of virtual machines may hold them.
                Err(Fault::NotFound) => {}
                Err(fault) => {
                    tracing::warn!(device = %address, %fault, "this GPU does not tell its name");
                    uuids.push(None);
                    seen.push(address);
                }
            }
        }
        self.api = Some(api);
        Ok((seen, uuids))
    }

    fn candidate(&mut self, index: usize, address: &Address, uuid: Option<&String>) -> Result<Candidate, Missing> {
        let Some(uuid) = uuid else {
            let asleep = self.surroundings.suspended(address);
            let (reason, remedy) =
                if asleep { (Unavailable::DeviceSuspended, SUSPENDED_REMEDY) } else { (Unavailable::ReadFailed, "") };
            return Err(missing(&format!("nvml:{address}"), reason, remedy));
        };
        let id = format!("nvml:{uuid}");
        let unreadable = |fault: &Fault| missing(&id, fault.reason(), &fault.to_string());
        let api = self.api.as_mut().ok_or_else(|| missing(&id, Unavailable::DriverMissing, DRIVER_REMEDY))?;
        let counter = match api.energy_mj(address) {
            Ok(_) => true,
            Err(Fault::NotSupported) => false,
            Err(fault) => return Err(unreadable(&fault)),
        };
        let mut power = None;
        for call in [Power::Instant, Power::Mean] {
            match call.watts(&mut **api, address) {
                Ok(_) => {
                    power = Some(call);
                    break;
                }
                Err(Fault::NotSupported) => {}
                Err(fault) => return Err(unreadable(&fault)),
            }
        }
        if !counter && power.is_none() {
            let remedy = "this GPU tells neither its energy nor its power";
            return Err(missing(&id, Unavailable::NotSupported, remedy));
        }
        Ok(Candidate { id, address: address.clone(), index, counter, power, comparison: Comparison::default() })
    }

    /// Looks at all counters for a short while, under whatever load there is.
    fn probe(&mut self, candidates: &mut [Result<Candidate, Missing>]) {
        let Some(api) = &mut self.api else { return };
        let mut counters: Vec<&mut Candidate> =
            candidates.iter_mut().flatten().filter(|candidate| candidate.counter).collect();
        let start = self.surroundings.clock.now();
        let done = |candidate: &&mut Candidate| {
            let comparison = &candidate.comparison;
            comparison.num_changes() >= PROBE_CHANGES && (candidate.power.is_none() || comparison.span() >= PROBE_SPAN)
        };
        while !counters.iter().all(done) {
            for candidate in &mut counters {
                // What fails here fails again when it is read.
                let Ok(energy) = api.energy_mj(&candidate.address) else { continue };
                let watts = candidate.power.and_then(|power| power.watts(&mut **api, &candidate.address).ok());
                candidate.comparison.add(self.surroundings.clock.now(), energy, watts);
            }
            if self.surroundings.clock.now().since(start) >= PROBE {
                break;
            }
            api.wait(PROBE_STEP);
        }
    }

    fn domain(&mut self, candidate: Candidate) -> Result<Domain, Missing> {
        let Candidate { id, address, index, counter, power, comparison } = candidate;
        // The mean of a second says nothing about half of one.
        let instant = power == Some(Power::Instant) && comparison.span() >= MIN_SPAN;
        let wrong = counter && instant && comparison.agrees() == Some(false);
        let method = if counter && !wrong { Method::Counter } else { Method::Power };
        if wrong {
            tracing::warn!(domain = %id, "the energy counter does not match the power; power is read instead");
        }
        let api = self.api.as_mut().ok_or_else(|| missing(&id, Unavailable::DriverMissing, DRIVER_REMEDY))?;
        let limit = api.limit_mw(&address).map_or(0.0, |limit| 2.0 * f64::from(limit) / 1000.0);
        let shared = api.is_divided(&address).unwrap_or(false);
        let update_period = comparison.update_period().filter(|_| method == Method::Counter);
        let averaging = power.and_then(Power::averaging);
        let device = Device { address, method, power, check: BusyCheck::new(averaging, comparison.watts()) };
        self.devices.insert(id.clone(), device);
        Ok(Domain {
            id,
            source: Source::Nvml,
            class: match method {
                Method::Counter => SourceClass::Counter { modulus_uj: None },
                Method::Power => SourceClass::InstantPower { averaging },
            },
            bases: GPU,
            exclusive: true,
            shared,
            max_watts: limit.max(MIN_MAX_WATTS),
            update_period,
            busy_period: update_period.map_or(BUSY_PERIOD, |period| (period / 2).max(BUSY_PERIOD)),
            rail: Rail::Accelerator(index),
        })
    }
}

impl EnergyProvider for NvmlGpus {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let (addresses, uuids) = match self.all() {
            Ok(all) => all,
            Err(missing) => return vec![Err(missing)],
        };
        if addresses.is_empty() {
            return vec![Err(missing("nvml", Unavailable::NoSensor, "this machine shows no GPU of NVIDIA"))];
        }
        let spec = self.surroundings.visible.clone();
        let (picked, unknown) = visible(spec.as_deref(), &uuids);
        let mut candidates: Vec<Result<Candidate, Missing>> = Vec::new();
        for (index, device) in picked.into_iter().enumerate() {
            candidates.push(self.candidate(index, &addresses[device], uuids[device].as_ref()));
        }
        self.probe(&mut candidates);
        let mut found = Vec::new();
        for candidate in candidates {
            found.push(candidate.and_then(|candidate| self.domain(candidate)));
        }
        if unknown.is_some() || found.is_empty() {
            let domain = unknown.map_or_else(|| "nvml".into(), |name| format!("nvml:{name}"));
            let hidden = missing(&domain, Unavailable::NoSensor, HIDDEN_REMEDY);
            // CUDA would use an instance, so that its energy is missing; a name of nothing only ends the list.
            let in_use = found.is_empty() || unknown.is_some_and(|name| name.starts_with("MIG-"));
            found.push(Err(if in_use { hidden } else { Missing { bases: &[], ..hidden } }));
        }
        found
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let device = self.devices.get_mut(domain).ok_or(Unavailable::NoSensor)?;
        if self.surroundings.suspended(&device.address) {
            return Err(Unavailable::DeviceSuspended);
        }
        let api = self.api.as_mut().ok_or(Unavailable::DriverMissing)?;
        device.read(&mut **api, self.surroundings.clock.now()).inspect_err(|reason| {
            if *reason == Unavailable::Implausible {
                tracing::warn!(
                    domain,
                    "the energy counter does not match the power; power is read instead from now on"
                );
            }
        })
    }

    fn foreign_processes(&mut self, domain: &str) -> Option<usize> {
        let device = self.devices.get(domain)?;
        if self.surroundings.suspended(&device.address) {
            return None;
        }
        let processes = self.api.as_mut()?.processes(&device.address).ok()?;
        Some(processes.into_iter().filter(|process| *process != self.surroundings.process).count())
    }
}

impl Device {
    fn read(&mut self, api: &mut dyn NvmlApi, now: Nanos) -> Result<Raw, Unavailable> {
        if let (Method::Power, Some(power)) = (self.method, self.power) {
            let watts = power.watts(api, &self.address).map_err(|fault| fault.reason())?;
            return Ok(Raw::Watts(watts));
        }
        let energy_mj = api.energy_mj(&self.address).map_err(|fault| fault.reason())?;
        if let Some(power) = self.power.filter(|_| self.check.wants_power(now)) {
            // The check is an extra: if power fails, the counter still counts.
            if let Ok(watts) = power.watts(api, &self.address)
                && self.check.add(now, energy_mj, watts) == Some(false)
            {
                self.method = Method::Power;
                return Err(Unavailable::Implausible);
            }
        }
        energy_mj.checked_mul(1000).map(Raw::Counter).ok_or(Unavailable::Implausible)
    }
}

impl Surroundings {
    /// Those of this machine, to be read by `clock`.
    pub(crate) fn of_this_machine(files: Arc<dyn Files>, clock: Arc<dyn Clock>) -> Self {
        Self {
            files,
            pci_root: Path::new("/sys/bus/pci/devices").into(),
            visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            clock,
            process: std::process::id(),
        }
    }

    /// Whether the system has put a device to sleep, from which any call would wake it.
    fn suspended(&self, device: &Address) -> bool {
        let Address::Pci(address) = device else { return false };
        let status = text_in(&*self.files, &self.pci_root.join(address).join("power/runtime_status"));
        status.is_ok_and(|status| status == "suspended")
    }
}

fn missing(domain: &str, reason: Unavailable, remedy: &str) -> Missing {
    Missing { domain: domain.into(), source: Source::Nvml, reason, remedy: remedy.into(), bases: GPU }
}
