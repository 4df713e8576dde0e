//! What a caller may ask for. [`Request::validate`] is the one place where ranges are checked.

use models::TokenId;
use serde::{Deserialize, Serialize};

use crate::error::SubmitError;

/// One completion to generate. A caller that wants `n` choices submits `n` requests that differ in `choice`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The prompt, at least one token.
    pub prompt: Vec<TokenId>,
    /// Index of the choice; part of the key of the sampling noise, so that choices of one seed differ.
    pub choice: u32,
    /// Most tokens to generate; `None` means as many as the context holds.
    pub max_tokens: Option<usize>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// When to stop before `max_tokens`.
    pub stop: StopRules,
    /// `Some(k)`: report the log-probability of every generated token and of the `k` likeliest alternatives.
    pub logprobs: Option<usize>,
    /// `Some(k)`: the same for every prompt token but the first.
    pub prompt_logprobs: Option<usize>,
    /// Which decoder runs the request.
    pub decoding: DecodingOptions,
    /// What follows the prompt: holes to fill between given tokens. Empty: the text goes on from the prompt.
    pub infill: Vec<InfillPart>,
    /// Whether to report what each denoising step fixed, out of order.
    pub frames: bool,
}

/// A part of the text behind the prompt of an infill request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfillPart {
    /// Slots to fill, at least one. An end token ends the text of the hole before its last slot.
    Hole(usize),
    /// Given tokens.
    Fixed(Vec<TokenId>),
}

impl InfillPart {
    /// Slots of a hole.
    pub(crate) fn slots(&self) -> Option<usize> {
        match self {
            Self::Hole(slots) => Some(*slots),
            Self::Fixed(_) => None,
        }
    }
}

impl Request {
    /// Index within its text of the slot `offset` positions behind the prompt: within its hole, if there are holes.
    pub(crate) fn index_in_text(&self, offset: usize) -> usize {
        let mut start = 0;
        for part in &self.infill {
            let (len, is_hole) = match part {
                InfillPart::Hole(slots) => (*slots, true),
                InfillPart::Fixed(tokens) => (tokens.len(), false),
            };
            if is_hole && (start..start + len).contains(&offset) {
                return offset - start;
            }
            start += len;
        }
        offset
    }

    /// A greedy request with default settings.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            choice: 0,
            max_tokens: None,
            sampling: Sampling::default(),
            stop: StopRules::default(),
            logprobs: None,
            prompt_logprobs: None,
            decoding: DecodingOptions::default(),
            infill: Vec::new(),
            frames: false,
        }
    }
}

/// Parameters of the sampler, applied in this order: bias, penalties, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it. Range `0..=100`.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all. Range `(0, 1]`.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all. Range `[0, 1]`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the prompt or the output; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of a token that the output contains. Range `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted for each occurrence of a token in the output. Range `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens. Range `[-100, 100]`.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Key of the sampling noise: the same seed gives the same text, whatever else runs.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// When generation ends before the token budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRules {
    /// Strings that end the text; neither they nor anything after them is returned.
    pub strings: Vec<String>,
    /// Token ids that end the text, besides the model's own.
    pub token_ids: Vec<TokenId>,
    /// Never choose one of the model's end tokens.
    pub ignore_eos: bool,
    /// Do not choose an end token before this many tokens.
    pub min_tokens: usize,
}

/// Which decoder runs a request, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodingOptions {
    /// The decoder.
    pub strategy: Strategy,
    /// Widest block, in tokens, that a forward pass may verify; `None` takes the model's or the server's default.
    pub width: Option<usize>,
    /// Whether the width follows the measured cost of a pass (default) or stays as given.
    pub adaptive: Option<bool>,
    /// How a block moves on; the default is sliding.
    pub window: Option<WindowPolicy>,
    /// Where guesses come from when no refined prediction is at hand.
    pub guess: Option<GuessRule>,
    /// How a canvas of masks is filled.
    pub diffusion: DiffusionOptions,
}

