//! One running request: its tokens, its decoder, its pages, its text.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use models::{TokenId, text::Tokenizer};
use tokio::sync::mpsc;

use crate::{
    cost::PassCost,
    decode::{CanvasChange, Decoder, EndRule, KvEffect, KvUse, RowDemand, SeqView, StepOutcome, StepPlan},
    detok::{Detokenizer, Pushed},
    energy::{Positions, Ticket},
    error::RequestError,
    event::{Commit, DecodeStats, Event, Finish, FinishReason, Frame, TokenRecord},
    pages::{PageLease, PagePool},
    request::{InfillPart, Request},
    sampling::{TokenCounts, TokenScore},
};

/// A request on its way to the worker.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) events: EventSender,
    pub(crate) submitted: Instant,
}

/// The sending side of a request's stream. One place is reserved for the last event, so that it always arrives.
#[derive(Debug)]
pub(crate) struct EventSender {
    events: mpsc::Sender<Event>,
    last: mpsc::OwnedPermit<Event>,
}

impl EventSender {
    /// A channel for `capacity` events beside the last one.
    pub(crate) fn channel(capacity: usize) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(capacity + 1);
        let last = events.clone().try_reserve_owned().expect("a fresh channel has room");
        (Self { events, last }, receiver)
    }

    /// Whether the client has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    fn send(&self, event: Event) -> Result<(), RequestError> {
        match self.events.try_send(event) {
            // A closed channel is a cancelled request; the worker notices before the next step.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(RequestError::SlowClient),
        }
    }

    /// Sends the last event.
    pub(crate) fn close(self, event: Event) {
        self.last.send(event);
    }
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    Finished(FinishReason, Option<String>),
    Failed(RequestError),
    Cancelled,
}

/// What all sequences of a model share.
#[derive(Debug, Clone)]
pub(crate) struct SequenceContext {
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The model's own end tokens.
    pub(crate) end_ids: Arc<[TokenId]>,
    pub(crate) mask_id: Option<TokenId>,
    pub(crate) context_len: usize,
}

pub(crate) struct Sequence {
    pub(crate) request: Request,
    pub(crate) events: EventSender,
    context: SequenceContext,
    decoder: Box<dyn Decoder>,
    /// Prompt and committed tokens.
    tokens: Vec<TokenId>,
    /// Most tokens to commit.
    budget: usize,
    /// Slots of the holes to fill, in order; empty for a text without holes.
    holes: Vec<usize>,
    /// Hole that the next token belongs to, and its index there.
    at: (usize, usize),
    kv_use: KvUse,
    /// Number of the last pass that it took part in.
    pub(crate) last_pass: u64,
    pub(crate) lease: PageLease,
    counts: TokenCounts,
    detok: Detokenizer,
    prompt_records: Vec<TokenRecord>,
    prompt_sent: bool,
    stats: DecodeStats,
    submitted: Instant,
    started: Option<Instant>,
    /// Under which its energy is known, once it has had a slot.
    ticket: Option<Ticket>,
    /// Positions of the prompt before this have been computed, by this or an earlier request.
    prefilled: usize,
    first_commit: Option<Instant>,
    last_commit: Option<Instant>,
}

impl Sequence {
    pub(crate) fn new(job: Job, decoder: Box<dyn Decoder>, pool: &PagePool, context: SequenceContext) -> Self {
        let Job { request, events, submitted } = job;
        let room = context.context_len.saturating_sub(request.prompt.len());
        let holes: Vec<usize> = request.infill.iter().filter_map(InfillPart::slots).collect();
        let capacity = decoder.capacity().unwrap_or(room).min(room);
        let budget = if holes.is_empty() { request.max_tokens.unwrap_or(capacity).min(capacity) } else { capacity };
        let first = TokenRecord { id: request.prompt[0], logprob: None, top: Vec::new() };
        Self {
            counts: TokenCounts::of_prompt(&given_tokens(&request)),
            detok: Detokenizer::new(request.stop.strings.clone()),
            prompt_records: request.prompt_logprobs.map(|_| first).into_iter().collect(),
            prompt_sent: request.prompt_logprobs.is_none(),
            tokens: request.prompt.clone(),
            lease: pool.lease(),
            holes,
            at: (0, 0),
            kv_use: decoder.kv_use(),
            last_pass: 0,
            stats: DecodeStats {
                strategy: decoder.name(),
                forward_passes: 0,
                scored_rows: 0,
                acceptance_histogram: Vec::new(),
                cached_tokens: 0,
                diffusion: None,
                queue: Duration::ZERO,
                prefill: Duration::ZERO,
                decode: Duration::ZERO,
            },
            request,
            events,
            context,
            decoder,
            budget,
            submitted,
            started: None,
            ticket: None,
            prefilled: 0,
            first_commit: None,
            last_commit: None,
        }
    }

