//! What a sensor is, what it says, and why it may say nothing.

use std::{fmt, time::Duration};

use serde::Serialize;

/// Why a quantity does not exist. It is never replaced by zero or by a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unavailable {
    /// The machine shows no such sensor; the rule on virtual machines.
    NoSensor,
    /// The sensor exists and a container hides it.
    Masked,
    /// The sensor exists and this user may not read it.
    PermissionDenied,
    /// The library or driver that reads it is not installed.
    DriverMissing,
    /// The device answers that it has no such sensor.
    NotSupported,
    /// Reading would wake a device that sleeps.
    DeviceSuspended,
    /// A read failed, or gave something that is not a number.
    ReadFailed,
    /// What it says cannot be true.
    Implausible,
    /// It has not been read for too long.
    Stale,
    /// Metering is switched off.
    Disabled,
}

impl Unavailable {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::NoSensor,
        Self::Masked,
        Self::PermissionDenied,
        Self::DriverMissing,
        Self::NotSupported,
        Self::DeviceSuspended,
        Self::ReadFailed,
        Self::Implausible,
        Self::Stale,
        Self::Disabled,
    ];

    /// The name in metrics and replies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoSensor => "no_sensor",
            Self::Masked => "masked",
            Self::PermissionDenied => "permission_denied",
            Self::DriverMissing => "driver_missing",
            Self::NotSupported => "not_supported",
            Self::DeviceSuspended => "device_suspended",
            Self::ReadFailed => "read_failed",
            Self::Implausible => "implausible",
            Self::Stale => "stale",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The set of power rails that a number covers. Numbers with different bases must not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Basis {
    /// The accelerators in use.
    #[serde(rename = "gpu")]
    Gpu,
    /// CPU, GPU and neural engine of one chip.
    #[serde(rename = "soc")]
    Soc,
    /// All RAPL packages, and DRAM where it is apart.
    #[serde(rename = "cpu")]
    Cpu,
    /// [`Basis::Gpu`] and [`Basis::Cpu`] together.
    #[serde(rename = "gpu+cpu")]
    GpuCpu,
    /// The whole machine, as its sensor defines it.
    #[serde(rename = "platform")]
    Platform,
    /// What leaves the battery.
    #[serde(rename = "battery")]
    Battery,
}

impl Basis {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Gpu, Self::Soc, Self::Cpu, Self::GpuCpu, Self::Platform, Self::Battery];

    /// The name in metrics, replies and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Soc => "soc",
            Self::Cpu => "cpu",
            Self::GpuCpu => "gpu+cpu",
            Self::Platform => "platform",
            Self::Battery => "battery",
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Kinds of sensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Energy counters of Intel and AMD processors, through the powercap files of Linux.
    Rapl,
    /// NVIDIA's management library.
    Nvml,
    /// AMD GPUs, through the hwmon files of Linux.
    Amdgpu,
    /// Graphics cards of Intel, through the same.
    IntelGpu,
    /// The chips of Apple.
    Apple,
    /// Discharge of a battery.
    Battery,
    /// A recorded trace.
    Replay,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Rapl, Self::Nvml, Self::Amdgpu, Self::IntelGpu, Self::Apple, Self::Battery, Self::Replay];

    /// The name in metrics, replies and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rapl => "rapl",
            Self::Nvml => "nvml",
            Self::Amdgpu => "amdgpu",
            Self::IntelGpu => "intel_gpu",
            Self::Apple => "apple",
            Self::Battery => "battery",
            Self::Replay => "replay",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How a sensor's readings become energy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SourceClass {
    /// A counter of microjoules that starts again after `modulus_uj`, or never.
    Counter {
        /// The largest value that the sensor names, in microjoules; `None` is a counter that does not start again.
        modulus_uj: Option<u64>,
    },
    /// The mean power since the reading before.
    IntervalMean,
    /// The power now.
    InstantPower {
        /// The time over which the sensor itself takes the mean, if it does.
        averaging: Option<Duration>,
    },
}

impl SourceClass {
    /// The name in replies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter { .. } => "counter",
            Self::IntervalMean => "interval_mean",
            Self::InstantPower { .. } => "power",
        }
    }
}

/// Which forward passes a rail takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rail {
    /// CPU, memory, or the whole machine: every pass.
    Host,
    /// An accelerator, by the index that engines name it with: passes that run on it.
    Accelerator(usize),
}

/// One power rail with a sensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Such as `rapl:package-0`; stable over restarts.
    pub id: String,
    /// What reads it.
    pub source: Source,
    /// How it is read.
    pub class: SourceClass,
    /// The bases that it is part of.
    pub bases: &'static [Basis],
    /// Whether no other exclusive domain covers the same rail, so that their energies may be summed.
    pub exclusive: bool,
    /// Whether others share the rail, as virtual GPUs do.
    pub shared: bool,
    /// Power above which a reading is not believed, in watts.
    pub max_watts: f64,
    /// How often the sensor changes, if known.
    pub update_period: Option<Duration>,
    /// How often to read it while passes run.
    pub busy_period: Duration,
    /// The passes that it takes part in.
    pub rail: Rail,
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Raw {
    /// Microjoules since some beginning.
    Counter(u64),
    /// Watts, now or since the reading before; the domain's class says which.
    Watts(f64),
}

/// Finds sensors and reads them; knows nothing of requests. Reads may take milliseconds, so only the sampler's thread
/// calls it.
pub trait EnergyProvider: Send {
    /// What there is: domains, and the names of those that are known not to be readable, with the reason. Called once,
    /// before any read.
    fn discover(&mut self) -> Vec<Result<Domain, Missing>>;
    /// Reads the domain with this id, one that `discover` found. Watts of a domain whose class is a counter are the power now:
    /// the counter was found wrong, and power is read instead from then on.
    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable>;
    /// How many processes of others use the device of this domain; `None` where that cannot be told.
    fn foreign_processes(&mut self, domain: &str) -> Option<usize> {
        let _ = domain;
        None
    }
}

/// A sensor that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its domain id, or that of the kind where nothing more is known (`rapl`).
    pub domain: String,
    /// What would read it.
    pub source: Source,
    /// Why it cannot be read.
    pub reason: Unavailable,
    /// What to do about it, for people; empty if nothing helps.
    pub remedy: String,
    /// The bases that lack it.
    pub bases: &'static [Basis],
}

/// Time as the sampler sees it: nanoseconds since the monitor began, from a clock that never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Time since `earlier`; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Nanos;
    /// How long the machine has slept so far, on the scale of the system.
    fn suspended(&self) -> Duration;
}
