//! From a request's options to the settings of its decoder: what is left out is the preset's, then the model's own,
//! then the family's.

use models::{AttentionKind, BackboneSpec, DiffusionHints, LogitAlignment, TokenId};

use super::{canvas::Shape, family::Family};
use crate::{
    decode::commit::{CommitPolicy, Dynamic, Factor, LocalLeap, Origin, Quota, Ranking, Schedule},
    error::SubmitError,
    request::{CacheMode, DiffusionOptions, EarlyStop, InfillPart, Policy, Preset, Remasking, Request, SuppressEos},
    sampling::{ConfidenceKind, ConfidenceRule, SlotNoise},
};

/// Slots of a canvas if neither the request, the model nor the room says otherwise.
const DEFAULT_CANVAS: usize = 256;
/// Most passes that only edit a block, as published with LLaDA2.1.
const DEFAULT_POST_STEPS: usize = 16;
/// Edit threshold of LLaDA2.1's quality mode.
const DEFAULT_EDIT_THRESHOLD: f32 = 0.5;
/// Commit threshold of LLaDA2.1's quality mode.
const EDITING_THRESHOLD: f32 = 0.7;
/// Longest block, in slots: every one of them gets a row of logits in each pass.
const MAX_BLOCK_LENGTH: usize = 1024;
/// Most steps of a schedule, and most editing passes of a block.
const MAX_STEPS: usize = 1 << 16;
const MAX_POST_STEPS: usize = 1024;
/// Key of the noise that the policies draw from, apart from that of the sampler.
const POLICY_NOISE: u64 = 0x706f_6c69_6379;

/// Settings of one diffusion decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DiffusionConfig {
    pub(super) mask_id: TokenId,
    pub(super) alignment: LogitAlignment,
    pub(super) attention: AttentionKind,
    pub(super) shape: Shape,
    /// What follows the prompt on a whole canvas.
    pub(super) parts: Vec<InfillPart>,
    /// Of the whole canvas, or of each unit; `None` is one slot a step.
    pub(super) steps: Option<usize>,
    pub(super) policy: PolicyConfig,
    pub(super) confidence: ConfidenceRule<'static>,
    pub(super) cache: CacheMode,
    pub(super) early_stop: EarlyStop,
    pub(super) suppress_eos: SuppressEos,
}

/// A commit policy with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PolicyConfig {
    Quota { family: Family, remasking: Remasking, noise: SlotNoise },
    Threshold { threshold: f32 },
    Factor { factor: f32 },
    LocalLeap { threshold: f32, relaxed: f32, radius: usize },
    Dynamic { family: Family, threshold: f32 },
    Editing { family: Family, threshold: f32, edit_threshold: f32, max_post_steps: usize },
}

impl PolicyConfig {
    pub(super) fn kind(self) -> Policy {
        match self {
            Self::Quota { .. } => Policy::Quota,
            Self::Threshold { .. } => Policy::Threshold,
            Self::Factor { .. } => Policy::Factor,
            Self::LocalLeap { .. } => Policy::LocalLeap,
            Self::Dynamic { .. } => Policy::Dynamic,
            Self::Editing { .. } => Policy::Editing,
        }
    }

    /// The policy; without `steps` every schedule is one slot a step, which Dream's grid of times is not by itself.
    pub(super) fn build(self, steps: Option<usize>) -> Box<dyn CommitPolicy> {
        let schedule = |family: Family| if steps.is_some() { family.schedule() } else { Schedule::Even };
        match self {
            Self::Quota { remasking: Remasking::Origin, noise, .. } => Box::new(Origin::new(noise)),
            Self::Quota { family, remasking, noise } => {
                let ranking = match remasking {
                    Remasking::Random => Ranking::Random(noise),
                    Remasking::Sequential => Ranking::Sequential,
                    _ => Ranking::Confidence,
                };
                let quota = Quota::new(schedule(family), ranking);
                Box::new(if family.divides_whole_blocks() { quota.of_whole_blocks() } else { quota })
            }
            Self::Threshold { threshold } => Box::new(LocalLeap::threshold(threshold)),
            Self::Factor { factor } => Box::new(Factor { factor }),
            Self::LocalLeap { threshold, relaxed, radius } => {
                Box::new(LocalLeap { threshold, relaxed: Some(relaxed), radius })
            }
            Self::Dynamic { family, threshold } | Self::Editing { family, threshold, .. } => {
                Box::new(Dynamic::new(threshold, schedule(family)))
            }
        }
    }
}

fn invalid<T>(param: &'static str, message: impl Into<String>) -> Result<T, SubmitError> {
    Err(SubmitError::InvalidParameter { param, message: message.into() })
}

