//! Who is told what a request cost, without a sensor in sight.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use server::{args::EnergyUsage, settings::HttpSettings};

use crate::support::{Options, Reply, Server, post};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 5, "seed": 1});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

async fn serve(http: HttpSettings) -> Server {
    Server::start(Options { http, ..Options::default() }).await
}

async fn with_usage(energy_usage: EnergyUsage) -> Server {
    serve(HttpSettings { energy_usage, ..HttpSettings::default() }).await
}

/// Sends with headers, each `name: value`.
async fn send(server: &Server, path: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let mut request = post(path, body.to_string());
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    server.send(request).await
}

async fn get(server: &Server, path: &str, key: &str) -> Reply {
    server.send(Request::get(path).header("authorization", format!("Bearer {key}")).body(Body::empty()).unwrap()).await
}

/// A reply as it would be sent, without what differs from call to call.
fn fixed(text: &str) -> String {
    let mut value: Value = serde_json::from_str(text).unwrap();
    for key in ["id", "created"] {
        value[key] = Value::Null;
    }
    for key in ["prefill_ms", "decode_ms", "queue_ms"] {
        if value.get("leapfrog").is_some_and(Value::is_object) {
            value["leapfrog"][key] = Value::Null;
        }
    }
    value.to_string()
}

#[tokio::test]
async fn without_sensors_the_object_has_all_keys_and_no_numbers() {
    let server = Server::new().await;
    let reply = server.ok(CHAT, chat(json!({"energy": true}))).await;
    let energy = &reply["usage"]["energy"];
    let expected = [
        "version",
        "status",
        "reason",
        "final",
        "basis",
        "energy_joules",
        "prefill_joules",
        "decode_joules",
        "net_joules",
        "window_joules",
        "power_watts",
        "idle_power_watts",
        "joules_per_output_token",
        "joules_per_prompt_token",
        "tokens_per_joule",
        "domains",
        "attribution",
        "coverage",
        "resolution_limited",
        "exclusive",
        "timing",
    ];
    assert_eq!(keys(energy), expected);
    assert_eq!((&energy["status"], &energy["reason"]), (&json!("unavailable"), &json!("disabled")));
    assert!(expected[5..15].iter().all(|key| energy[key].is_null()), "{energy}");
    let timing = ["queue_seconds", "prefill_seconds", "decode_seconds", "ttft_seconds", "active_seconds"];
    assert_eq!(keys(&energy["timing"]), timing);
    assert!(timing.iter().all(|key| energy["timing"][key].as_f64().is_some_and(|seconds| seconds >= 0.0)), "{energy}");

    let id = reply["id"].as_str().unwrap();
    assert_eq!(&server.get(&format!("/v1/energy/requests/{id}")).await.json(), energy);
    let state = server.get("/v1/energy").await.json();
    assert_eq!((&state["version"], &state["reason"]), (&json!(1), &json!("disabled")));
    assert!(state["accounts"].as_object().unwrap().values().all(Value::is_null), "{state}");
    let page = server.get("/metrics").await.text;
    assert!(!page.contains("joules"), "nothing is measured: {page}");
    assert!(page.contains("leapfrog_time_to_first_token_seconds_count{model=\"scripted\"} 1"), "{page}");
}

#[tokio::test]
async fn only_who_asks_is_told() {
    let server = Server::new().await;
    let told = |reply: &Reply| reply.json()["usage"].get("energy").is_some();
    for (body, headers, expected) in [
        (json!({}), &[][..], false),
        (json!({"energy": false}), &[], false),
        (json!({"energy": null}), &[], false),
        (json!({"energy": true}), &[], true),
        (json!({}), &[("x-energy", "1")], true),
        (json!({}), &[("x-energy", "0")], false),
        (json!({"energy": false}), &[("x-energy", "1")], true),
    ] {
        for path in [CHAT, TEXT] {
            let mut body = chat(body.clone());
            body["prompt"] = "a".into();
            let reply = send(&server, path, &body, headers).await;
            assert_eq!((reply.status.as_u16(), told(&reply)), (200, expected), "{path} {body} {headers:?}");
            assert!(!reply.header("x-leapfrog-ignored").contains("energy"));
        }
    }
    for bad in [json!("yes"), json!(1), json!({})] {
        let reply = server.post(CHAT, chat(json!({"energy": bad}))).await;
        assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("energy")));
        assert_eq!(reply.error("code"), "invalid_type");
    }
    let reply = send(&server, CHAT, &chat(json!({})), &[("x-energy", "yes")]).await;
    assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("x-energy")));
}

#[tokio::test]
async fn without_asking_nothing_changes() {
    let (off, opt_in) = (with_usage(EnergyUsage::Off).await, Server::new().await);
    for path in [CHAT, TEXT] {
        let mut body = chat(json!({}));
        body["prompt"] = "a".into();
        let (left, right) = (off.post(path, body.clone()).await, opt_in.post(path, body.clone()).await);
        assert_eq!(fixed(&left.text), fixed(&right.text));
        body["stream"] = true.into();
        let (left, right) = (off.post(path, body.clone()).await.events(), opt_in.post(path, body).await.events());
        let all = |events: &[Value]| events.iter().map(|event| fixed(&event.to_string())).collect::<Vec<_>>();
        assert_eq!(all(&left), all(&right));
        assert!(!right.iter().any(|event| event.to_string().contains("energy")));
    }
    // With `off` nobody is told, with `on` everybody.
    let reply = off.ok(CHAT, chat(json!({"energy": true}))).await;
    assert!(reply["usage"].get("energy").is_none());
    let path = format!("/v1/energy/requests/{}", reply["id"].as_str().unwrap());
    let refused = off.get(&path).await;
    assert_eq!((refused.status.as_u16(), refused.error("code")), (403, json!("energy_usage_off")));
    let on = with_usage(EnergyUsage::On).await;
    assert!(on.ok(CHAT, chat(json!({"energy": false}))).await["usage"]["energy"].is_object());
}

