//! The HTTP side: one streamed chat at a time, and the routes of energy.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::{RequestBuilder, header};
use serde_json::{Value, json};

use super::wire::{Energy, EnergyState};
use crate::client::{Connection, Reuse, plain, shown};

/// Most bytes of one reply; more is garbage.
const MOST_BYTES: usize = 32 << 20;
/// Longest wait for the final figure of a request, and the pause between two looks.
const SETTLE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
/// Evaluations of one call.
const POSTED_AT_ONCE: usize = 500;

/// A server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    connection: Connection,
    timeout: Duration,
}

/// What came back for a query.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) prompt_tokens: Option<u64>,
    pub(super) completion_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    /// The energy, or why it is unknown.
    pub(super) energy: Option<Result<Energy, String>>,
    /// Passes and tokens for each pass, as the server reports them.
    pub(super) decoding: Option<Value>,
    /// From the request to the first text, in seconds.
    pub(super) ttft: Option<f64>,
    /// From the request to the last byte, in seconds.
    pub(super) seconds: f64,
    /// Between one event with text and the next, in seconds.
    pub(super) gaps: Vec<f64>,
}

/// A score to be told to the server.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Evaluation {
    pub(super) request_id: String,
    pub(super) dataset: String,
    pub(super) score: Option<f64>,
}

impl Client {
    /// `url` is that of the server, with or without `/v1`.
    pub(super) fn new(url: &str, api_key: Option<&str>, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self { connection: Connection::open(url, api_key, Reuse::Always)?, timeout })
    }

    /// Whether the server runs on this machine, so that facts about this machine are facts about it.
    pub(super) fn is_local(&self) -> bool {
        self.connection.is_local()
    }

    /// Address of the API.
    pub(super) fn api(&self) -> String {
        format!("{}/v1", self.connection.base)
    }

    /// The models, as the server describes them.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<Value>> {
        self.connection.models().await
    }

    fn post_to(&self, path: &str) -> RequestBuilder {
        self.connection.http.post(format!("{}{path}", self.connection.base))
    }

    /// The state of the meters, or why there is none.
    pub(super) async fn energy(&self) -> Result<EnergyState, String> {
        let (status, body) = self.connection.get("/v1/energy").await.map_err(|error| format!("{error:#}"))?;
        if !status.is_success() {
            return Err(format!("GET /v1/energy: {status}"));
        }
        let unreadable = |error: serde_json::Error| format!("GET /v1/energy: {error}");
        let raw: Value = serde_json::from_str(&body).map_err(unreadable)?;
        let state = EnergyState::deserialize_from(&raw).map_err(unreadable)?;
        Ok(EnergyState { raw, ..state })
    }

    /// The final figures of a request, waited for a while.
    pub(super) async fn settled(&self, id: &str) -> Result<Energy, String> {
        let began = Instant::now();
        loop {
            let path = format!("/v1/energy/requests/{id}");
            let (status, body) = self.connection.get(&path).await.map_err(|error| format!("{error:#}"))?;
            if !status.is_success() {
                return Err(format!("not final; GET /v1/energy/requests: {status}"));
            }
            let energy: Energy = serde_json::from_str(&body).map_err(|error| format!("unreadable: {error}"))?;
            if energy.is_final != Some(false) || began.elapsed() > SETTLE {
                return Ok(energy);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Tells the server the scores; how many it was told.
    pub(super) async fn post(&self, evaluations: &[Evaluation]) -> anyhow::Result<usize> {
        for some in evaluations.chunks(POSTED_AT_ONCE) {
            let item = |evaluation: &Evaluation| json!({"request_id": evaluation.request_id, "dataset": evaluation.dataset, "score": evaluation.score});
            let body = json!({"items": some.iter().map(item).collect::<Vec<_>>()});
            let request = self.post_to("/v1/energy/evaluations").timeout(self.timeout);
            let response = request.json(&body).send().await.map_err(plain)?;
            let status = response.status();
            if !status.is_success() {
                bail!("POST /v1/energy/evaluations: {status}: {}", shown(&response.text().await.unwrap_or_default()));
            }
        }
        Ok(evaluations.len())
    }

    /// One short answer, not measured: whether the server takes the request, and what it says of the decoding.
    pub(super) async fn probe(&self, mut body: Value) -> anyhow::Result<Result<Option<Value>, String>> {
        body["max_tokens"] = json!(1);
        body["stream"] = json!(false);
        let request = self.post_to("/v1/chat/completions").timeout(self.timeout);
        let response = request.json(&body).send().await.map_err(plain)?;
        let status = response.status();
        let text = response.text().await.map_err(plain)?;
        if status.is_client_error() {
            return Ok(Err(format!("{status}: {}", shown(&text))));
        }
        ensure!(status.is_success(), "POST /v1/chat/completions: {status}: {}", shown(&text));
        let reply: Value = serde_json::from_str(&text).with_context(|| shown(&text))?;
        Ok(Ok(reply.get("leapfrog").cloned()))
    }

    /// Asks and reads the stream to its end.
    pub(super) async fn chat(&self, body: &Value) -> anyhow::Result<Reply> {
        let began = Instant::now();
        let asked = self.ask(body, began);
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(reply) => reply,
            Err(_) => bail!("no whole answer within {} s", self.timeout.as_secs_f64()),
        }
    }

    async fn ask(&self, body: &Value, began: Instant) -> anyhow::Result<Reply> {
        let request = self.post_to("/v1/chat/completions").json(body);
        let mut response = request.send().await.map_err(plain)?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", shown(&response.text().await.map_err(plain)?));
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        ensure!(kind.starts_with("text/event-stream"), "the answer is no event stream but `{kind}`");
        let (mut events, mut pending, mut bytes) = (Events::default(), Vec::new(), 0);
        while let Some(piece) = response.chunk().await.map_err(plain)? {
            let at = began.elapsed().as_secs_f64();
            bytes += piece.len();
            ensure!(bytes <= MOST_BYTES, "the answer is longer than {MOST_BYTES} bytes");
            pending.extend_from_slice(&piece);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                events.line(std::str::from_utf8(&line).context("the answer is not UTF-8")?.trim_end(), at)?;
            }
        }
        ensure!(events.done, "the connection ended in the middle of the answer");
        ensure!(!events.reply.id.is_empty(), "the answer has no id");
        Ok(events.reply)
    }
}

