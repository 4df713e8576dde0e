//! A model of a published shape with weights that mean nothing, and its passes.

use std::{ops::Range, time::Instant};

use anyhow::ensure;
use kernels::device::{DeviceWeight, ScoreConfidence, ScoreConfidenceKind, ScoreQuery};
use models::{
    Backbone, Capacity, ForwardBatch, KvCache, ModelConfig, PageId, RowScorer, Segment, TokenId, Visibility,
    device::DeviceTransformer,
};

use super::{Setup, shapes::matrix_params};

/// Positions of a page, as the engine has them.
const PAGE_LEN: usize = 32;
/// Rows of a pass that reads a prompt.
const PREFILL_ROWS: usize = 512;
/// Seed of the weights.
const SEED: u32 = 1;

/// A model on the device, with room for one sequence.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) config: ModelConfig,
    model: DeviceTransformer,
    kv: KvCache,
    pages: Vec<PageId>,
    max_rows: usize,
    /// Tokens by position.
    tokens: Vec<TokenId>,
    /// Bytes of weights that every pass reads.
    read_weight_bytes: usize,
}

/// The rows of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) positions: Range<usize>,
    pub(super) visibility: Visibility,
    /// Positions whose rows are scored.
    pub(super) scored: Range<usize>,
}

impl Rows {
    /// Rows that are all scored and see what is before them.
    pub(super) fn causal(positions: Range<usize>) -> Self {
        Self { scored: positions.clone(), positions, visibility: Visibility::Causal }
    }
}

impl Subject {
    /// Makes the weights and reserves what passes of up to `max_rows` rows and `max_positions` positions need.
    pub(super) fn new(
        setup: &Setup,
        (name, config): (&str, ModelConfig),
        (max_rows, max_positions): (usize, usize),
    ) -> anyhow::Result<Self> {
        let max_positions = max_positions.min(config.context_len);
        let max_rows = max_rows.max(PREFILL_ROWS.min(max_positions));
        let mut model = DeviceTransformer::made_up(&config, &setup.device, (setup.precision, setup.format), SEED)?;
        let num_pages = max_positions.div_ceil(PAGE_LEN);
        let capacity = Capacity { max_rows, max_tables: 1, context_len: max_positions, num_pages, page_len: PAGE_LEN };
        let kv = model.reserve(capacity)?;
        let embedding = DeviceWeight::bytes_of(setup.format, config.vocab_size, config.hidden_size);
        let unread = if config.tie_embeddings { 0 } else { embedding };
        Ok(Self {
            name: name.into(),
            read_weight_bytes: model.spec().weight_bytes - unread,
            // Backwards: nothing may rely on pages that lie in order.
            pages: (0..num_pages as u32).rev().map(PageId).collect(),
            tokens: (0..max_positions).map(|at| TokenId((at * 7919 % config.vocab_size) as u32)).collect(),
            model,
            kv,
            max_rows,
            config,
        })
    }

    /// Positions that there is room for.
    pub(super) fn max_positions(&self) -> usize {
        self.tokens.len()
    }

    /// Why a pass of so many rows behind so many positions cannot be; `None` if it can.
    pub(super) fn refusal(&self, rows: usize, context: usize) -> Option<String> {
        let (max_rows, max_positions) = (self.max_rows, self.max_positions());
        match (rows > max_rows, rows + context > max_positions) {
            (true, _) => Some(format!("{rows} rows, there is room for {max_rows}")),
            (_, true) => Some(format!("{} positions, there is room for {max_positions}", rows + context)),
            _ => None,
        }
    }

    /// Reads the first positions into the cache.
    pub(super) fn prefill(&mut self, context: usize) -> anyhow::Result<()> {
        for start in (0..context).step_by(PREFILL_ROWS.min(self.max_rows)) {
            let positions = start..(start + PREFILL_ROWS.min(self.max_rows)).min(context);
            let rows = Rows { scored: start..start, positions, visibility: Visibility::Causal };
            self.pass(&rows)?;
        }
        Ok(())
    }

    /// A pass and its scores, as a step of the engine makes it. Returns the seconds on the clock.
    pub(super) fn pass(&mut self, rows: &Rows) -> anyhow::Result<f64> {
        let Self { model, kv, tokens, pages, .. } = self;
        let count = rows.scored.len();
        let began = Instant::now();
        let batch = batch(tokens, pages, rows);
        let scores = model.forward_scored(&batch, kv, &mut || queries(count))?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(scores.rows.len() == count, "{count} rows were to be scored, {} were", scores.rows.len());
        let broken = scores.rows.iter().filter(|score| score.is_broken || score.has_nan).count();
        ensure!(broken == 0, "{broken} of {count} scored rows of {} have logits that are not finite", self.name);
        Ok(seconds)
    }

    /// Milliseconds of the device for a pass with its scores.
    pub(super) fn device_millis(&mut self, rows: &Rows, repeats: usize) -> anyhow::Result<f64> {
        let Self { model, kv, tokens, pages, .. } = self;
        Ok(model.pass_millis(&batch(tokens, pages, rows), kv, &queries(rows.scored.len()), repeats)?)
    }

    /// Bytes that a pass must read: the weights, and keys and values once.
    pub(super) fn read_bytes(&self, rows: usize, context: usize) -> f64 {
        (self.read_weight_bytes + (rows + context) * self.model.spec().kv.bytes_per_token()) as f64
    }

    /// Multiplications and additions, each one, of a pass that scores all rows and sees causally.
    pub(super) fn operations(&self, rows: usize, context: usize) -> f64 {
        let seen: usize = (context + 1..=context + rows).sum();
        let width = self.config.num_heads * self.config.head_dim;
        (2 * rows * matrix_params(&self.config) + 4 * seen * width * self.config.num_layers) as f64
    }
}

fn batch<'a>(tokens: &'a [TokenId], pages: &'a [PageId], rows: &Rows) -> ForwardBatch<'a> {
    let first = rows.positions.start;
    let segment = Segment {
        tokens: &tokens[rows.positions.clone()],
        start: first,
        visibility: rows.visibility,
        scored: rows.scored.start - first..rows.scored.end - first,
        pages,
    };
    ForwardBatch { segments: vec![segment] }
}

/// Greedy, with the probability of the token: what a denoising step asks of each slot.
fn queries(count: usize) -> Vec<ScoreQuery> {
    let confidence = ScoreConfidence { kind: ScoreConfidenceKind::Probability, filtered: false, held_down: Vec::new() };
    vec![ScoreQuery { confidence: Some(confidence), ..ScoreQuery::default() }; count]
}
