//! From engine requests to a reply: submit, then collect the events or pass them on as they come.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use engine::{Commit, Event, EventStream, Finish, InfillPart, Request, RequestError, TokenRecord, energy::Ticket};
use futures_util::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use serde::Serialize;
use uuid::Uuid;

use super::{
    stream::{Context, reply as stream_reply},
    types::{Decoded, PromptTokensDetails, Reply, Report, Usage},
};
use crate::{
    energy::{
        calls::Call,
        meter::Meter,
        usage::{EnergyReport, Times, Work},
    },
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
    /// What ids begin with.
    const ID_PREFIX: &'static str;
    /// Whether `[DONE]` ends a stream.
    const SAYS_DONE: bool = true;
    /// Whether usage has a chunk of its own in a stream; else it goes with the end of the only choice.
    const HAS_USAGE_CHUNK: bool = true;

    /// What a choice begins with, before anything is generated.
    fn open(&mut self, index: usize) -> Option<Self::Delta>;
    /// The scored prompt of a choice.
    fn prompt(&mut self, index: usize, records: &[TokenRecord]) -> Option<Self::Delta>;
    /// Final text of a choice; `None` if it has nothing to show.
    fn commit(&mut self, index: usize, commit: Commit) -> Option<Self::Delta>;
    /// Nothing new of a choice: the chunk carries a frame.
    fn frame(&mut self, index: usize) -> Self::Delta;
    /// The end of a choice.
    fn close(&mut self, index: usize, finish: &Finish) -> Self::Delta;
    /// All of a choice at once.
    fn whole(&mut self, index: usize, outcome: Outcome) -> Self::Choice;

    /// A chunk around `choices`: one, or none if it carries the usage.
    fn chunk(&self, envelope: &Envelope, choices: Vec<Self::Delta>, extras: Extras) -> impl Serialize;
    /// A whole reply around all choices.
    fn reply(&self, envelope: &Envelope, choices: Vec<Self::Choice>, extras: Extras) -> impl Serialize;
}

/// Everything that the engine said about one choice.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) prompt: Option<Vec<TokenRecord>>,
    /// The generated text of each hole; one entry for a text without holes, none if nothing was generated.
    pub(super) holes: Vec<String>,
    pub(super) tokens: Vec<TokenRecord>,
    pub(super) finish: Finish,
}

impl Outcome {
    /// All generated text.
    pub(super) fn text(&self) -> String {
        self.holes.concat()
    }
}

/// What replies and chunks carry besides their choices.
#[derive(Debug)]
pub(super) struct Extras {
    /// Absent, `null`, or numbers: in a stream that ends with usage, all other chunks say `null`.
    pub(super) usage: Option<Option<Usage>>,
    pub(super) leapfrog: Option<Report>,
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
    /// Shortest time between two frames; `None` sends none.
    pub(super) frames: Option<Duration>,
    /// Fields that nobody read.
    pub(super) ignored: Vec<String>,
    /// Says what the call cost.
    pub(super) meter: Meter,
}

/// Counts tokens, and keeps what energy is asked for with, while choices end.
#[derive(Debug)]
pub(super) struct Tally {
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Choices per prompt.
    n: usize,
    /// For each prompt, what none of its choices had to compute.
    cached_tokens: Vec<Option<usize>>,
    times: Times,
    tickets: Vec<Ticket>,
}

impl Tally {
    /// A prompt is read once however many choices continue it.
    pub(super) fn new(requests: &[Request], n: usize) -> Self {
        let firsts = requests.iter().step_by(n);
        Self {
            prompt_tokens: firsts.clone().map(num_given).sum(),
            completion_tokens: 0,
            n,
            cached_tokens: vec![None; firsts.count()],
            times: Times::default(),
            tickets: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, index: usize, finish: &Finish) {
        self.completion_tokens += finish.completion_tokens;
        self.times.add(&finish.stats, finish.completion_tokens);
        self.tickets.extend(finish.ticket);
        if let Some(cached) = self.cached_tokens.get_mut(index / self.n) {
            let least = cached.map_or(finish.stats.cached_tokens, |least| least.min(finish.stats.cached_tokens));
            *cached = Some(least);
        }
    }

    /// All choices have ended: the call is known by its id from now on.
    pub(super) fn end(&mut self, meter: &Meter, envelope: &Envelope, model_id: &str) -> Arc<Call> {
        let Self { prompt_tokens, completion_tokens, times, .. } = *self;
        let work = Work { prompt_tokens, completion_tokens, times };
        meter.end(&envelope.id, model_id, std::mem::take(&mut self.tickets), work)
    }

    pub(super) fn usage(&self, energy: Option<EnergyReport>) -> Usage {
        let Self { prompt_tokens, completion_tokens, .. } = *self;
        let cached_tokens = self.cached_tokens.iter().flatten().sum();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            energy: energy.map(Box::new),
        }
    }
}

