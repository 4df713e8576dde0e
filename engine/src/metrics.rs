//! What the engine counts, and under which names.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

use crate::{
    event::DiffusionStats,
    exposition::{ByLabels, Page},
    sequence::Applied,
    solver::SolverMetrics,
};

/// Kinds of tokens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct TokenLabels {
    pub(crate) kind: TokenKind,
}

/// Value of the label `kind` of the token counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct OutcomeLabels {
    pub(crate) outcome: Outcome,
    pub(crate) strategy: &'static str,
}

/// Value of the label `outcome` of the request counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct StrategyLabels {
    pub(crate) strategy: &'static str,
}

/// Label of a commit rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct RuleLabels {
    pub(crate) rule: &'static str,
}

type HistogramByStrategy = ByLabels<StrategyLabels, Histogram>;

/// All instruments of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) requests: ByLabels<OutcomeLabels, Counter>,
    pub(crate) refused: Counter,
    pub(crate) running: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) tokens: ByLabels<TokenLabels, Counter>,
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
    pub(crate) slots: ByLabels<RuleLabels, Counter>,
    pub(crate) slot_edits: Counter,
    pub(crate) nonfinite_rows: Counter,
    pub(crate) shared_prefix_tokens: Counter,
    pub(crate) preemptions: Counter,
    pub(crate) pages_used: Gauge,
    pub(crate) pages_cached: Gauge,
    pub(crate) pages_total: Gauge,
    /// Only engines of models with [`models::BackboneSpec::has_solver`] have it.
    pub(crate) solver: Option<SolverMetrics>,
    /// Only engines of diffusion models have it.
    pub(crate) canvas: Option<CanvasMetrics>,
}

/// What is counted of canvases after each pass, under names that dashboards know.
#[derive(Debug, Clone, Default)]
pub(crate) struct CanvasMetrics {
    pub(crate) steps: Counter,
    pub(crate) positions: Counter,
    pub(crate) committed: Counter,
}

impl CanvasMetrics {
    /// Adds one judged pass of a sequence.
    pub(crate) fn observe(&self, num_scored: usize, num_committed: usize) {
        if num_scored > 0 {
            self.steps.inc();
        }
        self.positions.inc_by(num_scored as u64);
        self.committed.inc_by(num_committed as u64);
    }
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
            requests: ByLabels::new(Counter::default),
            refused: Counter::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            tokens: ByLabels::new(Counter::default),
            forward_passes: Counter::default(),
            rows: Counter::default(),
            step_seconds: seconds(),
            step_sequences: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
            queue_seconds: seconds(),
            ttft_seconds: seconds(),
            inter_event_seconds: seconds(),
            request_seconds: seconds(),
            acceptance: ByLabels::new(accepted_tokens),
            tokens_per_forward: ByLabels::new(mean_tokens),
            denoising_steps: Counter::default(),
            slots: ByLabels::new(Counter::default),
            slot_edits: Counter::default(),
            nonfinite_rows: Counter::default(),
            shared_prefix_tokens: Counter::default(),
            preemptions: Counter::default(),
            pages_used: Gauge::default(),
            pages_cached: Gauge::default(),
            pages_total: Gauge::default(),
            solver: None,
            canvas: None,
        }
    }

    /// Writes everything. Counters get the suffix `_total`.
    pub(crate) fn write(page: &mut Page<'_, '_>) -> fmt::Result {
        page.by("requests", "Requests that ended, by outcome and strategy", |m| &m.requests)?;
        page.one("requests_refused", "Requests refused because the queue was full", |m| &m.refused)?;
        page.one("requests_running", "Sequences that decode now", |m| &m.running)?;
        page.one("requests_waiting", "Sequences that wait for a slot", |m| &m.waiting)?;
        page.by("tokens", "Prompt tokens read and completion tokens committed", |m| &m.tokens)?;
        page.one("forward_passes", "Passes of the model", |m| &m.forward_passes)?;
        page.one("forward_rows", "Rows of those passes, summed", |m| &m.rows)?;
        page.seconds("step_duration", "Time of one decode step of all sequences", |m| &m.step_seconds)?;
        page.seconds("queue_duration", "Time from submission to the first step", |m| &m.queue_seconds)?;
        let first = "Time from submission to the first committed token";
        page.seconds("time_to_first_token", first, |m| &m.ttft_seconds)?;
        page.seconds("inter_event", "Time between two steps that committed tokens", |m| &m.inter_event_seconds)?;
        page.seconds("request_duration", "Time from submission to the end", |m| &m.request_seconds)?;
        page.one("step_sequences", "Sequences that shared a step", |m| &m.step_sequences)?;
        page.by("accepted_tokens", "Tokens committed by one scoring pass of a request", |m| &m.acceptance)?;
        let mean = "Completion tokens per scoring pass, one value a request";
        page.by("tokens_per_forward", mean, |m| &m.tokens_per_forward)?;
        page.one("denoising_steps", "Denoising steps of requests that ended", |m| &m.denoising_steps)?;
        let decided = "Slots of canvases decided in requests that ended, by the rule that did it";
        page.by("slots_decided", decided, |m| &m.slots)?;
        page.one("slot_edits", "Filled slots that were overwritten", |m| &m.slot_edits)?;
        let nonfinite = "Rows of logits with values that are not numbers; their slots have confidence 0";
        page.one("nonfinite_rows", nonfinite, |m| &m.nonfinite_rows)?;
        let shared = "Prompt tokens whose keys and values came from earlier requests";
        page.one("shared_prefix_tokens", shared, |m| &m.shared_prefix_tokens)?;
        page.one("preemptions", "Sequences that gave up their KV pages to others", |m| &m.preemptions)?;
        page.one("kv_pages_used", "KV pages in use", |m| &m.pages_used)?;
        let cached = "KV pages that nobody uses and whose content can still be shared";
        page.one("kv_pages_cached", cached, |m| &m.pages_cached)?;
        page.one("kv_pages", "KV pages in all", |m| &m.pages_total)?;
        SolverMetrics::write(page)
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
