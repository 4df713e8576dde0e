//! The HTTP side: one streamed chat at a time, and the routes of energy.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::{Client as Http, StatusCode, header};
use serde_json::{Value, json};

use super::wire::{Energy, EnergyState};

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
    http: Http,
    base: String,
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
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        ensure!(
            !base.starts_with("https://"),
            "https is not built into this program; give the http address of the server"
        );
        ensure!(base.starts_with("http://"), "`{url}` is not an address like http://127.0.0.1:8080");
        let mut headers = header::HeaderMap::new();
        if let Some(key) = api_key {
            let mut value =
                header::HeaderValue::from_str(&format!("Bearer {key}")).context("the API key has odd bytes")?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let mut builder = Http::builder().default_headers(headers).connect_timeout(Duration::from_secs(10));
        let client = Self { http: Http::new(), base, timeout };
        if client.is_local() {
            builder = builder.no_proxy();
        }
        Ok(Self { http: builder.build()?, ..client })
    }

    /// Whether the server runs on this machine, so that facts about this machine are facts about it.
    pub(super) fn is_local(&self) -> bool {
        let host = self.base.trim_start_matches("http://");
        ["127.", "localhost", "[::1]"].iter().any(|name| host.starts_with(name))
    }

    /// Address of the API.
    pub(super) fn api(&self) -> String {
        format!("{}/v1", self.base)
    }

    async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let request = self.http.get(format!("{}{path}", self.base)).timeout(self.timeout.min(Duration::from_secs(30)));
        let response = request.send().await.map_err(plain)?;
        let status = response.status();
        Ok((status, response.text().await.map_err(plain)?))
    }

    /// The models, as the server describes them.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<Value>> {
        let (status, body) = self.get("/v1/models").await.context("GET /v1/models")?;
        ensure!(status.is_success(), "GET /v1/models: {status}: {}", shown(&body));
        let list: Value = serde_json::from_str(&body).with_context(|| format!("GET /v1/models: {}", shown(&body)))?;
        let data = list.get("data").and_then(Value::as_array).context("GET /v1/models: no list `data`")?;
        ensure!(!data.is_empty(), "the server has no models");
        Ok(data.clone())
    }

    /// The state of the meters, or why there is none.
    pub(super) async fn energy(&self) -> Result<EnergyState, String> {
        let (status, body) = self.get("/v1/energy").await.map_err(|error| format!("GET /v1/energy: {error:#}"))?;
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
            let (status, body) = self.get(&path).await.map_err(|error| format!("GET {path}: {error:#}"))?;
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
            let request = self.http.post(format!("{}/v1/energy/evaluations", self.base)).timeout(self.timeout);
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
        let request = self.http.post(format!("{}/v1/chat/completions", self.base)).timeout(self.timeout);
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
        let request = self.http.post(format!("{}/v1/chat/completions", self.base)).json(body);
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

/// An error of the client with what caused it, without the address, which may hold a name.
fn plain(error: reqwest::Error) -> anyhow::Error {
    error.without_url().into()
}

/// The beginning of a text that may be anything.
fn shown(text: &str) -> String {
    let text = text.trim();
    let cut: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.len() < text.len() { format!("{cut} ...") } else { cut }
}
