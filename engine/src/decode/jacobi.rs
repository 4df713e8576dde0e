//! Jacobi fixed-point decoding in the unified form: `engine/specs/jacobi.md`, section 3.
//!
//! Every pass feeds the pending token and a block of drafts, replaces each draft by the model's own choice, and commits
//! the leading run that did not change plus one. Width 1 is autoregressive decoding.

use models::TokenId;

use super::{
    DecodeError, Decoder, Guesser, KvEffect, SeqView, StepOutcome, StepPlan, TokenScore, WidthController, expect_scores,
};
use crate::request::{GuessRule, WindowPolicy};

/// How a Jacobi decoder is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JacobiConfig {
    /// Widest block, in tokens, at least 1.
    pub width: usize,
    /// How the block moves on.
    pub window: WindowPolicy,
    /// Where guesses come from.
    pub guess: GuessRule,
    /// Whether the width follows the measured cost of a pass.
    pub adaptive: bool,
    /// Whether the model was trained to predict blocks: then blocks are tried from the start.
    pub trained: bool,
    /// Key of the random guesses.
    pub seed: u64,
}

/// Jacobi decoder.
#[derive(Debug)]
pub struct Jacobi {
    width: usize,
    window: WindowPolicy,
    guesser: Guesser,
    controller: Option<WidthController>,
    /// Refined predictions for the positions after the pending token.
    drafts: Vec<TokenId>,
    /// Slots that the current block still has to decode (shrinking windows).
    left: usize,
}

impl Jacobi {
    /// A decoder at the start of a sequence.
    pub fn new(config: JacobiConfig) -> Self {
        Self {
            width: config.width.max(1),
            window: config.window,
            guesser: Guesser::new(config.guess, config.seed),
            controller: config.adaptive.then(|| WidthController::new(config.width.max(1), config.trained)),
            drafts: Vec::new(),
            left: config.width.max(1),
        }
    }

    fn block_width(&self, seq: &SeqView<'_>) -> usize {
        let wanted = match self.window {
            WindowPolicy::Sliding => self.width,
            WindowPolicy::Shrinking => self.left,
        };
        let free_rows = seq.row_cap.saturating_sub(seq.forced().len() - 1);
        let allowed = wanted.min(seq.budget_left).min(free_rows).max(1);
        match &self.controller {
            None => allowed,
            Some(controller) => controller.width(allowed, self.guesser.has_match(seq.tokens), &seq.cost),
        }
    }
}

impl Decoder for Jacobi {
    fn name(&self) -> &'static str {
        "jacobi"
    }

    fn plan(&self, seq: &SeqView<'_>) -> StepPlan {
        if let Some(chunk) = StepPlan::prompt_chunk(seq) {
            return chunk;
        }
        let num_drafts = self.block_width(seq) - 1;
        let mut drafts = self.drafts.clone();
        drafts.truncate(num_drafts);
        self.guesser.fill(seq.tokens, &mut drafts, num_drafts);
        StepPlan::causal_window(seq, &drafts)
    }

    fn judge(
        &mut self,
        seq: &SeqView<'_>,
        plan: &StepPlan,
        mut scores: Vec<TokenScore>,
    ) -> Result<StepOutcome, DecodeError> {
        expect_scores(plan, &scores)?;
        if scores.is_empty() {
            return Ok(StepOutcome::prefilled());
        }
        let drafts = &plan.tokens[plan.scored.start + 1..];
        let matching = drafts.iter().zip(&scores).take_while(|(draft, score)| **draft == score.token).count();
        let accepted = matching + 1;
        if let Some(controller) = &mut self.controller {
            let matched = self.guesser.has_match(seq.tokens);
            controller.observe(scores.len(), accepted, matched, &seq.cost);
        }
        self.drafts = scores.split_off(accepted).into_iter().map(|score| score.token).collect();
        // With a shrinking window the pass that closes a block starts the next one from fresh guesses.
        self.left = self.left.saturating_sub(accepted);
        if self.left == 0 {
            self.left = self.width;
            if self.window == WindowPolicy::Shrinking {
                self.drafts.clear();
            }
        }
        // Keys and values of accepted drafts stand; those of the first wrong draft and behind it do not. The last
        // committed token is new: it becomes the pending one.
        let kv = KvEffect::Truncate(plan.start + plan.scored.start + accepted);
        Ok(StepOutcome { commits: scores, kv, canvas: None })
    }
}
