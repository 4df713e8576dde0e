//! Everything that is not answered with 200.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::{Value, json};
use server::{middleware::host_guard::HostGuard, router, settings::HttpSettings, state::AppState};

use crate::support::{Options, Server, post, send};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const INFILL: &str = "/infill";

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 2})
}

#[tokio::test]
async fn every_bad_request_names_its_field() {
    let server = Server::new().await;
    let long = "x".repeat(5000);
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    for (path, body, status, code, param) in [
        (CHAT, json!({}), 400, "missing_parameter", "messages"),
        (CHAT, json!({"messages": []}), 400, "invalid_value", "messages"),
        (CHAT, json!({"messages": [{"role": "user"}]}), 400, "missing_parameter", "messages[0].content"),
        (CHAT, json!({"messages": user(json!(7))}), 400, "invalid_type", "messages[0].content"),
        (CHAT, json!({"messages": "hi"}), 400, "invalid_type", "messages"),
        (CHAT, json!({"messages": user(json!("")), "decoding": 1}), 400, "invalid_type", "decoding"),
        (CHAT, json!({"messages": user(json!("")), "max_tokens": -1}), 400, "invalid_value", "max_tokens"),
        (CHAT, json!({"messages": user(json!("")), "tool_choice": "required"}), 400, "invalid_value", "tool_choice"),
        (CHAT, json!({"messages": user(json!(long))}), 400, "context_length_exceeded", "messages"),
        (CHAT, json!({"messages": user(json!("")), "model": "gpt-4"}), 404, "model_not_found", "model"),
        (CHAT, json!({"messages": user(json!("")), "top_p": 0}), 400, "invalid_value", "top_p"),
        (CHAT, json!({"messages": user(json!("")), "top_logprobs": 2}), 400, "invalid_value", "top_logprobs"),
        (CHAT, json!({"messages": user(json!("")), "n": 0}), 400, "invalid_value", "n"),
        (CHAT, json!({"messages": user(json!("")), "tools": [{}]}), 400, "unsupported_parameter", "tools"),
        (CHAT, json!({"messages": user(json!("")), "stop": ["", "a"]}), 400, "invalid_value", "stop"),
        (CHAT, json!({"messages": user(json!("")), "decoding": {"x": 1}}), 400, "unknown_parameter", "decoding.x"),
        (
            CHAT,
            json!({"messages": user(json!("")), "decoding": {"strategy": "ar", "width": 4}}),
            400,
            "invalid_value",
            "decoding.width",
        ),
        (TEXT, json!({}), 400, "missing_parameter", "prompt"),
        (TEXT, json!({"prompt": ""}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [[]]}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [999]}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [999], "echo": true}), 400, "invalid_value", "prompt"),
        (TEXT, json!({"prompt": [1, "a"]}), 400, "invalid_type", "prompt[1]"),
        (TEXT, json!({"prompt": "a", "suffix": "b"}), 400, "unsupported_parameter", "suffix"),
        (TEXT, json!({"prompt": "a", "best_of": 2}), 400, "unsupported_parameter", "best_of"),
        (TEXT, json!({"prompt": "a", "logprobs": 21}), 400, "invalid_value", "logprobs"),
        (TEXT, json!({"prompt": "a", "logprobs": true}), 400, "invalid_type", "logprobs"),
        (TEXT, json!({"prompt": vec!["a"; 100], "n": 2}), 400, "invalid_value", "prompt"),
        (CHAT, json!({"messages": user(json!("")), "decoding": "slow"}), 400, "invalid_value", "decoding"),
        (CHAT, json!({"messages": user(json!("")), "diffusing": true}), 400, "unsupported_parameter", "diffusing"),
        (
            CHAT,
            json!({"messages": user(json!("")), "stream": true, "stream_options": {"include_frames": true}}),
            400,
            "unsupported_parameter",
            "stream_options.include_frames",
        ),
        (TEXT, json!({"prompt": "a", "suffix": 5}), 400, "invalid_type", "suffix"),
        (INFILL, json!({"input_prefix": "a", "input_suffix": "b"}), 400, "unsupported_parameter", "input_suffix"),
        (INFILL, json!({"input": [{"text": "a"}, {"hole": 2}]}), 400, "unsupported_parameter", "input"),
        (INFILL, json!({"input": []}), 400, "invalid_value", "input"),
        (INFILL, json!({"input_prefix": "a", "model": "gpt-4"}), 404, "model_not_found", "model"),
        ("/tokenize", json!({}), 400, "missing_parameter", "content"),
        ("/tokenize", json!({"content": 5}), 400, "invalid_type", "content"),
        ("/tokenize", json!({"content": "a", "x": 5}), 400, "unknown_parameter", "x"),
        ("/detokenize", json!({"tokens": [1, 999]}), 400, "invalid_value", "tokens[1]"),
    ] {
        let reply = server.post(path, body.clone()).await;
        assert_eq!(reply.status.as_u16(), status, "{body}: {}", reply.text);
        assert_eq!((reply.error("code"), reply.error("param")), (json!(code), json!(param)), "{}", reply.text);
        assert_eq!(reply.error("type"), "invalid_request_error");
        assert!(reply.error("message").as_str().is_some_and(|message| !message.is_empty()));
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_are_told_apart() {
    let http = HttpSettings { max_body: 1000, ..HttpSettings::default() };
    let server = Server::start(Options { http, ..Options::default() }).await;
    let reply = server.send(post(CHAT, "{\"messages\": [")).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (400, json!("invalid_json")));
    let reply = server.send(post(CHAT, vec![b'"', 0xFF, b'"'])).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (400, json!("invalid_json")));
    let reply = server.send(post(CHAT, "[".repeat(2000))).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (413, json!("body_too_large")));
    let plain = Request::post(CHAT).header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    let reply = server.send(plain).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (415, json!("unsupported_media_type")));
    let bare = Request::post(CHAT).body(Body::from("{}")).unwrap();
    assert_eq!(server.send(bare).await.status.as_u16(), 415);
}