impl DiffusionConfig {
    /// Settings for `request` on the model `spec`, whose context may be shortened to `context_len`; `hints` are the
    /// model's own defaults.
    pub fn resolve(
        spec: &BackboneSpec,
        context_len: usize,
        hints: DiffusionHints,
        request: &Request,
    ) -> Result<Self, SubmitError> {
        let options = &request.decoding.diffusion;
        let Some(mask_id) = spec.mask_id else {
            return invalid("decoding.strategy", format!("`{}` is not a diffusion model", spec.family));
        };
        check_ranges(options)?;
        refuse_foreign(request, mask_id)?;
        let family = Family::of(&spec.family, spec.attention);
        let attention = spec.attention;
        let cache = cache(options, attention)?;
        let (shape, parts) = match attention {
            AttentionKind::Full => whole(options, family, context_len, hints, request)?,
            AttentionKind::BlockCausal { block_len, origin } => {
                if !request.infill.is_empty() {
                    let message = "this model attends block by block and cannot see what follows a hole; infill needs a \
                                   model with full attention";
                    return invalid("suffix", message);
                }
                if options.gen_length.is_some() {
                    let message = "this model writes block after block until it ends; use `max_tokens`";
                    return invalid("decoding.gen_length", message);
                }
                let window = options.block_length.or(hints.block_length).unwrap_or(family.block_len(block_len));
                if window > block_len || !block_len.is_multiple_of(window) {
                    let message = format!("the model's blocks have {block_len} tokens; {window} does not divide them");
                    return invalid("decoding.block_length", message);
                }
                let origin = origin.position(request.prompt.len(), block_len);
                // Whole units, so that the limit changes nothing before it.
                let limit = request.max_tokens.map_or(context_len, |max| request.prompt.len().saturating_add(max));
                let units = limit.min(context_len).saturating_sub(origin).div_ceil(block_len);
                let end = context_len.min(origin + units * block_len);
                (Shape::Units { unit_len: block_len, origin, block_len: window, end }, Vec::new())
            }
            AttentionKind::Causal => return invalid("decoding.strategy", "a causal model fills no canvas"),
        };
        let policy = policy(options, family, hints, request)?;
        let remasking = match policy {
            PolicyConfig::Quota { remasking, .. } => remasking,
            _ => Remasking::LowConfidence,
        };
        let kind = match remasking {
            Remasking::Margin => ConfidenceKind::Margin,
            Remasking::Entropy => ConfidenceKind::Entropy,
            _ => ConfidenceKind::Probability,
        };
        Ok(Self {
            mask_id,
            alignment: spec.alignment,
            attention,
            shape,
            steps: steps(options, policy, shape, &parts)?,
            parts,
            policy,
            confidence: ConfidenceRule { kind, filtered: family.filters_confidence(), held_down: &[] },
            cache,
            early_stop: options.early_stop.unwrap_or_default(),
            suppress_eos: options.suppress_eos.unwrap_or_default(),
        })
    }

    /// Slots of a whole canvas that can be filled; `None` where the canvas grows.
    pub fn capacity(&self) -> Option<usize> {
        matches!(self.shape, Shape::Whole { .. }).then(|| self.parts.iter().filter_map(InfillPart::slots).sum())
    }
}

fn check_ranges(options: &DiffusionOptions) -> Result<(), SubmitError> {
    let outside = |value: Option<f32>, low_open: bool| match value {
        Some(value) if !(value <= 1.0 && (value > 0.0 || (value == 0.0 && !low_open))) => Some(value),
        _ => None,
    };
    for (param, value, low_open) in [
        ("decoding.threshold", options.threshold, true),
        ("decoding.relaxed_threshold", options.relaxed_threshold, false),
        ("decoding.edit_threshold", options.edit_threshold, false),
    ] {
        if let Some(value) = outside(value, low_open) {
            let low = if low_open { "above 0" } else { "from 0" };
            return invalid(param, format!("{value} is not {low} and at most 1"));
        }
    }
    if let Some(factor) = options.factor.filter(|factor| !(*factor > 0.0 && factor.is_finite())) {
        return invalid("decoding.factor", format!("{factor} is not a number above 0"));
    }
    for (param, value, low, high) in [
        ("decoding.steps", options.steps, 1, MAX_STEPS),
        ("decoding.block_length", options.block_length, 1, MAX_BLOCK_LENGTH),
        // The context limits it further.
        ("decoding.gen_length", options.gen_length, 1, usize::MAX),
        ("decoding.max_post_steps", options.max_post_steps, 0, MAX_POST_STEPS),
    ] {
        if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
            return match high {
                usize::MAX => invalid(param, format!("it must be at least {low}")),
                _ => invalid(param, format!("{value} is not between {low} and {high}")),
            };
        }
    }
    Ok(())
}

