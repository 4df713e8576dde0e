//! The model's config out of GGUF metadata.

use super::GgufFile;
use crate::{
    ConfigHints, Family, LogitAlignment, ModelConfig, ModelError, RopeScaling, TokenId,
    config::{MixerConfig, MoeConfig, RouterConfig, RouterScore, USUAL_NAMES, family_facts},
};

/// The architectures, as an error message lists them.
const SUPPORTED: &str = "llama, qwen2, qwen3, llada, dream, llada-moe";

impl ModelConfig {
    /// Reads the config of a GGUF file.
    pub fn from_gguf(file: &GgufFile, hints: &ConfigHints<'_>) -> Result<Self, ModelError> {
        let architecture = file.text("general.architecture").unwrap_or("(none named)");
        let family = match architecture {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "llada" => Family::Llada,
            "dream" => Family::Dream,
            "llada-moe" => Family::LladaMoe,
            other => {
                return Err(ModelError::UnsupportedArchitecture {
                    origin: file.origin().into(),
                    architecture: other.into(),
                    supported: SUPPORTED,
                });
            }
        };
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        let number = |suffix: &str| file.integer::<usize>(&key(suffix));
        let need =
            |suffix: &str| number(suffix)?.ok_or_else(|| file.bad(format!("the metadata has no `{}`", key(suffix))));
        let hidden_size = need("embedding_length")?;
        let num_heads = need("attention.head_count")?;
        let head_dim = match number("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_heads).unwrap_or(0),
        };
        let refuse = |suffix: &str, value: usize, supported: String| {
            Err(ModelError::Unsupported {
                origin: file.origin().into(),
                field: key(suffix),
                value: value.to_string(),
                supported,
            })
        };
        for suffix in ["rope.dimension_count", "attention.value_length"] {
            if let Some(value) = number(suffix)?.filter(|value| *value != head_dim) {
                return refuse(suffix, value, format!("{head_dim}, the width of a head"));
            }
        }
        let context_len = need("context_length")?;
        if let Some(window) = number("attention.sliding_window")?.filter(|window| (1..context_len).contains(window)) {
            return refuse("attention.sliding_window", window, "none, that is full attention".into());
        }
        let moe = match (family, number("expert_count")?.filter(|experts| *experts > 0)) {
            (Family::LladaMoe, _) => Some(experts(file, architecture)?),
            (_, None) => None,
            (_, Some(experts)) => return refuse("expert_count", experts, "0, that is one MLP a layer".into()),
        };
        let vocab_size = match file.shape("model.embed_tokens.weight") {
            Some([vocab_size, _]) => *vocab_size,
            _ => {
                return Err(ModelError::MissingTensor {
                    origin: file.origin().into(),
                    name: "token_embd.weight".into(),
                });
            }
        };
        let (attention, alignment) = family_facts(family, None, hints, file.origin())?;
        let alignment = match file.switch("diffusion.shift_logits").filter(|_| family.is_diffusion()) {
            Some(true) => LogitAlignment::NextSlot,
            Some(false) => LogitAlignment::SameSlot,
            None => alignment,
        };
        let intermediate_size = match &moe {
            Some(moe) => number("feed_forward_length")?.unwrap_or(moe.expert_size),
            None => need("feed_forward_length")?,
        };
        let mask_id = file.integer("tokenizer.ggml.mask_token_id")?.filter(|_| family.is_diffusion());
        let has_bias = |layer: &str| file.shape(&format!("model.layers.0.{layer}.bias")).is_some();
        let config = Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_layers: need("block_count")?,
            num_heads,
            num_kv_heads: number("attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            rotary_dims: head_dim,
            norm_eps: file
                .float(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| file.bad("the metadata has no RMSNorm epsilon".into()))?,
            rope_theta: file.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(file, architecture)?,
            context_len: family.context_len(context_len),
            tie_embeddings: file.shape("lm_head.weight").is_none(),
            qkv_bias: matches!(family, Family::Qwen2 | Family::Dream) || has_bias("self_attn.q_proj"),
            output_bias: has_bias("self_attn.o_proj"),
            mlp_bias: has_bias("mlp.gate_proj"),
            qk_norm: matches!(family, Family::Qwen3 | Family::LladaMoe),
            mixer: MixerConfig::Softmax,
            moe,
            attention,
            alignment,
            mask_id: mask_id.map(TokenId),
            eos_ids: file.integer("tokenizer.ggml.eos_token_id")?.map(TokenId).into_iter().collect(),
            bos_id: file.integer("tokenizer.ggml.bos_token_id")?.map(TokenId),
            names: &USUAL_NAMES,
        };
        config.validate(file.origin())?;
        Ok(config)
    }
}

/// The experts of a LLaDA-MoE file; what the metadata does not say is the family's.
fn experts(file: &GgufFile, architecture: &str) -> Result<MoeConfig, ModelError> {
    let number = |suffix: &str| file.integer::<usize>(&format!("{architecture}.{suffix}"));
    let need = |suffix: &str| {
        number(suffix)?.ok_or_else(|| file.bad(format!("the metadata has no `{architecture}.{suffix}`")))
    };
    let first = file.shape("model.layers.0.mlp.experts.0.gate_proj.weight");
    let expert_size = number("expert_feed_forward_length")?.or(first.and_then(|shape| shape.first().copied()));
    Ok(MoeConfig {
        num_experts: need("expert_count")?,
        experts_per_row: need("expert_used_count")?,
        expert_size: expert_size.ok_or_else(|| file.bad("it has no experts".into()))?,
        shared_size: None,
        dense_layers: Vec::new(),
        router: RouterConfig {
            score: RouterScore::Softmax,
            has_bias: false,
            groups: None,
            normalise: false,
            scale: 1.0,
        },
    })
}

/// Linear scaling by metadata, or the divisors that llama 3 files carry as a tensor.
fn rope_scaling(file: &GgufFile, architecture: &str) -> Result<RopeScaling, ModelError> {
    if let Some(divisors) = file.vector("rope_freqs.weight")? {
        return Ok(RopeScaling::PerDimension(divisors));
    }
    let factor = file.float(&format!("{architecture}.rope.scaling.factor"))?;
    match (file.text(&format!("{architecture}.rope.scaling.type")), factor) {
        (Some("none"), _) => Ok(RopeScaling::None),
        (Some("linear"), Some(factor)) if factor > 0.0 => Ok(RopeScaling::Linear { factor }),
        (Some("linear"), _) => Err(file.bad("linear RoPE scaling has no positive `factor`".into())),
        (Some(other), _) => Err(ModelError::Unsupported {
            origin: file.origin().into(),
            field: "rope.scaling.type".into(),
            value: format!("`{other}`"),
            supported: "none, linear, and the divisors of llama 3".into(),
        }),
        (None, _) => match file.float(&format!("{architecture}.rope.scale_linear"))? {
            Some(factor) if factor != 1.0 => Ok(RopeScaling::Linear { factor }),
            _ => Ok(RopeScaling::None),
        },
    }
}
