//! From engine requests to a reply: submit, then collect the events or pass them on as they come.

use std::{pin::Pin, sync::Arc};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use engine::{Commit, Event, EventStream, Finish, FinishReason, Request, RequestError, TokenRecord};
use futures_util::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    stream::{Context, reply as stream_reply},
    types::{Decoded, Reply, Report, Usage},
};
use crate::{
    error::ApiError,
    middleware::observe::RequestLog,
    state::{Served, unix_time},
};

const IGNORED: HeaderName = HeaderName::from_static("x-leapfrog-ignored");
/// Most bytes of [`IGNORED`]; clients limit the size of headers.
const MAX_IGNORED_LEN: usize = 1024;

/// How an endpoint words what the engine says. One value serves all choices of a request.
pub(super) trait Wire: Send + 'static {
    /// A choice of a chunk.
    type Delta: Serialize + Send;
    /// A choice of a whole reply.
    type Choice: Serialize;
    /// `object` of a whole reply.
    const OBJECT: &'static str;
    /// `object` of a chunk.
    const CHUNK_OBJECT: &'static str;
    /// What ids begin with.
    const ID_PREFIX: &'static str;

    /// What a choice begins with, before anything is generated.
    fn open(&mut self, index: usize) -> Option<Self::Delta>;
    /// The scored prompt of a choice.
    fn prompt(&mut self, index: usize, records: &[TokenRecord]) -> Option<Self::Delta>;
    /// Final text of a choice; `None` if it has nothing to show.
    fn commit(&mut self, index: usize, commit: Commit) -> Option<Self::Delta>;
    /// The end of a choice.
    fn close(&mut self, index: usize, reason: FinishReason) -> Self::Delta;
    /// All of a choice at once.
    fn whole(&mut self, index: usize, outcome: Outcome) -> Self::Choice;
}

/// Everything that the engine said about one choice.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) prompt: Option<Vec<TokenRecord>>,
    pub(super) text: String,
    pub(super) tokens: Vec<TokenRecord>,
    pub(super) reason: FinishReason,
}

/// What a reply needs besides the events.
#[derive(Debug)]
pub(super) struct Job {
    /// The name that the client knows the model by.
    pub(super) model: String,
    /// Choices per prompt.
    pub(super) n: usize,
    pub(super) seed: u64,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Fields that nobody read.
    pub(super) ignored: Vec<String>,
}

/// The part that all chunks of a reply share.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    id: String,
    created: u64,
    model: String,
}

impl Envelope {
    pub(super) fn new(prefix: &str, model: String) -> Self {
        Self { id: format!("{prefix}{}", Uuid::new_v4().simple()), created: unix_time(), model }
    }

    pub(super) fn fill<C>(&self, object: &'static str, choices: Vec<C>) -> Reply<C> {
        let Self { id, created, model } = self.clone();
        Reply { id, object, created, model, choices, usage: None, leapfrog: None }
    }
}

/// Events of all choices as they come, each with the index of its choice. Dropping it cancels the choices.
pub(super) type Events = SelectAll<Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>>;

fn merge(streams: Vec<EventStream>) -> Events {
    let streams = streams.into_iter().enumerate().map(|(index, events)| {
        let events = stream::unfold(events, move |mut events| async move {
            let event = events.next().await?;
            Some(((index, event), events))
        });
        Box::pin(events) as Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>
    });
    stream::select_all(streams)
}

/// Runs the requests and answers them. The events live in the returned future or in the body of the response: when a
/// client leaves, the HTTP layer drops either, and with it the requests.
pub(super) async fn answer<W: Wire>(
    served: &Served,
    log: Arc<RequestLog>,
    wire: W,
    job: Job,
    requests: Vec<Request>,
) -> Result<Response, ApiError> {
    let prompt_tokens = requests.iter().step_by(job.n).map(|request| request.prompt.len()).sum();
    let num_choices = requests.len();
    let events = merge(served.engine.submit(requests)?);
    log.add_prompt_tokens(prompt_tokens);
    let envelope = Envelope::new(W::ID_PREFIX, job.model.clone());
    let ignored = ignored_header(&job.ignored);
    let mut response = if job.stream {
        stream_reply(wire, Context { job, envelope, log, cut: served.cut.clone() }, events, prompt_tokens)
    } else {
        let collected = tokio::select! {
            collected = collect(events, num_choices, &log) => collected,
            () = served.cut.cancelled() => Err(RequestError::ShuttingDown.into()),
        };
        let choices = collected?;
        Json(whole_reply(wire, &job, &envelope, prompt_tokens, choices)).into_response()
    };
    if let Some(value) = ignored {
        response.headers_mut().insert(IGNORED, value);
    }
    Ok(response)
}

async fn collect(mut events: Events, num_choices: usize, log: &RequestLog) -> Result<Vec<(Outcome, Finish)>, ApiError> {
    let mut pending: Vec<Collected> = (0..num_choices).map(|_| Collected::default()).collect();
    while let Some((index, event)) = events.next().await {
        let choice = &mut pending[index];
        match event {
            Event::Prompt(records) => choice.prompt = Some(records),
            Event::Committed(commit) => {
                log.add_completion_tokens(commit.tokens.len());
                choice.text.push_str(&commit.text);
                choice.tokens.extend(commit.tokens);
            }
            Event::Frame(_) => {}
            Event::Finished(finish) => choice.finish = Some(finish),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    pending.into_iter().map(Collected::into_outcome).collect()
}

#[derive(Default)]
struct Collected {
    prompt: Option<Vec<TokenRecord>>,
    text: String,
    tokens: Vec<TokenRecord>,
    finish: Option<Finish>,
}

impl Collected {
    /// A stream that ends without an end means that the engine is gone.
    fn into_outcome(self) -> Result<(Outcome, Finish), ApiError> {
        let finish = self.finish.ok_or(RequestError::ShuttingDown)?;
        let reason = finish.reason;
        Ok((Outcome { prompt: self.prompt, text: self.text, tokens: self.tokens, reason }, finish))
    }
}

fn whole_reply<W: Wire>(
    mut wire: W,
    job: &Job,
    envelope: &Envelope,
    prompt_tokens: usize,
    choices: Vec<(Outcome, Finish)>,
) -> Reply<W::Choice> {
    let completion_tokens = choices.iter().map(|(_, finish)| finish.completion_tokens).sum();
    let decoded = choices.iter().map(|(_, finish)| Decoded::new(&finish.stats, job.seed)).collect();
    let choices = choices.into_iter().enumerate().map(|(index, (outcome, _))| wire.whole(index, outcome)).collect();
    let mut reply = envelope.fill(W::OBJECT, choices);
    reply.usage = Some(Some(Usage::new(prompt_tokens, completion_tokens)));
    reply.leapfrog = Report::new(decoded);
    reply
}

/// Names are the client's text: what a header cannot carry becomes `?`.
fn ignored_header(names: &[String]) -> Option<HeaderValue> {
    let mut text = String::new();
    for name in names {
        if text.len() + name.len() > MAX_IGNORED_LEN {
            text.push_str(if text.is_empty() { "..." } else { ",..." });
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(name.chars().map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }));
    }
    if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_names_fit_a_header() {
        let header = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            ignored_header(&names).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&[]), None);
        assert_eq!(header(&["a", "stream_options.b"]).unwrap(), "a,stream_options.b");
        assert_eq!(header(&["a\r\nx: y", "é,f"]).unwrap(), "a??x:?y,??f");
        let long = "x".repeat(2000);
        assert_eq!(header(&["a", &long]).unwrap(), "a,...");
        assert_eq!(header(&[&long]).unwrap(), "...");
    }
}
