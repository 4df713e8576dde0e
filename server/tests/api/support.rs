//! A server over a scripted model, and a client that reads it.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use engine::{
    AttentionKind, Engine, EngineSettings, LoadedModel,
    energy::EnergyMonitor,
    testing::{BYTE_VOCAB, Rule, Scripted, model, slow},
};
use serde_json::Value;
use server::{middleware::host_guard::HostGuard, router, settings::HttpSettings, state::AppState};
use tower::ServiceExt;

/// How long calls are remembered.
pub(crate) const RETENTION: Duration = Duration::from_secs(60);

/// A server and the handles behind it.
pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) state: AppState,
    /// That of the first model.
    pub(crate) engine: Engine,
}

/// What a test may choose.
pub(crate) struct Options {
    pub(crate) rule: Rule,
    pub(crate) pass_time: Duration,
    pub(crate) engine: EngineSettings,
    pub(crate) http: HttpSettings,
    pub(crate) energy: EnergyMonitor,
}

impl Default for Options {
    fn default() -> Self {
        let engine = EngineSettings { threads: Some(1), ..EngineSettings::default() };
        // Every token is the last one plus 1, so texts are easy to foretell.
        Self {
            rule: Rule::Successor,
            pass_time: Duration::ZERO,
            engine,
            http: HttpSettings::default(),
            energy: EnergyMonitor::off(),
        }
    }
}

/// A reply that was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `error.<key>` of the body.
    pub(crate) fn error(&self, key: &str) -> Value {
        self.json()["error"][key].clone()
    }

    /// The data of all events; the last must be `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        assert_eq!(self.header("content-type"), "text/event-stream");
        let mut events: Vec<&str> = Vec::new();
        for block in self.text.split_terminator("\n\n").filter(|block| !block.starts_with(':')) {
            let data = block.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {block:?}"));
            assert!(!data.contains('\n'), "one line an event: {data:?}");
            events.push(data);
        }
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Server {
    pub(crate) async fn start(options: Options) -> Self {
        let Options { rule, pass_time, engine, http, energy } = options;
        Self::serve(move || vec![slow(rule, pass_time).unwrap()], engine, http, energy).await
    }

    /// A diffusion model with full attention.
    pub(crate) async fn diffusion(rule: Rule) -> Self {
        let Options { engine, http, .. } = Options::default();
        let load = || vec![model(Scripted::diffusion(rule, BYTE_VOCAB, 2048, AttentionKind::Full)).unwrap()];
        Self::serve(load, engine, http, EnergyMonitor::off()).await
    }

    /// The first model is the default one.
    pub(crate) async fn with_models(
        load: impl FnOnce() -> Vec<LoadedModel> + Send + 'static,
        http: HttpSettings,
    ) -> Self {
        Self::serve(load, Options::default().engine, http, EnergyMonitor::off()).await
    }

    async fn serve(
        load: impl FnOnce() -> Vec<LoadedModel> + Send + 'static,
        settings: EngineSettings,
        http: HttpSettings,
        energy: EnergyMonitor,
    ) -> Self {
        let metered = energy.clone();
        let start = move || -> Vec<Engine> {
            let start = |model| Engine::start_metered(model, settings.clone(), &metered).unwrap();
            load().into_iter().map(start).collect()
        };
        let engines = tokio::task::spawn_blocking(start).await.unwrap();
        let engine = engines[0].clone();
        let state = AppState::metered(http, HostGuard::Listed(Vec::new()), energy, RETENTION);
        state.set_ready(engines);
        Self { router: router(state.clone()), state, engine }
    }

    pub(crate) async fn new() -> Self {
        Self::start(Options::default()).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        send(&self.router, request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(post(path, body.to_string())).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The body of a request that must succeed.
    pub(crate) async fn ok(&self, path: &str, body: Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        reply.json()
    }
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 24).await.unwrap();
    Reply { status: parts.status, headers: parts.headers, text: String::from_utf8(body.to_vec()).unwrap() }
}

/// Serves on a free port of this machine, for as long as the test runs.
pub(crate) async fn listen(server: &Server) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = server.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}
