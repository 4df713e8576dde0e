//! What the server tells of itself, before and after a run.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Connection, shown};

/// The server of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Server {
    /// Model that is asked for.
    pub(crate) model: String,
    /// `GET /v1/models`, the entry of the model; `None` if the server does not list it.
    pub(crate) listed: Option<Value>,
    pub(crate) is_leapfrog: bool,
    /// On this machine, so that the facts about this machine are its facts.
    pub(crate) is_local: bool,
}

impl Server {
    /// Finds the model to ask for.
    pub(crate) async fn find(connection: &Connection, model: Option<&str>) -> anyhow::Result<Self> {
        let listed = match (connection.models().await, model) {
            (Ok(models), _) => models,
            // Some servers list nothing; a name is all that is needed then.
            (Err(_), Some(_)) => Vec::new(),
            (Err(error), None) => {
                let message = format!(
                    "{} does not tell its models; does it run? If it has no such route, give --model",
                    connection.base
                );
                return Err(error.context(message));
            }
        };
        let id = |entry: &Value| entry.get("id").and_then(Value::as_str).map(str::to_owned);
        let entry = match model {
            Some(name) => listed.iter().find(|entry| id(entry).as_deref() == Some(name)),
            None => listed.first(),
        };
        let model = model.map(str::to_owned).or_else(|| entry.and_then(id));
        Ok(Self {
            model: model.ok_or_else(|| anyhow::anyhow!("GET /v1/models: the first model has no `id`; give --model"))?,
            is_leapfrog: listed.iter().any(|entry| entry.get("owned_by") == Some(&json!("leapfrog"))),
            listed: entry.cloned(),
            is_local: connection.is_local(),
        })
    }
}

/// Counters of a server that go up while it works.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    energy: Option<Result<EnergyCounters, String>>,
    /// Denoising steps, canvas positions, committed tokens: the three counters that vLLM has for diffusion models.
    diffusion: Option<[f64; 3]>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct EnergyState {
    status: Option<String>,
    basis: Option<String>,
    reason: Option<String>,
    accounts: Option<Accounts>,
}

/// Microjoules since the start of the server, by what they went into.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Accounts {
    requests_uj: Option<u64>,
    idle_uj: Option<u64>,
    load_uj: Option<u64>,
    warmup_uj: Option<u64>,
    other_uj: Option<u64>,
}

impl Accounts {
    /// Of requests, and of everything; `None` if a part is unknown.
    fn sums(&self) -> Option<(u64, u64)> {
        let requests = self.requests_uj?;
        Some((requests, requests + self.idle_uj? + self.load_uj? + self.warmup_uj? + self.other_uj?))
    }
}

#[derive(Debug, Clone)]
struct EnergyCounters {
    basis: Option<String>,
    requests_uj: u64,
    all_uj: u64,
}

/// What the counters gained over a run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Gained {
    /// Energy, or why it is unknown; of Leapfrog only.
    pub(crate) energy: Option<Result<Joules, String>>,
    pub(crate) diffusion: Option<Diffusion>,
}

/// Energy of a run, as the server measured it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Joules {
    pub(crate) basis: Option<String>,
    /// In forward passes for requests.
    pub(crate) requests: f64,
    /// With everything else, the idle machine above all.
    pub(crate) total: f64,
}

/// Work of a diffusion model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Diffusion {
    pub(crate) denoising_steps: f64,
    pub(crate) canvas_positions: f64,
    pub(crate) committed_tokens: f64,
    pub(crate) tokens_per_step: Option<f64>,
}

const DIFFUSION: [&str; 3] = [
    "vllm:diffusion_num_denoising_steps_total",
    "vllm:diffusion_num_canvas_positions_total",
    "vllm:diffusion_num_committed_tokens_total",
];

impl Counters {
    /// Reads what there is; servers that have none of it are no error.
    pub(crate) async fn read(connection: &Connection, server: &Server) -> Self {
        let diffusion = match connection.get("/metrics").await {
            Ok((status, text)) if status.is_success() => diffusion(&text),
            _ => None,
        };
        let energy = if server.is_leapfrog { Some(energy(connection).await) } else { None };
        Self { energy, diffusion }
    }

