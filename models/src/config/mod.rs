//! What a model's config says, checked: every number a layer is built from is in range before a weight is read.
//!
//! | module | holds |
//! |---|---|
//! | `hf` | `config.json` in the usual keys, and which family it is of |
//! | `llada` | `config.json` in the keys of LLaDA |
//! | `lla` | local linear attention |
//! | `moe` | layers of experts |
//! | `diffusion` | attention, alignment and mask of each family |
//! | `names` | what the tensors of each family are called |

mod diffusion;
mod hf;
mod lla;
mod llada;
mod moe;
mod names;

pub use diffusion::{AttentionChoice, ConfigHints};
pub(crate) use diffusion::{facts as family_facts, known_mask};
pub(crate) use hf::OneOrMany;
pub use lla::{LlaConfig, MixerConfig};
pub(crate) use moe::MAX_EXPERTS;
pub use moe::{MoeConfig, RouterConfig, RouterScore};
pub(crate) use names::{
    EXPERT_BIAS, EXPERT_PARTS, EXPERTS, Names, Qkv, RIDGE, ROUTER, SHARED_EXPERTS, USUAL as USUAL_NAMES, is_router,
};

use crate::{AttentionKind, LogitAlignment, ModelError, TokenId};

/// Most that a config may claim; beyond these a file is damaged, not large.
const MAX_VOCAB_SIZE: usize = 1 << 22;
const MAX_HIDDEN_SIZE: usize = 1 << 17;
const MAX_INTERMEDIATE_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_CONTEXT_LEN: usize = 1 << 22;
const MAX_BLOCK_LEN: usize = 1024;

/// A family of language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM, DeepSeek-Coder, Mistral without sliding window.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: a norm on the heads of q and k.
    Qwen3,
    /// Local linear attention (arXiv:2510.01450) in the shape of Llama, with a norm on the heads of q and k.
    Lla,
    /// LLaDA-8B and LLaDA-1.5 (arXiv:2502.09992), and what was distilled from them.
    Llada,
    /// iLLaDA (arXiv:2606.25331): LLaDA in the shape of Llama.
    Illada,
    /// Dream, Dream-Coder and DiffuCoder (arXiv:2508.15487): Qwen2 that sees both ways, with shifted logits.
    Dream,
    /// SDAR and TraDo (arXiv:2510.06303): Qwen3 by blocks.
    Sdar,
    /// Fast-dLLM v2 (arXiv:2509.26328): Qwen2 by blocks, with shifted logits.
    FastDllmV2,
    /// Tiny A2D: Qwen3, Qwen2 or Llama turned into a diffusion model, in full or by blocks.
    A2d,
    /// LLaDA-MoE (arXiv:2509.24389).
    LladaMoe,
    /// LLaDA2.x (arXiv:2512.15745): a mixture of experts by blocks.
    Llada2,
}

impl Family {
    /// Longest sequence, in tokens, for a config that claims `claimed`. Dream's configs keep the number of the model it
    /// was made from; it was trained on 2048 tokens.
    pub(crate) fn context_len(self, claimed: usize) -> usize {
        match self {
            Self::Dream => claimed.min(2048),
            _ => claimed,
        }
    }

    /// The name that [`crate::BackboneSpec::family`] carries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Lla => "leapfrog_lla",
            Self::Llada => "llada",
            Self::Illada => "illada",
            Self::Dream => "dream",
            Self::Sdar => "sdar",
            Self::FastDllmV2 => "fast_dllm_v2",
            Self::A2d => "a2d",
            Self::LladaMoe => "llada_moe",
            Self::Llada2 => "llada2",
        }
    }

    /// Whether models of the family fill in masks instead of continuing a text.
    pub fn is_diffusion(self) -> bool {
        !matches!(self, Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Lla)
    }
}

/// How RoPE reaches contexts longer than the base model's.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// The position is divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3: frequencies below the low border are divided by `factor`, those above the high border stay, those
    /// between are interpolated.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wave lengths above `original_context_len / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wave lengths below `original_context_len / high_freq_factor` are not scaled.
        high_freq_factor: f64,
        /// Context of the base model, in tokens.
        original_context_len: usize,
    },
    /// The frequency of pair `i` is divided by entry `i`; `rotary_dims / 2` entries, finite and positive.
    PerDimension(Vec<f32>),
}

