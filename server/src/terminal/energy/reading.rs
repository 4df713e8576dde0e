//! What `GET /v1/energy` says, and the difference between two readings.

use serde::{Deserialize, Serialize};

/// One reading of a server.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Reading {
    monotonic_ns: u64,
    basis: String,
    status: String,
    reason: Option<String>,
    domains: Vec<Domain>,
    accounts: Accounts,
    #[serde(default)]
    models: Vec<Model>,
    host: Host,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Domain {
    domain: String,
    reason: Option<String>,
    exclusive: bool,
    #[serde(default)]
    in_basis: bool,
    class: Option<String>,
    energy_uj: Option<u64>,
    #[serde(default)]
    measured_ns: Option<u64>,
    idle_power_watts: Option<f64>,
    update_period_seconds: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Accounts {
    requests_uj: Option<u64>,
    idle_uj: Option<u64>,
    load_uj: Option<u64>,
    warmup_uj: Option<u64>,
    other_uj: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
struct Model {
    model: String,
    prefill_uj: Option<u64>,
    decode_uj: Option<u64>,
    requests: u64,
    completion_tokens: u64,
}

/// What else the machine does.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct Host {
    pub(super) cpu_share_ratio: Option<f64>,
    pub(super) foreign_gpu_processes: Option<usize>,
    pub(super) power_supply: Option<String>,
}

/// What happened between two readings. Sums with `total` are since the start of the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Interval {
    /// `None` if the server started again in between.
    pub(super) seconds: Option<f64>,
    pub(super) basis: String,
    pub(super) status: String,
    pub(super) reason: Option<String>,
    /// Mean power of the rails of the basis; `None` unless all are read.
    pub(super) watts: Option<f64>,
    /// The same without work.
    pub(super) idle_watts: Option<f64>,
    pub(super) domains: Vec<Rail>,
    pub(super) models: Vec<Share>,
    pub(super) accounts: Vec<Account>,
    pub(super) host: Host,
    pub(super) notes: Vec<String>,
}

