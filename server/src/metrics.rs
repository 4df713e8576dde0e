//! What the HTTP layer counts, and the route that shows all metrics.

mod accept;
mod classic;
mod compat;

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use self::accept::Format;
pub use self::compat::Dialect;
use crate::{error::ApiError, state::AppState};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Instruments of the HTTP layer.
#[derive(Debug, Clone)]
pub(crate) struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(seconds),
            in_flight: Gauge::default(),
        }
    }
}

impl HttpMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let http = registry.sub_registry_with_prefix("leapfrog_http");
        let requests = "HTTP requests by method, route and status; 499 is a client that left before the reply";
        http.register("requests", requests, self.requests.clone());
        let duration = "Time from the head of a request to the end of its reply";
        http.register_with_unit("request_duration", duration, Unit::Seconds, self.duration.clone());
        http.register("requests_in_flight", "HTTP requests that are not answered to the end", self.in_flight.clone());
    }

    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// `route` is a pattern of the router, never a path that a client made up.
    pub(crate) fn end(&self, method: &Method, route: &str, status: u16, elapsed: Duration) {
        self.in_flight.dec();
        let route = route.to_owned();
        self.duration.get_or_create(&RouteLabels { route: route.clone() }).observe(elapsed.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { method: known(method), route, status }).inc();
    }
}

/// Methods are free text in HTTP; only the usual ones become a label.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// `GET /metrics`, in the format that the reader prefers.
pub(crate) async fn show(State(state): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let text = state
        .encode_metrics()
        .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written"))?;
    let text = compat::extend(&text, &state.settings().metrics_compat);
    let format = Format::wanted(&headers);
    let text = match format {
        Format::OpenMetrics => text,
        Format::Classic => classic::convert(&text, !state.settings().metrics_compat.is_empty()),
    };
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()))], text).into_response())
}
