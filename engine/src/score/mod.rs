//! From logits to scores: the sampler, run over the rows of a pass.

mod query;
#[cfg(test)]
mod tests;

use models::{LogitAlignment, Logits};
use rayon::prelude::*;

use crate::{
    decode::{CanvasReading, Reading},
    error::RequestError,
    request::SuppressEos,
    sampling::{self, ConfidenceRule, SlotContext, SlotNoise, TokenScore},
    sequence::Scoring,
};

/// The scores of one sequence's rows.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Scored {
    /// Log-probabilities of prompt tokens.
    pub(crate) prompt: Vec<TokenScore>,
    /// What the decoder asked for.
    pub(crate) rows: Vec<TokenScore>,
    /// Rows with values that are not numbers.
    pub(crate) nonfinite: u64,
}

/// Scores the rows of every sequence of a pass; `logits` has them in the order of `passes`.
pub(crate) fn score(
    passes: &[Scoring<'_>],
    logits: &Logits,
    alignment: LogitAlignment,
) -> Vec<Result<Scored, RequestError>> {
    let offsets: Vec<usize> = passes
        .iter()
        .scan(0, |next, pass| {
            let offset = *next;
            *next += pass.rows().len();
            Some(offset)
        })
        .collect();
    passes.par_iter().zip(offsets).map(|(pass, offset)| score_one(pass, logits, offset, alignment)).collect()
}

fn score_one(
    pass: &Scoring<'_>,
    logits: &Logits,
    offset: usize,
    alignment: LogitAlignment,
) -> Result<Scored, RequestError> {
    let Scoring { request, plan, .. } = *pass;
    let first = pass.rows().start;
    let row = |row: usize| {
        let values = logits.row(offset + row - first);
        let finite = values[sampling::argmax(values).0 as usize].is_finite();
        let position = plan.start + row;
        finite.then_some(values).ok_or_else(|| RequestError::Forward(format!("no finite logit at position {position}")))
    };
    let prompt_k = request.prompt_logprobs.unwrap_or(0);
    let prompt = pass
        .prompt_rows
        .clone()
        .map(|r| Ok(sampling::score_token(row(r)?, pass.tokens[plan.start + r + 1], prompt_k)))
        .collect::<Result<_, RequestError>>()?;

    // Only penalties look at the tokens before the slot; without them the counts need not follow the drafts.
    let mut counts = request.sampling.has_penalties().then(|| pass.counts.clone());
    let ahead = match alignment {
        LogitAlignment::NextSlot => 1,
        LogitAlignment::SameSlot => 0,
    };
    let canvas = match &plan.reading {
        Reading::InOrder => None,
        Reading::Canvas(canvas) => Some(canvas),
    };
    if let (Some(counts), Some(canvas)) = (counts.as_mut(), canvas) {
        canvas.decided.iter().for_each(|token| counts.push(*token));
    }
    let mut rows = Vec::with_capacity(plan.scored.len());
    let mut nonfinite = 0;
    for r in plan.scored.clone() {
        // The first scored row is fed a committed token; from the second on it is a draft.
        if let Some(counts) = counts.as_mut().filter(|_| canvas.is_none() && r > plan.scored.start) {
            counts.push(plan.tokens[r]);
        }
        let offset = (plan.start + r + ahead).saturating_sub(request.prompt.len());
        let noise = SlotNoise::new(request.sampling.seed, request.choice, offset as u64);
        let index = request.index_in_text(offset);
        let slot = SlotContext {
            sampling: &request.sampling,
            counts: counts.as_ref().unwrap_or(pass.counts),
            noise,
            forbidden: pass.forbidden(index),
            logprobs: request.logprobs,
            confidence: None,
        };
        rows.push(match canvas {
            None => sampling::choose(row(r)?, &slot),
            Some(canvas) => {
                let logits = row(r)?;
                let score = propose(logits, slot, canvas, pass);
                // Only such rows, and tokens that are held down, have no confidence at all.
                let is_lowest = score.confidence.is_none_or(|confidence| confidence == 0.0 || confidence == f32::MIN);
                nonfinite += u64::from(is_lowest && logits.iter().any(|value| value.is_nan()));
                score
            }
        });
    }
    Ok(Scored { prompt, rows, nonfinite })
}

/// Proposes a token for a slot of a canvas. The mask, and rows that only pad the embeddings, are taken out of the
/// distribution before anything else: they are neither proposed nor listed among the likeliest.
fn propose(logits: &[f32], slot: SlotContext<'_>, canvas: &CanvasReading, pass: &Scoring<'_>) -> TokenScore {
    let mut logits = logits.to_vec();
    let num_tokens = pass.num_tokens.min(logits.len());
    logits[num_tokens..].fill(f32::NEG_INFINITY);
    if let Some(mask_id) = pass.mask_id {
        logits[mask_id.0 as usize] = f32::NEG_INFINITY;
    }
    let mut confidence = ConfidenceRule { held_down: &[], ..canvas.confidence };
    let forbidden = match canvas.suppress_eos {
        SuppressEos::None => slot.forbidden,
        SuppressEos::Logits => pass.end_ids,
        SuppressEos::Confidence => {
            confidence.held_down = pass.end_ids;
            slot.forbidden
        }
    };
    let noise = slot.noise.at_step(canvas.step);
    let slot = SlotContext { noise, forbidden, confidence: Some(confidence), ..slot };
    sampling::choose(&logits, &slot)
}
