//! Request ids, one access-log line and one metric a request. A line is written when the reply has ended, which for a
//! stream is long after its handler returned.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use tracing::{Instrument, info, info_span};
use uuid::Uuid;

use crate::{metrics::HttpMetrics, state::AppState};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a client.
const MAX_ID_LEN: usize = 128;
/// Status in log and metrics for a client that left before the head of the reply.
const CLIENT_LEFT: u16 = 499;

/// What is known of one request; written down when the last holder drops it.
#[derive(Debug)]
pub(crate) struct RequestLog {
    id: String,
    method: Method,
    route: String,
    started: Instant,
    metrics: HttpMetrics,
    status: AtomicU16,
    cut: AtomicBool,
    model: OnceLock<String>,
    prompt_tokens: AtomicUsize,
    completion_tokens: AtomicUsize,
}

impl RequestLog {
    /// A request that begins now. `route` is a pattern, not a path.
    pub(crate) fn new(id: String, method: Method, route: String, metrics: HttpMetrics) -> Self {
        metrics.begin();
        Self {
            id,
            method,
            route,
            started: Instant::now(),
            metrics,
            status: AtomicU16::new(CLIENT_LEFT),
            cut: AtomicBool::new(false),
            model: OnceLock::new(),
            prompt_tokens: AtomicUsize::new(0),
            completion_tokens: AtomicUsize::new(0),
        }
    }

    /// The request is for the model with this id.
    pub(crate) fn set_model(&self, id: &str) {
        self.model.get_or_init(|| id.to_owned());
    }

    pub(crate) fn add_prompt_tokens(&self, count: usize) {
        self.prompt_tokens.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn add_completion_tokens(&self, count: usize) {
        self.completion_tokens.fetch_add(count, Ordering::Relaxed);
    }

    /// The reply began but did not end as it should.
    pub(crate) fn mark_cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let status = *self.status.get_mut();
        let elapsed = self.started.elapsed();
        self.metrics.end(&self.method, &self.route, status, elapsed);
        let end = match (status, *self.cut.get_mut()) {
            (CLIENT_LEFT, _) => "client left",
            (_, true) => "cut",
            _ => "complete",
        };
        info!(
            target: "access",
            id = %self.id,
            method = %self.method,
            route = %self.route,
            status,
            end,
            model = self.model.get().map(String::as_str),
            duration_ms = elapsed.as_millis() as u64,
            prompt_tokens = *self.prompt_tokens.get_mut(),
            completion_tokens = *self.completion_tokens.get_mut(),
        );
    }
}

/// Gives the request an id and a [`RequestLog`], and the reply the id.
pub(crate) async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers().get(REQUEST_ID));
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let metrics = state.http_metrics().clone();
    let log = Arc::new(RequestLog::new(id.clone(), request.method().clone(), route, metrics));
    request.extensions_mut().insert(log.clone());
    let span = info_span!("request", id = %id);
    let mut response = next.run(request).instrument(span).await;
    log.status.store(response.status().as_u16(), Ordering::Relaxed);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The client's id if it is short, visible ASCII, so that it cannot forge log lines; else a new one.
fn request_id(given: Option<&HeaderValue>) -> String {
    given
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| Uuid::new_v4().simple().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_if_it_is_harmless() {
        let of = |text: &'static str| request_id(Some(&HeaderValue::from_static(text)));
        assert_eq!(of("trace-42"), "trace-42");
        for odd in ["", "two words", "tab\there"] {
            assert_ne!(of(odd), odd);
        }
        let long = "x".repeat(MAX_ID_LEN + 1);
        assert_ne!(request_id(Some(&HeaderValue::from_str(&long).unwrap())), long);
        assert_ne!(request_id(None), request_id(None));
    }
}