    /// What was gained since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Gained {
        let energy = self.energy.clone().zip(earlier.energy.clone()).map(|(now, then)| {
            let (now, then) = (now?, then?);
            let joules = |now: u64, then: u64| now.checked_sub(then).map(|microjoules| microjoules as f64 / 1e6);
            let requests = joules(now.requests_uj, then.requests_uj);
            let total = joules(now.all_uj, then.all_uj);
            let (requests, total) = requests.zip(total).ok_or("the server was started again in the meantime")?;
            Ok(Joules { basis: now.basis, requests, total })
        });
        let diffusion = self.diffusion.zip(earlier.diffusion).map(|(now, then)| {
            let gained: [f64; 3] = std::array::from_fn(|index| now[index] - then[index]);
            Diffusion {
                denoising_steps: gained[0],
                canvas_positions: gained[1],
                committed_tokens: gained[2],
                tokens_per_step: (gained[0] > 0.0).then(|| gained[2] / gained[0]),
            }
        });
        Gained { energy, diffusion: diffusion.filter(|diffusion| diffusion.denoising_steps > 0.0) }
    }
}

async fn energy(connection: &Connection) -> Result<EnergyCounters, String> {
    let (status, body) = connection.get("/v1/energy").await.map_err(|error| format!("{error:#}"))?;
    if !status.is_success() {
        return Err(format!("GET /v1/energy: {status}: {}", shown(&body)));
    }
    let state: EnergyState = serde_json::from_str(&body).map_err(|error| format!("GET /v1/energy: {error}"))?;
    match (state.status.as_deref(), state.accounts.as_ref().and_then(Accounts::sums)) {
        (Some("measured"), Some((requests_uj, all_uj))) => {
            Ok(EnergyCounters { basis: state.basis, requests_uj, all_uj })
        }
        (status, _) => {
            let reason = state.reason.map_or(String::new(), |reason| format!(" ({reason})"));
            Err(format!("the server says: {}{reason}", status.unwrap_or("nothing of its meters")))
        }
    }
}

/// Sums of the three counters over all labels; `None` if they are not there.
fn diffusion(metrics: &str) -> Option<[f64; 3]> {
    let sum = |name: &str| {
        let of_name = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.rsplit_once(' ').filter(|_| rest.starts_with(['{', ' ']))?.1;
            value.parse::<f64>().ok()
        });
        of_name.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
    };
    let found = DIFFUSION.map(sum);
    Some([found[0]?, found[1]?, found[2]?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_diffusion_are_sums_over_labels() {
        let metrics = "# TYPE x counter\nvllm:diffusion_num_denoising_steps_total{model=\"a\"} 3\n\
            vllm:diffusion_num_denoising_steps_total{model=\"b c\"} 4.0\nvllm:diffusion_num_canvas_positions_total 70\n\
            vllm:diffusion_num_committed_tokens_total{model=\"a\"} 21\n";
        assert_eq!(diffusion(metrics), Some([7.0, 70.0, 21.0]));
        assert_eq!(diffusion("vllm:diffusion_num_denoising_steps_total_x 3\n"), None);
        let later = Counters { energy: None, diffusion: Some([10.0, 100.0, 33.0]) };
        let gained = later.since(&Counters { energy: None, diffusion: diffusion(metrics) });
        assert_eq!(gained.diffusion.unwrap().tokens_per_step, Some(4.0));
    }

    #[test]
    fn energy_is_a_difference_or_a_reason() {
        let counters = |requests_uj, all_uj| Counters {
            energy: Some(Ok(EnergyCounters { basis: Some("cpu".into()), requests_uj, all_uj })),
            diffusion: None,
        };
        let gained = counters(3_000_000, 9_500_000).since(&counters(1_000_000, 2_000_000)).energy.unwrap().unwrap();
        assert_eq!(gained, Joules { basis: Some("cpu".into()), requests: 2.0, total: 7.5 });
        let again = counters(1, 2).since(&counters(5, 6)).energy.unwrap();
        assert!(again.unwrap_err().contains("started again"));
    }
}
