//! What the server says of energy. Keys that are not listed here are ignored; every number may be missing.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `usage.energy` of a reply, and the reply of `GET /v1/energy/requests/{id}`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Energy {
    pub(super) status: Option<String>,
    pub(super) reason: Option<String>,
    #[serde(rename = "final")]
    pub(super) is_final: Option<bool>,
    pub(super) basis: Option<String>,
    pub(super) energy_joules: Option<f64>,
    pub(super) prefill_joules: Option<f64>,
    pub(super) decode_joules: Option<f64>,
    pub(super) net_joules: Option<f64>,
    pub(super) window_joules: Option<f64>,
    pub(super) idle_power_watts: Option<f64>,
    pub(super) domains: Vec<DomainEnergy>,
    pub(super) attribution: Attribution,
    pub(super) coverage: Option<f64>,
    pub(super) resolution_limited: Option<bool>,
    pub(super) exclusive: Option<bool>,
    pub(super) timing: Timing,
}

/// Share of one rail in a request.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct DomainEnergy {
    pub(super) domain: String,
    pub(super) source: Option<String>,
    pub(super) method: Option<String>,
    pub(super) joules: Option<f64>,
    pub(super) prefill_joules: Option<f64>,
    pub(super) decode_joules: Option<f64>,
    pub(super) update_period_seconds: Option<f64>,
    pub(super) reason: Option<String>,
}

/// How the energy of passes was shared out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attribution {
    pub(super) mean_concurrency: Option<f64>,
}

/// Times as the server saw them.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Timing {
    pub(super) queue_seconds: Option<f64>,
    pub(super) prefill_seconds: Option<f64>,
    pub(super) decode_seconds: Option<f64>,
    pub(super) ttft_seconds: Option<f64>,
    pub(super) active_seconds: Option<f64>,
}

/// `GET /v1/energy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct EnergyState {
    pub(super) monotonic_ns: Option<u64>,
    pub(super) basis: Option<String>,
    pub(super) status: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) domains: Vec<DomainState>,
    pub(super) host: Host,
    /// The whole object, for the report.
    #[serde(skip)]
    pub(super) raw: Value,
}

/// One rail.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct DomainState {
    pub(super) domain: String,
    pub(super) source: Option<String>,
    pub(super) status: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) energy_uj: Option<u64>,
    /// Moment up to which that counts.
    pub(super) measured_ns: Option<u64>,
    pub(super) gap_seconds: f64,
    /// Whether it is one of the basis, if the server tells it.
    pub(super) in_basis: Option<bool>,
    /// Of the device, if the server tells it.
    pub(super) name: Option<String>,
}

/// What else the machine does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Host {
    pub(super) foreign_gpu_processes: Option<u64>,
}

/// Which figure is the energy of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// What the device used between the first and the last pass of the request.
    Window,
    /// The request's share of passes that it may have had company in.
    Attributed,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Attributed => "attributed",
        }
    }
}

impl Energy {
    /// Joules of the request, or why there are none. A number that covers a part of the request is none.
    pub(super) fn joules(&self, method: Method) -> Result<f64, String> {
        let because = || self.reason.clone().unwrap_or_else(|| "no reason given".into());
        match self.status.as_deref() {
            Some("measured") => {}
            Some(status) => return Err(format!("{status}: {}", because())),
            None => return Err("no status".into()),
        }
        if self.is_final == Some(false) {
            return Err("not final".into());
        }
        let value = match method {
            Method::Window => self.window_joules,
            Method::Attributed => self.energy_joules,
        };
        match value {
            None => Err(format!("measured, without the figure for the method {}", method.name())),
            Some(joules) if joules.is_finite() && joules >= 0.0 => Ok(joules),
            Some(joules) => Err(format!("implausible: {joules} J")),
        }
    }

    /// Sum over the rails that `wanted` picks; `None` if one of them is missing, or if there are none.
    pub(super) fn sum(&self, wanted: impl Fn(&str) -> bool) -> Option<f64> {
        let mut rails = self.domains.iter().filter(|rail| wanted(&rail.domain)).peekable();
        rails.peek()?;
        rails.map(|rail| rail.joules).sum()
    }
}

