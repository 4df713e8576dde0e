//! `config.json` in the keys of LLaDA, which are OLMo's.

use serde::Deserialize;

use super::{ConfigHints, Family, MixerConfig, ModelConfig, RopeScaling, diffusion, hf, names};
use crate::{ModelError, TokenId, config::OneOrMany};

/// Every key that changes what a layer computes is here, so that what is not implemented can be refused.
#[derive(Debug, Deserialize)]
struct RawLlada {
    d_model: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    n_layers: usize,
    mlp_hidden_size: Option<usize>,
    /// Counts only where there is no `mlp_hidden_size`.
    mlp_ratio: Option<usize>,
    vocab_size: usize,
    /// Rows of the embedding, padded; `vocab_size` where there is none.
    embedding_size: Option<usize>,
    max_sequence_length: usize,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    weight_tying: Option<bool>,
    include_qkv_bias: Option<bool>,
    activation_type: Option<String>,
    block_type: Option<String>,
    layer_norm_type: Option<String>,
    rope: Option<bool>,
    layer_norm_with_affine: Option<bool>,
    include_bias: Option<bool>,
    bias_for_layer_norm: Option<bool>,
    alibi: Option<bool>,
    attention_layer_norm: Option<bool>,
    input_emb_norm: Option<bool>,
    scale_logits: Option<bool>,
    multi_query_attention: Option<bool>,
    clip_qkv: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    quantization_config: Option<serde_json::Value>,
    mask_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<OneOrMany>,
}

/// Reads the config; the caller checks its ranges.
pub(super) fn read(text: &str, hints: &ConfigHints<'_>, origin: &str) -> Result<ModelConfig, ModelError> {
    let raw: RawLlada = serde_json::from_str(text)
        .map_err(|error| ModelError::BadConfig { origin: origin.into(), reason: error.to_string() })?;
    raw.refuse_unsupported(origin)?;
    let (attention, alignment) = diffusion::facts(Family::Llada, None, hints, origin)?;
    let head_dim = raw.d_model.checked_div(raw.n_heads).unwrap_or(0);
    Ok(ModelConfig {
        family: Family::Llada,
        vocab_size: raw.embedding_size.unwrap_or(raw.vocab_size),
        hidden_size: raw.d_model,
        intermediate_size: raw.mlp_hidden_size.unwrap_or(raw.mlp_ratio.unwrap_or(4).saturating_mul(raw.d_model)),
        num_layers: raw.n_layers,
        num_heads: raw.n_heads,
        num_kv_heads: match (raw.n_kv_heads, raw.multi_query_attention) {
            (Some(num_kv_heads), _) => num_kv_heads,
            (None, Some(true)) => 1,
            (None, _) => raw.n_heads,
        },
        head_dim,
        rotary_dims: head_dim,
        norm_eps: raw.rms_norm_eps.unwrap_or(1e-5),
        rope_theta: raw.rope_theta.unwrap_or(10_000.0),
        rope_scaling: RopeScaling::None,
        context_len: raw.max_sequence_length,
        tie_embeddings: raw.weight_tying.unwrap_or(true),
        qkv_bias: raw.include_qkv_bias.unwrap_or(false),
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        mixer: MixerConfig::Softmax,
        moe: None,
        attention,
        alignment,
        mask_id: raw.mask_token_id.map(TokenId),
        eos_ids: raw.eos_token_id.as_ref().map(OneOrMany::ids).unwrap_or_default(),
        bos_id: raw.bos_token_id.as_ref().and_then(|ids| ids.ids().first().copied()),
        names: &names::LLADA,
    })
}

impl RawLlada {
    /// Settings that change what the layers compute in a way that they do not implement. A missing key has OLMo's
    /// default, which for `activation_type`, `block_type` and `layer_norm_type` is another one than LLaDA's.
    fn refuse_unsupported(&self, origin: &str) -> Result<(), ModelError> {
        let refuse = |field: &str, value: String, supported: &str| {
            Err(ModelError::Unsupported {
                origin: origin.into(),
                field: field.into(),
                value,
                supported: supported.into(),
            })
        };
        for (field, value, supported) in [
            ("activation_type", &self.activation_type, "silu"),
            ("block_type", &self.block_type, "llama"),
            ("layer_norm_type", &self.layer_norm_type, "rms"),
        ] {
            if value.as_deref() != Some(supported) {
                let value = value.as_ref().map_or_else(|| "missing".into(), |value| format!("`{value}`"));
                return refuse(field, value, supported);
            }
        }
        for (field, value, supported) in [
            ("rope", self.rope, true),
            ("layer_norm_with_affine", self.layer_norm_with_affine.or(Some(true)), true),
            ("include_bias", self.include_bias, false),
            ("bias_for_layer_norm", self.bias_for_layer_norm.or(Some(false)), false),
            ("alibi", self.alibi.or(Some(false)), false),
            ("attention_layer_norm", self.attention_layer_norm.or(Some(false)), false),
            ("input_emb_norm", self.input_emb_norm.or(Some(false)), false),
            ("scale_logits", self.scale_logits.or(Some(false)), false),
        ] {
            if value != Some(supported) {
                let value = value.map_or_else(|| "missing".into(), |value| value.to_string());
                return refuse(field, value, &supported.to_string());
            }
        }
        if let Some(limit) = self.clip_qkv {
            return refuse("clip_qkv", limit.to_string(), "null");
        }
        if let Some(scaling) = &self.rope_scaling {
            return refuse("rope_scaling", scaling.to_string(), "null");
        }
        match &self.quantization_config {
            Some(quantization) => Err(hf::quantized(quantization, origin)),
            None => Ok(()),
        }
    }
}
