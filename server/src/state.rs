//! What all handlers share.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use engine::{Engine, energy::EnergyMonitor};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio_util::sync::CancellationToken;

use crate::{
    energy::calls::Calls,
    error::{ApiError, DRAIN_RETRY, LOADING_RETRY},
    metrics::HttpMetrics,
    middleware::host_guard::HostGuard,
    settings::HttpSettings,
};

/// The state of a server; clones share it.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

struct Shared {
    settings: HttpSettings,
    host_guard: HostGuard,
    models: OnceLock<Arc<Models>>,
    draining: AtomicBool,
    cut: CancellationToken,
    registry: Mutex<Registry>,
    http: HttpMetrics,
    energy: EnergyMonitor,
    calls: Calls,
}

/// All models that take requests, the default one first; never empty.
pub(crate) struct Models(Vec<Served>);

/// A model that takes requests.
pub(crate) struct Served {
    pub(crate) engine: Engine,
    /// Names of the model, the one to show first in front.
    pub(crate) names: Vec<String>,
    /// Unix time at which it became ready.
    pub(crate) created: u64,
    /// Cancelled when running replies must end.
    pub(crate) cut: CancellationToken,
}

/// What a server does just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Loading,
    Ready,
    Draining,
}

impl AppState {
    /// A server that loads its models and says of no request what it cost.
    pub fn new(settings: HttpSettings, host_guard: HostGuard) -> Self {
        Self::metered(settings, host_guard, EnergyMonitor::off(), Duration::ZERO)
    }

    /// A server that loads its models, and says what its requests cost: also for `retention` after their end.
    pub fn metered(settings: HttpSettings, host_guard: HostGuard, energy: EnergyMonitor, retention: Duration) -> Self {
        let mut registry = Registry::default();
        energy.register_metrics(&mut registry);
        let http = HttpMetrics::default();
        http.register(&mut registry);
        Self(Arc::new(Shared {
            settings,
            host_guard,
            models: OnceLock::new(),
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
            registry: Mutex::new(registry),
            http,
            energy,
            calls: Calls::new(retention),
        }))
    }

    /// The models are loaded: requests are taken from now on, by the first engine where they name no model. Ids must
    /// differ; the names in the settings are further names of the first. Ignored without engines, or a second time.
    pub fn set_ready(&self, engines: Vec<Engine>) {
        if engines.is_empty() {
            return;
        }
        let mut given = self.0.settings.model_names.clone();
        let serve = |engine: &Engine| {
            let mut names = std::mem::take(&mut given);
            let own = engine.model().id.clone();
            if !names.contains(&own) {
                names.push(own);
            }
            Served { engine: engine.clone(), names, created: unix_time(), cut: self.0.cut.clone() }
        };
        let models = Models(engines.iter().map(serve).collect());
        if self.0.models.set(Arc::new(models)).is_ok() {
            let mut registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
            Engine::register_metrics(&engines, &mut registry);
        }
    }

    /// From now on new requests are answered with 503.
    pub fn begin_drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Ends the replies that still run with an error.
    pub fn cut_off(&self) {
        self.0.cut.cancel();
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.0.draining.load(Ordering::SeqCst) {
            Phase::Draining
        } else if self.0.models.get().is_some() {
            Phase::Ready
        } else {
            Phase::Loading
        }
    }

    /// The models, or why there are none now.
    pub(crate) fn models(&self) -> Result<Arc<Models>, ApiError> {
        match (self.phase(), self.0.models.get()) {
            (Phase::Ready, Some(models)) => Ok(models.clone()),
            (Phase::Draining, _) => Err(ApiError::unavailable("the server is shutting down", DRAIN_RETRY)),
            _ => Err(ApiError::unavailable("the model is loading", LOADING_RETRY)),
        }
    }

    pub(crate) fn settings(&self) -> &HttpSettings {
        &self.0.settings
    }

    pub(crate) fn host_guard(&self) -> &HostGuard {
        &self.0.host_guard
    }

    pub(crate) fn http_metrics(&self) -> &HttpMetrics {
        &self.0.http
    }

    pub(crate) fn energy(&self) -> &EnergyMonitor {
        &self.0.energy
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// All metrics in the OpenMetrics text format.
    pub(crate) fn encode_metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

impl Models {
    /// The model that a request names, and the name under which it runs: the one it gave, or the first if it gave none.
    pub(crate) fn find(&self, name: Option<String>) -> Result<(&Served, String), ApiError> {
        let Some(name) = name else { return Ok((&self.0[0], self.0[0].names[0].clone())) };
        match self.0.iter().find(|served| served.names.contains(&name)) {
            Some(served) => Ok((served, name)),
            None => Err(ApiError::model_not_found(&name, &self.all().map(|(_, name)| name).collect::<Vec<_>>())),
        }
    }

    /// Every name with its model, in the order in which they are listed.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Served, &str)> {
        self.0.iter().flat_map(|served| served.names.iter().map(move |name| (served, name.as_str())))
    }
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither keys nor the model belong in a log.
        formatter.debug_struct("Shared").field("draining", &self.draining).finish_non_exhaustive()
    }
}
