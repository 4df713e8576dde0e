//! Which token of a diffusion model is its mask.

use crate::{ModelConfig, ModelError, TokenId, Tokenizer, config::known_mask};

/// What besides config and tokenizer may name the mask token.
#[derive(Debug, Clone, Default)]
pub(super) struct MaskNames {
    /// The user's choice.
    pub(super) option: Option<TokenId>,
    /// The spelling that the tokenizer's config has for it.
    pub(super) spelling: Option<String>,
}

/// The mask token: the user's, else the config's, else the one that the tokenizer's config spells, else the one that
/// the family was published with. `None` for causal models. `origin` is for messages only.
pub(super) fn find(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    names: &MaskNames,
    origin: &str,
) -> Result<Option<TokenId>, ModelError> {
    let family = config.family.name();
    let Some(known) = known_mask(config.family) else {
        return match names.option {
            None => Ok(None),
            Some(mask) => Err(ModelError::Unsupported {
                origin: origin.into(),
                field: "mask id".into(),
                value: mask.0.to_string(),
                supported: format!("none, {family} models are causal and have no mask token"),
            }),
        };
    };
    let vocab_size = config.vocab_size;
    let spelled = names.spelling.as_deref().and_then(|spelling| tokenizer.token_id(spelling));
    let named = [
        (names.option, "--mask-id"),
        (config.mask_id, "`mask_token_id` of the config"),
        (spelled, "`mask_token` of the tokenizer"),
    ];
    if let Some((mask, place)) = named.into_iter().find_map(|(mask, place)| Some((mask?, place))) {
        return match (mask.0 as usize) < vocab_size {
            true => Ok(Some(mask)),
            false => Err(ModelError::MaskOutOfRange { token: mask, place, vocab_size }),
        };
    }
    // A number alone is believed only where the tokenizer has no ordinary text.
    let is_free = |mask: &TokenId| tokenizer.is_special(*mask) || mask.0 as usize >= tokenizer.vocab_size();
    let known = tokenizer.token_id(known.spelling).or(known.id.filter(is_free));
    match known.filter(|mask| (mask.0 as usize) < vocab_size) {
        Some(mask) => Ok(Some(mask)),
        None => Err(ModelError::NoMaskToken { origin: origin.into(), family }),
    }
}
