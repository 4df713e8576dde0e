//! What a model's config says, checked: every number a layer is built from is in range before a weight is read.

use std::path::Path;

use serde::Deserialize;

use crate::{ModelError, TokenId};

/// The families, as an error message lists them.
pub(crate) const SUPPORTED_ARCHITECTURES: &str =
    "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and MistralForCausalLM without sliding window";
/// Most that a config may claim; beyond these a file is damaged, not large.
const MAX_VOCAB_SIZE: usize = 1 << 22;
const MAX_HIDDEN_SIZE: usize = 1 << 17;
const MAX_INTERMEDIATE_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_CONTEXT_LEN: usize = 1 << 22;

/// A family of causal language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM, DeepSeek-Coder, Mistral without sliding window.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: a norm on the heads of q and k.
    Qwen3,
}

impl Family {
    /// Name as `model_type` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
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
    /// The frequency of pair `i` is divided by entry `i`; `head_dim / 2` entries, finite and positive.
    PerDimension(Vec<f32>),
}

/// A causal language model's config.
#[derive(Debug, Clone, PartialEq)]
pub struct CausalConfig {
    /// The family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
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
    /// Tokens that end a text, as far as the config knows them.
    pub eos_ids: Vec<TokenId>,
    /// Token that starts a text.
    pub bos_id: Option<TokenId>,
}

impl CausalConfig {
    /// Reads a `config.json`. `path` is for messages only.
    pub fn from_hf_json(text: &str, path: &Path) -> Result<Self, ModelError> {
        let origin = path.display().to_string();
        let bad =
            |error: serde_json::Error| ModelError::BadConfig { origin: origin.clone(), reason: error.to_string() };
        // Other families name their numbers differently; the family is what their users must hear of.
        let family = serde_json::from_str::<RawFamily>(text).map_err(bad)?.family(&origin)?;
        let raw: RawConfig = serde_json::from_str(text).map_err(bad)?;
        raw.resolve(family, &origin)
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
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("the epsilon of RMSNorm is {}, it must be between 0 and 1", self.norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return bad(format!("rope_theta is {}, it must be finite and at least 1", self.rope_theta));
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
            RopeScaling::PerDimension(divisors) if divisors.len() != self.head_dim / 2 => {
                bad(format!("there are {} RoPE divisors for heads of width {}", divisors.len(), self.head_dim))
            }
            RopeScaling::PerDimension(divisors) if divisors.iter().all(|d| *d > 0.0 && d.is_finite()) => Ok(()),
            RopeScaling::PerDimension(_) => bad("a RoPE divisor is not finite and positive".into()),
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {
                bad(format!("the RoPE scaling {:?} is out of range", self.rope_scaling))
            }
        }
    }
}

/// What names the family in a `config.json`.
#[derive(Debug, Deserialize)]
struct RawFamily {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

/// `config.json` of a supported family.
#[derive(Debug, Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<OneOrMany>,
}

/// `rope_scaling`, or the newer `rope_parameters` which also carries the base frequency.
#[derive(Debug, Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older spelling; some files carry both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

/// A token id or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    /// One id.
    One(u32),
    /// Several ids.
    Many(Vec<u32>),
}

impl OneOrMany {
    /// The ids as a list.
    pub(crate) fn ids(&self) -> Vec<TokenId> {
        match self {
            Self::One(id) => vec![TokenId(*id)],
            Self::Many(ids) => ids.iter().map(|id| TokenId(*id)).collect(),
        }
    }
}

impl RawFamily {
    fn family(&self, origin: &str) -> Result<Family, ModelError> {
        let architecture = self.architectures.as_ref().and_then(|names| names.first()).or(self.model_type.as_ref());
        match architecture.map(String::as_str) {
            Some("LlamaForCausalLM" | "llama" | "MistralForCausalLM" | "mistral") => Ok(Family::Llama),
            Some("Qwen2ForCausalLM" | "qwen2") => Ok(Family::Qwen2),
            Some("Qwen3ForCausalLM" | "qwen3") => Ok(Family::Qwen3),
            other => Err(ModelError::UnsupportedArchitecture {
                origin: origin.into(),
                architecture: other.unwrap_or("(none named)").into(),
                supported: SUPPORTED_ARCHITECTURES,
            }),
        }
    }
}