/// What a canvas cannot honour, and mask tokens where text is expected.
fn refuse_foreign(request: &Request, mask_id: TokenId) -> Result<(), SubmitError> {
    let fixed = request.infill.iter().filter_map(|part| match part {
        InfillPart::Fixed(tokens) => Some(tokens),
        InfillPart::Hole(_) => None,
    });
    if std::iter::once(&request.prompt).chain(fixed).any(|tokens| tokens.contains(&mask_id)) {
        let message = format!("token {} marks a slot to fill; holes are described by their length", mask_id.0);
        return invalid("prompt", message);
    }
    if request.prompt_logprobs.is_some() {
        let message = "a diffusion model has no chain of conditional probabilities that would score a prompt";
        return invalid("prompt_logprobs", message);
    }
    let decoding = &request.decoding;
    for (param, given) in [
        ("decoding.width", decoding.width.is_some()),
        ("decoding.adaptive", decoding.adaptive.is_some()),
        ("decoding.window", decoding.window.is_some()),
        ("decoding.guess", decoding.guess.is_some()),
    ] {
        if given {
            return invalid(param, "it belongs to the strategy `jacobi`; this model decodes by diffusion");
        }
    }
    Ok(())
}

fn cache(options: &DiffusionOptions, attention: AttentionKind) -> Result<CacheMode, SubmitError> {
    let full = attention == AttentionKind::Full;
    let default = match (full, options.preset) {
        (true, Some(Preset::Fast)) => CacheMode::Dual,
        (true, _) => CacheMode::None,
        (false, _) => CacheMode::Block,
    };
    match options.cache.unwrap_or(default) {
        CacheMode::Block if full => {
            invalid("decoding.cache", "`block` needs block-causal attention; this model takes `none`, `prefix`, `dual`")
        }
        cache @ (CacheMode::Prefix | CacheMode::Dual) if !full => {
            let name = if cache == CacheMode::Prefix { "prefix" } else { "dual" };
            let message = format!("`{name}` approximates full attention; this model takes `none` and `block`");
            invalid("decoding.cache", message)
        }
        cache => Ok(cache),
    }
}

/// Shape and parts of a canvas under full attention.
fn whole(
    options: &DiffusionOptions,
    family: Family,
    context_len: usize,
    hints: DiffusionHints,
    request: &Request,
) -> Result<(Shape, Vec<InfillPart>), SubmitError> {
    let block_len = options.block_length.or(hints.block_length).unwrap_or(family.block_len(DEFAULT_CANVAS));
    let shape = Shape::Whole { block_len };
    let room = context_len.saturating_sub(request.prompt.len());
    if !request.infill.is_empty() {
        if options.gen_length.is_some() {
            return invalid("decoding.gen_length", "the holes say how many slots there are");
        }
        let len = |part: &InfillPart| match part {
            InfillPart::Hole(len) => *len,
            InfillPart::Fixed(tokens) => tokens.len(),
        };
        let total = request.infill.iter().map(len).fold(0, usize::saturating_add);
        if total > room {
            let message = format!("{total} tokens behind a prompt of {}: the context holds {context_len}", {
                request.prompt.len()
            });
            return invalid("prompt", message);
        }
        return Ok((shape, request.infill.clone()));
    }
    let len = match options.gen_length {
        Some(len) if len > room => {
            let message = format!("{len} slots do not fit: the context leaves room for {room}");
            return invalid("decoding.gen_length", message);
        }
        Some(len) => len,
        // The number of masks is a part of what the model sees, so it is the same for every limit within a block.
        None => request
            .max_tokens
            .or(hints.gen_length)
            .unwrap_or(DEFAULT_CANVAS)
            .max(1)
            .div_ceil(block_len)
            .saturating_mul(block_len),
    };
    Ok((shape, vec![InfillPart::Hole(len.min(room))]))
}