/// One rail.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Rail {
    pub(super) domain: String,
    pub(super) reason: Option<String>,
    pub(super) exclusive: bool,
    pub(super) in_basis: bool,
    pub(super) class: Option<String>,
    pub(super) update_period_seconds: Option<f64>,
    pub(super) watts: Option<f64>,
    pub(super) idle_watts: Option<f64>,
    pub(super) joules: Option<f64>,
    pub(super) total_joules: Option<f64>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Share {
    pub(super) model: String,
    pub(super) joules: Option<f64>,
    /// Tokens of requests that ended.
    pub(super) completion_tokens: Option<u64>,
    pub(super) total_joules: Option<f64>,
    pub(super) total_completion_tokens: u64,
    pub(super) total_requests: u64,
    /// Since the start: an interval holds parts of requests, whose tokens count when they end.
    pub(super) joules_per_output_token: Option<f64>,
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Account {
    pub(super) cause: &'static str,
    pub(super) joules: Option<f64>,
    pub(super) total_joules: Option<f64>,
}

impl Interval {
    /// What happened from `before` to `now`.
    pub(super) fn between(before: &Reading, now: &Reading) -> Self {
        let nanos = now.monotonic_ns.checked_sub(before.monotonic_ns).filter(|nanos| *nanos > 0);
        let seconds = nanos.map(|nanos| nanos as f64 / 1e9);
        // Without an interval there is no difference, whatever the counters say.
        let past = seconds.is_some().then_some(before);
        let domains: Vec<Rail> = now.domains.iter().map(|domain| Rail::new(domain, past, seconds)).collect();
        let members: Vec<&Rail> = domains.iter().filter(|rail| rail.in_basis).collect();
        let sum = |of: fn(&Rail) -> Option<f64>| -> Option<f64> {
            let all: Option<Vec<f64>> = members.iter().map(|rail| of(rail)).collect();
            all.filter(|all| !all.is_empty() && now.reason.is_none()).map(|all| all.iter().sum())
        };
        Self {
            seconds,
            basis: now.basis.clone(),
            status: now.status.clone(),
            reason: now.reason.clone(),
            watts: sum(|rail| rail.watts),
            idle_watts: sum(|rail| rail.idle_watts),
            models: now.models.iter().map(|model| Share::new(model, past)).collect(),
            accounts: Account::all(&now.accounts, past.map(|past| &past.accounts)),
            host: now.host.clone(),
            notes: now.notes.clone(),
            domains,
        }
    }
}

impl Rail {
    fn new(now: &Domain, past: Option<&Reading>, seconds: Option<f64>) -> Self {
        let before = past.and_then(|past| past.domains.iter().find(|domain| domain.domain == now.domain));
        // A rail that is lost has a total and no present.
        let uj =
            if now.reason.is_none() { grown(before.and_then(|before| before.energy_uj), now.energy_uj) } else { None };
        let joules = uj.map(joules);
        // Rails are read less often than a reading may be asked for; each tells up to when it counts.
        let of = |domain: &Domain| domain.measured_ns;
        let span = match (before.and_then(of), of(now)) {
            (Some(before), Some(now)) => now.checked_sub(before).map(|nanos| nanos as f64 / 1e9),
            _ => seconds,
        };
        Self {
            domain: now.domain.clone(),
            reason: now.reason.clone(),
            exclusive: now.exclusive,
            in_basis: now.in_basis,
            class: now.class.clone(),
            update_period_seconds: now.update_period_seconds,
            watts: joules.zip(span.filter(|span| *span > 0.0)).map(|(joules, span)| joules / span),
            idle_watts: now.idle_power_watts,
            joules,
            total_joules: now.energy_uj.map(self::joules),
        }
    }
}

impl Share {
    fn new(now: &Model, past: Option<&Reading>) -> Self {
        let all = |model: &Model| model.prefill_uj.zip(model.decode_uj).map(|(prefill, decode)| prefill + decode);
        let before = past.and_then(|past| past.models.iter().find(|model| model.model == now.model));
        let total = all(now).map(joules);
        let tokens = now.completion_tokens;
        Self {
            model: now.model.clone(),
            joules: grown(before.and_then(all), all(now)).map(joules),
            completion_tokens: before.and_then(|before| tokens.checked_sub(before.completion_tokens)),
            total_joules: total,
            total_completion_tokens: tokens,
            total_requests: now.requests,
            joules_per_output_token: total.filter(|_| tokens > 0).map(|total| total / tokens as f64),
        }
    }
}

/// One account of all.
type Of = fn(&Accounts) -> Option<u64>;

impl Account {
    fn all(now: &Accounts, before: Option<&Accounts>) -> Vec<Self> {
        let causes: [(&'static str, Of); 5] = [
            ("requests", |accounts| accounts.requests_uj),
            ("idle", |accounts| accounts.idle_uj),
            ("load", |accounts| accounts.load_uj),
            ("warmup", |accounts| accounts.warmup_uj),
            ("other", |accounts| accounts.other_uj),
        ];
        let account = |(cause, of): (&'static str, Of)| Self {
            cause,
            joules: grown(before.and_then(of), of(now)).map(joules),
            total_joules: of(now).map(joules),
        };
        causes.into_iter().map(account).collect()
    }
}

/// By how much a counter grew, if both values are known and it did not start again.
fn grown(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

fn joules(uj: u64) -> f64 {
    uj as f64 / 1e6
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A reading `seconds` after the start, of one rail that works at 10 W and one that cannot be read.
    pub(in super::super) fn reading(seconds: u64, reason: Option<&str>) -> Reading {
        let uj = seconds * 10_000_000;
        let rail = json!({"domain": "rapl:package-0", "source": "rapl", "class": "counter", "status": "ok",
            "reason": null, "exclusive": true, "in_basis": true, "energy_uj": uj, "power_watts": 9.0,
            "idle_power_watts": 4.0, "idle_age_seconds": 1.0, "update_period_seconds": 0.001, "wraps": 0, "resets": 0,
            "gap_seconds": 0.0});
        let lost = json!({"domain": "rapl:package-1", "source": "rapl", "class": null, "status": "unavailable",
            "reason": "permission_denied", "exclusive": true, "in_basis": reason.is_some(), "energy_uj": null,
            "power_watts": null, "idle_power_watts": null, "idle_age_seconds": null, "update_period_seconds": null,
            "wraps": 0, "resets": 0, "gap_seconds": 0.0});
        let known = |uj: u64| if reason.is_none() { json!(uj) } else { Value::Null };
        let body = json!({"version": 1, "monotonic_ns": seconds * 1_000_000_000, "unix_ms": 1, "basis": "cpu",
            "status": if reason.is_none() { "measured" } else { "unavailable" }, "reason": reason,
            "domains": [rail, lost],
            "accounts": {"requests_uj": uj / 2, "idle_uj": uj / 2, "load_uj": 0, "warmup_uj": 0, "other_uj": 0},
            "models": [{"model": "frog", "prefill_uj": known(uj / 10), "decode_uj": known(uj / 10 * 4),
                "requests": seconds, "prompt_tokens": 0, "completion_tokens": seconds * 100,
                "joules_per_output_token": 0.05}],
            "host": {"cpu_share_ratio": 0.98, "foreign_gpu_processes": null, "power_supply": "ac"},
            "notes": ["a remedy"]});
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn an_interval_is_a_difference() {
        let interval = Interval::between(&reading(10, None), &reading(12, None));
        assert_eq!((interval.seconds, interval.watts, interval.idle_watts), (Some(2.0), Some(10.0), Some(4.0)));
        let [rail, lost] = &interval.domains[..] else { panic!("{interval:?}") };
        assert_eq!((rail.joules, rail.total_joules), (Some(20.0), Some(120.0)));
        assert_eq!((lost.watts, lost.reason.as_deref()), (None, Some("permission_denied")));
        let model = &interval.models[0];
        assert_eq!((model.joules, model.completion_tokens), (Some(10.0), Some(200)));
        assert_eq!((model.total_joules, model.joules_per_output_token), (Some(60.0), Some(0.05)));
        assert_eq!((interval.accounts[1].joules, interval.accounts[1].total_joules), (Some(10.0), Some(60.0)));
    }

    #[test]
    fn half_a_basis_is_none() {
        let interval =
            Interval::between(&reading(10, Some("permission_denied")), &reading(12, Some("permission_denied")));
        assert_eq!((interval.watts, interval.idle_watts, interval.models[0].joules), (None, None, None));
        assert_eq!(interval.domains[0].watts, Some(10.0));
    }

    #[test]
    fn a_server_that_started_again_has_no_difference() {
        let interval = Interval::between(&reading(10, None), &reading(1, None));
        assert_eq!((interval.seconds, interval.watts, interval.domains[0].joules), (None, None, None));
        assert_eq!((interval.accounts[0].joules, interval.models[0].completion_tokens), (None, None));
    }
}
