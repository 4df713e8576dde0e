//! Replies as server-sent events: the chunks of all choices as they come, then usage if asked for, then `[DONE]`. A
//! failure is one `{"error": ...}` event, after which the stream closes without `[DONE]`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use engine::{Event, RequestError, Tokenizer};
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{
    frames::FrameMerger,
    generate::{Envelope, Events, Extras, Job, Tally, Wire},
    types::{Decoded, Report},
};
use crate::{
    energy::{calls::Call, usage::EnergyReport},
    error::ApiError,
    middleware::observe::RequestLog,
};

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Tells proxies of the nginx family not to hold events back.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What a stream carries along.
pub(super) struct Context {
    pub(super) job: Job,
    pub(super) envelope: Envelope,
    pub(super) log: Arc<RequestLog>,
    /// The model's own name.
    pub(super) model_id: String,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Cancelled when the stream must end whatever happens.
    pub(super) cut: CancellationToken,
}

/// A streamed reply with one choice for each stream of `events`.
pub(super) fn reply<W: Wire>(wire: W, context: Context, events: Events, tally: Tally) -> Response {
    let open = events.len();
    let now = Instant::now();
    let frames = context.job.frames.map(|interval| (0..open).map(|_| FrameMerger::new(interval, now)).collect());
    let frames = frames.unwrap_or_default();
    let mut chunks =
        Chunks { wire, context, events, tally, open, frames, failed: false, queue: VecDeque::new(), last: None };
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
struct Chunks<W: Wire> {
    wire: W,
    context: Context,
    events: Events,
    tally: Tally,
    /// Choices that have not ended.
    open: usize,
    /// Frames of each choice; empty if nobody asked for them.
    frames: Vec<FrameMerger>,
    failed: bool,
    /// Written and not yet sent.
    queue: VecDeque<sse::Event>,
    /// The chunk that waits for the energy.
    last: Option<Last<W::Delta>>,
}

/// What a chunk with usage holds besides.
struct Last<D> {
    choices: Vec<D>,
    leapfrog: Option<Report>,
    call: Arc<Call>,
}

impl<W: Wire> Chunks<W> {
    async fn next(&mut self) -> Option<sse::Event> {
        while self.queue.is_empty() && self.open > 0 {
            let due = self.frames.iter().filter_map(FrameMerger::due).min();
            let event = tokio::select! {
                event = self.events.next() => event,
                () = until(due) => {
                    self.send_due_frames(Instant::now());
                    continue;
                }
                () = self.context.cut.cancelled() => None,
            };
            match event {
                Some((index, event)) => self.take(index, event),
                None => self.fail(RequestError::ShuttingDown.into()),
            }
        }
        // Everything else is on its way before the last chunk waits.
        if self.queue.is_empty()
            && let Some(call) = self.last.as_ref().map(|last| last.call.clone())
        {
            let report = tokio::select! {
                report = self.context.job.meter.report(&call) => Some(report),
                () = self.context.cut.cancelled() => None,
            };
            match (report, self.last.take()) {
                (Some(report), Some(last)) => self.finish(last.choices, last.leapfrog, Some(report)),
                _ => self.fail(RequestError::ShuttingDown.into()),
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
            Event::Frame(frame) => {
                if let Some(merger) = self.frames.get_mut(index) {
                    merger.push(frame);
                    self.send_due_frames(Instant::now());
                }
            }
            Event::Finished(finish) => {
                self.send_frame(index, Instant::now());
                let report = Report::new(vec![Decoded::new(&finish.stats, self.context.job.seed)]);
                let delta = self.wire.close(index, &finish);
                self.tally.add(index, &finish);
                self.open = self.open.saturating_sub(1);
                self.close(delta, report);
            }
            Event::Failed(error) => self.fail(error.into()),
        }
    }

    fn send_due_frames(&mut self, now: Instant) {
        for index in 0..self.frames.len() {
            if self.frames[index].due().is_some_and(|due| due <= now) {
                self.send_frame(index, now);
            }
        }
    }

    /// Sends the pending frame of a choice, if there is one.
    fn send_frame(&mut self, index: usize, now: Instant) {
        let merger = self.frames.get_mut(index);
        if let Some(frame) = merger.and_then(|merger| merger.take(&self.context.tokenizer, now)) {
            let delta = self.wire.frame(index);
            self.push_delta(delta, Some(Report::Frame { frame }));
        }
    }

    fn push_delta(&mut self, delta: W::Delta, leapfrog: Option<Report>) {
        let usage = self.context.job.include_usage.then_some(None);
        self.push(vec![delta], Extras { usage, leapfrog });
    }

    fn push(&mut self, choices: Vec<W::Delta>, extras: Extras) {
        let event = sse::Event::default().json_data(self.wire.chunk(&self.context.envelope, choices, extras));
        match event {
            Ok(event) => self.queue.push_back(event),
            Err(error) => {
                tracing::error!(%error, "a chunk cannot be written as JSON");
                self.fail(RequestError::Decode("a chunk cannot be written as JSON".to_owned()).into());
            }
        }
    }

    /// The end of a choice, and of the reply if it was the last one.
    fn close(&mut self, delta: W::Delta, leapfrog: Option<Report>) {
        let is_last = self.open == 0 && !self.failed;
        let context = &self.context;
        if is_last && context.job.meter.wanted() {
            let call = self.tally.end(&context.job.meter, &context.envelope, &context.model_id);
            let (mut choices, mut report) = (Vec::new(), None);
            if W::HAS_USAGE_CHUNK {
                self.push_delta(delta, leapfrog);
            } else {
                (choices, report) = (vec![delta], leapfrog);
            }
            if !self.failed {
                self.last = Some(Last { choices, leapfrog: report, call });
            }
            return;
        }
        if is_last {
            self.tally.end(&context.job.meter, &context.envelope, &context.model_id);
        }
        self.push_delta(delta, leapfrog);
        if is_last && !self.failed {
            self.finish(Vec::new(), None, None);
        }
    }

    fn finish(&mut self, choices: Vec<W::Delta>, leapfrog: Option<Report>, energy: Option<EnergyReport>) {
        if self.context.job.include_usage {
            self.push(choices, Extras { usage: Some(Some(self.tally.usage(energy))), leapfrog });
        }
        if W::SAYS_DONE {
            self.queue.push_back(sse::Event::default().data("[DONE]"));
        }
    }

    /// Says what went wrong and cancels what still runs.
    fn fail(&mut self, error: ApiError) {
        tracing::warn!(%error, "a stream failed");
        self.context.log.mark_cut();
        self.failed = true;
        self.open = 0;
        self.events.clear();
        self.last = None;
        match sse::Event::default().json_data(error.body()) {
            Ok(event) => self.queue.push_back(event),
            Err(error) => tracing::error!(%error, "an error cannot be written as JSON"),
        }
    }
}

/// Waits until `time`; for ever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => future::pending().await,
    }
}

