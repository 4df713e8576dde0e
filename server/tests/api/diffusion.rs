//! Diffusion models: decoding options, frames, text that is filled in.

use std::collections::BTreeMap;

use engine::{TokenId, testing::Rule};
use serde_json::{Value, json};

use crate::support::Server;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const INFILL: &str = "/infill";

/// A model that wants the letters of the alphabet at positions 0, 1, ... wherever a slot is undecided.
async fn alphabet() -> Server {
    Server::diffusion(Rule::Table((0..512).map(|position| TokenId(97 + position % 26)).collect())).await
}

fn merge(mut base: Value, extra: Value) -> Value {
    base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    base
}

/// A greedy completion of eight tokens behind "ab".
fn text(extra: Value) -> Value {
    let decoding = json!({"policy": "quota", "steps": 4, "block_length": 8, "cache": "none"});
    merge(json!({"prompt": "ab", "temperature": 0, "max_tokens": 8, "decoding": decoding}), extra)
}

fn gap(extra: Value) -> Value {
    let decoding = json!({"policy": "quota", "steps": 4, "cache": "none"});
    let base = json!({"input_prefix": "ab", "input_suffix": "GH", "n_predict": 4, "temperature": 0});
    merge(merge(base, json!({ "decoding": decoding })), extra)
}

/// The data of an event stream that does not say `[DONE]`.
async fn events(server: &Server, body: Value) -> Vec<Value> {
    let reply = server.post(INFILL, body).await;
    assert_eq!(reply.status.as_u16(), 200, "{}", reply.text);
    let blocks = reply.text.split_terminator("\n\n").filter(|block| !block.starts_with(':'));
    blocks.map(|block| serde_json::from_str(block.strip_prefix("data: ").unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn a_reply_says_how_the_canvas_was_filled() {
    let server = alphabet().await;
    let reply = server.ok(TEXT, text(json!({}))).await;
    assert_eq!(reply["choices"][0]["text"], "cdefghij");
    assert_eq!(reply["usage"]["completion_tokens"], 8);
    let report = &reply["leapfrog"];
    assert_eq!((&report["strategy"], &report["policy"]), (&json!("diffusion"), &json!("quota")));
    assert_eq!((&report["cache"], &report["cache_exact"]), (&json!("none"), &json!(true)));
    assert_eq!((&report["denoising_steps"], &report["blocks"], &report["edits"]), (&json!(4), &json!(1), &json!(0)));
    assert_eq!(report["commits"], json!({"top": 8, "anchor": 0, "relaxed": 0}));
    let causal = Server::new().await.ok(TEXT, json!({"prompt": "a", "max_tokens": 2})).await;
    assert!(causal["leapfrog"].get("denoising_steps").is_none() && causal["leapfrog"].get("cache").is_none());
}

#[tokio::test]
async fn options_out_of_range_are_named() {
    let server = alphabet().await;
    for (decoding, param) in [
        (json!({"threshold": 2}), "decoding.threshold"),
        (json!({"relaxed_threshold": -1}), "decoding.relaxed_threshold"),
        (json!({"edit_threshold": 2}), "decoding.edit_threshold"),
        (json!({"steps": 0}), "decoding.steps"),
        (json!({"block_length": 0}), "decoding.block_length"),
    ] {
        let reply = server.post(TEXT, text(json!({"decoding": decoding}))).await;
        assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!(param)), "{decoding}: {}", reply.text);
    }
}

#[tokio::test]
async fn frames_add_up_to_the_text_and_change_nothing_else() {
    let server = alphabet().await;
    let options = json!({"include_frames": true, "frame_interval_ms": 0, "include_usage": true});
    let events = server.post(TEXT, text(json!({"stream": true, "stream_options": options}))).await.events();
    let (frames, rest): (Vec<_>, Vec<_>) = events.iter().partition(|event| !event["leapfrog"]["frame"].is_null());
    let mut canvas = BTreeMap::new();
    for event in &frames {
        assert_eq!(event["object"], "text_completion");
        assert_eq!(event["choices"], json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": null}]));
        let frame = &event["leapfrog"]["frame"];
        for pair in frame["text_fixed"].as_array().unwrap() {
            canvas.insert(pair[0].as_u64().unwrap(), pair[1].as_str().unwrap().to_owned());
        }
        assert_eq!(frame["tokens_fixed"].as_array().unwrap().len(), frame["text_fixed"].as_array().unwrap().len());
        assert_eq!(frame["masked"], 8 - canvas.len());
    }
    assert_eq!(frames.len(), 4, "one a step");
    assert_eq!(canvas.into_values().collect::<String>(), "cdefghij");
    let shown: String = rest.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(shown, "cdefghij");

    let plain = server.post(TEXT, text(json!({"stream": true}))).await.events();
    let plain: String = plain.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(plain, shown);
}

#[tokio::test]
async fn chat_frames_have_an_empty_delta() {
    let server = alphabet().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8,
        "stream": true, "stream_options": {"include_frames": true, "frame_interval_ms": 0}});
    let events = server.post(CHAT, body).await.events();
    let frames: Vec<_> = events.iter().filter(|event| !event["leapfrog"]["frame"].is_null()).collect();
    assert!(!frames.is_empty());
    for frame in frames {
        let choice = json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": null});
        assert_eq!(frame["choices"], json!([choice]));
    }
}