    /// Whether it has ever had a slot.
    pub(crate) fn has_begun(&self) -> bool {
        self.started.is_some()
    }

    /// Takes its slot for the first time.
    pub(crate) fn begin(&mut self, ticket: Ticket) {
        let now = Instant::now();
        self.ticket = Some(ticket);
        self.prefilled = self.stats.cached_tokens;
        self.stats.queue = now - self.submitted;
        self.started = Some(now);
    }

    pub(crate) fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    /// What `plan` computes, for the meter.
    pub(crate) fn positions(&self, plan: &StepPlan, sees_all: bool) -> Option<Positions> {
        let read = plan.end().min(self.prompt_len()).saturating_sub(plan.start.max(self.prefilled));
        Some(Positions { ticket: self.ticket?, start: plan.start, len: plan.tokens.len(), prefill: read, sees_all })
    }

    pub(crate) fn strategy(&self) -> &'static str {
        self.stats.strategy
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.request.prompt.len()
    }

    /// Prompt and committed tokens.
    #[cfg(feature = "testing")]
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn num_committed(&self) -> usize {
        self.tokens.len() - self.prompt_len()
    }

    /// Rows that the next pass needs.
    pub(crate) fn demand(&self, cost: PassCost<'_>) -> RowDemand {
        self.decoder.demand(&self.view(1, cost))
    }

    /// Pages that the sequence must be able to take before it enters: for all it has to read and one to go on, or for
    /// its whole canvas.
    pub(crate) fn pages_to_enter(&self, page_len: usize) -> usize {
        match self.kv_use {
            KvUse::Fixed(len) => len.div_ceil(page_len),
            KvUse::Growing { .. } | KvUse::Scratch => self.tokens.len() / page_len + 2,
        }
    }

    /// Takes the pages that it needs to go on: those of an equal beginning that are cached, and those that it keeps to
    /// the end. False, and nothing is taken, if fewer than `needed` pages would be free for the rest.
    pub(crate) fn enter(&mut self, needed: usize, num_free: impl Fn() -> usize) -> bool {
        let adopted = self.adopt();
        let missing = needed.saturating_sub(self.lease.table().pages().len());
        let kept = match self.kv_use {
            KvUse::Fixed(len) => len,
            KvUse::Growing { .. } | KvUse::Scratch => 0,
        };
        if num_free() < missing || self.lease.reserve(kept).is_err() {
            self.preempt();
            return false;
        }
        if !self.has_begun() {
            self.stats.cached_tokens = adopted;
        }
        true
    }

    /// Takes over what earlier sequences computed for the same beginning; the number of positions.
    fn adopt(&mut self) -> usize {
        // The rows of a prompt that is scored must be fed.
        match self.kv_use {
            KvUse::Growing { border: Some(border) } if self.prompt_sent => {
                self.lease.adopt_prefix(self.decoder.shareable(&self.tokens), border)
            }
            _ => 0,
        }
    }

    /// Lets others find what is valid and final.
    fn publish(&mut self) {
        if let KvUse::Growing { border: Some(border) } = self.kv_use {
            let num_final = self.lease.table().len().min(self.tokens.len());
            self.lease.publish(&self.tokens[..num_final], border);
        }
    }

    /// Prompt tokens that it did not have to read.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.stats.cached_tokens
    }

    /// Whether nothing is left to do but to report.
    pub(crate) fn is_complete(&self) -> bool {
        self.num_committed() >= self.budget && self.prompt_sent
    }

    /// Whether prompt log-probabilities are still to be computed.
    pub(crate) fn scores_prompt(&self) -> bool {
        !self.prompt_sent
    }

    pub(crate) fn view<'a>(&'a self, row_cap: usize, cost: PassCost<'a>) -> SeqView<'a> {
        SeqView {
            tokens: &self.tokens,
            prompt_len: self.prompt_len(),
            kv_len: self.lease.table().len(),
            budget_left: self.budget - self.num_committed(),
            row_cap,
            cost,
            ends: EndRule { own: &self.context.end_ids, stop: &self.request.stop },
        }
    }

    pub(crate) fn plan(&self, row_cap: usize, cost: PassCost<'_>) -> StepPlan {
        self.decoder.plan(&self.view(row_cap, cost))
    }

    /// What scoring the rows of `plan` needs to know.
    pub(crate) fn scoring<'a>(&'a self, plan: &'a StepPlan) -> Scoring<'a> {
        Scoring {
            request: &self.request,
            tokens: &self.tokens,
            counts: &self.counts,
            end_ids: &self.context.end_ids,
            mask_id: self.context.mask_id,
            num_tokens: self.context.tokenizer.vocab_size(),
            prompt_rows: self.prompt_rows(plan),
            plan,
        }
    }

    /// Rows of `plan` whose next token is a prompt token without a record.
    fn prompt_rows(&self, plan: &StepPlan) -> Range<usize> {
        if self.prompt_sent {
            return 0..0;
        }
        // Row at position p predicts the token at p + 1, so record i comes from the row at i - 1.
        let first = (self.prompt_records.len() - 1).max(plan.start);
        let end = (self.prompt_len() - 1).min(plan.end());
        if first < end { first - plan.start..end - plan.start } else { 0..0 }
    }

    /// Takes the scores of a pass: judges, commits, emits. Returns the ending if the sequence is done.
    pub(crate) fn apply(
        &mut self,
        plan: &StepPlan,
        row_cap: usize,
        cost: PassCost<'_>,
        prompt_scores: Vec<TokenScore>,
        scores: Vec<TokenScore>,
    ) -> Result<Applied, Ending> {
        let num_scored = scores.len();
        self.prefilled = self.prefilled.max(plan.end().min(self.prompt_len()));
        let records = prompt_scores.into_iter();
        self.prompt_records.extend(records.map(|score| TokenRecord {
            id: score.token,
            logprob: score.logprob,
            top: score.top,
        }));
        if !self.prompt_sent && self.prompt_records.len() == self.prompt_len() {
            self.prompt_sent = true;
            let records = std::mem::take(&mut self.prompt_records);
            self.emit(Event::Prompt(records))?;
        }
        // The decoder is taken out for the call, because its view borrows the rest of the sequence.
        let mut decoder = std::mem::replace(&mut self.decoder, Box::new(crate::decode::Ar));
        let judged = decoder.judge(&self.view(row_cap, cost), plan, scores);
        self.decoder = decoder;
        let outcome = judged.map_err(|error| Ending::Failed(RequestError::Decode(error.to_string())))?;
        if num_scored > 0 {
            self.stats.forward_passes += 1;
            self.stats.scored_rows += num_scored;
        }
        let kv_len = match outcome.kv {
            KvEffect::Keep => plan.end(),
            KvEffect::Truncate(len) => len,
            KvEffect::Refresh => 0,
        };
        self.lease.set_len(kv_len);
        if !matches!(self.kv_use, KvUse::Fixed(_)) {
            self.lease.shrink();
        }
        self.publish();
        if let Some(canvas) = &outcome.canvas {
            self.frame(canvas)?;
        }
        self.commit(outcome)
    }

    /// Tells a client who asked what changed on the canvas.
    fn frame(&self, canvas: &CanvasChange) -> Result<(), Ending> {
        if !self.request.frames {
            return Ok(());
        }
        self.emit(Event::Frame(Frame {
            step: canvas.step,
            block: canvas.block,
            committed: canvas.committed,
            masked: canvas.masked,
            fixed: canvas.fixed.clone(),
        }))
    }

    fn commit(&mut self, outcome: StepOutcome) -> Result<Applied, Ending> {
        let mut accepted = 0;
        let mut ending = None;
        for score in outcome.commits {
            if self.num_committed() >= self.budget {
                break;
            }
            let token = score.token;
            let is_end = EndRule { own: &self.context.end_ids, stop: &self.request.stop }.is_end(token, self.at.1);
            self.tokens.push(token);
            self.counts.push(token);
            self.at.1 += 1;
            accepted += 1;
            if is_end {
                self.detok.push_end(score);
                ending = self.next_hole()?;
            } else if let Pushed::Stopped(stop) = self.detok.push(score, &self.context.tokenizer) {
                ending = Some(Ending::Finished(FinishReason::Stop, Some(stop)));
            } else if self.holes.get(self.at.0).is_some_and(|len| self.at.1 == *len) && self.at.0 + 1 < self.holes.len()
            {
                self.next_hole()?;
            }
            if ending.is_some() {
                break;
            }
        }
        let mut applied = Applied { accepted, since_last: None, first: None };
        if accepted > 0 {
            let now = Instant::now();
            applied.since_last = self.last_commit.map(|last| now - last);
            if self.first_commit.is_none() {
                self.first_commit = Some(now);
                applied.first = Some(now - self.submitted);
            }
            self.last_commit = Some(now);
            let histogram = &mut self.stats.acceptance_histogram;
            histogram.resize(histogram.len().max(accepted), 0);
            histogram[accepted - 1] += 1;
        }
        if ending.is_none() && (self.is_complete() || self.is_last_hole_full()) {
            ending = Some(Ending::Finished(FinishReason::Length, None));
        }
        let commit = if ending.is_some() { self.detok.finish() } else { self.detok.take() };
        self.emit_commit(commit)?;
        match ending {
            Some(ending) => {
                self.lease.set_len(0);
                Err(ending)
            }
            None => Ok(applied),
        }
    }

    /// The text of a hole is complete: the rest of it leaves, and the next one begins. The ending if there is none.
    fn next_hole(&mut self) -> Result<Option<Ending>, Ending> {
        if self.at.0 + 1 >= self.holes.len() {
            return Ok(Some(Ending::Finished(FinishReason::Stop, None)));
        }
        let rest = self.detok.finish();
        self.emit_commit(rest)?;
        self.at = (self.at.0 + 1, 0);
        Ok(None)
    }

    fn is_last_hole_full(&self) -> bool {
        self.at.0 + 1 == self.holes.len() && self.holes.last() == Some(&self.at.1)
    }

    fn emit_commit(&self, commit: Commit) -> Result<(), Ending> {
        if commit == Commit::default() {
            return Ok(());
        }
        self.emit(Event::Committed(Commit { hole: self.at.0, ..commit }))
    }

    fn emit(&self, event: Event) -> Result<(), Ending> {
        self.events.send(event).map_err(Ending::Failed)
    }

    /// Gives all pages back; the tokens are read again later.
    pub(crate) fn preempt(&mut self) {
        self.lease.set_len(0);
        self.lease.shrink();
    }

    /// Reports the ending to the client and frees everything.
    pub(crate) fn close(mut self, ending: Ending) -> DecodeStats {
        // Whoever hears of the end may count on the pages.
        self.preempt();
        let now = Instant::now();
        self.stats.diffusion = self.decoder.diffusion();
        self.stats.prefill = self.first_commit.unwrap_or(now) - self.started();
        self.stats.decode = self.first_commit.map_or(Duration::ZERO, |first| self.last_commit.unwrap_or(first) - first);
        let stats = self.stats.clone();
        let event = match ending {
            Ending::Finished(reason, stop_string) => Event::Finished(Finish {
                reason,
                stop_string,
                prompt_tokens: self.prompt_len(),
                completion_tokens: self.num_committed(),
                stats: self.stats,
                ticket: self.ticket,
            }),
            Ending::Failed(error) => Event::Failed(error),
            Ending::Cancelled => return stats,
        };
        self.events.close(event);
        stats
    }

    /// When it took its slot; before that, when it was submitted.
    pub(crate) fn started(&self) -> Instant {
        self.started.unwrap_or(self.submitted)
    }

    pub(crate) fn submitted(&self) -> Instant {
        self.submitted
    }

    pub(crate) fn completion_tokens(&self) -> usize {
        self.num_committed()
    }
}

