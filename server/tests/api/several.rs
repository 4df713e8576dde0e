//! Several models in one server.

use engine::{
    AttentionKind, LoadedModel,
    testing::{BYTE_VOCAB, Rule, Scripted, model},
};
use serde_json::{Value, json};
use server::settings::HttpSettings;

use crate::support::Server;

const TEXT: &str = "/v1/completions";

/// `abc` continues the alphabet, `org/canvas` writes `z` into every slot.
fn two() -> Vec<LoadedModel> {
    let mut abc = model(Scripted::causal(Rule::Successor, BYTE_VOCAB, 512)).unwrap();
    abc.id = "abc".into();
    let z = Rule::Table(vec![engine::TokenId(u32::from(b'z')); 1024]);
    let mut canvas = model(Scripted::diffusion(z, BYTE_VOCAB, 1024, AttentionKind::Full)).unwrap();
    canvas.id = "org/canvas".into();
    canvas.generation.temperature = Some(0.5);
    vec![abc, canvas]
}

async fn server() -> Server {
    Server::with_models(two, HttpSettings::default()).await
}

fn text(model: &Value) -> Value {
    json!({"model": model, "prompt": "ab", "temperature": 0, "max_tokens": 3})
}

#[tokio::test]
async fn a_request_runs_on_the_model_that_it_names() {
    let server = server().await;
    for (asked, name, expected) in
        [(json!("abc"), "abc", "cde"), (json!("org/canvas"), "org/canvas", "zzz"), (json!(null), "abc", "cde")]
    {
        let reply = server.ok(TEXT, text(&asked)).await;
        assert_eq!((&reply["model"], &reply["choices"][0]["text"]), (&json!(name), &json!(expected)), "{asked}");
        let mut body = text(&asked);
        body["stream"] = json!(true);
        let events = server.post(TEXT, body).await.events();
        let streamed: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!((&events[0]["model"], streamed.as_str()), (&json!(name), expected), "{asked}");
    }
    let chat = json!({"model": "org/canvas", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0});
    assert_eq!(server.ok("/v1/chat/completions", chat).await["choices"][0]["message"]["content"], "zz");
}

#[tokio::test]
async fn what_a_model_can_do_is_its_own() {
    let server = server().await;
    let infill = |model: &str| json!({"model": model, "input_prefix": "a", "input_suffix": "b", "n_predict": 2, "temperature": 0});
    assert_eq!(server.ok("/infill", infill("org/canvas")).await["content"], "zz");
    let refused = server.post("/infill", infill("abc")).await;
    assert_eq!((refused.status.as_u16(), refused.error("code")), (400, json!("unsupported_parameter")));
    let prompt = |model: &str| json!({"model": model, "prompt": "a".repeat(600), "max_tokens": 1});
    assert_eq!(server.post(TEXT, prompt("abc")).await.error("code"), "context_length_exceeded");
    server.ok(TEXT, prompt("org/canvas")).await;
    server.ok("/tokenize", json!({"model": "org/canvas", "content": "a"})).await;
    for (path, body) in [
        (TEXT, text(&json!("gpt-4"))),
        ("/infill", infill("gpt-4")),
        ("/tokenize", json!({"model": "gpt-4", "content": "a"})),
        ("/detokenize", json!({"model": "gpt-4", "tokens": [1]})),
    ] {
        let reply = server.post(path, body).await;
        assert_eq!((reply.status.as_u16(), reply.error("code")), (404, json!("model_not_found")), "{path}");
        let message = reply.error("message").as_str().unwrap().to_owned();
        assert!(message.ends_with("this server has abc, org/canvas"), "{message}");
    }
}

#[tokio::test]
async fn all_models_are_listed_with_what_is_their_own() {
    let server = server().await;
    let list = server.get("/v1/models").await.json();
    let listed: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| (&m["id"], &m["max_model_len"])).collect();
    assert_eq!(listed, [(&json!("abc"), &json!(512)), (&json!("org/canvas"), &json!(1024))]);
    for (id, context) in [("abc", 512), ("org/canvas", 1024)] {
        let one = server.get(&format!("/v1/models/{id}")).await.json();
        assert_eq!((&one["id"], &one["max_model_len"]), (&json!(id), &json!(context)));
    }
}

#[tokio::test]
async fn further_names_are_those_of_the_first() {
    let http = HttpSettings { model_names: vec!["gpt".into()], ..HttpSettings::default() };
    let server = Server::with_models(two, http).await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["gpt", "abc", "org/canvas"]);
    assert_eq!(server.ok(TEXT, text(&json!("gpt"))).await["choices"][0]["text"], "cde");
}

#[tokio::test]
async fn metrics_are_told_apart_by_model() {
    let server = server().await;
    server.ok(TEXT, text(&json!("abc"))).await;
    for _ in 0..2 {
        server.ok(TEXT, text(&json!("org/canvas"))).await;
    }
    let page = server.get("/metrics").await.text;
    for line in [
        r#"leapfrog_tokens_total{model="abc",kind="completion"} 3"#,
        r#"leapfrog_tokens_total{model="org/canvas",kind="completion"} 6"#,
        r#"leapfrog_requests_total{model="org/canvas",outcome="length",strategy="diffusion"} 2"#,
        r#"leapfrog_requests_running{model="abc"} 0"#,
    ] {
        assert!(page.lines().any(|there| there == line), "{line}\n{page}");
    }
    let descriptions: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let mut once = descriptions.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), descriptions.len(), "a name is described once");
}
