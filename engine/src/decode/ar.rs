//! Autoregressive decoding: one token a pass. The baseline that every other strategy is measured against.

use super::{DecodeError, Decoder, KvEffect, SeqView, StepOutcome, StepPlan, TokenScore, expect_scores};

/// Autoregressive decoder.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ar;

impl Decoder for Ar {
    fn name(&self) -> &'static str {
        "ar"
    }

    fn plan(&self, seq: &SeqView<'_>) -> StepPlan {
        StepPlan::prompt_chunk(seq).unwrap_or_else(|| StepPlan::causal_window(seq, &[]))
    }

    fn judge(&mut self, _: &SeqView<'_>, plan: &StepPlan, scores: Vec<TokenScore>) -> Result<StepOutcome, DecodeError> {
        expect_scores(plan, &scores)?;
        Ok(StepOutcome { commits: scores, kv: KvEffect::Keep, canvas: None })
    }
}
