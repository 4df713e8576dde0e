//! A client of OpenAI-compatible servers that notes when things happen.

mod answer;
mod lines;
mod wire;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::{Client as Http, Response, StatusCode, header};
use serde_json::Value;

#[cfg(test)]
pub(crate) use self::answer::TextEvent;
use self::{answer::Reader, lines::Lines};
pub(crate) use self::{
    answer::{Answer, Failure, FailureKind},
    wire::{Decoding, Usage},
};

/// Most bytes of an answer that is no stream, and of a line of one; more is garbage.
const MOST_BYTES: usize = 64 << 20;
/// Most bytes of an error that are read.
const MOST_OF_ERROR: usize = 64 << 10;
/// How long the end of a connection is waited for behind the last line, so that it can be used again.
const LINGER: Duration = Duration::from_secs(1);
/// Longest wait for a connection, and for an answer that needs no model.
const CONNECT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request; many servers close theirs after five seconds.
const IDLE: Duration = Duration::from_secs(4);

/// What becomes of a connection behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// The next request takes it.
    Always,
    /// It is closed. Some servers (llama-server) hang up behind every streamed answer without having said so, and a request
    /// that takes such a connection is lost.
    Never,
}

/// A server's address, with what every request to it carries.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) http: Http,
    /// Without `/v1` and without a slash at its end.
    pub(crate) base: String,
}

impl Connection {
    /// `url` is that of the server, with or without `/v1`.
    pub(crate) fn open(url: &str, api_key: Option<&str>, reuse: Reuse) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let is_address = base.starts_with("http://") || base.starts_with("https://");
        ensure!(is_address, "`{url}` is not an address like http://127.0.0.1:8080");
        let parsed = reqwest::Url::parse(&base).with_context(|| format!("`{base}` is not an address"))?;
        // Addresses are written into reports.
        ensure!(
            parsed.username().is_empty() && parsed.password().is_none(),
            "names and passwords in an address are not taken; give a key with --api-key"
        );
        let mut headers = header::HeaderMap::new();
        if let Some(key) = api_key {
            let mut value =
                header::HeaderValue::from_str(&format!("Bearer {key}")).context("the API key has odd bytes")?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let mut builder = Http::builder().default_headers(headers).connect_timeout(CONNECT).tcp_nodelay(true);
        builder = match reuse {
            Reuse::Always => builder.pool_idle_timeout(IDLE),
            Reuse::Never => builder.pool_max_idle_per_host(0),
        };
        if is_local(&base) {
            builder = builder.no_proxy();
        }
        Ok(Self { http: builder.build()?, base })
    }

    /// Whether it is at a loopback address, so that facts about this machine are facts about it.
    pub(crate) fn is_local(&self) -> bool {
        is_local(&self.base)
    }

    /// Status and text of a route that answers at once.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let request = self.http.get(format!("{}{path}", self.base)).timeout(SHORT);
        let response = request.send().await.map_err(plain).with_context(|| format!("GET {path}"))?;
        let status = response.status();
        Ok((status, response.text().await.map_err(plain).with_context(|| format!("GET {path}"))?))
    }

    /// The models, as the server describes them; there is at least one.
    pub(crate) async fn models(&self) -> anyhow::Result<Vec<Value>> {
        let (status, body) = self.get("/v1/models").await?;
        ensure!(status.is_success(), "GET /v1/models: {status}: {}", shown(&body));
        let list: Value = serde_json::from_str(&body).with_context(|| format!("GET /v1/models: {}", shown(&body)))?;
        let data = list.get("data").and_then(Value::as_array).context("GET /v1/models: no list `data`")?;
        ensure!(!data.is_empty(), "the server has no models");
        Ok(data.clone())
    }
}

fn is_local(base: &str) -> bool {
    let url = reqwest::Url::parse(base).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The error of the library without its address, which every message would repeat.
pub(crate) fn plain(error: reqwest::Error) -> anyhow::Error {
    anyhow::Error::from(error.without_url())
}

/// The beginning of a text, on one line.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        None => line,
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}

/// How requests are made and read.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) connection: Connection,
    /// `/v1/chat/completions` or `/v1/completions`.
    pub(crate) path: &'static str,
    /// Longest wait for a whole answer.
    pub(crate) timeout: Duration,
    /// Whether the text is kept, and not only its hash.
    pub(crate) keeps_text: bool,
}

impl Client {
    /// Sends `body`, which is JSON, and reads the answer to its end, whatever it is: a stream of events or one object.
    pub(crate) async fn ask(&self, body: Vec<u8>) -> Answer {
        let mut reader = Reader::new(self.keeps_text);
        let read = self.read(body, &mut reader);
        let end = match tokio::time::timeout(self.timeout, read).await {
            Ok(end) => end,
            Err(_) => Err(Failure::new(
                FailureKind::Timeout,
                format!("no whole answer within {} s", self.timeout.as_secs_f64()),
            )),
        };
        reader.finish(end)
    }

    async fn read(&self, body: Vec<u8>, reader: &mut Reader) -> Result<(), Failure> {
        let request = self.connection.http.post(format!("{}{}", self.connection.base, self.path));
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        let response = request.send().await.map_err(Failure::of_sending)?;
        let status = response.status();
        reader.head(status.as_u16());
        if !status.is_success() {
            let text = beginning(response).await;
            return Err(Failure::new(FailureKind::Status, format!("{status}: {}", error_message(&text))));
        }
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            read_stream(response, reader).await
        } else {
            let kind = kind.to_owned();
            read_object(response, reader).await.map_err(|mut failure| {
                if failure.kind == FailureKind::Garbage {
                    failure.message = format!("{} (content type `{kind}`)", failure.message);
                }
                failure
            })
        }
    }
}

/// `error.message` of a body, or its beginning.
fn error_message(body: &str) -> String {
    let object: Option<Value> = serde_json::from_str(body).ok();
    let message = object.as_ref().and_then(|object| object.pointer("/error/message")).and_then(Value::as_str);
    shown(message.unwrap_or(body))
}

/// The beginning of a body, or why it cannot be read.
async fn beginning(mut response: Response) -> String {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if body.len() < MOST_OF_ERROR => body.extend_from_slice(&piece),
            Ok(_) => return String::from_utf8_lossy(&body).into_owned(),
            Err(error) => return format!("(its body cannot be read: {:#})", plain(error)),
        }
    }
}

async fn read_stream(mut response: Response, reader: &mut Reader) -> Result<(), Failure> {
    let mut lines = Lines::default();
    while !reader.has_done() {
        let Some(piece) = response.chunk().await.map_err(Failure::of_reading)? else { return Ok(()) };
        let now = Instant::now();
        lines.push(&piece);
        while let Some(line) = lines.next_line() {
            reader.line(line, now)?;
        }
        if lines.pending() > MOST_BYTES {
            return Err(too_long());
        }
    }
    // Whatever comes now, or does not, the answer is whole.
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    let _ = tokio::time::timeout(LINGER, rest).await;
    Ok(())
}

async fn read_object(mut response: Response, reader: &mut Reader) -> Result<(), Failure> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(Failure::of_reading)? {
        body.extend_from_slice(&piece);
        if body.len() > MOST_BYTES {
            return Err(too_long());
        }
    }
    reader.object(&body, Instant::now())
}

fn too_long() -> Failure {
    Failure::new(FailureKind::TooLong, format!("an answer, or a line of its stream, is longer than {MOST_BYTES} bytes"))
}
