//! What the options of energy metering mean.

use std::{ops::RangeInclusive, time::Duration};

use engine::{
    Target,
    energy::{Attribution, Basis, EnergySettings, Mode, Source},
};

use super::SettingsError;
use crate::args::{AttributionChoice, BasisChoice, EnergyArgs, EnergyMode, EnergyUsage, Span, SpanOrOff};

const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(1);
const IDLE_WINDOWS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
const RETENTIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const MAX_SETTLE_MS: u64 = 10_000;

/// Gives the options their meaning, for models that `target` runs.
pub(super) fn resolve(args: &EnergyArgs, target: Target) -> Result<EnergySettings, SettingsError> {
    let defaults = EnergySettings::default();
    let idle_window = match args.energy_idle_window {
        None => defaults.idle_window,
        Some(SpanOrOff::Off) => None,
        Some(SpanOrOff::Span(span)) => Some(within("energy-idle-window", span, &IDLE_WINDOWS)?),
    };
    if let Some(millis) = args.energy_settle_ms.filter(|millis| *millis > MAX_SETTLE_MS) {
        let reason = format!("{millis} is not between 0 and {MAX_SETTLE_MS}");
        return Err(SettingsError::Invalid { option: "energy-settle-ms", reason });
    }
    if args.energy_record.is_some() && args.energy_record == args.energy_replay {
        let reason = "it would overwrite the trace that is read".to_owned();
        return Err(SettingsError::Invalid { option: "energy-record", reason });
    }
    Ok(EnergySettings {
        mode: match args.energy.unwrap_or_default() {
            EnergyMode::Auto => Mode::Auto,
            EnergyMode::Require => Mode::Require,
            EnergyMode::Off => Mode::Off,
        },
        basis: match args.energy_basis.unwrap_or_default() {
            BasisChoice::Auto => matches!(target, Target::Cuda { .. }).then_some(Basis::Gpu),
            BasisChoice::Gpu => Some(Basis::Gpu),
            BasisChoice::Soc => Some(Basis::Soc),
            BasisChoice::Cpu => Some(Basis::Cpu),
            BasisChoice::GpuCpu => Some(Basis::GpuCpu),
            BasisChoice::Platform => Some(Basis::Platform),
            BasisChoice::Battery => Some(Basis::Battery),
        },
        sources: sources(&args.energy_sources)?,
        interval: match args.energy_interval {
            None => defaults.interval,
            Some(span) => within("energy-interval", span, &INTERVALS)?,
        },
        attribution: match args.energy_attribution.unwrap_or_default() {
            AttributionChoice::Tokens => Attribution::Tokens,
            AttributionChoice::Equal => Attribution::Equal,
            AttributionChoice::Flops => Attribution::Flops,
        },
        idle_window,
        settle: args.energy_settle_ms.map(Duration::from_millis),
        retention: match args.energy_retention {
            None => defaults.retention,
            Some(span) => within("energy-retention", span, &RETENTIONS)?,
        },
        powercap_root: args.powercap_root.clone().unwrap_or(defaults.powercap_root),
        replay: args.energy_replay.clone(),
        record: args.energy_record.clone(),
        ..EnergySettings::default()
    })
}

/// Who is told what requests cost. Joules are a side channel: where several parties share a server, each request says
/// for itself that it wants them.
pub(super) fn usage(given: Option<EnergyUsage>, num_keys: usize) -> Result<EnergyUsage, SettingsError> {
    let usage = given.unwrap_or_default();
    if usage == EnergyUsage::On && num_keys > 1 {
        let reason = format!("with {num_keys} API keys every request asks for itself; use opt-in");
        return Err(SettingsError::Invalid { option: "energy-usage", reason });
    }
    Ok(usage)
}

fn within(option: &'static str, Span(span): Span, range: &RangeInclusive<Duration>) -> Result<Duration, SettingsError> {
    if range.contains(&span) {
        return Ok(span);
    }
    let reason = format!("{span:?} is not between {:?} and {:?}", range.start(), range.end());
    Err(SettingsError::Invalid { option, reason })
}

