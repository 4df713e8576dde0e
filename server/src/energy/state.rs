//! `GET /v1/energy`: the state of all sensors and the sums since the start, so that two reads can be subtracted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::{Json, extract::State, response::IntoResponse};
use engine::energy::{Accounts, DomainState, ModelEnergy, Snapshot, Unavailable};
use serde::Serialize;

use super::usage::{joules, ratio};
use crate::state::AppState;

const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct Reply {
    version: u32,
    monotonic_ns: u64,
    unix_ms: Option<u64>,
    basis: &'static str,
    status: &'static str,
    reason: Option<Unavailable>,
    domains: Vec<Domain>,
    accounts: Sums,
    models: Vec<Model>,
    host: Host,
    /// What is read, what is not and what to do about it, for people.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Domain {
    domain: String,
    source: &'static str,
    class: Option<&'static str>,
    status: &'static str,
    reason: Option<Unavailable>,
    exclusive: bool,
    in_basis: bool,
    energy_uj: Option<u64>,
    measured_ns: Option<u64>,
    power_watts: Option<f64>,
    idle_power_watts: Option<f64>,
    idle_age_seconds: Option<f64>,
    update_period_seconds: Option<f64>,
    wraps: u64,
    resets: u64,
    gap_seconds: f64,
}

/// `null` as long as no exclusive rail was ever read.
#[derive(Debug, Serialize)]
struct Sums {
    requests_uj: Option<u64>,
    idle_uj: Option<u64>,
    load_uj: Option<u64>,
    warmup_uj: Option<u64>,
    other_uj: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Model {
    model: String,
    prefill_uj: Option<u64>,
    decode_uj: Option<u64>,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    joules_per_output_token: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Host {
    cpu_share_ratio: Option<f64>,
    foreign_gpu_processes: Option<usize>,
    power_supply: Option<&'static str>,
}

/// Shows it; also while the models load.
pub(crate) async fn show(State(state): State<AppState>) -> impl IntoResponse {
    Json(reply(state.energy().snapshot(), state.energy().lines()))
}

fn reply(snapshot: Snapshot, notes: Vec<String>) -> Reply {
    let (status, reason) = worded(snapshot.status, "measured");
    let was_read = snapshot.domains.iter().any(|domain| domain.exclusive && domain.energy_uj.is_some());
    Reply {
        version: VERSION,
        monotonic_ns: snapshot.monotonic_ns,
        // A clock before 1970 says nothing.
        unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|elapsed| elapsed.as_millis() as u64),
        basis: snapshot.basis.name(),
        status,
        reason,
        domains: snapshot.domains.into_iter().map(Domain::from).collect(),
        accounts: Sums::new(snapshot.accounts, was_read),
        models: snapshot.models.into_iter().map(Model::from).collect(),
        host: Host {
            cpu_share_ratio: snapshot.cpu_share,
            foreign_gpu_processes: snapshot.foreign_gpu_processes,
            power_supply: snapshot.power_supply,
        },
        notes,
    }
}

fn worded(status: Result<(), Unavailable>, good: &'static str) -> (&'static str, Option<Unavailable>) {
    match status {
        Ok(()) => (good, None),
        Err(reason) => ("unavailable", Some(reason)),
    }
}

impl Sums {
    fn new(accounts: Accounts, was_read: bool) -> Self {
        let known = |uj: u64| was_read.then_some(uj);
        Self {
            requests_uj: known(accounts.requests_uj),
            idle_uj: known(accounts.idle_uj),
            load_uj: known(accounts.load_uj),
            warmup_uj: known(accounts.warmup_uj),
            other_uj: known(accounts.other_uj),
        }
    }
}

impl From<DomainState> for Domain {
    fn from(domain: DomainState) -> Self {
        let (status, reason) = worded(domain.status, "ok");
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        Self {
            domain: domain.domain,
            source: domain.source.name(),
            class: domain.class,
            status,
            reason,
            exclusive: domain.exclusive,
            in_basis: domain.in_basis,
            energy_uj: domain.energy_uj,
            measured_ns: domain.measured_ns,
            power_watts: domain.watts,
            idle_power_watts: domain.idle_watts,
            idle_age_seconds: seconds(domain.idle_age),
            update_period_seconds: seconds(domain.update_period),
            wraps: domain.wraps,
            resets: domain.resets,
            gap_seconds: domain.gap.as_secs_f64(),
        }
    }
}

impl From<ModelEnergy> for Model {
    fn from(model: ModelEnergy) -> Self {
        let all = model.prefill_uj.zip(model.decode_uj).map(|(prefill, decode)| joules(prefill + decode));
        Self {
            joules_per_output_token: all.and_then(|all| ratio(all, model.completion_tokens as f64)),
            model: model.model,
            prefill_uj: model.prefill_uj,
            decode_uj: model.decode_uj,
            requests: model.requests,
            prompt_tokens: model.prompt_tokens,
            completion_tokens: model.completion_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::energy::EnergyMonitor;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn without_sensors_there_are_no_sums() {
        let monitor = EnergyMonitor::off();
        let reply = serde_json::to_value(reply(monitor.snapshot(), monitor.lines())).unwrap();
        assert_eq!((&reply["status"], &reply["reason"]), (&json!("unavailable"), &json!("disabled")));
        assert!(reply["accounts"].as_object().unwrap().values().all(Value::is_null), "{reply}");
        assert!(reply["unix_ms"].as_u64() > Some(1_600_000_000_000));
    }
}
