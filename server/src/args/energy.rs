//! Options of energy metering.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::one_or_many;

/// What happens without sensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnergyMode {
    /// Measure what can be measured, and serve anyway
    #[default]
    Auto,
    /// Do not start without the sensors of the basis
    Require,
    /// Open no sensor
    Off,
}

/// The power rails that a number covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BasisChoice {
    /// What fits the device of the model
    #[default]
    Auto,
    /// The accelerators in use
    Gpu,
    /// One chip with CPU, GPU and neural engine
    Soc,
    /// CPU packages, and DRAM where it is apart
    Cpu,
    /// Accelerators and CPU packages together
    #[value(name = "gpu+cpu")]
    #[serde(rename = "gpu+cpu")]
    GpuCpu,
    /// The whole machine, as its sensor defines it
    Platform,
    /// What leaves the battery
    Battery,
}

/// How the energy of a pass is divided between the requests in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributionChoice {
    /// By the positions computed for each
    #[default]
    Tokens,
    /// In equal parts
    Equal,
    /// By an estimate of the arithmetic for each
    Flops,
}

/// Who is told what a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnergyUsage {
    /// Nobody, whatever requests ask for
    Off,
    /// Requests that ask, by the header `x-energy: 1` or the field `"energy": true`
    #[default]
    OptIn,
    /// Every request
    On,
}

/// A duration with its unit, such as `50ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write a number and its unit, such as 50ms, 10s or 2m")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let refused = || SpanError(text.to_owned());
        let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(refused)?;
        let (number, unit) = (text[..unit].trim(), &text[unit..]);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refused()),
        };
        // No exponents, no `inf`: what people write.
        if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(refused());
        }
        let number: f64 = number.parse().map_err(|_| refused())?;
        // Whole nanoseconds, so that 0.3s is what it says.
        let nanos = (number * seconds * 1e9).round();
        Duration::try_from_secs_f64(nanos / 1e9).map(Self).map_err(|_| refused())
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

/// A duration, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SpanOrOff {
    /// `off`
    Off,
    /// A duration.
    Span(Span),
}

impl FromStr for SpanOrOff {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::Span) }
    }
}

