//! The same scores from logits that stay on a device: what to ask of each row, and what the answers mean.
#![cfg_attr(not(test), expect(dead_code, reason = "for backbones whose logits stay on their device"))]

use kernels::device::{ScoreAdjustments, ScoreConfidence, ScoreConfidenceKind, ScoreQuery, ScoreResult};
use models::{LogitAlignment, TokenId};

use super::Scored;
use crate::{
    decode::{CanvasReading, Reading},
    error::RequestError,
    request::SuppressEos,
    sampling::{ConfidenceKind, SlotNoise, TokenCounts, TokenScore},
    sequence::Scoring,
};

/// What to ask of the rows of one sequence, one query for each of [`Scoring::rows`] in their order. A row between the
/// prompt and the scored ones that nobody wants has the cheapest query there is.
pub(crate) fn queries(pass: &Scoring<'_>, alignment: LogitAlignment) -> Vec<ScoreQuery> {
    let Scoring { request, plan, .. } = *pass;
    let canvas = canvas(pass);
    // Only penalties look at the tokens before the slot; without them the counts need not follow the drafts.
    let mut counts = request.sampling.has_penalties().then(|| pass.counts.clone());
    if let (Some(counts), Some(canvas)) = (counts.as_mut(), canvas) {
        canvas.decided.iter().for_each(|token| counts.push(*token));
    }
    let mut queries = Vec::with_capacity(pass.rows().len());
    for r in pass.rows() {
        queries.push(if pass.prompt_rows.contains(&r) {
            let given = Some(pass.tokens[plan.start + r + 1].0);
            ScoreQuery { given, logprobs: request.prompt_logprobs, ..ScoreQuery::default() }
        } else if plan.scored.contains(&r) {
            // The first scored row is fed a committed token; from the second on it is a draft.
            if let Some(counts) = counts.as_mut().filter(|_| canvas.is_none() && r > plan.scored.start) {
                counts.push(plan.tokens[r]);
            }
            slot(pass, r, alignment, counts.as_ref())
        } else {
            ScoreQuery::default()
        });
    }
    queries
}

/// The scores of one sequence's rows; `results` answer its [`queries`].
///
/// # Errors
/// If the largest logit of a row is not finite.
pub(crate) fn scores(pass: &Scoring<'_>, results: &[ScoreResult]) -> Result<Scored, RequestError> {
    let first = pass.rows().start;
    let result = |row: usize| {
        let result = &results[row - first];
        let position = pass.plan.start + row;
        let is_fine = !result.is_broken;
        is_fine
            .then_some(result)
            .ok_or_else(|| RequestError::Forward(format!("no finite logit at position {position}")))
    };
    let prompt = pass.prompt_rows.clone().map(|r| Ok(score(result(r)?))).collect::<Result<_, RequestError>>()?;
    let mut rows = Vec::with_capacity(pass.plan.scored.len());
    let mut nonfinite = 0;
    for r in pass.plan.scored.clone() {
        let result = result(r)?;
        // Only such rows, and tokens that are held down, have no confidence at all. An entropy of 0 is a high confidence;
        // the sampler never sees one, because of what it adds inside the logarithm.
        let is_lowest = canvas(pass).is_some_and(|canvas| match canvas.confidence.kind {
            ConfidenceKind::Probability | ConfidenceKind::Margin => result.confidence == Some(0.0),
            ConfidenceKind::Entropy => result.confidence == Some(f32::MIN),
        });
        nonfinite += u64::from(is_lowest && result.has_nan);
        rows.push(score(result));
    }
    Ok(Scored { prompt, rows, nonfinite })
}

fn canvas<'a>(pass: &Scoring<'a>) -> Option<&'a CanvasReading> {
    match &pass.plan.reading {
        Reading::InOrder => None,
        Reading::Canvas(canvas) => Some(canvas),
    }
}

fn score(result: &ScoreResult) -> TokenScore {
    TokenScore {
        token: TokenId(result.token),
        logprob: result.logprob,
        top: result.top.iter().map(|&(token, logprob)| (TokenId(token), logprob)).collect(),
        confidence: result.confidence,
    }
}

/// What to ask of row `row`, which a decoder wants scored. `counts` are there if there are penalties.
fn slot(pass: &Scoring<'_>, row: usize, alignment: LogitAlignment, counts: Option<&TokenCounts>) -> ScoreQuery {
    let Scoring { request, plan, .. } = *pass;
    let sampling = &request.sampling;
    let ahead = match alignment {
        LogitAlignment::NextSlot => 1,
        LogitAlignment::SameSlot => 0,
    };
    let offset = (plan.start + row + ahead).saturating_sub(request.prompt.len());
    let noise = SlotNoise::new(sampling.seed, request.choice, offset as u64);
    let forbidden = pass.forbidden(request.index_in_text(offset));
    let query = ScoreQuery {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        logprobs: request.logprobs,
        ..ScoreQuery::default()
    };
    let Some(canvas) = canvas(pass) else {
        return ScoreQuery { noise_key: noise.key(), adjustments: adjustments(pass, counts, forbidden), ..query };
    };
    let (forbidden, held_down): (_, &[TokenId]) = match canvas.suppress_eos {
        SuppressEos::None => (forbidden, &[]),
        SuppressEos::Logits => (pass.end_ids, &[]),
        SuppressEos::Confidence => (forbidden, pass.end_ids),
    };
    let confidence = ScoreConfidence {
        kind: match canvas.confidence.kind {
            ConfidenceKind::Probability => ScoreConfidenceKind::Probability,
            ConfidenceKind::Margin => ScoreConfidenceKind::Margin,
            ConfidenceKind::Entropy => ScoreConfidenceKind::Entropy,
        },
        filtered: canvas.confidence.filtered,
        held_down: ids(held_down),
    };
    ScoreQuery {
        noise_key: noise.at_step(canvas.step).key(),
        adjustments: adjustments(pass, counts, forbidden),
        num_tokens: Some(pass.num_tokens),
        mask_id: pass.mask_id.map(|mask| mask.0),
        confidence: Some(confidence),
        ..query
    }
}

fn adjustments(pass: &Scoring<'_>, counts: Option<&TokenCounts>, forbidden: &[TokenId]) -> ScoreAdjustments {
    let sampling = &pass.request.sampling;
    ScoreAdjustments {
        bias: sampling.logit_bias.iter().map(|&(token, bias)| (token.0, bias)).collect(),
        seen: counts.iter().flat_map(|counts| counts.iter()).map(|(token, count)| (token.0, count)).collect(),
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        forbidden: ids(forbidden),
    }
}

fn ids(tokens: &[TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}
