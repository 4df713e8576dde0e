//! What a family fixes of a diffusion model: how it attends, which slot a row scores, and its mask token.

use std::str::FromStr;

use super::Family;
use crate::{AttentionKind, BlockOrigin, LogitAlignment, ModelError, TokenId};

/// Block length of SDAR where its config has none, in tokens.
const SDAR_BLOCK_LEN: usize = 4;
/// Block length of the other block-causal families where their config has none, in tokens.
const BLOCK_LEN: usize = 32;

/// The two ways in which diffusion models attend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionChoice {
    /// Every row sees every other.
    Full,
    /// A row sees its own block and those before it.
    BlockCausal,
}

impl AttentionChoice {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::BlockCausal => "block_causal",
        }
    }

    /// What the kind of attention is called as a choice; `None` for causal models, which have none.
    fn of(kind: AttentionKind) -> Option<Self> {
        match kind {
            AttentionKind::Causal => None,
            AttentionKind::BlockCausal { .. } => Some(Self::BlockCausal),
            AttentionKind::Full => Some(Self::Full),
        }
    }

    /// What the names of published models say: `mdlm` is trained in full, `bd3lm` by blocks. `None` if a name says
    /// neither or both.
    fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        match (name.contains("mdlm"), name.contains("bd3lm")) {
            (true, false) => Some(Self::Full),
            (false, true) => Some(Self::BlockCausal),
            _ => None,
        }
    }
}

impl FromStr for AttentionChoice {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "full" => Ok(Self::Full),
            "block_causal" => Ok(Self::BlockCausal),
            other => Err(ModelError::Unsupported {
                origin: "attention".into(),
                field: "kind".into(),
                value: format!("`{other}`"),
                supported: "full, block_causal".into(),
            }),
        }
    }
}

/// What is known of a model beside its config.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConfigHints<'a> {
    /// What the source calls it: the repository, or the name of the folder or file.
    pub id: &'a str,
    /// How the user says that it attends.
    pub attention: Option<AttentionChoice>,
}

/// How models of `family` attend, and which slot a row of theirs scores. `block_len` is what the config says.
pub(crate) fn facts(
    family: Family,
    block_len: Option<usize>,
    hints: &ConfigHints<'_>,
    origin: &str,
) -> Result<(AttentionKind, LogitAlignment), ModelError> {
    let blocks = |default: usize, origin: BlockOrigin| AttentionKind::BlockCausal {
        block_len: block_len.unwrap_or(default),
        origin,
    };
    let attention = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Lla => AttentionKind::Causal,
        Family::Llada | Family::Illada | Family::Dream | Family::LladaMoe => AttentionKind::Full,
        Family::Sdar => blocks(SDAR_BLOCK_LEN, BlockOrigin::Start),
        Family::FastDllmV2 | Family::Llada2 => blocks(BLOCK_LEN, BlockOrigin::Start),
        Family::A2d => match hints.attention.or_else(|| AttentionChoice::of_name(hints.id)) {
            Some(AttentionChoice::Full) => AttentionKind::Full,
            // Its prompts were padded on the left to whole blocks.
            Some(AttentionChoice::BlockCausal) => blocks(BLOCK_LEN, BlockOrigin::PromptEnd),
            None => return Err(ModelError::AttentionUnknown { origin: origin.into(), id: hints.id.into() }),
        },
    };
    if let Some(choice) = hints.attention.filter(|choice| AttentionChoice::of(attention) != Some(*choice)) {
        return Err(ModelError::Unsupported {
            origin: origin.into(),
            field: "attention".into(),
            value: format!("`{}`", choice.name()),
            supported: match AttentionChoice::of(attention) {
                Some(only) => format!("{}, as {} models are trained", only.name(), family.name()),
                None => format!("none to choose, {} models are causal", family.name()),
            },
        });
    }
    let alignment = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Lla | Family::Dream | Family::FastDllmV2 => {
            LogitAlignment::NextSlot
        }
        Family::Llada | Family::Illada | Family::Sdar | Family::A2d | Family::LladaMoe | Family::Llada2 => {
            LogitAlignment::SameSlot
        }
    };
    Ok((attention, alignment))
}

/// The mask token that models of a family were published with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownMask {
    /// As the tokenizer spells it.
    pub(crate) spelling: &'static str,
    /// Its id, unless that differs within the family.
    pub(crate) id: Option<TokenId>,
}

/// The mask token of `family`; `None` for causal families.
pub(crate) fn known_mask(family: Family) -> Option<KnownMask> {
    let (spelling, id) = match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Lla => return None,
        Family::Llada => ("<|mdm_mask|>", Some(126_336)),
        Family::Illada => ("<[MASK]>", Some(5)),
        Family::LladaMoe | Family::Llada2 => ("<|mask|>", Some(156_895)),
        Family::Dream => ("<|mask|>", Some(151_666)),
        Family::Sdar => ("<|MASK|>", Some(151_669)),
        Family::FastDllmV2 => ("|<MASK>|", Some(151_665)),
        // The first id that was free in the base model's tokenizer, which is not the same for Qwen2 and Qwen3.
        Family::A2d => ("<|mask|>", None),
    };
    Some(KnownMask { spelling, id: id.map(TokenId) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_how_a_model_attends_unless_it_says_both() {
        let cases = [
            ("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1", Some(AttentionChoice::Full)),
            ("Qwen2.5-Coder-0.5B-BD3LM", Some(AttentionChoice::BlockCausal)),
            ("mdlm-and-bd3lm", None),
            ("my-model", None),
        ];
        for (name, expected) in cases {
            assert_eq!(AttentionChoice::of_name(name), expected, "{name}");
        }
    }
}
