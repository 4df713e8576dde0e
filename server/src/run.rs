//! A run of the server: bind, load, serve, drain.

use std::{future::IntoFuture, io, net::SocketAddr, time::Duration};

use engine::{Engine, EngineError, ModelError};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    middleware::host_guard::HostGuard, routes::router, settings::Settings, shutdown::Signals, state::AppState,
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
    /// Loading ended in a bug.
    #[error("loading the model failed: {0}")]
    Load(tokio::task::JoinError),
    /// A second signal came before the running requests were done.
    #[error("stopped by {0} before the running requests were done")]
    Interrupted(&'static str),
}

/// Serves until a signal, then lets running requests finish. The port is taken before the model is loaded, so that a
/// port in use is known at once and probes get an answer while the model loads.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let (listener, address) = bind(&settings).await?;
    let state = AppState::new(settings.http.clone(), HostGuard::new(address, &settings.http.allowed_hosts));
    let stop = CancellationToken::new();
    let server = axum::serve(listener, router(state.clone())).with_graceful_shutdown(stop.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    info!("listening on http://{address}; the model is loading");

    let drain_timeout = settings.drain_timeout;
    let loading = tokio::task::spawn_blocking(move || load(&settings));
    let engine = tokio::select! {
        loaded = loading => loaded.map_err(RunError::Load)??,
        signal = signals.next() => {
            info!("{signal} while the model is loading");
            return Ok(());
        }
    };
    state.set_ready(engine.clone());
    info!("ready: {} on http://{address}/v1", engine.model().id);

    let signal = signals.next().await;
    state.begin_drain();
    info!("{signal}: no new requests; running ones have {} s", drain_timeout.as_secs());
    tokio::select! {
        drained = timeout(drain_timeout, engine.drain()) => match drained {
            Ok(()) => info!("all requests are done"),
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

/// Loads and starts the model; takes seconds to minutes.
pub(crate) fn load(settings: &Settings) -> Result<Engine, RunError> {
    let model = engine::load(&settings.source, &settings.load)?;
    Ok(Engine::start(model, settings.engine.clone())?)
}
