//! What the engine counts, and under which names.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{event::DiffusionStats, sequence::Applied};

/// Kinds of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TokenLabels {
    pub(crate) kind: TokenKind,
}

/// Value of the label `kind` of the token counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TokenKind {
    Prompt,
    Completion,
}

impl EncodeLabelValue for TokenKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Prompt => "prompt",
            Self::Completion => "completion",
        };
        name.encode(encoder)
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    pub(crate) outcome: Outcome,
    pub(crate) strategy: &'static str,
}

/// Value of the label `outcome` of the request counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Stop,
    Length,
    Cancelled,
    Failed,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        };
        name.encode(encoder)
    }
}

/// Label of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StrategyLabels {
    pub(crate) strategy: &'static str,
}

/// Label of a commit rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RuleLabels {
    pub(crate) rule: &'static str,
}

type HistogramByStrategy = Family<StrategyLabels, Histogram, fn() -> Histogram>;

/// All instruments of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<OutcomeLabels, Counter>,
    pub(crate) refused: Counter,
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) tokens: Family<TokenLabels, Counter>,
    pub(crate) forward_passes: Counter,
    pub(crate) rows: Counter,
    pub(crate) step_seconds: Histogram,
    pub(crate) step_sequences: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) ttft_seconds: Histogram,
    pub(crate) inter_event_seconds: Histogram,
    pub(crate) request_seconds: Histogram,
    pub(crate) acceptance: HistogramByStrategy,
    pub(crate) tokens_per_forward: HistogramByStrategy,
    pub(crate) denoising_steps: Counter,
    pub(crate) slots: Family<RuleLabels, Counter>,
    pub(crate) slot_edits: Counter,
    pub(crate) nonfinite_rows: Counter,
    pub(crate) shared_prefix_tokens: Counter,
    pub(crate) preemptions: Counter,
    pub(crate) pages_used: Gauge,
    pub(crate) pages_cached: Gauge,
    pub(crate) pages_total: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

fn accepted_tokens() -> Histogram {
    Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0])
}

fn mean_tokens() -> Histogram {
    Histogram::new([1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            refused: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            tokens: Family::default(),
            forward_passes: Counter::default(),
            rows: Counter::default(),
            step_seconds: seconds(),
            step_sequences: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            queue_seconds: seconds(),
            ttft_seconds: seconds(),
            inter_event_seconds: seconds(),
            request_seconds: seconds(),
            acceptance: Family::new_with_constructor(accepted_tokens),
            tokens_per_forward: Family::new_with_constructor(mean_tokens),
            denoising_steps: Counter::default(),
            slots: Family::default(),
            slot_edits: Counter::default(),
            nonfinite_rows: Counter::default(),
            shared_prefix_tokens: Counter::default(),
            preemptions: Counter::default(),
            pages_used: Gauge::default(),
            pages_cached: Gauge::default(),
            pages_total: Gauge::default(),
        }
    }

    /// Registers everything. Counters get the suffix `_total` when encoded.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let engine = registry.sub_registry_with_prefix("leapfrog");
        engine.register("requests", "Requests that ended, by outcome and strategy", self.requests.clone());
        engine.register("requests_refused", "Requests refused because the queue was full", self.refused.clone());
        engine.register("requests_running", "Sequences that decode now", self.running.clone());
        engine.register("requests_waiting", "Sequences that wait for a slot", self.waiting.clone());
        engine.register("tokens", "Prompt tokens read and completion tokens committed", self.tokens.clone());
        engine.register("forward_passes", "Passes of the model", self.forward_passes.clone());
        engine.register("forward_rows", "Rows of those passes, summed", self.rows.clone());
        let seconds = |name: &str, help: &str, histogram: &Histogram, engine: &mut Registry| {
            engine.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds("step_duration", "Time of one decode step of all sequences", &self.step_seconds, engine);
        seconds("queue_duration", "Time from submission to the first step", &self.queue_seconds, engine);
        seconds("time_to_first_token", "Time from submission to the first committed token", &self.ttft_seconds, engine);
        seconds("inter_event", "Time between two steps that committed tokens", &self.inter_event_seconds, engine);
        seconds("request_duration", "Time from submission to the end", &self.request_seconds, engine);
        engine.register("step_sequences", "Sequences that shared a step", self.step_sequences.clone());
        engine.register(
            "accepted_tokens",
            "Tokens committed by one scoring pass of a request",
            self.acceptance.clone(),
        );
        engine.register(
            "tokens_per_forward",
            "Completion tokens per scoring pass, one value a request",
            self.tokens_per_forward.clone(),
        );
        engine.register("denoising_steps", "Denoising steps of requests that ended", self.denoising_steps.clone());
        engine.register(
            "slots_decided",
            "Slots of canvases decided in requests that ended, by the rule that did it",
            self.slots.clone(),
        );
        engine.register("slot_edits", "Filled slots that were overwritten", self.slot_edits.clone());
        engine.register(
            "nonfinite_rows",
            "Rows of logits with values that are not numbers; their slots have confidence 0",
            self.nonfinite_rows.clone(),
        );
        engine.register(
            "shared_prefix_tokens",
            "Prompt tokens whose keys and values came from earlier requests",
            self.shared_prefix_tokens.clone(),
        );
        engine.register("preemptions", "Sequences that gave up their KV pages to others", self.preemptions.clone());
        engine.register("kv_pages_used", "KV pages in use", self.pages_used.clone());
        engine.register(
            "kv_pages_cached",
            "KV pages that nobody uses and whose content can still be shared",
            self.pages_cached.clone(),
        );
        engine.register("kv_pages", "KV pages in all", self.pages_total.clone());
    }

    /// How the canvas of a request was filled.
    pub(crate) fn observe_canvas(&self, stats: &DiffusionStats) {
        self.denoising_steps.inc_by(stats.denoising_steps as u64);
        self.slot_edits.inc_by(stats.edits as u64);
        let counts = stats.commits;
        for (rule, count) in [("top", counts.top), ("anchor", counts.anchor), ("relaxed", counts.relaxed)] {
            self.slots.get_or_create(&RuleLabels { rule }).inc_by(count as u64);
        }
    }

    /// What one pass added to one sequence.
    pub(crate) fn observe(&self, applied: Applied) {
        if let Some(gap) = applied.since_last {
            self.inter_event_seconds.observe(gap.as_secs_f64());
        }
        if let Some(first) = applied.first {
            self.ttft_seconds.observe(first.as_secs_f64());
        }
    }
}
