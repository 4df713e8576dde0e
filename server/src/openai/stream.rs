//! Replies as server-sent events: the chunks of all choices as they come, then usage if asked for, then `[DONE]`. A
//! failure is one `{"error": ...}` event, after which the stream closes without `[DONE]`.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use engine::{Event, RequestError};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    generate::{Envelope, Events, Job, Wire},
    types::{Decoded, Report, Usage},
};
use crate::{error::ApiError, middleware::observe::RequestLog};

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Tells proxies of the nginx family not to hold events back.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What a stream carries along.
pub(super) struct Context {
    pub(super) job: Job,
    pub(super) envelope: Envelope,
    pub(super) log: Arc<RequestLog>,
    /// Cancelled when the stream must end whatever happens.
    pub(super) cut: CancellationToken,
}

/// A streamed reply with one choice for each stream of `events`.
pub(super) fn reply<W: Wire>(wire: W, context: Context, events: Events, prompt_tokens: usize) -> Response {
    let open = events.len();
    let usage = Usage::new(prompt_tokens, 0);
    let mut chunks = Chunks { wire, context, events, usage, open, failed: false, queue: VecDeque::new() };
    for index in 0..open {
        if let Some(delta) = chunks.wire.open(index) {
            chunks.push_delta(delta, None);
        }
    }
    let events = stream::unfold(chunks, |mut chunks| async move {
        let event = chunks.next().await?;
        Some((Ok::<_, Infallible>(event), chunks))
    });
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive"));
    ([(NO_BUFFERING, HeaderValue::from_static("no"))], sse).into_response()
}

/// The chunks of one reply.
struct Chunks<W> {
    wire: W,
    context: Context,
    events: Events,
    usage: Usage,
    /// Choices that have not ended.
    open: usize,
    failed: bool,
    /// Written and not yet sent.
    queue: VecDeque<sse::Event>,
}

impl<W: Wire> Chunks<W> {
    async fn next(&mut self) -> Option<sse::Event> {
        while self.queue.is_empty() && self.open > 0 {
            let event = tokio::select! {
                event = self.events.next() => event,
                () = self.context.cut.cancelled() => None,
            };
            match event {
                Some((index, event)) => self.take(index, event),
                None => self.fail(RequestError::ShuttingDown.into()),
            }
        }
        self.queue.pop_front()
    }

    fn take(&mut self, index: usize, event: Event) {
        match event {
            Event::Prompt(records) => {
                if let Some(delta) = self.wire.prompt(index, &records) {
                    self.push_delta(delta, None);
                }
            }
            Event::Committed(commit) => {
                self.context.log.add_completion_tokens(commit.tokens.len());
                if let Some(delta) = self.wire.commit(index, commit) {
                    self.push_delta(delta, None);
                }
            }
            Event::Frame(_) => {}
            Event::Finished(finish) => {
                let report = Report::new(vec![Decoded::new(&finish.stats, self.context.job.seed)]);
                let delta = self.wire.close(index, finish.reason);
                self.push_delta(delta, report);
                self.usage =
                    Usage::new(self.usage.prompt_tokens, self.usage.completion_tokens + finish.completion_tokens);
                self.open = self.open.saturating_sub(1);
                if self.open == 0 && !self.failed {
                    self.finish();
                }
            }
            Event::Failed(error) => self.fail(error.into()),
        }
    }

    fn push_delta(&mut self, delta: W::Delta, leapfrog: Option<Report>) {
        let mut chunk = self.context.envelope.fill(W::CHUNK_OBJECT, vec![delta]);
        chunk.usage = self.context.job.include_usage.then_some(None);
        chunk.leapfrog = leapfrog;
        self.push(&chunk);
    }

    fn push(&mut self, data: &impl Serialize) {
        match sse::Event::default().json_data(data) {
            Ok(event) => self.queue.push_back(event),
            Err(error) => {
                tracing::error!(%error, "a chunk cannot be written as JSON");
                self.fail(RequestError::Decode("a chunk cannot be written as JSON".to_owned()).into());
            }
        }
    }

    fn finish(&mut self) {
        if self.context.job.include_usage {
            let mut chunk = self.context.envelope.fill::<W::Delta>(W::CHUNK_OBJECT, Vec::new());
            chunk.usage = Some(Some(self.usage));
            self.push(&chunk);
        }
        self.queue.push_back(sse::Event::default().data("[DONE]"));
    }

    /// Says what went wrong and cancels what still runs.
    fn fail(&mut self, error: ApiError) {
        tracing::warn!(%error, "a stream failed");
        self.context.log.mark_cut();
        self.failed = true;
        self.open = 0;
        self.events.clear();
        match sse::Event::default().json_data(error.body()) {
            Ok(event) => self.queue.push_back(event),
            Err(error) => tracing::error!(%error, "an error cannot be written as JSON"),
        }
    }
}

impl<W> Drop for Chunks<W> {
    fn drop(&mut self) {
        if self.open > 0 || !self.queue.is_empty() {
            self.context.log.mark_cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, http::Method};
    use engine::{Commit, testing::byte_tokenizer};
    use futures_util::stream::SelectAll;

    use super::*;
    use crate::{metrics::HttpMetrics, openai::chat::ChatWire};

    /// The body of a stream whose engine says `events` and then ends.
    async fn body(events: Vec<Event>) -> String {
        let mut all: Events = SelectAll::new();
        all.push(stream::iter(events.into_iter().map(|event| (0, event))).boxed());
        let wire = ChatWire::new(Arc::new(byte_tokenizer().unwrap()), false);
        let job = Job { model: "m".into(), n: 1, seed: 0, stream: true, include_usage: true, ignored: Vec::new() };
        let log = Arc::new(RequestLog::new(String::new(), Method::POST, String::new(), HttpMetrics::default()));
        let envelope = Envelope::new("chatcmpl-", "m".into());
        let response = reply(wire, Context { job, envelope, log, cut: CancellationToken::new() }, all, 1);
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    fn hello() -> Event {
        Event::Committed(Commit { text: "hello".into(), tokens: Vec::new(), hole: 0 })
    }

    #[tokio::test]
    async fn a_failure_is_the_last_event() {
        let failed = Event::Failed(RequestError::Forward("out of luck".into()));
        let body = body(vec![hello(), failed, hello()]).await;
        let events: Vec<_> = body.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 3, "role, text, error: {body}");
        let error: serde_json::Value = serde_json::from_str(events[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(error["error"]["type"], "server_error");
        assert!(error["error"]["message"].as_str().unwrap().contains("out of luck"));
    }

    #[tokio::test]
    async fn an_engine_that_is_gone_is_a_failure() {
        let body = body(vec![hello()]).await;
        assert!(body.ends_with("}}\n\n") && body.contains("shutting down") && !body.contains("[DONE]"), "{body}");
    }
}
