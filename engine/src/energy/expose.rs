//! The metrics: one consistent state a scrape. A quantity that does not exist has no sample.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    core::Core,
    counts::Distribution,
    evaluations::{Costed, Verdicts},
    monitor::EnergyMonitor,
    report::DomainState,
    steps::Phase,
    track::Track,
    types::{Basis, Unavailable},
};

/// Writes the metrics of a monitor.
#[derive(Debug)]
pub(crate) struct Exposed(pub(crate) EnergyMonitor);

type Labels = Vec<(&'static str, String)>;

/// Samples of one name.
#[derive(Debug, Clone)]
enum Samples {
    Counts(Vec<(Labels, u64)>),
    /// A counter of a quantity that is no whole number.
    Amounts(Vec<(Labels, f64)>),
    Gauges(Vec<(Labels, f64)>),
    /// Sum and count.
    Sums(Vec<(Labels, f64, u64)>),
}

impl Samples {
    fn is_empty(&self) -> bool {
        match self {
            Self::Counts(samples) => samples.is_empty(),
            Self::Amounts(samples) | Self::Gauges(samples) => samples.is_empty(),
            Self::Sums(samples) => samples.is_empty(),
        }
    }
}

struct Page<'e>(DescriptorEncoder<'e>);

impl Page<'_> {
    /// A name without samples is left out.
    fn write(&mut self, name: &str, unit: Option<&Unit>, help: &str, samples: &Samples) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        let kind = match samples {
            Samples::Counts(_) | Samples::Amounts(_) => MetricType::Counter,
            Samples::Gauges(_) => MetricType::Gauge,
            Samples::Sums(_) => MetricType::Histogram,
        };
        let mut encoder = self.0.encode_descriptor(name, &format!("{help}."), unit, kind)?;
        match samples {
            Samples::Counts(samples) => samples
                .iter()
                .try_for_each(|(labels, value)| ConstCounter::new(*value).encode(encoder.encode_family(labels)?)),
            Samples::Amounts(samples) => samples
                .iter()
                .try_for_each(|(labels, value)| ConstCounter::new(*value).encode(encoder.encode_family(labels)?)),
            Samples::Gauges(samples) => samples
                .iter()
                .try_for_each(|(labels, value)| ConstGauge::new(*value).encode(encoder.encode_family(labels)?)),
            Samples::Sums(samples) => samples.iter().try_for_each(|(labels, sum, count)| {
                let buckets = [(f64::MAX, *count)];
                encoder.encode_family(labels)?.encode_histogram::<NoLabelSet>(*sum, *count, &buckets, None)
            }),
        }
    }

    fn distribution(&mut self, name: &str, unit: &Unit, help: &str, distribution: &Distribution) -> fmt::Result {
        if distribution.histograms.is_empty() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(name, &format!("{help}."), Some(unit), MetricType::Histogram)?;
        for ((model, basis), histogram) in &distribution.histograms {
            let labels: Labels = vec![("model_name", model.clone()), ("basis", basis.name().into())];
            histogram.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn watts() -> Unit {
    Unit::Other("watts".into())
}

fn joules(energy_uj: u64) -> f64 {
    energy_uj as f64 / 1e6
}

impl Collector for Exposed {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &self.0.0;
        let core = shared.core();
        let now = shared.clock.now();
        let domains = core.snapshot(now).domains;
        let live: Vec<(usize, &Track)> = match core.is_stale(now) {
            true => Vec::new(),
            false => core.tracks.iter().enumerate().filter(|(_, t)| t.was_read && t.state.is_ok()).collect(),
        };
        let mut page = Page(encoder);
        energy(&mut page, &core, &live)?;
        requests(&mut page, &core)?;
        intelligence(&mut page, &core)?;
        health(&mut page, &core, &domains)
    }
}

/// Energy and power.
fn energy(page: &mut Page<'_>, core: &Core, live: &[(usize, &Track)]) -> fmt::Result {
    let of = |track: &Track| -> Labels {
        vec![("source", track.domain.source.name().into()), ("domain", track.domain.id.clone())]
    };
    let id = |track: &Track| ("domain", track.domain.id.clone());
    let measured = |exclusive: bool| {
        let tracks = live.iter().filter(|(_, track)| track.domain.exclusive == exclusive);
        Samples::Amounts(tracks.map(|(_, track)| (of(track), joules(track.measured_uj))).collect())
    };
    page.write("ipw_energy", Some(&Unit::Joules), "Measured energy of domains that do not overlap", &measured(true))?;
    let help = "Measured energy of scopes that overlap others";
    page.write("ipw_platform_energy", Some(&Unit::Joules), help, &measured(false))?;
    let exclusive = || live.iter().filter(|(_, track)| track.domain.exclusive);
    let mut attributed = Vec::new();
    for model in &core.models {
        for (index, track) in exclusive() {
            for phase in Phase::ALL {
                let labels = vec![("model_name", model.name.clone()), id(track), ("phase", phase.name().into())];
                attributed.push((labels, joules(model.used_uj[*index][phase as usize])));
            }
        }
    }
    let help = "Energy given to requests";
    page.write("ipw_attributed_energy", Some(&Unit::Joules), help, &Samples::Amounts(attributed))?;
    let mut rest = Vec::new();
    for (_, track) in exclusive() {
        let system = &track.system;
        for (cause, energy_uj) in
            [("idle", system.idle), ("load", system.load), ("warmup", system.warmup), ("other", system.other)]
        {
            rest.push((vec![id(track), ("cause", cause.into())], joules(energy_uj)));
        }
    }
    let help = "Energy that belongs to no request";
    page.write("ipw_unattributed_energy", Some(&Unit::Joules), help, &Samples::Amounts(rest))?;
    let power = live.iter().filter_map(|(_, track)| Some((of(track), track.watts?)));
    let help = "Mean power of the last interval between readings";
    page.write("ipw_power", Some(&watts()), help, &Samples::Gauges(power.collect()))?;
    let idle = live.iter().filter_map(|(_, track)| Some((vec![id(track)], track.baseline.watts()?)));
    page.write("ipw_idle_power", Some(&watts()), "Power without work", &Samples::Gauges(idle.collect()))?;
    let members: Vec<&str> = core.in_basis().map(|track| track.domain.id.as_str()).collect();
    let info: Labels = vec![("basis", core.basis.name().into()), ("domains", members.join(","))];
    let help = "The rails that the energy of a request covers.";
    page.0.encode_descriptor("ipw_basis", help, None, MetricType::Info)?.encode_info(&info)
}

/// Distributions over requests.
fn requests(page: &mut Page<'_>, core: &Core) -> fmt::Result {
    let counts = &core.counts;
    let by_status = counts.requests.iter().map(|((model, status), count)| {
        (vec![("model_name", model.clone()), ("energy_status", (*status).to_owned())], *count)
    });
    page.write("ipw_requests", None, "Requests that have ended", &Samples::Counts(by_status.collect()))?;
    page.distribution("ipw_request_energy", &Unit::Joules, "Energy of a request", &counts.joules)?;
    let help = "Energy of a request, as ipw_request_energy_joules";
    page.distribution("leapfrog_request_energy", &Unit::Joules, help, &counts.joules)?;
    page.distribution("ipw_request_power", &watts(), "Mean power of a request", &counts.watts)?;
    let help = "Energy of a request for each completion token";
    page.distribution("ipw_output_token_energy", &Unit::Joules, help, &counts.joules_per_output_token)?;
    let help = "Energy for reading the prompt, for each of its tokens";
    page.distribution("ipw_prompt_token_energy", &Unit::Joules, help, &counts.joules_per_prompt_token)
}

/// Judged answers.
fn intelligence(page: &mut Page<'_>, core: &Core) -> fmt::Result {
    let verdicts = &core.evaluations.verdicts;
    let labels = |(model, dataset): &(String, String)| -> Labels {
        vec![("model_name", model.clone()), ("dataset", dataset.clone())]
    };
    let mut outcomes = Vec::new();
    for (key, verdict) in verdicts {
        let Verdicts { correct, incorrect, unscored, .. } = verdict;
        for (outcome, count) in [("correct", correct), ("incorrect", incorrect), ("unscored", unscored)] {
            outcomes.push(([labels(key), vec![("outcome", outcome.into())]].concat(), *count));
        }
    }
    page.write("ipw_evaluations", None, "Judged answers", &Samples::Counts(outcomes))?;
    let sums = |of: fn(&Costed) -> f64| {
        let sums = verdicts.iter().flat_map(|(key, verdict)| {
            verdict
                .costed
                .iter()
                .map(move |(basis, costed)| (with_basis(labels(key), *basis), of(costed), costed.count))
        });
        Samples::Sums(sums.collect())
    };
    let help = "Energy of judged requests";
    page.write("ipw_evaluated_energy", Some(&Unit::Joules), help, &sums(|costed| costed.joules))?;
    let help = "Mean power of judged requests";
    page.write("ipw_evaluated_power", Some(&watts()), help, &sums(|costed| costed.watts))?;
    let accuracy = verdicts.iter().filter_map(|(key, verdict)| Some((labels(key), verdict.accuracy()?)));
    page.write("ipw_accuracy_ratio", None, "Mean score", &Samples::Gauges(accuracy.collect()))?;
    let ratios = |of: fn(&Costed) -> Option<f64>| {
        let ratios = verdicts.iter().flat_map(|(key, verdict)| {
            let ratio = move |(basis, costed): (&Basis, &Costed)| Some((with_basis(labels(key), *basis), of(costed)?));
            verdict.costed.iter().filter_map(ratio)
        });
        Samples::Gauges(ratios.collect())
    };
    let help = "Mean score over mean power of the same requests, in 1/W";
    page.write("ipw_intelligence_per_watt", None, help, &ratios(Costed::per_watt))?;
    let help = "Mean score over mean energy of the same requests, in 1/J";
    page.write("ipw_intelligence_per_joule", None, help, &ratios(Costed::per_joule))
}

fn with_basis(labels: Labels, basis: Basis) -> Labels {
    [labels, vec![("basis", basis.name().into())]].concat()
}

/// Health of the measurement.
fn health(page: &mut Page<'_>, core: &Core, domains: &[DomainState]) -> fmt::Result {
    let of = |domain: &DomainState| -> Labels {
        vec![("source", domain.source.name().into()), ("domain", domain.domain.clone())]
    };
    let name = |status: Result<(), Unavailable>| status.map_or_else(Unavailable::name, |()| "ok");
    let up = domains.iter().map(|domain| (of(domain), f64::from(u8::from(domain.status.is_ok()))));
    page.write("ipw_energy_source_up", None, "Whether a sensor can be read", &Samples::Gauges(up.collect()))?;
    let status =
        domains.iter().map(|domain| ([of(domain), vec![("status", name(domain.status).into())]].concat(), 1.0));
    let help = "State of a sensor: ok, or why it cannot be read";
    page.write("ipw_energy_source_status", None, help, &Samples::Gauges(status.collect()))?;
    let labels = |track: &Track| -> Labels {
        vec![("source", track.domain.source.name().into()), ("domain", track.domain.id.clone())]
    };
    let errors = core.tracks.iter().flat_map(|track| {
        let error = move |(reason, count): (&Unavailable, &u64)| {
            ([labels(track), vec![("reason", reason.name().into())]].concat(), *count)
        };
        track.errors.iter().map(error)
    });
    let help = "Readings that failed or could not be true";
    page.write("ipw_energy_read_errors", None, help, &Samples::Counts(errors.collect()))?;
    let counts =
        |of: fn(&Track) -> u64| Samples::Counts(core.tracks.iter().map(|track| (labels(track), of(track))).collect());
    page.write("ipw_energy_wraps", None, "Counters that began again at their end", &counts(Track::wraps))?;
    page.write("ipw_energy_resets", None, "Counters that were set back", &counts(Track::resets))?;
    let gaps = core.tracks.iter().map(|track| (labels(track), track.gap.as_secs_f64())).collect();
    page.write("ipw_energy_gap", Some(&Unit::Seconds), "Time that was not measured", &Samples::Amounts(gaps))?;
    let periods =
        core.tracks.iter().filter_map(|track| Some((labels(track), track.domain.update_period?.as_secs_f64())));
    let help = "How often a sensor changes";
    page.write("ipw_energy_update_period", Some(&Unit::Seconds), help, &Samples::Gauges(periods.collect()))?;
    let cpu = if core.tracks.is_empty() { vec![] } else { vec![(vec![], core.sampler_cpu.as_secs_f64())] };
    let help = "Processor time of the thread that reads the sensors";
    page.write("ipw_energy_sampler_cpu", Some(&Unit::Seconds), help, &Samples::Amounts(cpu))?;
    let share = core.cpu_share.map(|share| (vec![], share)).into_iter().collect();
    let help = "Share of the busy processor time of this machine that this process used lately";
    page.write("ipw_host_cpu_share_ratio", None, help, &Samples::Gauges(share))?;
    let foreign = core
        .tracks
        .iter()
        .filter_map(|track| Some((vec![("domain", track.domain.id.clone())], track.foreign_processes? as f64)));
    let help = "Processes of others on the GPUs that are read";
    page.write("ipw_gpu_foreign_processes", None, help, &Samples::Gauges(foreign.collect()))
}