#[tokio::test]
async fn a_suffix_leaves_a_hole() {
    let server = alphabet().await;
    let body = json!({"prompt": ["ab", "x"], "suffix": "GH", "max_tokens": 4, "n": 2});
    let reply = server.ok(TEXT, text(body)).await;
    let texts: Vec<_> = reply["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["cdef", "cdef", "bcde", "bcde"]);
    assert_eq!((&reply["usage"]["prompt_tokens"], &reply["usage"]["completion_tokens"]), (&json!(7), &json!(16)));

    let echo = json!({"suffix": "GH", "max_tokens": 4, "echo": true});
    assert_eq!(server.ok(TEXT, text(echo.clone())).await["choices"][0]["text"], "abcdefGH");
    let events = server.post(TEXT, text(merge(echo, json!({"stream": true})))).await.events();
    let streamed: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, "abcdefGH");

    let without = server.ok(TEXT, text(json!({}))).await;
    assert_eq!(server.ok(TEXT, text(json!({"suffix": ""}))).await["choices"], without["choices"]);
}

#[tokio::test]
async fn a_prompt_cannot_be_scored() {
    let server = alphabet().await;
    let reply = server.post(TEXT, text(json!({"echo": true, "logprobs": 1}))).await;
    assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("echo")));
    assert_eq!(reply.error("code"), "unsupported_parameter");
    assert!(reply.error("message").as_str().unwrap().contains("conditional probabilities"));
}

#[tokio::test]
async fn infill_answers_in_llama_cpps_shape() {
    let server = alphabet().await;
    let mut reply = server.ok(INFILL, gap(json!({}))).await;
    let report = reply.as_object_mut().unwrap().shift_remove("leapfrog").unwrap();
    assert_eq!(report["strategy"], "diffusion");
    let expected = json!({"content": "cdef", "stop": true, "stop_type": "limit", "stopping_word": "",
        "tokens_predicted": 4, "tokens_evaluated": 4, "tokens_cached": 0, "model": "scripted"});
    assert_eq!(reply, expected);

    let stopped = server.ok(INFILL, gap(json!({"stop": ["e"]}))).await;
    assert_eq!((&stopped["content"], &stopped["stop_type"]), (&json!("cd"), &json!("word")));
    assert_eq!(stopped["stopping_word"], "e");

    let extra = json!({"input_extra": [{"filename": "f", "text": "1\n"}], "prompt": "23"});
    let reply = server.ok(INFILL, gap(extra)).await;
    assert_eq!((&reply["content"], &reply["tokens_evaluated"]), (&json!("ghij"), &json!(8)));

    let nothing = server.ok(INFILL, gap(json!({"n_predict": 0}))).await;
    assert_eq!((&nothing["content"], &nothing["tokens_predicted"]), (&json!(""), &json!(0)));
}

#[tokio::test]
async fn infill_streams_without_done() {
    let server = alphabet().await;
    let events = events(&server, gap(json!({"stream": true}))).await;
    let (last, pieces) = events.split_last().unwrap();
    for piece in pieces {
        assert_eq!(piece.as_object().unwrap().keys().collect::<Vec<_>>(), ["content", "stop"]);
        assert_eq!(piece["stop"], false);
    }
    let text: String = pieces.iter().map(|piece| piece["content"].as_str().unwrap()).collect();
    assert_eq!(text, "cdef");
    assert_eq!((&last["stop"], &last["content"], &last["stop_type"]), (&json!(true), &json!(""), &json!("limit")));
    assert_eq!((&last["tokens_predicted"], &last["model"]), (&json!(4), &json!("scripted")));
    assert!(last["leapfrog"]["denoising_steps"].is_u64());
}

#[tokio::test]
async fn several_holes_are_filled_at_once() {
    let server = alphabet().await;
    let input = json!([{"text": "ab"}, {"hole": 3}, {"text": "FG"}, {"mask": 2}, {"text": "J"}]);
    let body = json!({"input": input, "temperature": 0});
    let reply = server.ok(INFILL, body.clone()).await;
    assert_eq!((&reply["content"], &reply["holes"]), (&json!("abcdeFGhiJ"), &json!(["cde", "hi"])));
    assert_eq!((&reply["tokens_evaluated"], &reply["tokens_predicted"]), (&json!(5), &json!(5)));

    let events = events(&server, merge(body, json!({"stream": true}))).await;
    let mut holes = vec![String::new(); 2];
    let (last, pieces) = events.split_last().unwrap();
    for piece in pieces {
        holes[piece["hole"].as_u64().unwrap() as usize].push_str(piece["content"].as_str().unwrap());
    }
    assert_eq!((holes, &last["stop"]), (vec!["cde".to_owned(), "hi".to_owned()], &json!(true)));
}

#[tokio::test]
async fn a_first_hole_needs_something_before_it() {
    let server = alphabet().await;
    for (body, param) in [(json!({"input": [{"hole": 2}, {"text": "x"}]}), "input"), (json!({}), "input_prefix")] {
        let reply = server.post(INFILL, body).await;
        assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!(param)), "{}", reply.text);
        assert!(reply.error("message").as_str().unwrap().contains("before the first hole"), "{}", reply.text);
    }
}

#[tokio::test]
async fn infill_has_the_manners_of_the_other_routes() {
    let server = alphabet().await;
    let reply = server.post(INFILL, gap(json!({"zip": 1, "samplers": ["top_k"]}))).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-leapfrog-ignored")), (200, "zip,samplers"));
    let long = "x".repeat(5000);
    let reply = server.post(INFILL, gap(json!({ "input_prefix": long }))).await;
    assert_eq!((reply.error("code"), reply.error("param")), (json!("context_length_exceeded"), json!("input_prefix")));
    let reply = server.post(INFILL, gap(json!({"temperature": 200}))).await;
    assert_eq!((reply.status.as_u16(), reply.error("param")), (400, json!("temperature")));
}