impl EnergyState {
    fn deserialize_from(raw: &Value) -> Result<Self, serde_json::Error> {
        serde::Deserialize::deserialize(raw)
    }
}

/// A stream as far as it was read.
#[derive(Debug, Default)]
struct Events {
    reply: Reply,
    last: Option<f64>,
    done: bool,
}

impl Events {
    fn line(&mut self, line: &str, at: f64) -> anyhow::Result<()> {
        let Some(data) = line.strip_prefix("data:").map(str::trim) else {
            ensure!(
                line.is_empty() || line.starts_with(':') || line.starts_with("event:") || line.starts_with("id:"),
                "not a line of an event stream: {}",
                shown(line)
            );
            return Ok(());
        };
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value =
            serde_json::from_str(data).with_context(|| format!("an event is not JSON: {}", shown(data)))?;
        if let Some(error) = chunk.get("error") {
            bail!("the server ended the answer: {}", shown(&error.to_string()));
        }
        let reply = &mut self.reply;
        if let Some(id) = chunk.get("id").and_then(Value::as_str) {
            reply.id = id.to_owned();
        }
        if let Some(choice) = chunk.pointer("/choices/0") {
            // The usage that follows may wait for a sensor, and that is no part of the answer.
            reply.seconds = at;
            let text = choice.pointer("/delta/content").and_then(Value::as_str).unwrap_or_default();
            if !text.is_empty() {
                reply.text.push_str(text);
                reply.ttft.get_or_insert(at);
                if let Some(last) = self.last.replace(at) {
                    reply.gaps.push(at - last);
                }
            }
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
                reply.finish_reason = Some(reason.to_owned());
            }
        }
        if let Some(decoding) = chunk.get("leapfrog").filter(|object| object.get("frame").is_none()) {
            reply.decoding = Some(decoding.clone());
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
            reply.prompt_tokens = count("/prompt_tokens");
            reply.completion_tokens = count("/completion_tokens");
            reply.cached_tokens = count("/prompt_tokens_details/cached_tokens");
            reply.energy = usage
                .get("energy")
                .filter(|energy| !energy.is_null())
                .map(|energy| serde_json::from_value(energy.clone()).map_err(|error| format!("unreadable: {error}")));
        }
        Ok(())
    }
}
