//! Whole replies.

use engine::testing::Rule;
use serde_json::{Value, json};
use server::settings::HttpSettings;

use crate::support::{Options, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    merge(json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 5}), extra)
}

fn text(prompt: Value, extra: Value) -> Value {
    merge(json!({"prompt": prompt, "temperature": 0, "max_tokens": 3}), extra)
}

fn merge(mut base: Value, extra: Value) -> Value {
    base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    base
}

#[tokio::test]
async fn a_chat_reply_has_every_field() {
    let server = Server::new().await;
    let mut reply = server.ok(CHAT, chat(json!({"seed": 9}))).await;
    let taken = |reply: &mut Value, name: &str| reply.as_object_mut().unwrap().shift_remove(name).unwrap();
    assert!(taken(&mut reply, "id").as_str().unwrap().starts_with("chatcmpl-"));
    assert!(taken(&mut reply, "created").as_u64().unwrap() > 1_600_000_000);
    let report = taken(&mut reply, "leapfrog");
    // The prompt is "user: hi\nassistant:", and what follows a colon in ASCII is known.
    let expected = json!({
        "object": "chat.completion",
        "model": "scripted",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": ";<=>?", "refusal": null},
            "logprobs": null,
            "finish_reason": "length",
        }],
        "usage": {"prompt_tokens": 19, "completion_tokens": 5, "total_tokens": 24,
            "prompt_tokens_details": {"cached_tokens": 0}},
    });
    assert_eq!(reply, expected);
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let known = [
        "strategy",
        "forward_passes",
        "tokens_per_forward",
        "acceptance_histogram",
        "prefill_ms",
        "decode_ms",
        "queue_ms",
        "seed",
    ];
    assert_eq!(keys, known);
    assert_eq!(report["seed"], 9);
    let histogram = report["acceptance_histogram"].as_array().unwrap();
    let tokens: u64 = histogram.iter().zip(1..).map(|(passes, accepted)| passes.as_u64().unwrap() * accepted).sum();
    assert_eq!(tokens, 5);
}

#[tokio::test]
async fn the_strategy_of_the_request_runs_and_does_not_change_the_text() {
    let server = Server::start(Options { rule: Rule::Hash { seed: 3 }, ..Options::default() }).await;
    let ar = server.ok(TEXT, text(json!("x"), json!({"max_tokens": 40, "decoding": {"strategy": "ar"}}))).await;
    let jacobi = json!({"max_tokens": 40, "decoding": {"strategy": "jacobi", "width": 6, "adaptive": false}});
    let jacobi = server.ok(TEXT, text(json!("x"), jacobi)).await;
    assert_eq!(ar["choices"], jacobi["choices"]);
    assert_eq!((&ar["leapfrog"]["strategy"], &jacobi["leapfrog"]["strategy"]), (&json!("ar"), &json!("jacobi")));
    assert_eq!(ar["leapfrog"]["tokens_per_forward"], 1.0);
}

#[tokio::test]
async fn stop_strings_are_cut_and_end_tokens_end() {
    let server = Server::new().await;
    for stop in [json!("de"), json!(["zz", "de"])] {
        let reply = server.ok(TEXT, text(json!("a"), json!({"max_tokens": 20, "stop": stop}))).await;
        let choice = &reply["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("bc"), &json!("stop")));
    }
    let reply = server.ok(TEXT, text(json!("a"), json!({"max_tokens": 20, "stop_token_ids": [100]}))).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    // 254, 255, then 256 is the end token.
    let reply = server.ok(TEXT, text(json!([253]), json!({"max_tokens": 20}))).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["usage"]["completion_tokens"], 3);
    let reply = server.ok(TEXT, text(json!([253]), json!({"max_tokens": 9, "ignore_eos": true}))).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_text_completion_takes_four_forms_of_prompt() {
    let server = Server::new().await;
    for (prompt, texts, prompt_tokens) in [
        (json!("a"), vec!["bcd"], 1),
        (json!(["a", "mm"]), vec!["bcd", "nop"], 3),
        (json!([97]), vec!["bcd"], 1),
        (json!([[97], [109, 109]]), vec!["bcd", "nop"], 3),
    ] {
        let reply = server.ok(TEXT, text(prompt.clone(), json!({}))).await;
        assert_eq!(reply["object"], "text_completion");
        assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
        let choices: Vec<_> = reply["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect();
        assert_eq!(choices, texts, "{prompt}");
        let generated = 3 * texts.len();
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated, "prompt_tokens_details": {"cached_tokens": 0}});
        assert_eq!(reply["usage"], usage, "{prompt}");
    }
}

#[tokio::test]
async fn choices_are_in_the_order_of_the_prompts() {
    let server = Server::new().await;
    let reply = server.ok(TEXT, text(json!(["a", "m"]), json!({"n": 2}))).await;
    let choices = reply["choices"].as_array().unwrap();
    let order: Vec<_> = choices.iter().map(|choice| (choice["index"].as_u64().unwrap(), &choice["text"])).collect();
    assert_eq!(order, [(0, &json!("bcd")), (1, &json!("bcd")), (2, &json!("nop")), (3, &json!("nop"))]);
    // A prompt is read once however many choices continue it.
    assert_eq!((&reply["usage"]["prompt_tokens"], &reply["usage"]["completion_tokens"]), (&json!(2), &json!(12)));
    assert_eq!(reply["leapfrog"].as_array().unwrap().len(), 4, "one report a choice");
}

