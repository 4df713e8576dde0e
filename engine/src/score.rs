//! From logits to scores: the sampler, run over the rows of a pass.

use models::{LogitAlignment, Logits};
use rayon::prelude::*;

use crate::{
    error::RequestError,
    sampling::{self, SlotContext, SlotNoise, TokenScore},
    sequence::Scoring,
};

/// The scores of one sequence's rows.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    /// Log-probabilities of prompt tokens.
    pub(crate) prompt: Vec<TokenScore>,
    /// What the decoder asked for.
    pub(crate) rows: Vec<TokenScore>,
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
    let mut rows = Vec::with_capacity(plan.scored.len());
    for r in plan.scored.clone() {
        // The first scored row is fed a committed token; from the second on it is a draft.
        if let Some(counts) = counts.as_mut().filter(|_| r > plan.scored.start) {
            counts.push(plan.tokens[r]);
        }
        let index = (plan.start + r + ahead).saturating_sub(request.prompt.len());
        let slot = SlotContext {
            sampling: &request.sampling,
            counts: counts.as_ref().unwrap_or(pass.counts),
            noise: SlotNoise::new(request.sampling.seed, request.choice, index as u64),
            forbidden: pass.forbidden(index),
            logprobs: request.logprobs,
        };
        rows.push(sampling::choose(row(r)?, &slot));
    }
    Ok(Scored { prompt, rows })
}
