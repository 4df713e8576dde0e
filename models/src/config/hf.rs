//! `config.json` in the keys that most families share, and which family a config is of.

use std::path::Path;

use serde::Deserialize;

use super::{
    ConfigHints, Family, MixerConfig, ModelConfig, RopeScaling, diffusion, lla, llada,
    moe::{self, MoeConfig},
    names,
};
use crate::{ModelError, TokenId};

/// The families, as an error message lists them.
const SUPPORTED_ARCHITECTURES: &str = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and MistralForCausalLM \
                                       without sliding window; LeapfrogLlaForCausalLM; diffusion models: LLaDAModelLM, ILLaDAForCausalLM, \
                                       DreamModel, SDARForCausalLM, Fast_dLLM_QwenForCausalLM, A2DQwen3LMHeadModel, \
                                       A2DQwen2LMHeadModel, A2DLlamaLMHeadModel, LLaDAMoEModel, LLaDAMoEModelLM and \
                                       LLaDA2MoeModelLM";

/// What names the family in a `config.json`.
#[derive(Debug, Deserialize)]
struct RawFamily {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    /// LLaDA and LLaDA-MoE share a `model_type`; only one of them has experts.
    num_experts: Option<serde_json::Value>,
}

/// The layers of a family, where it has a base model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Llama,
    Qwen2,
    Qwen3,
    /// Llama with norms on heads and another mixer.
    Lla,
    /// LLaDA, with keys of its own.
    Llada,
    LladaMoe,
    Llada2,
}

/// `config.json` in the shared keys.
#[derive(Debug, Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: Option<usize>,
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
    mask_token_id: Option<u32>,
    /// Block length of SDAR, in tokens.
    block_size: Option<usize>,
    /// Block length of Fast-dLLM v2, in tokens.
    bd_size: Option<usize>,
    /// LLaDA-MoE: whether the heads of q and k are normalised.
    qk_layernorm: Option<bool>,
    /// LLaDA2: the same.
    use_qk_norm: Option<bool>,
    /// LLaDA2: biases on q, k and v.
    use_qkv_bias: Option<bool>,
    /// LLaDA2: a bias on the output projection.
    use_bias: Option<bool>,
    /// LLaDA-MoE: width of its layers without experts.
    dense_intermediate_size: Option<usize>,
    /// Limit on the values of q, k and v.
    clip_qkv: Option<f64>,
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

impl ModelConfig {
    /// Reads a `config.json`. `path` is for messages only.
    pub fn from_hf_json(text: &str, path: &Path, hints: &ConfigHints<'_>) -> Result<Self, ModelError> {
        let origin = path.display().to_string();
        let bad =
            |error: serde_json::Error| ModelError::BadConfig { origin: origin.clone(), reason: error.to_string() };
        // Other families name their numbers differently; the family is what their users must hear of.
        let (family, layout) = serde_json::from_str::<RawFamily>(text).map_err(bad)?.family(&origin)?;
        let config = match layout {
            Layout::Llada => llada::read(text, hints, &origin)?,
            Layout::Llama | Layout::Qwen2 | Layout::Qwen3 | Layout::Lla | Layout::LladaMoe | Layout::Llada2 => {
                let raw: RawConfig = serde_json::from_str(text).map_err(bad)?;
                let moe = match layout {
                    Layout::LladaMoe => Some(moe::read_llada_moe(text, raw.num_hidden_layers, &origin)?),
                    Layout::Llada2 => Some(moe::read_llada2(text, raw.num_hidden_layers, &origin)?),
                    Layout::Llama | Layout::Qwen2 | Layout::Qwen3 | Layout::Lla | Layout::Llada => None,
                };
                let mixer = match layout {
                    Layout::Lla => MixerConfig::LocalLinear(lla::read(text, &origin)?),
                    _ => MixerConfig::Softmax,
                };
                ModelConfig { mixer, ..raw.resolve((family, layout), moe, hints, &origin)? }
            }
        };
        config.validate(&origin)?;
        Ok(config)
    }
}

