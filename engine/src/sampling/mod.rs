//! One sampler for every strategy: from a row of logits to a chosen token.
//!
//! The order is fixed: logit bias, repetition, presence and frequency penalties, forbidden tokens, then greedy, or
//! temperature, top-k, top-p, min-p and the Gumbel-max choice. Ties go to the lowest token id.

mod confidence;
mod counts;
mod noise;

use models::TokenId;

pub use confidence::{ConfidenceKind, ConfidenceRule};
pub use counts::TokenCounts;
pub use noise::SlotNoise;
pub(crate) use noise::mix;

use crate::request::Sampling;

/// What a row of logits came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenScore {
    /// The chosen token.
    pub token: TokenId,
    /// Natural log of the model's probability of it, before bias, penalties and temperature; only if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens, descending; only if asked for.
    pub top: Vec<(TokenId, f32)>,
    /// How sure the model is of the chosen token, after bias and penalties; only if asked for.
    pub confidence: Option<f32>,
}

/// Everything that choosing the token of one slot depends on.
#[derive(Debug)]
pub struct SlotContext<'a> {
    /// The request's parameters.
    pub sampling: &'a Sampling,
    /// Tokens seen before the slot.
    pub counts: &'a TokenCounts,
    /// Noise of the slot.
    pub noise: SlotNoise,
    /// Tokens that must not be chosen here.
    pub forbidden: &'a [TokenId],
    /// Whether to report log-probabilities, and of how many alternatives.
    pub logprobs: Option<usize>,
    /// How to measure the confidence, if at all.
    pub confidence: Option<ConfidenceRule<'a>>,
}

/// Chooses the token of a slot.
pub fn choose(logits: &[f32], slot: &SlotContext<'_>) -> TokenScore {
    let sampling = slot.sampling;
    let adjusted = adjust(logits, slot);
    let values = adjusted.as_deref().unwrap_or(logits);
    let likeliest = argmax(values);
    let token = if sampling.temperature == 0.0 { likeliest } else { sample(values, likeliest, slot) };
    let confidence = slot.confidence.map(|rule| rule.of(values, token, sampling));
    match slot.logprobs {
        None => TokenScore { token, confidence, ..TokenScore::default() },
        Some(k) => TokenScore { confidence, ..score_token(logits, token, k) },
    }
}

/// Log-probability of a given token with the `k` likeliest alternatives.
pub fn score_token(logits: &[f32], token: TokenId, k: usize) -> TokenScore {
    let normaliser = log_sum_exp(logits);
    let logprob = |v: TokenId| (f64::from(logits[v.0 as usize]) - normaliser) as f32;
    let top = largest(logits, k).into_iter().map(|v| (v, logprob(v))).collect();
    TokenScore { token, logprob: Some(logprob(token)), top, confidence: None }
}

/// Index of the largest value; the lowest index wins a tie. NaN never wins.
pub fn argmax(values: &[f32]) -> TokenId {
    let max = largest_value(values);
    // A row without a number has no such index; the caller refuses it by the value there.
    let index = values.iter().position(|&value| value == max).unwrap_or(0);
    TokenId(index as u32)
}

/// The largest value, negative infinity if there is no number. In lanes, so that the compiler uses vectors: the scan is
/// part of every pass.
fn largest_value(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, |max, value| if value > max { value } else { max })
}

/// A copy of the logits with bias, penalties and forbidden tokens applied; `None` if none of them is in force.
fn adjust(logits: &[f32], slot: &SlotContext<'_>) -> Option<Vec<f32>> {
    let sampling = slot.sampling;
    if sampling.logit_bias.is_empty() && slot.forbidden.is_empty() && !sampling.has_penalties() {
        return None;
    }
    let mut values = logits.to_vec();
    for &(token, bias) in &sampling.logit_bias {
        values[token.0 as usize] += bias;
    }
    if sampling.has_penalties() {
        for (token, in_output) in slot.counts.iter() {
            let value = &mut values[token.0 as usize];
            *value =
                if *value > 0.0 { *value / sampling.repetition_penalty } else { *value * sampling.repetition_penalty };
            if in_output > 0 {
                *value -= sampling.presence_penalty + sampling.frequency_penalty * in_output as f32;
            }
        }
    }
    for token in slot.forbidden {
        values[token.0 as usize] = f32::NEG_INFINITY;
    }
    Some(values)
}

fn sample(values: &[f32], likeliest: TokenId, slot: &SlotContext<'_>) -> TokenId {
    let sampling = slot.sampling;
    let temperature = f64::from(sampling.temperature);
    let scaled = |v: TokenId| f64::from(values[v.0 as usize]) / temperature;
    let top = (likeliest, scaled(likeliest));
    let filters = sampling.top_k.is_some() || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    if !filters {
        let all = (0..values.len() as u32).map(|v| (TokenId(v), scaled(TokenId(v))));
        return slot.noise.argmax(top, all);
    }
    let kept = filter(values, top.1, sampling);
    slot.noise.argmax(top, kept.into_iter().map(|v| (v, scaled(v))))
}

/// The tokens that top-k, top-p and min-p keep, applied in this order; never empty.
fn filter(values: &[f32], top: f64, sampling: &Sampling) -> Vec<TokenId> {
    let temperature = f64::from(sampling.temperature);
    let mut kept: Vec<TokenId> = match sampling.top_k {
        Some(k) => largest(values, k),
        None => (0..values.len() as u32).map(TokenId).collect(),
    };
    let weight = |v: TokenId| (f64::from(values[v.0 as usize]) / temperature - top).exp();
    if sampling.top_p < 1.0 {
        let total: f64 = kept.iter().map(|&v| weight(v)).sum();
        // Tokens below this floor together weigh less than 1 - top_p, so the nucleus lies above it.
        let floor = (1.0 - f64::from(sampling.top_p)) * total / kept.len() as f64;
        let mut ranked: Vec<(TokenId, f64)> =
            kept.iter().map(|&v| (v, weight(v))).filter(|&(_, weight)| weight >= floor).collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let target = f64::from(sampling.top_p) * total;
        let mut mass = 0.0;
        let nucleus = ranked.iter().take_while(|&&(_, weight)| {
            let wanted = mass < target;
            mass += weight;
            wanted
        });
        kept = nucleus.map(|&(v, _)| v).collect();
    }
    if sampling.min_p > 0.0 {
        kept.retain(|&v| weight(v) >= f64::from(sampling.min_p));
    }
    kept
}

/// The `k` largest values' tokens, descending; the lower id comes first in a tie.
fn largest(values: &[f32], k: usize) -> Vec<TokenId> {
    let k = k.min(values.len());
    if k == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..values.len() as u32).collect();
    let order = |a: &u32, b: &u32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    ids.into_iter().map(TokenId).collect()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest_value(logits);
    let sum: f64 = logits.iter().map(|&value| f64::from((value - max).exp())).sum();
    f64::from(max) + sum.ln()
}

impl Sampling {
    /// Whether the choice depends on earlier tokens.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests;