/// How a diffusion decoder fills its canvas. What is `None` is the preset's, then the family's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiffusionOptions {
    /// A named point between quality and speed.
    pub preset: Option<Preset>,
    /// Which slots a pass commits.
    pub policy: Option<Policy>,
    /// What slots are ranked by.
    pub remasking: Option<Remasking>,
    /// Denoising steps of the fixed quota: of the whole canvas with full attention, of each block with block-causal
    /// attention. Policies with thresholds take as many as they need; `dynamic` and `editing` commit at least the quota.
    pub steps: Option<usize>,
    /// Slots that are decoded together.
    pub block_length: Option<usize>,
    /// Slots of the canvas (full attention only).
    pub gen_length: Option<usize>,
    /// Confidence from which a slot is committed, or is an anchor. Range `(0, 1]`.
    pub threshold: Option<f32>,
    /// Confidence from which a neighbour of an anchor is committed. Range `[0, 1]`.
    pub relaxed_threshold: Option<f32>,
    /// Distance up to which an anchor relaxes the threshold, in positions.
    pub radius: Option<usize>,
    /// Factor of the policy `factor`, above 0.
    pub factor: Option<f32>,
    /// Probability above which the policy `editing` overwrites a filled slot. Range `[0, 1]`.
    pub edit_threshold: Option<f32>,
    /// Most passes that only edit, for each block.
    pub max_post_steps: Option<usize>,
    /// What is kept between passes.
    pub cache: Option<CacheMode>,
    /// When the canvas is left before it is full.
    pub early_stop: Option<EarlyStop>,
    /// Whether end tokens are held down.
    pub suppress_eos: Option<SuppressEos>,
}

/// Named points between quality and speed. Only `balanced` is published; see `engine/specs/diffusion.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Higher thresholds: fewer tokens a pass.
    Quality,
    /// The family's published settings.
    Balanced,
    /// Lower thresholds, and the approximate dual cache where attention is full.
    Fast,
}

/// Which slots a denoising pass commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// A fixed number, the best first.
    Quota,
    /// All that reach the threshold (Fast-dLLM).
    Threshold,
    /// The longest ranked prefix whose confidences support each other (Fast-dLLM).
    Factor,
    /// The threshold, relaxed around anchors (LocalLeap).
    LocalLeap,
    /// All above the threshold, the quota at least (SDAR, LLaDA2).
    Dynamic,
    /// `dynamic`, and filled slots may still be overwritten within their block (LLaDA2.1).
    Editing,
}

/// What the slots of a canvas are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remasking {
    /// Probability of the proposed token.
    LowConfidence,
    /// Distance of the two likeliest tokens.
    Margin,
    /// Negative entropy.
    Entropy,
    /// Uniform noise; only with the fixed quota.
    Random,
    /// Each slot by its own coin (the "origin" rule of Dream); only with the fixed quota.
    Origin,
    /// From left to right; only with the fixed quota.
    Sequential,
}

/// What a diffusion decoder keeps between passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Nothing: every pass computes everything. Exact.
    None,
    /// Full attention: keys and values before the block, renewed at each block. Approximate.
    Prefix,
    /// Full attention: keys and values of everything but the block, renewed at each block. Approximate.
    Dual,
    /// Block-causal attention: keys and values of finished blocks. Exact.
    Block,
}

impl CacheMode {
    /// Whether the text is the same as without a cache.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::None | Self::Block)
    }
}

/// When a canvas is left before it is full. The visible text is the same for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStop {
    /// As soon as an end token is committed and everything before it.
    #[default]
    Prefix,
    /// When the block with an end token is full.
    Block,
    /// Never: the whole canvas is filled.
    None,
}

/// Whether end tokens are held down while a canvas is filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuppressEos {
    /// They compete like other tokens.
    #[default]
    None,
    /// They are never proposed.
    Logits,
    /// They are proposed with confidence 0, so that they are committed last.
    Confidence,
}

/// A decoding strategy as a client names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// The best strategy that the model supports.
    #[default]
    Auto,
    /// One token per forward pass.
    Ar,
    /// Jacobi fixed-point decoding.
    Jacobi,
    /// Denoising of a canvas of masks; what diffusion models do.
    Diffusion,
}

/// What happens to a Jacobi block when a pass accepts a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowPolicy {
    /// The block gets shorter until it is done; then a fresh one starts.
    Shrinking,
    /// The block keeps its width; fresh guesses fill its end.
    Sliding,
}