impl RawFamily {
    fn family(&self, origin: &str) -> Result<(Family, Layout), ModelError> {
        let architecture = self.architectures.as_ref().and_then(|names| names.first()).or(self.model_type.as_ref());
        Ok(match architecture.map(String::as_str) {
            Some("LlamaForCausalLM" | "llama" | "MistralForCausalLM" | "mistral") => (Family::Llama, Layout::Llama),
            Some("Qwen2ForCausalLM" | "qwen2") => (Family::Qwen2, Layout::Qwen2),
            Some("Qwen3ForCausalLM" | "qwen3") => (Family::Qwen3, Layout::Qwen3),
            Some("LeapfrogLlaForCausalLM" | "leapfrog_lla") => (Family::Lla, Layout::Lla),
            Some("LLaDAModelLM" | "llada") if self.num_experts.is_none() => (Family::Llada, Layout::Llada),
            Some("LLaDAMoEModel" | "LLaDAMoEModelLM" | "llada_moe" | "LLaDAModelLM" | "llada") => {
                (Family::LladaMoe, Layout::LladaMoe)
            }
            Some("ILLaDAForCausalLM" | "illada") => (Family::Illada, Layout::Llama),
            Some("DreamModel" | "Dream") => (Family::Dream, Layout::Qwen2),
            Some("SDARForCausalLM" | "sdar") => (Family::Sdar, Layout::Qwen3),
            Some("Fast_dLLM_QwenForCausalLM" | "Fast_dLLM_Qwen") => (Family::FastDllmV2, Layout::Qwen2),
            Some("A2DQwen3LMHeadModel" | "a2d-qwen3") => (Family::A2d, Layout::Qwen3),
            Some("A2DQwen2LMHeadModel" | "a2d-qwen2") => (Family::A2d, Layout::Qwen2),
            Some("A2DLlamaLMHeadModel" | "a2d-llama") => (Family::A2d, Layout::Llama),
            Some("LLaDA2MoeModelLM" | "llada2_moe") => (Family::Llada2, Layout::Llada2),
            other => {
                return Err(ModelError::UnsupportedArchitecture {
                    origin: origin.into(),
                    architecture: other.unwrap_or("(none named)").into(),
                    supported: SUPPORTED_ARCHITECTURES,
                });
            }
        })
    }
}