impl<W: Wire> Drop for Chunks<W> {
    fn drop(&mut self) {
        if self.open > 0 || !self.queue.is_empty() || self.last.is_some() {
            self.context.log.mark_cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, http::Method};
    use engine::{Commit, DecodeStats, Finish, FinishReason, Frame, Request, TokenId, testing::byte_tokenizer};
    use futures_util::stream::SelectAll;
    use serde_json::{Value, json};

    use super::*;
    use crate::{energy::meter::Meter, metrics::HttpMetrics, openai::chat::ChatWire};

    /// The body of a stream of one choice whose engine says `events`, each after a wait, and then ends.
    async fn body(events: Vec<(Duration, Event)>, frames: Option<Duration>) -> String {
        let mut all: Events = SelectAll::new();
        let events = stream::iter(events).then(|(wait, event)| async move {
            tokio::time::sleep(wait).await;
            (0, event)
        });
        all.push(events.boxed());
        let tokenizer = Arc::new(byte_tokenizer().unwrap());
        let wire = ChatWire::new(tokenizer.clone(), false);
        let job = Job {
            model: "m".into(),
            n: 1,
            seed: 0,
            stream: true,
            include_usage: true,
            frames,
            ignored: Vec::new(),
            meter: Meter::off(),
        };
        let log = Arc::new(RequestLog::new(String::new(), Method::POST, String::new(), HttpMetrics::default()));
        let envelope = Envelope::new("chatcmpl-", "m".into());
        let tally = Tally::new(&[Request::new(vec![TokenId(1)])], 1);
        let context = Context { job, envelope, log, model_id: "m".into(), tokenizer, cut: CancellationToken::new() };
        let response = reply(wire, context, all, tally);
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    fn at_once(events: Vec<Event>) -> Vec<(Duration, Event)> {
        events.into_iter().map(|event| (Duration::ZERO, event)).collect()
    }

    fn chunks(body: &str) -> Vec<Value> {
        let events = body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
        events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    fn hello() -> Event {
        Event::Committed(Commit { text: "hello".into(), tokens: Vec::new(), hole: 0 })
    }

    fn frame(step: usize) -> Event {
        let fixed = vec![(step, TokenId(96 + step as u32))];
        Event::Frame(Frame { step, block: 0, committed: 0, masked: 8 - step, fixed })
    }

    fn finished() -> Event {
        Event::Finished(Finish {
            reason: FinishReason::Stop,
            stop_string: None,
            prompt_tokens: 1,
            completion_tokens: 5,
            stats: DecodeStats {
                strategy: "diffusion",
                forward_passes: 4,
                scored_rows: 32,
                acceptance_histogram: vec![4],
                cached_tokens: 1,
                diffusion: None,
                queue: Duration::ZERO,
                prefill: Duration::ZERO,
                decode: Duration::ZERO,
            },
            ticket: None,
        })
    }

    #[tokio::test]
    async fn a_failure_is_the_last_event() {
        let failed = Event::Failed(RequestError::Forward("out of luck".into()));
        let body = body(at_once(vec![hello(), failed, hello()]), None).await;
        let events = chunks(&body);
        assert_eq!(events.len(), 3, "role, text, error: {body}");
        assert_eq!(events[2]["error"]["type"], "server_error");
        assert!(events[2]["error"]["message"].as_str().unwrap().contains("out of luck"));
    }

    #[tokio::test]
    async fn an_engine_that_is_gone_is_a_failure() {
        let body = body(at_once(vec![hello()]), None).await;
        assert!(body.ends_with("}}\n\n") && body.contains("shutting down") && !body.contains("[DONE]"), "{body}");
    }

    #[tokio::test]
    async fn frames_are_valid_chunks_with_an_empty_delta() {
        let body = body(at_once(vec![frame(1), frame(2), hello(), finished()]), Some(Duration::ZERO)).await;
        let events = chunks(&body);
        let choice = json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": null}]);
        for (event, step) in events[1..3].iter().zip(1..) {
            assert_eq!(event["choices"], choice);
            assert_eq!((&event["id"], &event["usage"]), (&events[0]["id"], &Value::Null));
            assert_eq!(event["leapfrog"]["frame"]["step"], step);
        }
        assert_eq!(events[3]["choices"][0]["delta"]["content"], "hello");
        assert!(events[4]["leapfrog"].get("frame").is_none());
        assert_eq!(events[5]["usage"]["prompt_tokens_details"], json!({"cached_tokens": 1}));
        assert!(body.ends_with("data: [DONE]\n\n"));
    }

    #[tokio::test]
    async fn what_is_pending_at_the_end_comes_before_the_end() {
        let hour = Some(Duration::from_secs(3600));
        let events = chunks(&body(at_once(vec![frame(1), frame(2), frame(3), hello(), finished()]), hour).await);
        let kinds: Vec<_> = events
            .iter()
            .map(|event| match (&event["leapfrog"]["frame"], &event["choices"][0]) {
                (Value::Object(frame), _) => format!("frame {}", frame["tokens_fixed"]),
                (_, choice) if choice["delta"]["content"].is_string() => choice["delta"]["content"].to_string(),
                (_, choice) => choice["finish_reason"].to_string(),
            })
            .collect();
        let expected = ["\"\"", "frame [[1,97]]", "\"hello\"", "frame [[2,98],[3,99]]", "\"stop\"", "null"];
        assert_eq!(kinds, expected, "text does not wait for a frame");
    }

    #[tokio::test]
    async fn a_frame_waits_for_its_time_and_not_for_the_next_one() {
        let wait = Duration::from_millis(400);
        let events = vec![(Duration::ZERO, frame(1)), (Duration::ZERO, frame(2)), (wait, frame(3)), (wait, finished())];
        let events = chunks(&body(events, Some(Duration::from_millis(20))).await);
        let frames: Vec<_> = events.iter().filter_map(|event| event["leapfrog"]["frame"]["step"].as_u64()).collect();
        assert_eq!(frames, [1, 2, 3], "20 ms after the first, the second is sent by itself");
    }

    #[tokio::test]
    async fn nobody_gets_frames_unasked() {
        let body = body(at_once(vec![frame(1), hello(), finished()]), None).await;
        assert!(!body.contains("frame"), "{body}");
    }
}
