//! Streamed replies.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::Server;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12,
        "stream": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The choices of all chunks with this index, in order.
fn choices(events: &[Value], index: usize) -> Vec<&Value> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).collect()
}

fn content(choices: &[&Value]) -> String {
    choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn chunks_come_in_order() {
    let server = Server::new().await;
    let reply = server.post(CHAT, chat(json!({}))).await;
    assert_eq!((reply.header("cache-control"), reply.header("x-accel-buffering")), ("no-cache", "no"));
    let events = reply.events();
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&events[0]["id"], &events[0]["created"]));
        assert_eq!(event["model"], "scripted");
        assert!(event.get("usage").is_none(), "nobody asked for usage");
    }
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (last, middle) = events[1..].split_last().unwrap();
    for event in middle {
        let choice = &event["choices"][0];
        assert_eq!(choice["finish_reason"], Value::Null);
        assert_eq!(choice["delta"].as_object().unwrap().keys().collect::<Vec<_>>(), ["content"]);
        assert!(event.get("leapfrog").is_none());
    }
    assert_eq!(last["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
    assert!(last["leapfrog"]["seed"].is_u64());
    assert_eq!(content(&choices(&events, 0)), ";<=>?@ABCDEF");
}

#[tokio::test]
async fn usage_comes_last_and_only_if_asked_for() {
    let server = Server::new().await;
    let events = server.post(CHAT, chat(json!({"stream_options": {"include_usage": true}}))).await.events();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = json!({"prompt_tokens": 19, "completion_tokens": 12, "total_tokens": 31,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(last["usage"], usage);
    assert_eq!(last["id"], chunks[0]["id"]);
    for chunk in chunks {
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
        assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
    }
    let events = server.post(CHAT, chat(json!({"stream_options": {"include_usage": false}}))).await.events();
    assert!(events.iter().all(|event| event.get("usage").is_none() && event["choices"] != json!([])));
}

#[tokio::test]
async fn each_choice_is_a_whole_message() {
    let server = Server::new().await;
    let events = server.post(CHAT, chat(json!({"n": 3}))).await.events();
    for index in 0..3 {
        let choices = choices(&events, index);
        assert_eq!(choices.iter().filter(|choice| choice["delta"].get("role").is_some()).count(), 1);
        assert_eq!(choices[0]["delta"]["role"], "assistant");
        assert_eq!(choices.iter().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
        assert_eq!(choices.last().unwrap()["finish_reason"], "length");
        assert_eq!(content(&choices), ";<=>?@ABCDEF");
    }
}

#[tokio::test]
async fn a_stop_string_is_never_streamed() {
    let server = Server::new().await;
    for stop in ["@A", ">?@", ";"] {
        let events = server.post(CHAT, chat(json!({"stop": stop, "max_tokens": 30}))).await.events();
        let choices = choices(&events, 0);
        assert_eq!(content(&choices), ";<=>?@AB".split(stop).next().unwrap());
        assert_eq!(choices.last().unwrap()["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn log_probabilities_have_an_entry_a_token() {
    let server = Server::new().await;
    let body = json!({"logprobs": true, "top_logprobs": 1, "decoding": {"strategy": "jacobi"}});
    let events = server.post(CHAT, chat(body)).await.events();
    let mut tokens = String::new();
    for choice in choices(&events, 0) {
        let Some(entries) = choice["logprobs"]["content"].as_array() else { continue };
        let chunk: String = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
        assert_eq!(choice["delta"]["content"], chunk);
        tokens.push_str(&chunk);
    }
    assert_eq!(tokens, ";<=>?@ABCDEF");
}

#[tokio::test]
async fn a_text_completion_streams_echo_text_and_end() {
    let server = Server::new().await;
    let body = |extra: Value| {
        let mut body = json!({"prompt": ["ab", "m"], "temperature": 0, "max_tokens": 4, "stream": true, "echo": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for extra in [json!({}), json!({"logprobs": 1})] {
        let events = server.post(TEXT, body(extra.clone())).await.events();
        for (index, whole) in [(0, "abcdef"), (1, "mnopq")] {
            let choices = choices(&events, index);
            let text: String = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
            assert_eq!(text, whole);
            let last = choices.last().unwrap();
            assert_eq!((&last["text"], &last["finish_reason"]), (&json!(""), &json!("length")));
            if extra["logprobs"] == 1 {
                let lists = choices.iter().filter_map(|choice| choice["logprobs"]["text_offset"].as_array()).flatten();
                let offsets: Vec<_> = lists.map(|offset| offset.as_u64().unwrap() as usize).collect();
                assert_eq!(offsets, (0..whole.len()).collect::<Vec<_>>());
            }
        }
    }
}

#[tokio::test]
async fn what_is_wrong_before_the_stream_is_a_plain_error() {
    let server = Server::new().await;
    let reply = server.post(CHAT, chat(json!({"temperature": 200}))).await;
    assert_eq!((reply.status, reply.error("param")), (StatusCode::BAD_REQUEST, json!("temperature")));
    assert_eq!(reply.header("content-type"), "application/json");
}