impl RawConfig {
    fn resolve(self, family: Family, origin: &str) -> Result<CausalConfig, ModelError> {
        self.refuse_unsupported(family, origin)?;
        let (rope_theta, rope_scaling) = self.rope(origin)?;
        let attention_bias = self.attention_bias.unwrap_or(false);
        let head_dim = match (self.head_dim, family) {
            (Some(head_dim), _) => head_dim,
            (None, Family::Qwen3) => 128,
            (None, _) => self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0),
        };
        let config = CausalConfig {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            context_len: self.max_position_embeddings,
            tie_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && self.mlp_bias.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            eos_ids: self.eos_token_id.as_ref().map(OneOrMany::ids).unwrap_or_default(),
            bos_id: self.bos_token_id.as_ref().and_then(|ids| ids.ids().first().copied()),
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Settings that change what the layers compute in a way that they do not implement.
    fn refuse_unsupported(&self, family: Family, origin: &str) -> Result<(), ModelError> {
        let refuse = |field: &str, value: String, supported: &str| {
            Err(ModelError::Unsupported {
                origin: origin.into(),
                field: field.into(),
                value,
                supported: supported.into(),
            })
        };
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu" && *act != "swish") {
            return refuse("hidden_act", format!("`{act}`"), "silu");
        }
        if self.use_sliding_window == Some(true) {
            return refuse("use_sliding_window", "true".into(), "false, that is full attention");
        }
        // Qwen configs carry a window that `use_sliding_window` switches off; Llama and Mistral have no such switch.
        if let (Family::Llama, Some(window)) = (family, self.sliding_window)
            && window < self.max_position_embeddings
        {
            return refuse("sliding_window", window.to_string(), "null, that is full attention");
        }
        let partial = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten();
        let partial = partial.filter_map(|rope| rope.partial_rotary_factor).chain(self.partial_rotary_factor);
        if let Some(factor) = partial.into_iter().find(|factor| *factor != 1.0) {
            return refuse("partial_rotary_factor", factor.to_string(), "1");
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").map_or_else(|| "set".into(), ToString::to_string);
            return refuse(
                "quantization_config",
                method,
                "safetensors in f32, f16 or bf16 (the server quantises at load), or a GGUF file",
            );
        }
        Ok(())
    }

    fn rope(&self, origin: &str) -> Result<(f64, RopeScaling), ModelError> {
        let in_parameters = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let theta = in_parameters.or(self.rope_theta).unwrap_or(10_000.0);
        let scaling = match self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()) {
            None => RopeScaling::None,
            Some(rope) => rope.scaling(self.max_position_embeddings, origin)?,
        };
        Ok((theta, scaling))
    }
}

impl RawRope {
    fn scaling(&self, context_len: usize, origin: &str) -> Result<RopeScaling, ModelError> {
        let need = |field: &str, value: Option<f64>| {
            value.ok_or_else(|| ModelError::BadConfig {
                origin: origin.into(),
                reason: format!("the RoPE scaling has no `{field}`"),
            })
        };
        match self.rope_type.as_deref().or(self.old_type.as_deref()) {
            None if self.factor.is_none() => Ok(RopeScaling::None),
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: need("factor", self.factor)? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_context_len: self.original_max_position_embeddings.unwrap_or(context_len),
            }),
            other => Err(ModelError::Unsupported {
                origin: origin.into(),
                field: "rope_scaling".into(),
                value: format!("of type `{}`", other.unwrap_or("(none)")),
                supported: "default, linear, llama3".into(),
            }),
        }
    }
}