impl TryFrom<String> for SpanOrOff {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

/// Options of every command that runs a model. They are read from `leapfrog.toml` like the others.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(default)]
pub struct EnergyArgs {
    /// Whether to measure what requests cost in joules: where there are sensors, only with sensors, or never
    /// [default: auto]
    #[arg(long, env = "LEAPFROG_ENERGY", value_enum, help_heading = "Energy")]
    pub energy: Option<EnergyMode>,
    /// What may be read, with commas between: rapl, nvml, amdgpu, intel_gpu, apple, battery [default: what the basis needs]
    #[arg(long, env = "LEAPFROG_ENERGY_SOURCES", value_delimiter = ',', value_name = "LIST", help_heading = "Energy")]
    #[serde(deserialize_with = "one_or_many")]
    pub energy_sources: Vec<String>,
    /// Power rails that the energy of a request covers [default: auto]
    #[arg(long, env = "LEAPFROG_ENERGY_BASIS", value_enum, value_name = "BASIS", help_heading = "Energy")]
    pub energy_basis: Option<BasisChoice>,
    /// Time between two readings while passes run, 5ms to 1s [default: 50ms]
    #[arg(long, env = "LEAPFROG_ENERGY_INTERVAL", value_name = "TIME", help_heading = "Energy")]
    pub energy_interval: Option<Span>,
    /// How the energy of a pass is divided between the requests in it [default: tokens]
    #[arg(long, env = "LEAPFROG_ENERGY_ATTRIBUTION", value_enum, value_name = "RULE", help_heading = "Energy")]
    pub energy_attribution: Option<AttributionChoice>,
    /// How long the machine must be quiet for a measurement of its idle power, 1s to 10m, or off [default: 10s]
    #[arg(long, env = "LEAPFROG_ENERGY_IDLE_WINDOW", value_name = "TIME|off", help_heading = "Energy")]
    pub energy_idle_window: Option<SpanOrOff>,
    /// Most milliseconds that a reply with its energy waits for the last reading, 0 to 10000 [default: twice the update
    /// period of the slowest sensor, at most 200]
    #[arg(long, env = "LEAPFROG_ENERGY_SETTLE_MS", value_name = "N", help_heading = "Energy")]
    pub energy_settle_ms: Option<u64>,
    /// How long the energy of a call can be asked for, and its answer be judged, 1s to 24h [default: 10m]
    #[arg(long, env = "LEAPFROG_ENERGY_RETENTION", value_name = "TIME", help_heading = "Energy")]
    pub energy_retention: Option<Span>,
    /// Folder of the RAPL counters [default: /sys/class/powercap]
    #[arg(long, env = "LEAPFROG_POWERCAP_ROOT", value_name = "DIR", help_heading = "Energy")]
    pub powercap_root: Option<PathBuf>,
    /// Read a recorded trace instead of sensors
    #[arg(long, env = "LEAPFROG_ENERGY_REPLAY", value_name = "FILE", help_heading = "Energy")]
    pub energy_replay: Option<PathBuf>,
    /// Write all readings to a trace
    #[arg(long, env = "LEAPFROG_ENERGY_RECORD", value_name = "FILE", help_heading = "Energy")]
    pub energy_record: Option<PathBuf>,
}

impl EnergyArgs {
    /// These options, and those of `fallback` where nothing was given.
    pub fn or(self, fallback: Self) -> Self {
        Self {
            energy: self.energy.or(fallback.energy),
            energy_sources: if self.energy_sources.is_empty() { fallback.energy_sources } else { self.energy_sources },
            energy_basis: self.energy_basis.or(fallback.energy_basis),
            energy_interval: self.energy_interval.or(fallback.energy_interval),
            energy_attribution: self.energy_attribution.or(fallback.energy_attribution),
            energy_idle_window: self.energy_idle_window.or(fallback.energy_idle_window),
            energy_settle_ms: self.energy_settle_ms.or(fallback.energy_settle_ms),
            energy_retention: self.energy_retention.or(fallback.energy_retention),
            powercap_root: self.powercap_root.or(fallback.powercap_root),
            energy_replay: self.energy_replay.or(fallback.energy_replay),
            energy_record: self.energy_record.or(fallback.energy_record),
        }
    }
}

/// Options of the command `energy`.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Base address of the server [default: http://127.0.0.1:8080, or the port in LEAPFROG_PORT]
    #[arg(long, env = "LEAPFROG_URL")]
    pub url: Option<String>,
    /// Key to send, if the server wants one
    #[arg(long, env = "LEAPFROG_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Time between two readings, 100ms to 1h
    #[arg(long, default_value = "1s", value_name = "TIME")]
    pub interval: Span,
    /// Show one interval, then end
    #[arg(long)]
    pub once: bool,
    /// One JSON object a line for each interval
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        let span = |text: &str| text.parse::<Span>().map(|span| span.0);
        for (text, micros) in [
            ("50ms", 50_000),
            ("10s", 10_000_000),
            ("0.3s", 300_000),
            ("2m", 120_000_000),
            ("250us", 250),
            ("1 s", 1_000_000),
        ] {
            assert_eq!(span(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for bad in
            ["", "50", "ms", "-1s", "1e3s", "infs", "nans", "1.2.3s", "10 seconds", "1d", "99999999999999999999h"]
        {
            assert!(span(bad).unwrap_err().to_string().contains("such as 50ms"), "{bad}");
        }
        assert_eq!("off".parse(), Ok(SpanOrOff::Off));
        assert_eq!("10s".parse(), Ok(SpanOrOff::Span(Span(Duration::from_secs(10)))));
        assert!("never".parse::<SpanOrOff>().is_err());
    }
}