/// The part of a sequence that scoring reads; shared between threads, which a decoder is not.
#[derive(Debug)]
pub(crate) struct Scoring<'a> {
    pub(crate) request: &'a Request,
    /// Prompt and committed tokens.
    pub(crate) tokens: &'a [TokenId],
    pub(crate) counts: &'a TokenCounts,
    pub(crate) end_ids: &'a [TokenId],
    pub(crate) mask_id: Option<TokenId>,
    /// Tokens that the tokenizer knows; embeddings may have more rows.
    pub(crate) num_tokens: usize,
    /// Rows whose next token is a prompt token that needs a log-probability.
    pub(crate) prompt_rows: Range<usize>,
    pub(crate) plan: &'a StepPlan,
}

impl Scoring<'_> {
    /// All rows that must be scored: those the decoder wants, and those of the prompt if its log-probabilities are
    /// wanted. They are adjacent, because a decoder scores behind the prompt only.
    pub(crate) fn rows(&self) -> Range<usize> {
        let wanted = self.plan.scored.clone();
        match (self.prompt_rows.is_empty(), wanted.is_empty()) {
            (true, _) => wanted,
            (false, true) => self.prompt_rows.clone(),
            (false, false) => self.prompt_rows.start..wanted.end,
        }
    }

    /// End tokens that may not be chosen at index `index` of a text.
    pub(crate) fn forbidden(&self, index: usize) -> &[TokenId] {
        let banned = self.request.stop.ignore_eos || index < self.request.stop.min_tokens;
        if banned { self.end_ids } else { &[] }
    }
}

/// The prompt and what else the request gives.
fn given_tokens(request: &Request) -> Vec<TokenId> {
    let fixed = request.infill.iter().flat_map(|part| match part {
        InfillPart::Fixed(tokens) => tokens.as_slice(),
        InfillPart::Hole(_) => &[],
    });
    request.prompt.iter().chain(fixed).copied().collect()
}

/// What a pass added, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) accepted: usize,
    /// Since the previous pass that committed tokens.
    pub(crate) since_last: Option<Duration>,
    /// Since submission, if these are the first tokens.
    pub(crate) first: Option<Duration>,
}