#[tokio::test]
async fn a_stream_tells_it_in_the_usage_chunk() {
    let server = Server::new().await;
    let stream = |extra: Value| {
        let mut body = chat(json!({"stream": true, "energy": true}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for extra in [json!({}), json!({"stream_options": {"include_usage": true}}), json!({"n": 3})] {
        let events = server.post(CHAT, stream(extra)).await.events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["energy"]["status"], "unavailable");
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && !chunk.to_string().contains("joules")));
        assert!(!chunks.iter().rev().any(|chunk| chunk["choices"] == json!([])), "one chunk of usage");
        let id = last["id"].as_str().unwrap();
        assert_eq!(&server.get(&format!("/v1/energy/requests/{id}")).await.json(), &last["usage"]["energy"]);
    }
}

#[tokio::test]
async fn infilling_tells_it_at_the_top() {
    let server = Server::diffusion(engine::testing::Rule::Successor).await;
    let body = json!({"input_prefix": "a", "input_suffix": "e", "n_predict": 3, "temperature": 0});
    let plain = server.ok("/infill", body.clone()).await;
    assert!(plain.get("energy").is_none() && plain.get("id").is_none());
    let mut body = body;
    body["energy"] = true.into();
    let whole = server.ok("/infill", body.clone()).await;
    assert_eq!(whole["energy"]["version"], 1);
    let path = format!("/v1/energy/requests/{}", whole["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), whole["energy"]);
    body["stream"] = true.into();
    let reply = server.post("/infill", body).await;
    let events: Vec<Value> = reply
        .text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let (last, pieces) = events.split_last().unwrap();
    assert_eq!((&last["stop"], &last["energy"]["version"]), (&json!(true), &json!(1)), "{last}");
    assert!(pieces.iter().all(|piece| piece["stop"] == false && piece.get("energy").is_none()));
}

#[tokio::test]
async fn a_call_is_known_to_the_key_that_made_it() {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let http =
        HttpSettings { api_keys: list(&["alice", "bob"]), admin_keys: list(&["root"]), ..HttpSettings::default() };
    let server = serve(http).await;
    let reply = send(&server, CHAT, &chat(json!({})), &[("authorization", "Bearer alice")]).await;
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/energy/requests/{id}");
    for (key, status) in [("alice", 200), ("root", 200), ("bob", 404), ("eve", 401)] {
        assert_eq!(get(&server, &path, key).await.status.as_u16(), status, "{key}");
    }
    assert_eq!(server.get("/v1/energy").await.status.as_u16(), 401);
    assert_eq!(get(&server, "/v1/energy", "bob").await.status.as_u16(), 200);
    let unknown = get(&server, "/v1/energy/requests/chatcmpl-0", "alice").await;
    assert_eq!((unknown.status.as_u16(), unknown.error("code")), (404, json!("request_not_found")));
    assert!(unknown.error("message").as_str().unwrap().contains("`chatcmpl-0`"));

    let items = json!({"items": [{"request_id": id, "dataset": "d", "score": 1}]});
    for (key, status) in [("alice", 403), ("bob", 403), ("root", 200)] {
        let reply =
            send(&server, "/v1/energy/evaluations", &items, &[("authorization", &format!("Bearer {key}"))]).await;
        assert_eq!(reply.status.as_u16(), status, "{key}: {}", reply.text);
    }
}

#[tokio::test]
async fn an_admin_key_alone_guards_only_what_needs_it() {
    let http = HttpSettings { admin_keys: vec!["root".into()], ..HttpSettings::default() };
    let server = serve(http).await;
    let reply = server.ok(CHAT, chat(json!({}))).await;
    let items = json!({"items": [{"request_id": reply["id"], "dataset": "d", "score": null}]});
    let refused = server.post("/v1/energy/evaluations", items.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.error("code")), (403, json!("admin_key_needed")));
    let reply = send(&server, "/v1/energy/evaluations", &items, &[("authorization", "Bearer root")]).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({"version": 1, "accepted": 1})));
}

#[tokio::test]
async fn judgements_of_unknown_calls_are_refused_by_name() {
    let server = Server::new().await;
    let known = server.ok(CHAT, chat(json!({}))).await["id"].clone();
    let item = |id: &Value, score: f64| json!({"request_id": id, "dataset": "d", "score": score});
    let items = json!({"items": [item(&known, 1.0), item(&json!("nope"), 1.0)]});
    let reply = server.post("/v1/energy/evaluations", items).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (404, json!("request_not_found")));
    let message = reply.error("message").as_str().unwrap().to_owned();
    assert!(message.contains("`nope`") && !message.contains(known.as_str().unwrap()), "{message}");
    let reply = server.post("/v1/energy/evaluations", json!({"items": [item(&known, 1.5)]})).await;
    assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("items[0].score")));
    let http = HttpSettings { max_body: 1000, ..HttpSettings::default() };
    let large = json!({"items": vec![item(&known, 1.0); 100]});
    let reply = serve(http).await.post("/v1/energy/evaluations", large).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (413, json!("body_too_large")));
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = Server::new().await;
    server.ok(CHAT, chat(json!({}))).await;
    let page = async |accept: &str| {
        server.send(Request::get("/metrics").header("accept", accept).body(Body::empty()).unwrap()).await
    };
    let open = page("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text.ends_with("# EOF\n") && open.text.contains("# TYPE leapfrog_http_requests counter"));
    let classic = page("text/plain").await;
    assert_eq!(classic.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(classic.text.contains("# TYPE leapfrog_http_requests_total counter") && !classic.text.contains("# EOF"));
}