impl DomainState {
    /// Mean watts from `earlier` to this; `None` if it is lost, went back, was not measured all the time, or for less than
    /// a second.
    fn watts_since(&self, earlier: &Self) -> Option<f64> {
        let is_read = |rail: &Self| rail.status.as_deref().is_none_or(|status| status == "ok");
        let seconds = self.measured_ns?.checked_sub(earlier.measured_ns?)? as f64 / 1e9;
        let joules = self.energy_uj?.checked_sub(earlier.energy_uj?)? as f64 / 1e6;
        let is_whole = is_read(self) && is_read(earlier) && self.gap_seconds <= earlier.gap_seconds;
        (is_whole && seconds >= 1.0).then_some(joules / seconds)
    }
}

impl EnergyState {
    /// Whether the basis is measured, and if not, why.
    pub(super) fn available(&self) -> Result<&str, String> {
        match (self.status.as_deref(), self.basis.as_deref()) {
            (Some("measured" | "ok"), Some(basis)) => Ok(basis),
            (status, _) => {
                let mut reasons: Vec<String> = self.reason.iter().cloned().collect();
                let lost = self.domains.iter().filter_map(|rail| Some((&rail.domain, rail.reason.as_ref()?)));
                reasons.extend(lost.map(|(domain, reason)| format!("{domain} {reason}")));
                let reasons = if reasons.is_empty() { "no sensor listed".into() } else { reasons.join(", ") };
                Err(format!("{}: {reasons}", status.unwrap_or("no status")))
            }
        }
    }

    fn members<'a>(&'a self, basis: &'a str) -> impl Iterator<Item = &'a DomainState> {
        self.domains.iter().filter(move |rail| rail.in_basis.unwrap_or_else(|| in_basis(&rail.domain, basis)))
    }

    /// Microjoules of the rails that make up the basis; `None` if one of them is missing.
    fn basis_uj(&self) -> Option<u64> {
        let basis = self.basis.as_deref()?;
        let mut rails = self.members(basis).peekable();
        rails.peek()?;
        rails.map(|rail| rail.energy_uj.filter(|_| rail.status.as_deref().is_none_or(|status| status == "ok"))).sum()
    }

    /// Mean watts of the basis from `earlier` to this; `None` if a rail is missing, a counter went back, or less than a
    /// second passed.
    pub(super) fn watts_since(&self, earlier: &Self) -> Option<f64> {
        if self.basis != earlier.basis {
            return None;
        }
        let basis = self.basis.as_deref()?;
        let has_times = |state: &Self| state.domains.iter().any(|rail| rail.measured_ns.is_some());
        if has_times(self) && has_times(earlier) {
            // Each rail tells up to when it counts.
            let mut rails = self.members(basis).peekable();
            rails.peek()?;
            return rails.map(|rail| rail.watts_since(earlier.domains.iter().find(|r| r.domain == rail.domain)?)).sum();
        }
        let seconds = self.monotonic_ns?.checked_sub(earlier.monotonic_ns?)? as f64 / 1e9;
        let joules = self.basis_uj()?.checked_sub(earlier.basis_uj()?)? as f64 / 1e6;
        (seconds >= 1.0).then_some(joules / seconds)
    }
}

/// Whether a rail is one of the CPU: packages and the memory beside them, not what contains or repeats them.
pub(super) fn is_cpu(domain: &str) -> bool {
    domain == "apple:cpu" || domain.starts_with("rapl:package") || domain.starts_with("rapl:dram")
}

/// Whether a rail is one of an accelerator board.
pub(super) fn is_gpu(domain: &str) -> bool {
    domain == "apple:gpu" || ["nvml:", "amdgpu:", "intel_gpu:", "i915:", "xe:"].iter().any(|p| domain.starts_with(p))
}

/// Whether a rail is the neural engine of an Apple chip.
pub(super) fn is_ane(domain: &str) -> bool {
    domain == "apple:ane"
}

/// Whether a rail is counted twice or overlaps others: whole machine, battery, memory of Apple chips.
pub(super) fn is_exclusive_leaf(domain: &str) -> bool {
    is_cpu(domain) || is_gpu(domain) || is_ane(domain)
}

