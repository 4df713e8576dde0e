//! The object that says what one call cost: `usage.energy` of replies. Every key is always there; what is not known is
//! `null`.

use std::time::Duration;

use engine::{
    DecodeStats,
    energy::{Basis, DomainEnergy, RequestEnergy, Source, Status, Unavailable},
};
use serde::Serialize;

/// Format of the object; it grows by keys, and changes its number when one changes its meaning.
const VERSION: u32 = 1;

/// What one call cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EnergyReport {
    version: u32,
    status: &'static str,
    reason: Option<Unavailable>,
    r#final: bool,
    basis: Basis,
    energy_joules: Option<f64>,
    prefill_joules: Option<f64>,
    decode_joules: Option<f64>,
    net_joules: Option<f64>,
    window_joules: Option<f64>,
    power_watts: Option<f64>,
    idle_power_watts: Option<f64>,
    joules_per_output_token: Option<f64>,
    joules_per_prompt_token: Option<f64>,
    tokens_per_joule: Option<f64>,
    domains: Vec<DomainReport>,
    attribution: Sharing,
    coverage: Option<f64>,
    resolution_limited: Option<bool>,
    exclusive: Option<bool>,
    timing: Timing,
}

/// What one rail measured of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct DomainReport {
    domain: String,
    source: Source,
    method: Option<&'static str>,
    joules: Option<f64>,
    prefill_joules: Option<f64>,
    decode_joules: Option<f64>,
    update_period_seconds: Option<f64>,
    reason: Option<Unavailable>,
}

/// How energy was divided between requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Sharing {
    policy: Option<&'static str>,
    mean_concurrency: Option<f64>,
    max_concurrency: Option<usize>,
}

/// Where the time of one call went, in seconds. It does not need a sensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Timing {
    queue_seconds: f64,
    prefill_seconds: f64,
    decode_seconds: f64,
    /// `None` if no token was committed.
    ttft_seconds: Option<f64>,
    active_seconds: f64,
}

/// Times of the choices of one call; all were submitted at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Times {
    /// From submission to the first step of any choice.
    scheduled: Option<Duration>,
    /// From submission to the first committed token of any choice.
    first: Option<Duration>,
    /// From submission to the end of prefill of the first choice without a token.
    read: Option<Duration>,
    /// From submission to the end of the last choice.
    end: Duration,
}

impl Times {
    /// One more choice.
    pub(crate) fn add(&mut self, stats: &DecodeStats, completion_tokens: usize) {
        let least = |old: Option<Duration>, new: Duration| Some(old.map_or(new, |old| old.min(new)));
        let read = stats.queue + stats.prefill;
        self.scheduled = least(self.scheduled, stats.queue);
        self.read = least(self.read, read);
        if completion_tokens > 0 {
            self.first = least(self.first, read);
        }
        self.end = self.end.max(read + stats.decode);
    }

    /// The call as a whole: queue until any choice runs, prefill until any has a token, decode until all have ended.
    fn timing(&self) -> Timing {
        let scheduled = self.scheduled.unwrap_or_default();
        let read = self.first.or(self.read).unwrap_or_default();
        Timing {
            queue_seconds: scheduled.as_secs_f64(),
            prefill_seconds: read.saturating_sub(scheduled).as_secs_f64(),
            decode_seconds: self.end.saturating_sub(read).as_secs_f64(),
            ttft_seconds: self.first.map(|first| first.as_secs_f64()),
            active_seconds: self.end.saturating_sub(scheduled).as_secs_f64(),
        }
    }
}

/// What a call did with its energy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Work {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) times: Times,
}

impl EnergyReport {
    /// The report on `work` that used `energy`.
    pub(crate) fn new(energy: RequestEnergy, work: &Work) -> Self {
        let mut timing = work.times.timing();
        if !energy.active.is_zero() {
            // The span that the energy is of.
            timing.active_seconds = energy.active.as_secs_f64();
        }
        let (status, reason) = match energy.status {
            Status::Measured => ("measured", None),
            Status::Partial => ("partial", None),
            Status::Unavailable(reason) => ("unavailable", Some(reason)),
        };
        // Without a status there are no numbers, whatever single rails measured.
        let known = reason.is_none();
        let joules = energy.energy_uj.filter(|_| known).map(joules);
        let prefill = energy.prefill_uj.filter(|_| known).map(self::joules);
        let per = |joules: Option<f64>, count: usize| joules.and_then(|joules| ratio(joules, count as f64));
        Self {
            version: VERSION,
            status,
            reason,
            r#final: energy.is_final,
            basis: energy.basis,
            energy_joules: joules,
            prefill_joules: prefill,
            decode_joules: energy.decode_uj.filter(|_| known).map(self::joules),
            net_joules: energy.net_joules.filter(|_| known).map(whole_uj),
            window_joules: energy.window_joules.filter(|_| known).map(whole_uj),
            power_watts: joules.and_then(|joules| ratio(joules, timing.active_seconds)),
            idle_power_watts: energy.idle_watts.filter(|_| known),
            joules_per_output_token: per(joules, work.completion_tokens),
            joules_per_prompt_token: per(prefill, work.prompt_tokens),
            tokens_per_joule: joules.and_then(|joules| ratio(work.completion_tokens as f64, joules)),
            domains: energy.domains.into_iter().map(DomainReport::from).collect(),
            attribution: Sharing {
                policy: Some(energy.policy),
                mean_concurrency: energy.mean_concurrency,
                max_concurrency: Some(energy.max_concurrency),
            },
            coverage: energy.coverage,
            resolution_limited: Some(energy.resolution_limited),
            exclusive: energy.exclusive,
            timing,
        }
    }