#[tokio::test]
async fn a_completion_without_a_number_has_sixteen_tokens() {
    let server = Server::new().await;
    let reply = server.ok(TEXT, json!({"prompt": "!", "temperature": 0})).await;
    assert_eq!(reply["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn an_echo_with_log_probabilities_scores_the_prompt() {
    let server = Server::new().await;
    for (max_tokens, echoed) in [(0, "abc"), (1, "abcd")] {
        let body = json!({"echo": true, "logprobs": 2, "max_tokens": max_tokens});
        let reply = server.ok(TEXT, text(json!([[97, 98, 99]]), body)).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["text"], echoed);
        let logprobs = &choice["logprobs"];
        let tokens: Vec<String> = echoed.chars().map(String::from).collect();
        assert_eq!(logprobs["tokens"], json!(tokens));
        let offsets: Vec<usize> = (0..echoed.len()).collect();
        assert_eq!(logprobs["text_offset"], json!(offsets));
        assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        for (index, token) in tokens.iter().enumerate().skip(1) {
            let logprob = logprobs["token_logprobs"][index].as_f64().unwrap();
            assert!(logprob <= 0.0, "{logprob}");
            let top = logprobs["top_logprobs"][index].as_object().unwrap();
            assert_eq!(top[token].as_f64(), Some(logprob), "the chosen token is among the likeliest");
            // The model follows the alphabet, so what is there is also what it would have said.
            assert_eq!(top.keys().next(), Some(token));
        }
    }
}

#[tokio::test]
async fn offsets_count_characters() {
    let server = Server::new().await;
    let body = json!({"echo": true, "logprobs": 0, "max_tokens": 1});
    let reply = server.ok(TEXT, text(json!("éa"), body)).await;
    let logprobs = &reply["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["bytes:\\xc3", "bytes:\\xa9", "a", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
}

#[tokio::test]
async fn chat_log_probabilities_have_an_entry_a_token() {
    let server = Server::new().await;
    let reply = server.ok(CHAT, chat(json!({"logprobs": true, "top_logprobs": 2}))).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, ";<=>?");
    for entry in content {
        assert_eq!(entry["bytes"], json!(entry["token"].as_str().unwrap().as_bytes()));
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy takes the likeliest");
    }
    let reply = server.ok(CHAT, chat(json!({"logprobs": true}))).await;
    assert_eq!(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn a_seed_repeats_a_text() {
    let server = Server::start(Options { rule: Rule::Hash { seed: 1 }, ..Options::default() }).await;
    let body = |seed: Value| text(json!("x"), json!({"max_tokens": 30, "temperature": 60, "seed": seed, "n": 2}));
    let first = server.ok(TEXT, body(json!(5))).await;
    assert_eq!(first["choices"], server.ok(TEXT, body(json!(5))).await["choices"]);
    assert_ne!(first["choices"], server.ok(TEXT, body(json!(6))).await["choices"]);
    assert_ne!(first["choices"][0]["text"], first["choices"][1]["text"], "choices of one seed differ");
    let unseeded = server.ok(TEXT, body(json!(null))).await;
    let seed = unseeded["leapfrog"][0]["seed"].clone();
    assert_eq!(unseeded["choices"], server.ok(TEXT, body(seed)).await["choices"], "the reply says the seed");
}

#[tokio::test]
async fn models_have_names_with_slashes() {
    let http = HttpSettings { model_names: vec!["org/frog".into()], ..HttpSettings::default() };
    let server = Server::start(Options { http, ..Options::default() }).await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec![json!("org/frog"), json!("scripted")]));
    for path in ["/v1/models/org/frog", "/v1/models/org%2Ffrog"] {
        let model = server.get(path).await.json();
        assert_eq!((&model["id"], &model["object"]), (&json!("org/frog"), &json!("model")), "{path}");
        assert!(model["created"].is_u64() && model["owned_by"].is_string());
    }
    let missing = server.get("/v1/models/org/toad").await;
    assert_eq!((missing.status.as_u16(), missing.error("code")), (404, json!("model_not_found")));
    for (model, name) in [(json!("org/frog"), "org/frog"), (json!("scripted"), "scripted"), (json!(null), "org/frog")] {
        assert_eq!(server.ok(CHAT, chat(json!({"model": model}))).await["model"], name);
    }
}

#[tokio::test]
async fn tokens_go_both_ways() {
    let server = Server::new().await;
    let tokens = json!({"tokens": [104, 195, 169], "count": 3});
    assert_eq!(server.ok("/tokenize", json!({"content": "hé"})).await, tokens);
    assert_eq!(server.ok("/tokenize", json!({"prompt": "hé", "add_special": true})).await, tokens);
    assert_eq!(server.ok("/detokenize", json!({"tokens": [104, 195, 169]})).await, json!({"content": "hé"}));
}

#[tokio::test]
async fn metrics_name_routes_not_paths() {
    let server = Server::new().await;
    server.ok(CHAT, chat(json!({}))).await;
    server.get("/v1/models/no/such").await;
    server.get("/made/up").await;
    let text = server.get("/metrics").await.text;
    for line in [
        r#"leapfrog_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 1"#,
        r#"leapfrog_http_requests_total{method="GET",route="/v1/models/{*id}",status="404"} 1"#,
        r#"leapfrog_http_requests_total{method="GET",route="none",status="404"} 1"#,
        "leapfrog_http_requests_in_flight 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("leapfrog_tokens_total") && !text.contains("made/up"), "{text}");
}