fn sources(names: &[String]) -> Result<Option<Vec<Source>>, SettingsError> {
    let names = names.iter().flat_map(|names| names.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let mut sources = Vec::new();
    for name in names {
        // A trace is read by its own option.
        let mut known = Source::ALL.into_iter().filter(|source| *source != Source::Replay);
        let Some(source) = known.clone().find(|source| source.name() == name) else {
            let last = known.next_back().map_or("", Source::name);
            let first: Vec<&str> = known.map(Source::name).collect();
            let reason = format!("`{name}` is not a source; there are {} and {last}", first.join(", "));
            return Err(SettingsError::Invalid { option: "energy-sources", reason });
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok((!sources.is_empty()).then_some(sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Span {
        Span(Duration::from_millis(millis))
    }

    fn option(args: &EnergyArgs) -> String {
        match resolve(args, Target::Cpu) {
            Err(SettingsError::Invalid { option, .. }) => option.to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(resolve(&EnergyArgs::default(), Target::Cpu).unwrap(), EnergySettings::default());
        let on_gpu = resolve(&EnergyArgs::default(), Target::Cuda { ordinal: 1 }).unwrap();
        assert_eq!(on_gpu, EnergySettings { basis: Some(Basis::Gpu), ..EnergySettings::default() });
    }

    #[test]
    fn what_is_said_is_meant() {
        let args = EnergyArgs {
            energy: Some(EnergyMode::Require),
            energy_sources: vec!["rapl, nvml".into(), "rapl".into()],
            energy_basis: Some(BasisChoice::GpuCpu),
            energy_interval: Some(millis(20)),
            energy_attribution: Some(AttributionChoice::Flops),
            energy_idle_window: Some(SpanOrOff::Off),
            energy_settle_ms: Some(0),
            energy_retention: Some(millis(3_600_000)),
            powercap_root: Some("/host/powercap".into()),
            energy_replay: Some("in".into()),
            energy_record: Some("out".into()),
        };
        let expected = EnergySettings {
            mode: Mode::Require,
            basis: Some(Basis::GpuCpu),
            sources: Some(vec![Source::Rapl, Source::Nvml]),
            interval: Duration::from_millis(20),
            attribution: Attribution::Flops,
            idle_window: None,
            settle: Some(Duration::ZERO),
            retention: Duration::from_secs(3600),
            powercap_root: "/host/powercap".into(),
            replay: Some("in".into()),
            record: Some("out".into()),
            ..EnergySettings::default()
        };
        assert_eq!(resolve(&args, Target::Cpu).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_names_its_option() {
        let none = EnergyArgs::default;
        let path = || Some("trace".into());
        for (args, named) in [
            (EnergyArgs { energy_interval: Some(millis(4)), ..none() }, "energy-interval"),
            (EnergyArgs { energy_interval: Some(millis(1001)), ..none() }, "energy-interval"),
            (EnergyArgs { energy_idle_window: Some(SpanOrOff::Span(millis(999))), ..none() }, "energy-idle-window"),
            (EnergyArgs { energy_retention: Some(millis(999)), ..none() }, "energy-retention"),
            (EnergyArgs { energy_settle_ms: Some(10_001), ..none() }, "energy-settle-ms"),
            (EnergyArgs { energy_sources: vec!["replay".into()], ..none() }, "energy-sources"),
            (EnergyArgs { energy_replay: path(), energy_record: path(), ..none() }, "energy-record"),
        ] {
            assert_eq!(option(&args), named, "{args:?}");
        }
        assert!(usage(Some(EnergyUsage::On), 2).is_err());
        assert_eq!(usage(Some(EnergyUsage::On), 1).unwrap(), EnergyUsage::On);
        assert_eq!(usage(None, 9).unwrap(), EnergyUsage::OptIn);
    }
}