    /// The report on `work` of which a monitor with this basis knows nothing.
    pub(crate) fn unknown(reason: Unavailable, basis: Basis, work: &Work) -> Self {
        Self {
            version: VERSION,
            status: "unavailable",
            reason: Some(reason),
            r#final: true,
            basis,
            energy_joules: None,
            prefill_joules: None,
            decode_joules: None,
            net_joules: None,
            window_joules: None,
            power_watts: None,
            idle_power_watts: None,
            joules_per_output_token: None,
            joules_per_prompt_token: None,
            tokens_per_joule: None,
            domains: Vec::new(),
            attribution: Sharing::default(),
            coverage: None,
            resolution_limited: None,
            exclusive: None,
            timing: work.times.timing(),
        }
    }
}

impl From<DomainEnergy> for DomainReport {
    fn from(domain: DomainEnergy) -> Self {
        Self {
            domain: domain.domain,
            source: domain.source,
            method: domain.method,
            joules: domain.energy_uj.map(joules),
            prefill_joules: domain.prefill_uj.map(joules),
            decode_joules: domain.decode_uj.map(joules),
            update_period_seconds: domain.update_period.map(|period| period.as_secs_f64()),
            reason: domain.reason,
        }
    }
}

/// Microjoules in joules.
pub(crate) fn joules(uj: u64) -> f64 {
    uj as f64 / 1e6
}

/// Joules in whole microjoules; what is less than half of one stays as it is instead of becoming zero.
fn whole_uj(joules: f64) -> f64 {
    let whole = (joules * 1e6).round() / 1e6;
    if whole == 0.0 { joules } else { whole }
}

