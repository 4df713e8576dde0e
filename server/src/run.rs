//! A run of the server: bind, load, serve, drain.

use std::{future::IntoFuture, io, net::SocketAddr, time::Duration};

use axum::serve::ListenerExt;
use engine::{
    Engine, EngineError, ModelError, ModelSource,
    energy::{EnergyError, EnergyMonitor, EnergySettings, SystemCause},
};
use futures_util::future::join_all;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    energy::announce, middleware::host_guard::HostGuard, routes::router, settings::Settings, shutdown::Signals,
    state::AppState, welcome,
};

/// How long replies that are complete may take to reach their clients once everything else has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The address cannot be listened to.
    #[error("cannot listen on {host}:{port}: {source}")]
    Bind {
        /// The address.
        host: String,
        /// The port.
        port: u16,
        /// The cause.
        source: io::Error,
    },
    /// The system refused the signal handlers.
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine could not be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Energy cannot be metered as asked for.
    #[error(transparent)]
    Energy(#[from] EnergyError),
    /// One of several models could not be loaded or started.
    #[error("the model `{id}`: {source}")]
    OneOf {
        /// Its id.
        id: String,
        /// The cause.
        source: Box<RunError>,
    },
    /// Loading ended in a bug.
    #[error("loading the model failed: {0}")]
    Load(tokio::task::JoinError),
    /// A second signal came before the running requests were done.
    #[error("stopped by {0} before the running requests were done")]
    Interrupted(&'static str),
}

/// Serves until a signal, then lets running requests finish. The port is taken before the models are loaded, so that a
/// port in use is known at once and probes get an answer while they load.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (listener, address) = bind(&settings).await?;
    let energy = start_energy(settings.energy.clone()).await?;
    let guard = HostGuard::new(address, &settings.http.allowed_hosts);
    let state = AppState::metered(settings.http.clone(), guard, energy.clone(), settings.energy.retention);
    let stop = CancellationToken::new();
    // Each event of a stream leaves at once: held back for the acknowledgement of the one before, it would come 40 ms late.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            debug!(%error, "cannot send small packets at once");
        }
    });
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(stop.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    info!("listening on http://{address}; the model is loading");
    announce(&energy);

    let (drain_timeout, sources) = (settings.drain_timeout, settings.models.clone());
    let loading = tokio::task::spawn_blocking(move || load_all(&settings, &energy));
    let engines = tokio::select! {
        loaded = loading => loaded.map_err(RunError::Load)??,
        signal = signals.next() => {
            info!("{signal} while the model is loading");
            return Ok(());
        }
    };
    for line in welcome::lines(&sources, &engines, "serve") {
        info!("{line}");
    }
    state.set_ready(engines.clone());
    let ids: Vec<&str> = engines.iter().map(|engine| engine.model().id.as_str()).collect();
    info!("ready: {} on http://{address}/v1", ids.join(", "));

    let signal = signals.next().await;
    state.begin_drain();
    info!("{signal}: no new requests; running ones have {} s", drain_timeout.as_secs());
    tokio::select! {
        drained = timeout(drain_timeout, join_all(engines.iter().map(Engine::drain))) => match drained {
            Ok(_) => info!("all requests are done"),
            Err(_) => {
                warn!("some requests were not done in time");
                state.cut_off();
            }
        },
        signal = signals.next() => return Err(RunError::Interrupted(signal)),
    }
    stop.cancel();
    tokio::select! {
        flushed = timeout(FLUSH_TIMEOUT, server) => {
            if flushed.is_err() {
                warn!("some connections were still open");
            }
        }
        signal = signals.next() => return Err(RunError::Interrupted(signal)),
    }
    Ok(())
}

async fn bind(settings: &Settings) -> Result<(TcpListener, SocketAddr), RunError> {
    let failed = |source| RunError::Bind { host: settings.host.clone(), port: settings.port, source };
    let listener = TcpListener::bind((settings.host.as_str(), settings.port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Finds the sensors and starts to read them; may take a second.
pub(crate) async fn start_energy(settings: EnergySettings) -> Result<EnergyMonitor, RunError> {
    let start = move || EnergyMonitor::start(&settings);
    let started = tokio::task::spawn_blocking(start).await;
    Ok(started.map_err(|error| EnergyError::Thread(io::Error::other(error)))??)
}

/// Loads and starts a model; takes seconds to minutes.
pub(crate) fn load(source: &ModelSource, settings: &Settings, energy: &EnergyMonitor) -> Result<Engine, RunError> {
    let model = {
        let _loading = energy.begin(SystemCause::Load);
        engine::load(source, &settings.load)?
    };
    Ok(Engine::start_metered(model, settings.engine.clone(), energy)?)
}

/// One model after the other: each measures what a pass costs when it starts, which needs the machine for itself.
fn load_all(settings: &Settings, energy: &EnergyMonitor) -> Result<Vec<Engine>, RunError> {
    let [source] = &settings.models[..] else {
        let load_one = |source: &ModelSource| {
            info!("loading {}", source.id());
            load(source, settings, energy).map_err(|error| RunError::OneOf { id: source.id(), source: Box::new(error) })
        };
        return settings.models.iter().map(load_one).collect();
    };
    Ok(vec![load(source, settings, energy)?])
}
