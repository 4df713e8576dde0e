//! The figures of a run.

use serde::Serialize;

use super::tally::{Spread, Targets, Timeline};
use crate::client::{Decoding, FailureKind, Usage};

/// Everything that a run says. Times are milliseconds; of failed requests only [`Summary::failed_after_ms`] tells.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// From the moment when the first request was wanted to the end of the last answer.
    pub(crate) window_s: f64,
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    /// Requests that were on their way when the run was ended. Nothing else counts them.
    pub(crate) interrupted: u64,
    pub(crate) failures: Vec<Failures>,
    /// Over [`Summary::window_s`].
    pub(crate) rates: Rates,
    /// Requests on their way, on average (Little's law).
    pub(crate) mean_in_flight: Option<f64>,
    pub(crate) tokens: Tokens,
    /// From when a request was wanted to its first text.
    pub(crate) ttft_ms: Option<Spread>,
    /// The same from when it was sent.
    pub(crate) ttft_from_send_ms: Option<Spread>,
    /// From when a request was wanted to the head of the answer.
    pub(crate) head_ms: Option<Spread>,
    /// (last event - first event) / (tokens - 1), of answers with two events or more.
    pub(crate) tpot_ms: Option<Spread>,
    /// Between an event with text and the next.
    pub(crate) event_gap_ms: Option<Spread>,
    /// The same divided by the tokens of the later event, once for each of them.
    pub(crate) token_gap_ms: Option<Spread>,
    /// From when a request was wanted to the end of its answer.
    pub(crate) e2e_ms: Option<Spread>,
    pub(crate) e2e_from_send_ms: Option<Spread>,
    /// Of closed loops: as if clients had gone on asking while they waited.
    pub(crate) e2e_corrected_ms: Option<Spread>,
    /// End-to-end time over tokens.
    pub(crate) e2e_per_token_ms: Option<Spread>,
    /// Of open loops: from when a request was due to when it was sent.
    pub(crate) late_ms: Option<Spread>,
    pub(crate) failed_after_ms: Option<Spread>,
    pub(crate) events: Events,
    pub(crate) goodput: Option<Goodput>,
    /// Of Leapfrog.
    pub(crate) passes: Option<PassSummary>,
    /// Joules of all answers, if each came with its own.
    pub(crate) request_joules: Option<f64>,
    pub(crate) timeline: Timeline,
}

/// Failures of one cause.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Failures {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    pub(crate) count: u64,
}

/// What came in a second. Tokens are unknown if one answer does not tell them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Rates {
    pub(crate) requests: Option<f64>,
    pub(crate) output_tokens: Option<f64>,
    pub(crate) total_tokens: Option<f64>,
}

/// Tokens as the server's `usage` counts them.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tokens {
    pub(crate) prompt: u64,
    /// Of these, what the server took from a cache; `None` if no answer tells it.
    pub(crate) cached: Option<u64>,
    pub(crate) completion: u64,
    /// Answers without a usage.
    pub(crate) answers_without: u64,
}

impl Tokens {
    pub(super) fn add(&mut self, usage: &Usage) {
        match (usage.prompt_tokens, usage.completion_tokens) {
            (Some(prompt), Some(completion)) => {
                self.prompt += prompt;
                self.completion += completion;
            }
            _ => self.answers_without += 1,
        }
        if let Some(cached) = usage.cached_tokens() {
            *self.cached.get_or_insert(0) += cached;
        }
    }
}

/// Events with text.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Events {
    pub(crate) count: u64,
    /// Events of answers whose tokens are known, and those tokens.
    pub(crate) counted: u64,
    pub(crate) tokens: u64,
    /// Events that were read within 0.1 ms of the one before them.
    pub(crate) bundled: u64,
    /// Answers with a single event, which have no TPOT and no gap.
    pub(crate) single: u64,
    /// Answers without any.
    pub(crate) without: u64,
}

impl Events {
    /// Tokens of an event, on average.
    pub(crate) fn tokens_per_event(&self) -> Option<f64> {
        (self.counted > 0).then(|| self.tokens as f64 / self.counted as f64)
    }
}

/// Requests that met all targets.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Goodput {
    pub(crate) targets: Targets,
    pub(crate) good: u64,
    pub(crate) per_second: Option<f64>,
}

/// Leapfrog's account of all answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Passes {
    answers: u64,
    forward: u64,
    scoring: u64,
    committed: u64,
}

/// The same with what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct PassSummary {
    /// Answers that told it.
    pub(crate) answers: u64,
    /// Passes in which a request took part, summed over requests: a pass of four requests counts four times.
    pub(crate) forward_passes: u64,
    /// Of these, those that scored slots, and the tokens that they committed.
    pub(crate) scoring_passes: u64,
    pub(crate) committed_tokens: u64,
    /// Committed tokens over scoring passes.
    pub(crate) tokens_per_forward: Option<f64>,
}

impl Passes {
    pub(super) fn add(&mut self, decoding: &Decoding) {
        let (scoring, committed) = decoding.passes_and_tokens();
        self.answers += 1;
        self.forward += decoding.forward_passes.unwrap_or(0);
        self.scoring += scoring;
        self.committed += committed;
    }

    pub(super) fn summary(&self) -> Option<PassSummary> {
        (self.answers > 0).then(|| PassSummary {
            answers: self.answers,
            forward_passes: self.forward,
            scoring_passes: self.scoring,
            committed_tokens: self.committed,
            tokens_per_forward: (self.scoring > 0).then(|| self.committed as f64 / self.scoring as f64),
        })
    }
}