/// `None` if nothing was divided by.
pub(crate) fn ratio(dividend: f64, divisor: f64) -> Option<f64> {
    (divisor != 0.0).then(|| dividend / divisor).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn energy() -> RequestEnergy {
        let rail = |name: &str, uj: Option<u64>| DomainEnergy {
            domain: name.into(),
            source: Source::Rapl,
            method: uj.map(|_| "counter"),
            energy_uj: uj,
            prefill_uj: uj.map(|uj| uj / 4),
            decode_uj: uj.map(|uj| uj / 4 * 3),
            update_period: uj.map(|_| Duration::from_millis(1)),
            reason: uj.is_none().then_some(Unavailable::PermissionDenied),
        };
        RequestEnergy {
            status: Status::Measured,
            is_final: true,
            basis: Basis::Cpu,
            energy_uj: Some(8_000_000),
            prefill_uj: Some(2_000_000),
            decode_uj: Some(6_000_000),
            net_joules: Some(-0.25),
            window_joules: Some(9.5),
            idle_watts: Some(3.0),
            domains: vec![rail("rapl:package-0", Some(8_000_000)), rail("rapl:package-1", None)],
            policy: "tokens",
            mean_concurrency: Some(1.5),
            max_concurrency: 2,
            coverage: Some(1.0),
            resolution_limited: false,
            exclusive: Some(true),
            active: Duration::from_secs(4),
        }
    }

    fn stats(queue: u64, prefill: u64, decode: u64) -> DecodeStats {
        DecodeStats {
            strategy: "ar",
            forward_passes: 1,
            scored_rows: 1,
            acceptance_histogram: Vec::new(),
            cached_tokens: 0,
            diffusion: None,
            queue: Duration::from_millis(queue),
            prefill: Duration::from_millis(prefill),
            decode: Duration::from_millis(decode),
        }
    }

    fn work() -> Work {
        let mut times = Times::default();
        times.add(&stats(500, 1000, 3000), 16);
        Work { prompt_tokens: 4, completion_tokens: 16, times }
    }

    fn numbers(value: &Value) -> Vec<&Value> {
        match value {
            Value::Object(map) => map.values().flat_map(numbers).collect(),
            Value::Array(list) => list.iter().flat_map(numbers).collect(),
            other => vec![other],
        }
    }

    #[test]
    fn everything_that_is_measured_is_told() {
        let report = serde_json::to_value(EnergyReport::new(energy(), &work())).unwrap();
        let expected = json!({
            "version": 1, "status": "measured", "reason": null, "final": true, "basis": "cpu",
            "energy_joules": 8.0, "prefill_joules": 2.0, "decode_joules": 6.0, "net_joules": -0.25,
            "window_joules": 9.5, "power_watts": 2.0, "idle_power_watts": 3.0, "joules_per_output_token": 0.5,
            "joules_per_prompt_token": 0.5, "tokens_per_joule": 2.0,
            "domains": [
                {"domain": "rapl:package-0", "source": "rapl", "method": "counter", "joules": 8.0,
                    "prefill_joules": 2.0, "decode_joules": 6.0, "update_period_seconds": 0.001, "reason": null},
                {"domain": "rapl:package-1", "source": "rapl", "method": null, "joules": null, "prefill_joules": null,
                    "decode_joules": null, "update_period_seconds": null, "reason": "permission_denied"},
            ],
            "attribution": {"policy": "tokens", "mean_concurrency": 1.5, "max_concurrency": 2},
            "coverage": 1.0, "resolution_limited": false, "exclusive": true,
            "timing": {"queue_seconds": 0.5, "prefill_seconds": 1.0, "decode_seconds": 3.0, "ttft_seconds": 1.5,
                "active_seconds": 4.0},
        });
        assert_eq!(report, expected);
    }

    #[test]
    fn what_is_unavailable_has_no_numbers_and_all_keys() {
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let whole = serde_json::to_value(EnergyReport::new(energy(), &work())).unwrap();
        let status = Status::Unavailable(Unavailable::PermissionDenied);
        let half = EnergyReport::new(RequestEnergy { status, ..energy() }, &work());
        let half = serde_json::to_value(half).unwrap();
        assert_eq!(keys(&half), keys(&whole));
        assert_eq!((&half["status"], &half["reason"]), (&json!("unavailable"), &json!("permission_denied")));
        assert!(numbers(&json!({
            "a": half["energy_joules"], "b": half["power_watts"], "c": half["net_joules"], "d": half["window_joules"],
            "e": half["idle_power_watts"], "f": half["tokens_per_joule"], "g": half["prefill_joules"],
            "h": half["joules_per_prompt_token"], "i": half["joules_per_output_token"], "j": half["decode_joules"],
        }))
        .iter()
        .all(|value| value.is_null()));
        assert_eq!(half["domains"][0]["joules"], 8.0, "a rail that is measured is reported");

        let unknown = serde_json::to_value(EnergyReport::unknown(Unavailable::Disabled, Basis::Cpu, &work())).unwrap();
        assert_eq!(keys(&unknown), keys(&whole));
        assert_eq!(keys(&unknown["attribution"]), keys(&whole["attribution"]));
        assert_eq!(unknown["timing"], whole["timing"]);
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let nothing = Work::default();
        let timeless = RequestEnergy { active: Duration::ZERO, ..energy() };
        let report = serde_json::to_value(EnergyReport::new(timeless, &nothing)).unwrap();
        for key in ["power_watts", "joules_per_output_token", "joules_per_prompt_token"] {
            assert_eq!(report[key], Value::Null, "{key}");
        }
        assert_eq!(report["tokens_per_joule"], 0.0);
        assert_eq!(report["timing"]["ttft_seconds"], Value::Null);
        let free = RequestEnergy { energy_uj: Some(0), ..energy() };
        let report = serde_json::to_value(EnergyReport::new(free, &work())).unwrap();
        assert_eq!((&report["energy_joules"], &report["tokens_per_joule"]), (&json!(0.0), &Value::Null));
        let least = RequestEnergy { energy_uj: Some(1), ..energy() };
        assert_eq!(serde_json::to_value(EnergyReport::new(least, &work())).unwrap()["energy_joules"], 1e-6);
    }

    #[test]
    fn the_times_of_several_choices_are_those_of_the_call() {
        let mut times = Times::default();
        times.add(&stats(500, 1000, 3000), 4);
        times.add(&stats(2000, 500, 4000), 4);
        let timing = serde_json::to_value(times.timing()).unwrap();
        let expected = json!({"queue_seconds": 0.5, "prefill_seconds": 1.0, "decode_seconds": 5.0,
            "ttft_seconds": 1.5, "active_seconds": 6.0});
        assert_eq!(timing, expected);
    }
}