/// Whether a rail belongs to a basis.
pub(super) fn in_basis(domain: &str, basis: &str) -> bool {
    match basis {
        "gpu" => is_gpu(domain),
        "cpu" => is_cpu(domain),
        "gpu+cpu" => is_gpu(domain) || is_cpu(domain),
        "soc" => is_exclusive_leaf(domain),
        "platform" => domain == "rapl:psys" || domain == "apple:system",
        "battery" => domain.starts_with("battery:"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn energy(value: Value) -> Energy {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn unknown_is_never_a_number() {
        let full = energy(json!({"status": "measured", "final": true, "window_joules": 2.0, "energy_joules": 1.5}));
        assert_eq!(full.joules(Method::Window), Ok(2.0));
        assert_eq!(full.joules(Method::Attributed), Ok(1.5));
        let zero = energy(json!({"status": "measured", "window_joules": 0.0}));
        assert_eq!(zero.joules(Method::Window), Ok(0.0), "a sensor may say zero");
        for (value, reason) in [
            (json!({"status": "unavailable", "reason": "no_sensor", "window_joules": null}), "unavailable: no_sensor"),
            (json!({"status": "partial", "window_joules": 2.0}), "partial: no reason given"),
            (json!({"status": "measured", "final": false, "window_joules": 2.0}), "not final"),
            (json!({"status": "measured", "energy_joules": 2.0}), "measured, without the figure for the method window"),
            (json!({"status": "measured", "window_joules": -1.0}), "implausible: -1 J"),
            (json!({"window_joules": 2.0}), "no status"),
        ] {
            assert_eq!(energy(value).joules(Method::Window), Err(reason.to_owned()));
        }
    }

    #[test]
    fn rails_are_summed_only_if_all_are_there() {
        let domains = json!([{"domain": "rapl:package-0", "joules": 1.0}, {"domain": "rapl:package-1", "joules": null},
            {"domain": "rapl:psys", "joules": 9.0}, {"domain": "nvml:a", "joules": 3.0}]);
        let energy = energy(json!({"domains": domains, "more": 1}));
        assert_eq!(energy.sum(is_cpu), None);
        assert_eq!(energy.sum(is_gpu), Some(3.0));
        assert_eq!(energy.sum(is_ane), None, "not zero");
    }

    #[test]
    fn watts_are_of_the_basis_alone() {
        let state = |seconds: u64, package: Value, psys: u64| -> EnergyState {
            serde_json::from_value(
                json!({"status": "measured", "basis": "cpu", "monotonic_ns": seconds * 1_000_000_000,
                "domains": [{"domain": "rapl:package-0", "status": "ok", "energy_uj": package},
                    {"domain": "rapl:psys", "status": "ok", "energy_uj": psys}]}),
            )
            .unwrap()
        };
        let first = state(10, json!(5_000_000), 0);
        assert_eq!(state(12, json!(25_000_000), 99_000_000).watts_since(&first), Some(10.0));
        assert_eq!(state(12, Value::Null, 0).watts_since(&first), None);
        assert_eq!(state(12, json!(1), 0).watts_since(&first), None, "a counter that went back");
        assert_eq!(state(10, json!(5_000_001), 0).watts_since(&first), None, "too short");
        assert_eq!(first.available(), Ok("cpu"));
    }

    #[test]
    fn each_rail_has_its_own_time() {
        let state = |now: u64, measured: u64, uj: u64, gap: f64| -> EnergyState {
            let rail = json!({"domain": "rapl:package-0", "status": "ok", "energy_uj": uj, "gap_seconds": gap,
                "measured_ns": measured * 1_000_000_000});
            serde_json::from_value(json!({"status": "measured", "basis": "cpu", "monotonic_ns": now * 1_000_000_000,
                "domains": [rail]}))
            .unwrap()
        };
        let first = state(10, 10, 5_000_000, 0.5);
        assert_eq!(
            state(20, 18, 85_000_000, 0.5).watts_since(&first),
            Some(10.0),
            "80 J in 8 s, though 10 have passed"
        );
        assert_eq!(state(20, 10, 5_000_000, 0.5).watts_since(&first), None, "nothing was read");
        assert_eq!(state(20, 18, 85_000_000, 0.6).watts_since(&first), None, "a gap");
    }

    #[test]
    fn a_server_without_sensors_says_why() {
        let state: EnergyState = serde_json::from_value(json!({"status": "unavailable", "basis": null,
            "domains": [{"domain": "rapl:package-0", "reason": "permission_denied"}]}))
        .unwrap();
        assert_eq!(state.available().unwrap_err(), "unavailable: rapl:package-0 permission_denied");
    }
}