/// A model's config.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense layer's MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Features of a head that RoPE rotates, from the first on; even, at most `head_dim`.
    pub rotary_dims: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// How RoPE is stretched.
    pub rope_scaling: RopeScaling,
    /// Longest sequence, in tokens.
    pub context_len: usize,
    /// Whether the head is the embedding.
    pub tie_embeddings: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have a bias.
    pub mlp_bias: bool,
    /// Whether the heads of q and k are normalised before RoPE.
    pub qk_norm: bool,
    /// How a layer mixes the values that a row sees.
    pub mixer: MixerConfig,
    /// The layers with experts, if there are any.
    pub moe: Option<MoeConfig>,
    /// What a row may see.
    pub attention: AttentionKind,
    /// Which slot a row of logits scores.
    pub alignment: LogitAlignment,
    /// The mask token of a diffusion model, as far as the config knows it.
    pub mask_id: Option<TokenId>,
    /// Tokens that end a text, as far as the config knows them.
    pub eos_ids: Vec<TokenId>,
    /// Token that starts a text.
    pub bos_id: Option<TokenId>,
    /// What the tensors are called.
    pub(crate) names: &'static Names,
}

impl ModelConfig {
    /// Parameters of the experts that a row does not choose.
    pub(crate) fn num_idle_params(&self) -> usize {
        let idle = |moe: &MoeConfig| {
            let of_expert = 3 * self.hidden_size * moe.expert_size;
            moe.num_experts.saturating_sub(moe.experts_per_row) * of_expert
        };
        (0..self.num_layers).filter_map(|index| self.experts_of_layer(index)).map(idle).sum()
    }

    /// Whether layer `index` has experts instead of one MLP.
    pub(crate) fn experts_of_layer(&self, index: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| !moe.dense_layers.get(index).copied().unwrap_or(false))
    }

    /// Checks every range a layer relies on. `origin` is for messages only.
    pub fn validate(&self, origin: &str) -> Result<(), ModelError> {
        let bad = |reason: String| Err(ModelError::BadConfig { origin: origin.into(), reason });
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, MAX_VOCAB_SIZE),
            ("hidden_size", self.hidden_size, MAX_HIDDEN_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE_SIZE),
            ("number of layers", self.num_layers, MAX_LAYERS),
            ("number of heads", self.num_heads, MAX_HIDDEN_SIZE),
            ("number of key/value heads", self.num_kv_heads, MAX_HIDDEN_SIZE),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("context length", self.context_len, MAX_CONTEXT_LEN),
        ] {
            if !(1..=most).contains(&value) {
                return bad(format!("the {field} is {value}, it must be between 1 and {most}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return bad(format!("{} heads cannot share {} key/value heads evenly", self.num_heads, self.num_kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return bad(format!("head_dim is {}, RoPE needs an even number", self.head_dim));
        }
        if self.num_heads * self.head_dim > MAX_HIDDEN_SIZE {
            return bad(format!("{} heads of width {} are too wide", self.num_heads, self.head_dim));
        }
        if !self.rotary_dims.is_multiple_of(2) || !(2..=self.head_dim).contains(&self.rotary_dims) {
            let (rotary, head) = (self.rotary_dims, self.head_dim);
            return bad(format!("RoPE cannot rotate {rotary} of the {head} features of a head"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("the epsilon of RMSNorm is {}, it must be between 0 and 1", self.norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return bad(format!("rope_theta is {}, it must be finite and at least 1", self.rope_theta));
        }
        if let AttentionKind::BlockCausal { block_len, .. } = self.attention
            && !(1..=MAX_BLOCK_LEN).contains(&block_len)
        {
            return bad(format!("the block length is {block_len}, it must be between 1 and {MAX_BLOCK_LEN}"));
        }
        if let Some(moe) = &self.moe {
            moe.validate(origin)?;
        }
        self.validate_rope_scaling(origin)
    }

    fn validate_rope_scaling(&self, origin: &str) -> Result<(), ModelError> {
        let bad = |reason: String| Err(ModelError::BadConfig { origin: origin.into(), reason });
        let stretches = |factor: f64| factor >= 1.0 && factor.is_finite();
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } if stretches(*factor) => Ok(()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len }
                if stretches(*factor)
                    && *low_freq_factor > 0.0
                    && *high_freq_factor > *low_freq_factor
                    && high_freq_factor.is_finite()
                    && (1..=MAX_CONTEXT_LEN).contains(original_context_len) =>
            {
                Ok(())
            }
            RopeScaling::PerDimension(divisors) if divisors.len() != self.rotary_dims / 2 => {
                bad(format!("there are {} RoPE divisors for {} rotated features", divisors.len(), self.rotary_dims))
            }
            RopeScaling::PerDimension(divisors) if divisors.iter().all(|d| *d > 0.0 && d.is_finite()) => Ok(()),
            RopeScaling::PerDimension(_) => bad("a RoPE divisor is not finite and positive".into()),
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {
                bad(format!("the RoPE scaling {:?} is out of range", self.rope_scaling))
            }
        }
    }
}
