//! The sensors: each finds its domains and gives raw readings. What counts as energy is decided elsewhere.

mod accelerators;
#[cfg(any(target_os = "macos", test))]
mod apple;
mod battery;
pub(super) mod files;
mod hwmon;
mod nvml;
mod powercap;
pub(crate) mod record;
pub(crate) mod replay;
mod trace;
#[cfg(test)]
mod trace_tests;

use std::sync::Arc;

use self::{
    accelerators::Accelerators,
    battery::Batteries,
    files::{Files, SystemFiles},
    hwmon::{Hwmon, Maker},
    nvml::{Library, NvmlGpus, Surroundings},
    powercap::{Machine, Powercap},
    record::Recorder,
    replay::Replay,
};
use super::{
    monitor::EnergyError,
    settings::{EnergySettings, Mode},
    types::{Basis, Clock, EnergyProvider, Source},
};

const CPU: &[Basis] = &[Basis::Cpu, Basis::GpuCpu];
const GPU: &[Basis] = &[Basis::Gpu, Basis::GpuCpu];
const PLATFORM: &[Basis] = &[Basis::Platform];
const CPU_AND_PLATFORM: &[Basis] = &[Basis::Cpu, Basis::GpuCpu, Basis::Platform];

/// The sensors that `settings` ask for; none is read yet, and none at all is opened if metering is off. A trace takes
/// the place of all of them. `clock` is that of the sampler: traces are written and read by it.
///
/// # Errors
/// If a trace cannot be read or created. A sensor that cannot be read is no error: its provider says so.
pub(crate) fn open(
    settings: &EnergySettings,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<Box<dyn EnergyProvider>>, EnergyError> {
    open_with(settings, clock, &(Arc::new(SystemFiles) as Arc<dyn Files>))
}

fn open_with(
    settings: &EnergySettings,
    clock: &Arc<dyn Clock>,
    files: &Arc<dyn Files>,
) -> Result<Vec<Box<dyn EnergyProvider>>, EnergyError> {
    if settings.mode == Mode::Off {
        return Ok(Vec::new());
    }
    let providers = match &settings.replay {
        Some(path) => vec![Box::new(Replay::open(path, Arc::clone(clock))?) as Box<dyn EnergyProvider>],
        None => sensors(settings, clock, files),
    };
    match &settings.record {
        Some(path) => Ok(vec![Box::new(Recorder::create(path, providers, Arc::clone(clock))?)]),
        None => Ok(providers),
    }
}

fn sensors(settings: &EnergySettings, clock: &Arc<dyn Clock>, files: &Arc<dyn Files>) -> Vec<Box<dyn EnergyProvider>> {
    let basis = settings.basis.unwrap_or_else(default_basis);
    let mut providers: Vec<Box<dyn EnergyProvider>> = Vec::new();
    if wanted(settings, basis, Source::Rapl) {
        let machine = Machine::read(&**files);
        providers.push(Box::new(Powercap::new(settings.powercap_root.clone(), Arc::clone(files), machine, basis)));
    }
    let mut accelerators: Vec<Box<dyn EnergyProvider>> = Vec::new();
    if wanted(settings, basis, Source::Nvml) {
        let surroundings = Surroundings::of_this_machine(Arc::clone(files), Arc::clone(clock));
        accelerators.push(Box::new(NvmlGpus::new(Box::new(Library::load), surroundings)));
    }
    for (source, maker) in [(Source::Amdgpu, Maker::Amd), (Source::IntelGpu, Maker::Intel)] {
        if wanted(settings, basis, source) {
            let root = settings.hwmon_root.clone();
            accelerators.push(Box::new(Hwmon::new(maker, root, Arc::clone(files), basis)));
        }
    }
    if !accelerators.is_empty() {
        providers.push(Box::new(Accelerators::new(accelerators)));
    }
    #[cfg(target_os = "macos")]
    if wanted(settings, basis, Source::Apple) {
        providers.push(Box::new(apple::Apple::new(apple::open())));
    }
    if wanted(settings, basis, Source::Battery) {
        providers.push(Box::new(Batteries::new(settings.power_supply_root.clone(), Arc::clone(files))));
    }
    providers
}

/// What fits models on the CPU: the chip on Apple's computers, the packages elsewhere.
pub(crate) fn default_basis() -> Basis {
    if cfg!(all(target_os = "macos", target_arch = "aarch64")) { Basis::Soc } else { Basis::Cpu }
}

/// Whether a source is allowed and its readings can be part of `basis`. A battery is read if it is asked for by name.
fn wanted(settings: &EnergySettings, basis: Basis, source: Source) -> bool {
    let useful = match source {
        Source::Rapl => matches!(basis, Basis::Cpu | Basis::GpuCpu | Basis::Platform),
        // On a Mac the GPU is that of the chip.
        Source::Nvml => matches!(basis, Basis::Gpu | Basis::GpuCpu) && !cfg!(target_os = "macos"),
        Source::IntelGpu => matches!(basis, Basis::Gpu | Basis::GpuCpu) && cfg!(target_os = "linux"),
        Source::Amdgpu => matches!(basis, Basis::Gpu | Basis::GpuCpu | Basis::Soc) && cfg!(target_os = "linux"),
        Source::Apple => matches!(basis, Basis::Gpu | Basis::Soc | Basis::Platform) && cfg!(target_os = "macos"),
        Source::Battery => basis == Basis::Battery,
        Source::Replay => false,
    };
    match &settings.sources {
        None => useful,
        Some(sources) => sources.contains(&source) && (useful || source == Source::Battery),
    }
}