fn policy(
    options: &DiffusionOptions,
    family: Family,
    hints: DiffusionHints,
    request: &Request,
) -> Result<PolicyConfig, SubmitError> {
    let kind = options.policy.unwrap_or(family.policy());
    let name = name_of(kind);
    let thresholds = matches!(kind, Policy::Threshold | Policy::LocalLeap | Policy::Dynamic | Policy::Editing);
    for (param, given, fits) in [
        ("decoding.threshold", options.threshold.is_some(), thresholds),
        ("decoding.relaxed_threshold", options.relaxed_threshold.is_some(), kind == Policy::LocalLeap),
        ("decoding.radius", options.radius.is_some(), kind == Policy::LocalLeap),
        ("decoding.factor", options.factor.is_some(), kind == Policy::Factor),
        ("decoding.edit_threshold", options.edit_threshold.is_some(), kind == Policy::Editing),
        ("decoding.max_post_steps", options.max_post_steps.is_some(), kind == Policy::Editing),
    ] {
        if given && !fits {
            return invalid(param, format!("the policy `{name}` does not take it"));
        }
    }
    if kind != Policy::Quota && options.remasking.is_some_and(|remasking| remasking != Remasking::LowConfidence) {
        let message = format!("the policy `{name}` compares probabilities; only `quota` ranks by anything else");
        return invalid("decoding.remasking", message);
    }
    let (hint, relaxed_hint) = match kind {
        Policy::Editing => (None, None),
        _ => (hints.threshold, hints.relaxed_threshold),
    };
    let published = match kind {
        Policy::Editing => EDITING_THRESHOLD,
        _ => hint.unwrap_or(family.threshold()),
    };
    let relaxed_published = relaxed_hint.unwrap_or(family.relaxed_threshold());
    // A model that says where its own balance lies: half of the doubt that it tolerates, or twice as much.
    let doubt = |share: f32| {
        let scaled = |threshold: f32| (1.0 - (1.0 - threshold) * share).max(f32::EPSILON);
        (scaled(published), scaled(relaxed_published))
    };
    let is_hinted = hint.is_some() || relaxed_hint.is_some();
    let (by_preset, relaxed_by_preset) = match (options.preset, kind) {
        (Some(Preset::Quality), _) if is_hinted => doubt(0.5),
        (Some(Preset::Fast), _) if is_hinted => doubt(2.0),
        (Some(Preset::Quality), Policy::LocalLeap) => (0.95, 0.85),
        (Some(Preset::Fast), Policy::LocalLeap) => (0.85, 0.7),
        (Some(Preset::Quality), _) => ((published + 0.05).min(0.99), 0.0),
        (Some(Preset::Fast), _) => (published - 0.05, 0.0),
        (Some(Preset::Balanced) | None, _) => (published, relaxed_published),
    };
    let threshold = options.threshold.unwrap_or(by_preset);
    Ok(match kind {
        Policy::Quota => PolicyConfig::Quota {
            family,
            remasking: options.remasking.unwrap_or(family.remasking()),
            noise: SlotNoise::new(request.sampling.seed, request.choice, POLICY_NOISE),
        },
        Policy::Threshold => PolicyConfig::Threshold { threshold },
        Policy::Factor => PolicyConfig::Factor { factor: options.factor.unwrap_or(1.0) },
        Policy::LocalLeap => {
            let relaxed = options.relaxed_threshold.unwrap_or(relaxed_by_preset);
            let radius = options.radius.or(hints.radius).unwrap_or(family.radius());
            if relaxed > threshold {
                tracing::warn!(relaxed, threshold, "a relaxed threshold above the strict one makes anchors harder");
            }
            PolicyConfig::LocalLeap { threshold, relaxed, radius }
        }
        Policy::Dynamic => PolicyConfig::Dynamic { family, threshold },
        Policy::Editing => PolicyConfig::Editing {
            family,
            threshold,
            edit_threshold: options.edit_threshold.unwrap_or(DEFAULT_EDIT_THRESHOLD),
            max_post_steps: options.max_post_steps.unwrap_or(DEFAULT_POST_STEPS),
        },
    })
}

fn name_of(policy: Policy) -> &'static str {
    match policy {
        Policy::Quota => "quota",
        Policy::Threshold => "threshold",
        Policy::Factor => "factor",
        Policy::LocalLeap => "local_leap",
        Policy::Dynamic => "dynamic",
        Policy::Editing => "editing",
    }
}

/// Steps of the whole canvas, or of a unit, checked against the number of blocks.
fn steps(
    options: &DiffusionOptions,
    policy: PolicyConfig,
    shape: Shape,
    parts: &[InfillPart],
) -> Result<Option<usize>, SubmitError> {
    let Some(steps) = options.steps else { return Ok(None) };
    let blocks: usize = match shape {
        Shape::Whole { block_len } => {
            parts.iter().filter_map(InfillPart::slots).map(|len| len.div_ceil(block_len)).sum()
        }
        Shape::Units { unit_len, block_len, .. } => unit_len / block_len,
    };
    if !matches!(policy.kind(), Policy::Quota | Policy::Dynamic | Policy::Editing) {
        let name = name_of(policy.kind());
        return invalid("decoding.steps", format!("the policy `{name}` takes as many steps as it needs"));
    }
    if steps < blocks {
        return invalid("decoding.steps", format!("{steps} steps are fewer than the {blocks} blocks"));
    }
    Ok(Some(steps))
}