#[tokio::test]
async fn methods_and_routes_that_are_not_there() {
    let server = Server::new().await;
    let call = |method: &str, path: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    };
    for (method, path, allow) in [
        ("GET", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("TRACE", CHAT, "POST"),
        ("FROG", TEXT, "POST"),
        ("POST", "/v1/models", "GET,HEAD"),
        ("TRACE", "/health", "GET,HEAD"),
    ] {
        let reply = server.send(call(method, path)).await;
        assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, allow), "{method} {path}");
        assert_eq!(reply.error("code"), "method_not_allowed");
    }
    let reply = server.send(call("HEAD", CHAT)).await;
    assert_eq!(reply.status.as_u16(), 405);
    let reply = server.send(call("HEAD", "/v1/models")).await;
    assert_eq!((reply.status.as_u16(), reply.text.as_str()), (200, ""));
    // A path that is no UTF-8 is not left to the router, whose answers are plain text.
    let reply = server.send(call("GET", "/v1/models/%ff")).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (400, json!("invalid_value")));
    for (method, path) in [("GET", "/"), ("POST", "/v1/embeddings"), ("TRACE", "/v1/"), ("DELETE", "/v1")] {
        let reply = server.send(call(method, path)).await;
        assert_eq!((reply.status.as_u16(), reply.error("code")), (404, json!("route_not_found")), "{method} {path}");
    }
}

#[tokio::test]
async fn unknown_fields_are_listed_or_refused() {
    let mut body = hello();
    body["zip"] = json!(1);
    body["messages"][0]["zap"] = json!(2);
    body["user"] = json!("u");
    let server = Server::new().await;
    let reply = server.post(CHAT, body.clone()).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-leapfrog-ignored")), (200, "zip,messages[0].zap"));
    assert_eq!(server.post(CHAT, hello()).await.header("x-leapfrog-ignored"), "");
    let http = HttpSettings { strict: true, ..HttpSettings::default() };
    let strict = Server::start(Options { http, ..Options::default() }).await;
    let reply = strict.post(CHAT, body).await;
    assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("zip")));
    assert_eq!(strict.post(CHAT, hello()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_asked_for_everywhere_but_at_the_probes() {
    let http = HttpSettings { api_keys: vec!["secret".into()], ..HttpSettings::default() };
    let server = Server::start(Options { http, ..Options::default() }).await;
    for path in ["/v1/models", "/metrics", "/nowhere"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.error("code")), (401, json!("invalid_api_key")), "{path}");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
    }
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    let mut request = post(CHAT, hello().to_string());
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(server.send(request).await.status, StatusCode::OK);
}

#[tokio::test]
async fn foreign_hosts_and_origins_stay_out() {
    let with =
        |name: &'static str, value: &str| Request::get("/v1/models").header(name, value).body(Body::empty()).unwrap();
    let server = Server::new().await;
    let reply = server.send(with("host", "evil.example")).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (403, json!("host_not_allowed")));
    assert_eq!(server.send(with("host", "localhost:8080")).await.status, StatusCode::OK);
    let reply = server.send(with("origin", "https://app.example")).await;
    assert_eq!(reply.header("access-control-allow-origin"), "", "no CORS unless asked for");

    let origin = "https://app.example";
    let http =
        HttpSettings { cors_origins: vec![origin.into()], api_keys: vec!["secret".into()], ..HttpSettings::default() };
    let server = Server::start(Options { http, ..Options::default() }).await;
    let preflight = |origin: &str| {
        let request = Request::options(CHAT).header("origin", origin).header("access-control-request-method", "POST");
        request.body(Body::empty()).unwrap()
    };
    let reply = server.send(preflight(origin)).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (StatusCode::OK, origin));
    assert_eq!(server.send(preflight("https://evil.example")).await.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = Server::new().await;
    let request = Request::get("/health").header("x-request-id", "abc-1").body(Body::empty()).unwrap();
    assert_eq!(server.send(request).await.header("x-request-id"), "abc-1");
    assert_eq!(server.get("/nowhere").await.header("x-request-id").len(), 32);
}

#[tokio::test]
async fn a_server_without_a_model_says_when_to_come_back() {
    let state = AppState::new(HttpSettings::default(), HostGuard::Open);
    let router = router(state.clone());
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for request in [post(CHAT, hello().to_string()), post(TEXT, "{}"), get("/v1/models"), get("/v1/models/x")] {
        let reply = send(&router, request).await;
        assert_eq!((reply.status.as_u16(), reply.error("code")), (503, json!("service_unavailable")));
        assert_eq!(reply.header("retry-after"), "2");
    }
    let health = send(&router, get("/health")).await;
    assert_eq!((health.status.as_u16(), &health.json()["phase"]), (200, &json!("loading")));
    assert_eq!(send(&router, get("/version")).await.json()["version"], env!("CARGO_PKG_VERSION"));
    let ready = send(&router, get("/ready")).await;
    assert_eq!((ready.status.as_u16(), ready.header("retry-after")), (503, "2"));
    assert_eq!(send(&router, get("/metrics")).await.status, StatusCode::OK);
}