impl RawConfig {
    fn resolve(
        self,
        (family, layout): (Family, Layout),
        moe: Option<MoeConfig>,
        hints: &ConfigHints<'_>,
        origin: &str,
    ) -> Result<ModelConfig, ModelError> {
        self.refuse_unsupported(layout, origin)?;
        let (rope_theta, rope_scaling) = self.rope(origin)?;
        let attention_bias = self.attention_bias.unwrap_or(false);
        let head_dim = match (self.head_dim, layout) {
            (Some(head_dim), _) => head_dim,
            (None, Layout::Qwen3) => 128,
            (None, _) => self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0),
        };
        let intermediate_size = match (layout, &moe) {
            (Layout::LladaMoe, Some(moe)) => self.dense_intermediate_size.unwrap_or(moe.expert_size),
            _ => self.intermediate_size.ok_or_else(|| ModelError::BadConfig {
                origin: origin.into(),
                reason: "missing field `intermediate_size`".into(),
            })?,
        };
        let block_len = if family == Family::FastDllmV2 { self.bd_size } else { self.block_size };
        if family == Family::Sdar && block_len.is_none() {
            tracing::warn!(origin, "the config has no `block_size`; the published default of 4 is used");
        }
        let (attention, alignment) = diffusion::facts(family, block_len, hints, origin)?;
        Ok(ModelConfig {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size,
            num_layers: self.num_hidden_layers,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            rotary_dims: (head_dim as f64 * self.rotary_share()) as usize,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            context_len: family.context_len(self.max_position_embeddings),
            tie_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: match layout {
                Layout::Qwen2 => true,
                Layout::Llada2 => self.use_qkv_bias.unwrap_or(false),
                Layout::Llama | Layout::Qwen3 | Layout::Lla | Layout::Llada | Layout::LladaMoe => attention_bias,
            },
            output_bias: match layout {
                Layout::Qwen2 => false,
                Layout::Llada2 => self.use_bias.unwrap_or(false),
                Layout::Llama | Layout::Qwen3 | Layout::Lla | Layout::Llada | Layout::LladaMoe => attention_bias,
            },
            mlp_bias: matches!(layout, Layout::Llama | Layout::Lla) && self.mlp_bias.unwrap_or(false),
            qk_norm: match layout {
                Layout::Qwen3 | Layout::Lla => true,
                Layout::LladaMoe => self.qk_layernorm.unwrap_or(true),
                Layout::Llada2 => self.use_qk_norm.unwrap_or(true),
                Layout::Llama | Layout::Qwen2 | Layout::Llada => false,
            },
            mixer: MixerConfig::Softmax,
            moe,
            attention,
            alignment,
            mask_id: self.mask_token_id.filter(|_| family.is_diffusion()).map(TokenId),
            eos_ids: self.eos_token_id.as_ref().map(OneOrMany::ids).unwrap_or_default(),
            bos_id: self.bos_token_id.as_ref().and_then(|ids| ids.ids().first().copied()),
            names: if layout == Layout::Llada2 { &names::LLADA2 } else { &names::USUAL },
        })
    }

    /// Settings that change what the layers compute in a way that they do not implement.
    fn refuse_unsupported(&self, layout: Layout, origin: &str) -> Result<(), ModelError> {
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
        if self.use_sliding_window == Some(true) && layout != Layout::Lla {
            return refuse("use_sliding_window", "true".into(), "false, that is full attention");
        }
        // Qwen configs carry a window that `use_sliding_window` switches off; Llama and Mistral have no such switch.
        if let (Layout::Llama, Some(window)) = (layout, self.sliding_window)
            && window < self.max_position_embeddings
        {
            return refuse("sliding_window", window.to_string(), "null, that is full attention");
        }
        let share = self.rotary_share();
        match layout {
            Layout::LladaMoe | Layout::Llada2 if !(share > 0.0 && share <= 1.0) => {
                return refuse("partial_rotary_factor", share.to_string(), "above 0 and up to 1");
            }
            Layout::LladaMoe | Layout::Llada2 => {}
            Layout::Llama | Layout::Qwen2 | Layout::Qwen3 | Layout::Lla | Layout::Llada if share != 1.0 => {
                return refuse("partial_rotary_factor", share.to_string(), "1");
            }
            Layout::Llama | Layout::Qwen2 | Layout::Qwen3 | Layout::Lla | Layout::Llada => {}
        }
        if let Some(limit) = self.clip_qkv {
            return refuse("clip_qkv", limit.to_string(), "null");
        }
        match &self.quantization_config {
            Some(quantization) => Err(quantized(quantization, origin)),
            None => Ok(()),
        }
    }

    /// Share of a head that RoPE rotates.
    fn rotary_share(&self) -> f64 {
        let in_rope = [&self.rope_parameters, &self.rope_scaling].into_iter().flatten();
        in_rope.filter_map(|rope| rope.partial_rotary_factor).chain(self.partial_rotary_factor).next().unwrap_or(1.0)
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

/// The refusal of weights that were quantised in a format of their own.
pub(super) fn quantized(config: &serde_json::Value, origin: &str) -> ModelError {
    ModelError::Unsupported {
        origin: origin.into(),
        field: "quantization_config".into(),
        value: config.get("quant_method").map_or_else(|| "set".into(), ToString::to_string),
        supported: "safetensors in f32, f16 or bf16 (the server quantises at load), or a GGUF file".into(),
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