/// Tokens that the client sent: the prompt, and the text between and behind holes.
pub(super) fn num_given(request: &Request) -> usize {
    let fixed = request.infill.iter().map(|part| match part {
        InfillPart::Hole(_) => 0,
        InfillPart::Fixed(tokens) => tokens.len(),
    });
    request.prompt.len() + fixed.sum::<usize>()
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

    /// A reply or a chunk in OpenAI's shape.
    pub(super) fn fill<C>(&self, object: &'static str, choices: Vec<C>, extras: Extras) -> Reply<C> {
        let Self { id, created, model } = self.clone();
        Reply { id, object, created, model, choices, usage: extras.usage, leapfrog: extras.leapfrog }
    }

    /// The id of the reply.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The name that the client knows the model by.
    pub(super) fn model(&self) -> &str {
        &self.model
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
    log.set_model(&served.engine.model().id);
    let tally = Tally::new(&requests, job.n);
    let num_choices = requests.len();
    let events = merge(served.engine.submit(requests)?);
    log.add_prompt_tokens(tally.prompt_tokens);
    let envelope = Envelope::new(W::ID_PREFIX, job.model.clone());
    let ignored = ignored_header(&job.ignored);
    let mut response = if job.stream {
        let tokenizer = served.engine.model().tokenizer.clone();
        let model_id = served.engine.model().id.clone();
        let context = Context { job, envelope, log, model_id, tokenizer, cut: served.cut.clone() };
        stream_reply(wire, context, events, tally)
    } else {
        let collected = tokio::select! {
            collected = collect(events, num_choices, &log) => collected,
            () = served.cut.cancelled() => Err(RequestError::ShuttingDown.into()),
        };
        let whole = Whole { envelope, tally, model_id: &served.engine.model().id };
        whole.reply(wire, &job, collected?).await
    };
    if let Some(value) = ignored {
        response.headers_mut().insert(IGNORED, value);
    }
    Ok(response)
}

async fn collect(mut events: Events, num_choices: usize, log: &RequestLog) -> Result<Vec<Outcome>, ApiError> {
    let mut pending: Vec<Collected> = (0..num_choices).map(|_| Collected::default()).collect();
    while let Some((index, event)) = events.next().await {
        let choice = &mut pending[index];
        match event {
            Event::Prompt(records) => choice.prompt = Some(records),
            Event::Committed(commit) => {
                log.add_completion_tokens(commit.tokens.len());
                choice.hole(commit.hole).push_str(&commit.text);
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
    holes: Vec<String>,
    tokens: Vec<TokenRecord>,
    finish: Option<Finish>,
}

impl Collected {
    /// The text of a hole; those before it are there too, perhaps empty.
    fn hole(&mut self, hole: usize) -> &mut String {
        if self.holes.len() <= hole {
            self.holes.resize_with(hole + 1, String::new);
        }
        &mut self.holes[hole]
    }

    /// A stream that ends without an end means that the engine is gone.
    fn into_outcome(self) -> Result<Outcome, ApiError> {
        let finish = self.finish.ok_or(RequestError::ShuttingDown)?;
        Ok(Outcome { prompt: self.prompt, holes: self.holes, tokens: self.tokens, finish })
    }
}

/// What is known of a whole reply before its choices.
struct Whole<'a> {
    envelope: Envelope,
    tally: Tally,
    model_id: &'a str,
}

impl Whole<'_> {
    async fn reply<W: Wire>(self, mut wire: W, job: &Job, outcomes: Vec<Outcome>) -> Response {
        let Self { envelope, mut tally, model_id } = self;
        for (index, outcome) in outcomes.iter().enumerate() {
            tally.add(index, &outcome.finish);
        }
        let call = tally.end(&job.meter, &envelope, model_id);
        // Only who asked for the energy waits for the last reading.
        let energy = if job.meter.wanted() { Some(job.meter.report(&call).await) } else { None };
        let decoded = outcomes.iter().map(|outcome| Decoded::new(&outcome.finish.stats, job.seed)).collect();
        let choices = outcomes.into_iter().enumerate().map(|(index, outcome)| wire.whole(index, outcome)).collect();
        let extras = Extras { usage: Some(Some(tally.usage(energy))), leapfrog: Report::new(decoded) };
        Json(wire.reply(&envelope, choices, extras)).into_response()
    }
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
