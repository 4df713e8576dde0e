//! What is asked of a row of logits, and what it comes to.

/// What is measured of how sure a row is of its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreConfidenceKind {
    /// Probability of the chosen token.
    Probability,
    /// Probability of the likeliest token minus that of the second.
    Margin,
    /// Negative entropy, in nats.
    Entropy,
}

/// How the confidence in the chosen token is measured: after bias, penalties and forbidden tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreConfidence {
    /// What is measured.
    pub kind: ScoreConfidenceKind,
    /// Whether temperature, top-k, top-p and min-p shape the distribution first.
    pub filtered: bool,
    /// Tokens that have confidence 0; the others share their probability.
    pub held_down: Vec<u32>,
}

/// What is done to the logits before the choice, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreAdjustments {
    /// Added to the logits of single tokens, one after the other.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that are penalised, each once, with their number of occurrences in the output.
    pub seen: Vec<(u32, u32)>,
    /// Divides positive and multiplies negative logits of the tokens in `seen`; above 0.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of those that are in the output.
    pub presence_penalty: f32,
    /// The same, for each occurrence.
    pub frequency_penalty: f32,
    /// Tokens that must not be chosen.
    pub forbidden: Vec<u32>,
}

impl Default for ScoreAdjustments {
    fn default() -> Self {
        Self {
            bias: Vec::new(),
            seen: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            forbidden: Vec::new(),
        }
    }
}

impl ScoreAdjustments {
    /// What a token loses beside the repetition penalty.
    pub(super) fn loss(&self, in_output: u32) -> f32 {
        if in_output > 0 { self.presence_penalty + self.frequency_penalty * in_output as f32 } else { 0.0 }
    }
}

/// What is asked of one row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreQuery {
    /// Key of the noise of the row's slot; the noise of a token is a function of both.
    pub noise_key: u64,
    /// 0 takes the likeliest token; otherwise logits are divided by it and one is drawn.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens, at least one; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all. Range `(0, 1]`.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all. Range `[0, 1]`.
    pub min_p: f32,
    /// Changes before the choice.
    pub adjustments: ScoreAdjustments,
    /// Tokens that exist; what follows in the row only pads it and counts as impossible. `None`: all of the row.
    pub num_tokens: Option<usize>,
    /// A token that counts as impossible.
    pub mask_id: Option<u32>,
    /// How to measure the confidence, if at all.
    pub confidence: Option<ScoreConfidence>,
    /// `Some(k)`: report the log-probability of the token, before `adjustments`, and the `k` likeliest.
    pub logprobs: Option<usize>,
    /// Reports the log-probability of this token, and chooses none: `logprobs` counts as `Some(0)` at least, and there are
    /// no adjustments and no confidence.
    pub given: Option<u32>,
}

impl Default for ScoreQuery {
    fn default() -> Self {
        Self {
            noise_key: 0,
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            adjustments: ScoreAdjustments::default(),
            num_tokens: None,
            mask_id: None,
            confidence: None,
            logprobs: None,
            given: None,
        }
    }
}

impl ScoreQuery {
    /// Whether top-k, top-p or min-p is in force.
    pub fn has_filters(&self) -> bool {
        self.top_k.is_some() || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Length of the list of the likeliest; `None` without a log-probability.
    pub(super) fn top_len(&self) -> Option<usize> {
        self.logprobs.or(self.given.map(|_| 0))
    }
}

/// What a row came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScoreResult {
    /// The chosen token; the lowest of equals.
    pub token: u32,
    /// Whether the largest value of the row, as it was, is infinite or not a number. Nothing else means much then.
    pub is_broken: bool,
    /// Whether a value of the row, as it was, is not a number.
    pub has_nan: bool,
    /// Natural log of the token's probability before adjustments; if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, descending, the lower of equals first; if asked for.
    pub top: Vec<(u32, f32)>,
    /// If asked for. 0 for probability and margin, `f32::MIN` for entropy, if a value is not a number.
    pub confidence: Option<f32>,
}
