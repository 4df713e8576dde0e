//! Queries as the kernels read them, checked.

use super::{
    OP, ScoreAdjustments, ScoreConfidenceKind, ScoreQuery,
    params::{Adjustment, Change, NO_TOKEN, Row, flag},
};
use crate::KernelError;

/// The queries of a batch.
#[derive(Debug, Default)]
pub(super) struct Packed {
    pub(super) rows: Vec<Row>,
    pub(super) adjustments: Vec<Adjustment>,
    pub(super) held: Vec<u32>,
}

impl Packed {
    /// Packs queries about rows of `vocab` logits, with lists of at most `max_top` tokens.
    pub(super) fn new(queries: &[ScoreQuery], vocab: usize, max_top: usize) -> Result<Self, KernelError> {
        let mut packed = Self::default();
        for query in queries {
            packed.push(query, vocab, max_top)?;
        }
        Ok(packed)
    }

    fn push(&mut self, query: &ScoreQuery, vocab: usize, max_top: usize) -> Result<(), KernelError> {
        check(query, vocab, max_top)?;
        let (adjust_start, held_start) = (narrow(self.adjustments.len())?, narrow(self.held.len())?);
        let confidence = query.confidence.as_ref().filter(|_| query.given.is_none());
        if query.given.is_none() {
            self.adjustments.extend(changes(&query.adjustments));
        }
        self.held.extend(confidence.iter().flat_map(|rule| &rule.held_down));
        let (adjust_end, held_end) = (narrow(self.adjustments.len())?, narrow(self.held.len())?);

        let draws = query.given.is_none() && query.temperature > 0.0;
        let warm = if query.temperature > 0.0 { query.temperature } else { 1.0 };
        let shapes_confidence = confidence.is_some_and(|rule| rule.filtered);
        let top_len = query.top_len();
        let flags = [
            (flag::NOISE, draws),
            (flag::FILTER, query.has_filters() && (draws || shapes_confidence)),
            (flag::LOGPROB, top_len.is_some()),
            (flag::ADJUSTED, adjust_start < adjust_end),
            (flag::CONFIDENCE_FILTERED, query.has_filters() && shapes_confidence),
            (kind(confidence.map(|rule| rule.kind)), true),
        ];
        self.rows.push(Row {
            noise_key: query.noise_key,
            temperature: warm,
            filter_temperature: warm,
            confidence_temperature: if shapes_confidence { warm } else { 1.0 },
            top_p: query.top_p,
            min_p: query.min_p,
            top_k: query.top_k.map_or(0, |k| k.min(vocab) as u32),
            repetition: query.adjustments.repetition_penalty,
            num_tokens: query.num_tokens.unwrap_or(vocab).min(vocab) as u32,
            mask_id: query.mask_id.unwrap_or(NO_TOKEN),
            given: query.given.unwrap_or(NO_TOKEN),
            flags: flags.into_iter().filter(|(_, is_set)| *is_set).fold(0, |all, (flag, _)| all | flag),
            num_top: top_len.unwrap_or(0).min(vocab) as u32,
            adjust_start,
            adjust_end,
            held_start,
            held_end,
        });
        Ok(())
    }

    /// Whether a row has all of these flags.
    pub(super) fn any_has(&self, flags: u32) -> bool {
        self.rows.iter().any(|row| row.flags & flags == flags)
    }
}

fn kind(kind: Option<ScoreConfidenceKind>) -> u32 {
    match kind {
        None => 0,
        Some(ScoreConfidenceKind::Probability) => flag::PROBABILITY,
        Some(ScoreConfidenceKind::Margin) => flag::MARGIN,
        Some(ScoreConfidenceKind::Entropy) => flag::ENTROPY,
    }
}

/// All changes, by token, in the order in which they are made.
fn changes(adjustments: &ScoreAdjustments) -> Vec<Adjustment> {
    let change = |token: u32, change: Change, amount: f32| Adjustment { token, change: change as u32, amount };
    let bias = adjustments.bias.iter().map(|&(token, bias)| change(token, Change::Bias, bias));
    let seen = &adjustments.seen;
    let penalties = seen.iter().map(|&(token, count)| change(token, Change::Penalty, adjustments.loss(count)));
    let forbidden = adjustments.forbidden.iter().map(|&token| change(token, Change::Forbid, 0.0));
    let mut all: Vec<Adjustment> = bias.chain(penalties).chain(forbidden).collect();
    // Stable: several biases of a token are added one after the other.
    all.sort_by_key(|change| change.token);
    all
}

fn check(query: &ScoreQuery, vocab: usize, max_top: usize) -> Result<(), KernelError> {
    let adjustments = &query.adjustments;
    number("temperature", query.temperature, "finite and at least 0", |x| x >= 0.0)?;
    number("top_p", query.top_p, "above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?;
    number("min_p", query.min_p, "between 0 and 1", |x| (0.0..=1.0).contains(&x))?;
    number("repetition_penalty", adjustments.repetition_penalty, "finite and above 0", |x| x > 0.0)?;
    number("presence_penalty", adjustments.presence_penalty, "finite", |_| true)?;
    number("frequency_penalty", adjustments.frequency_penalty, "finite", |_| true)?;
    for &(_, bias) in &adjustments.bias {
        number("bias", bias, "finite", |_| true)?;
    }
    if query.top_k == Some(0) {
        return Err(KernelError::Zero { op: OP, what: "top_k" });
    }
    let tokens = (adjustments.bias.iter().map(|(token, _)| *token))
        .chain(adjustments.seen.iter().map(|(token, _)| *token))
        .chain(adjustments.forbidden.iter().copied())
        .chain(query.mask_id)
        .chain(query.given);
    for token in tokens {
        if token as usize >= vocab {
            return Err(KernelError::OutOfRange { op: OP, what: "token", index: token as usize, len: vocab });
        }
    }
    match query.top_len() {
        Some(k) if k > max_top => {
            Err(KernelError::OutOfRange { op: OP, what: "number of likeliest tokens", index: k, len: max_top + 1 })
        }
        _ => Ok(()),
    }
}

fn number(
    what: &'static str,
    got: f32,
    expected: &'static str,
    domain: impl Fn(f32) -> bool,
) -> Result<(), KernelError> {
    let is_fine = got.is_finite() && domain(got);
    is_fine.then_some(()).ok_or(KernelError::Domain { op: OP, what, index: 0, expected, got })
}

fn narrow(len: usize) -> Result<u32, KernelError> {
    u32::try_from(len).map_err(|_| KernelError::Overflow { op: OP, what: "queries" })
}
