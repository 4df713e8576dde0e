//! How sure a model is of a proposal: what commit policies compare and rank.

use models::TokenId;

use super::{filter, largest_value};
use crate::request::Sampling;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfidenceKind {
    /// Probability of the proposed token.
    Probability,
    /// Probability of the likeliest token minus that of the second.
    Margin,
    /// Negative entropy, in nats.
    Entropy,
}

/// How the confidence of a proposal is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfidenceRule<'a> {
    /// What is measured.
    pub kind: ConfidenceKind,
    /// Whether temperature, top-k, top-p and min-p shape the distribution first (Dream, SDAR); if not, the soft-max of
    /// the logits is taken as it is (LLaDA). Bias, penalties and forbidden tokens count in both.
    pub filtered: bool,
    /// Tokens that have confidence 0; the others share their probability.
    pub held_down: &'a [TokenId],
}

impl ConfidenceRule<'_> {
    /// Confidence of `token`, which was chosen from `values`. A row with a value that is not a number has confidence 0
    /// (the lowest of the kind).
    pub(super) fn of(&self, values: &[f32], token: TokenId, sampling: &Sampling) -> f32 {
        let is_held = |v: usize| self.held_down.iter().any(|held| held.0 as usize == v);
        let kept = self.kept(values, sampling);
        let temperature = match self.filtered && sampling.temperature > 0.0 {
            true => sampling.temperature,
            false => 1.0,
        };
        let max = largest_value(values);
        // In f32, with the sum in f64: within a few parts in 10^7 of arithmetic in f64 throughout.
        let weight = |v: usize| f64::from(((values[v] - max) / temperature).exp());
        let all = || -> Box<dyn Iterator<Item = usize>> {
            match &kept {
                Some(kept) => Box::new(kept.iter().map(|v| v.0 as usize)),
                None => Box::new(0..values.len()),
            }
        };
        let open = || all().filter(|&v| !is_held(v));
        let total: f64 = match (&kept, self.held_down.is_empty()) {
            // The common case without an indirection for each token.
            (None, true) => (0..values.len()).map(weight).sum(),
            _ => open().map(weight).sum(),
        };
        let confidence = match self.kind {
            ConfidenceKind::Probability if is_held(token.0 as usize) => 0.0,
            ConfidenceKind::Probability => weight(token.0 as usize) / total,
            ConfidenceKind::Margin => {
                let (first, second) = open().map(weight).fold((0.0f64, 0.0f64), |(first, second), w| {
                    if w > first { (w, first) } else { (first, second.max(w)) }
                });
                (first - second) / total
            }
            // The reference samplers add this much inside the logarithm.
            ConfidenceKind::Entropy => open().map(|v| weight(v) / total).map(|p| p * (p + 1e-10).ln()).sum(),
        };
        // A filter drops what is not a number, and with it the sign that something is wrong.
        match self.kind {
            _ if confidence.is_finite() && !values.iter().any(|value| value.is_nan()) => confidence as f32,
            ConfidenceKind::Probability | ConfidenceKind::Margin => 0.0,
            ConfidenceKind::Entropy => f32::MIN,
        }
    }

    /// The tokens that the filters keep; `None` for all.
    fn kept(&self, values: &[f32], sampling: &Sampling) -> Option<Vec<TokenId>> {
        let filters = sampling.top_k.is_some() || sampling.top_p < 1.0 || sampling.min_p > 0.0;
        (self.filtered && filters).then(|| {
            let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
            let sampling = Sampling { temperature, ..sampling.clone() };
            filter(values, f64::from(largest_value(values)) / f64::from(temperature), &sampling)
        })
    }
}