/// A source of initial guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuessRule {
    /// Tokens drawn uniformly from the prompt and the output so far.
    ContextRandom,
    /// What followed the last occurrence of the current suffix (3, 2 or 1 tokens); context-random beyond it.
    Lookup,
}

/// Widest block a request may ask for.
pub const MAX_WIDTH: usize = 64;
/// Most alternatives a request may ask log-probabilities for.
pub const MAX_LOGPROBS: usize = 20;
/// Most stop strings of a request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
pub const MAX_STOP_LEN: usize = 1024;

impl Request {
    /// Checks every range. `vocab_size` and `context_len` are the model's.
    pub fn validate(&self, vocab_size: usize, context_len: usize) -> Result<(), SubmitError> {
        let invalid = |param: &'static str, message: String| Err(SubmitError::InvalidParameter { param, message });
        if self.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.prompt.len() >= context_len {
            return Err(SubmitError::PromptTooLong { len: self.prompt.len(), context_len });
        }
        let given = self.infill.iter().filter_map(|part| match part {
            InfillPart::Fixed(tokens) => Some(("infill", tokens)),
            InfillPart::Hole(_) => None,
        });
        let lists = [("prompt", &self.prompt), ("stop_token_ids", &self.stop.token_ids)];
        for (param, tokens) in lists.into_iter().chain(given) {
            if let Some(token) = tokens.iter().find(|token| token.0 as usize >= vocab_size) {
                return invalid(param, format!("token id {} is outside the vocabulary of {vocab_size}", token.0));
            }
        }
        let sampling = &self.sampling;
        for (param, value, low, high) in [
            ("temperature", sampling.temperature, 0.0, 100.0),
            ("min_p", sampling.min_p, 0.0, 1.0),
            ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ] {
            if !(low..=high).contains(&value) {
                return invalid(param, format!("{value} is not between {low} and {high}"));
            }
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return invalid("top_p", format!("{} is not above 0 and at most 1", sampling.top_p));
        }
        if !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty <= 10.0) {
            return invalid(
                "repetition_penalty",
                format!("{} is not above 0 and at most 10", sampling.repetition_penalty),
            );
        }
        if sampling.top_k == Some(0) {
            return invalid("top_k", "0 keeps no token; leave it out to keep all".into());
        }
        for (token, bias) in &sampling.logit_bias {
            if token.0 as usize >= vocab_size {
                return invalid(
                    "logit_bias",
                    format!("token id {} is outside the vocabulary of {vocab_size}", token.0),
                );
            }
            if !(-100.0..=100.0).contains(bias) {
                return invalid("logit_bias", format!("{bias} is not between -100 and 100"));
            }
        }
        for (param, k) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if k.is_some_and(|k| k > MAX_LOGPROBS) {
                return invalid(param, format!("at most {MAX_LOGPROBS} alternatives per token"));
            }
        }
        if self.stop.strings.len() > MAX_STOP_STRINGS {
            return invalid("stop", format!("at most {MAX_STOP_STRINGS} stop strings"));
        }
        if self.stop.strings.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_LEN) {
            return invalid("stop", format!("a stop string has 1 to {MAX_STOP_LEN} bytes"));
        }
        let holes: Vec<usize> = self.infill.iter().filter_map(InfillPart::slots).collect();
        if !self.infill.is_empty() && (holes.is_empty() || holes.contains(&0)) {
            return invalid("infill", "there must be holes, and each has at least one slot".into());
        }
        if holes.len() > 1 && !self.stop.strings.is_empty() {
            return invalid("stop", "a text with several holes has no end that a string could mark".into());
        }
        if self.decoding.width.is_some_and(|width| !(1..=MAX_WIDTH).contains(&width)) {
            return invalid("decoding.width", format!("the width is between 1 and {MAX_WIDTH}"));
        }
        if self.decoding.strategy == Strategy::Ar {
            let options = &self.decoding;
            for (param, given) in [
                ("decoding.width", options.width.is_some_and(|width| width != 1)),
                ("decoding.adaptive", options.adaptive.is_some()),
                ("decoding.window", options.window.is_some()),
                ("decoding.guess", options.guess.is_some()),
            ] {
                if given {
                    return invalid(param, "strategy `ar` decodes one token a pass and takes no block options".into());
                }
            }
        }
        Ok(())
    }
}
