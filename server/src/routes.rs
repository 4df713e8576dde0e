//! Which path leads where, and what every request passes on the way.

use std::any::Any;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode},
    middleware::{self, Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, Any as AnyHeader, CorsLayer},
};

use crate::{
    energy::{evaluations, meter, state},
    error::ApiError,
    health, metrics,
    middleware::{auth::require_key, host_guard::check_host, observe::observe},
    openai::{chat, completions, infill, models, tokens},
    state::AppState,
};

/// The API. While the state has no engine, the routes that need one answer 503.
pub fn router(state: AppState) -> Router {
    let cors = cors(&state.settings().cors_origins);
    let max_body = state.settings().max_body;
    let routes = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(metrics::show))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/infill", post(infill::infill))
        .route("/v1/energy", get(state::show))
        .route("/v1/energy/requests/{id}", get(meter::show))
        .route("/v1/energy/evaluations", post(evaluations::post))
        .route("/tokenize", post(tokens::encode))
        .route("/detokenize", post(tokens::decode))
        .fallback(no_route)
        // Later layers are passed first.
        .layer(DefaultBodyLimit::max(max_body))
        .layer(middleware::from_fn(explain_method))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), require_key));
    // Browsers send no key with the question whether they may ask.
    let routes = match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes
        .layer(from_fn_with_state(state.clone(), check_host))
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// `None` if no web page may call this server.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let shown = ["x-request-id", "x-leapfrog-ignored", "retry-after"].map(HeaderName::from_static);
    let layer = CorsLayer::new().allow_origin(origin).allow_headers(AnyHeader).expose_headers(shown);
    Some(layer.allow_methods([Method::GET, Method::POST]))
}

async fn no_route(request: Request) -> ApiError {
    let message = format!("there is no route {} {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, message).code("route_not_found")
}

/// Gives the router's bare 405 a body and keeps its `Allow` header.
async fn explain_method(request: Request, next: Next) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    let mut response = next.run(request).await;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let headers = std::mem::take(response.headers_mut());
        response = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed").into_response();
        let allow = axum::http::header::ALLOW;
        if let Some(value) = headers.get(&allow) {
            response.headers_mut().insert(allow, value.clone());
        }
    }
    response
}

fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
    tracing::error!(cause = text.unwrap_or("unknown"), "a handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").code("internal_error").into_response()
}
