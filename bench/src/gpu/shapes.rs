//! Shapes of published models, from their `config.json`; context lengths are raised where cells would not fit. The weights are made up on the device, so nothing is downloaded; time and traffic depend on
//! the shape alone.

use std::path::Path;

use anyhow::Context;
use models::{ConfigHints, ModelConfig};
use serde_json::{Value, json};

/// A model whose shape is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// GSAI-ML/LLaDA-8B-Instruct: diffusion with full attention
    #[value(name = "llada-8b")]
    Llada8B,
    /// Dream-org/Dream-v0-Instruct-7B: diffusion with full attention, grouped heads
    #[value(name = "dream-7b")]
    Dream7B,
    /// JetLM/SDAR-4B-Chat: diffusion by blocks
    #[value(name = "sdar-4b")]
    Sdar4B,
    /// cllm/consistency-llm-7b-math: Llama 2 for Jacobi decoding
    #[value(name = "llama2-7b")]
    Llama2_7B,
    /// HuggingFaceTB/SmolLM2-135M-Instruct
    #[value(name = "smollm2-135m")]
    SmolLm2,
}

impl Shape {
    /// The name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llada8B => "llada-8b",
            Self::Dream7B => "dream-7b",
            Self::Sdar4B => "sdar-4b",
            Self::Llama2_7B => "llama2-7b",
            Self::SmolLm2 => "smollm2-135m",
        }
    }

    /// The keys of its `config.json` that shape a pass.
    fn keys(self) -> Value {
        match self {
            Self::Llada8B => json!({
                "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu",
                "block_type": "llama", "layer_norm_type": "rms", "rope": true, "include_bias": false,
                "include_qkv_bias": false, "d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32,
                "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
                "max_sequence_length": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "weight_tying": false,
                "mask_token_id": 126336, "eos_token_id": 126081,
            }),
            Self::Dream7B => json!({
                "architectures": ["DreamModel"], "model_type": "Dream", "hidden_act": "silu", "hidden_size": 3584,
                "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                "num_key_value_heads": 4, "vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
                "max_position_embeddings": 131072, "tie_word_embeddings": false, "mask_token_id": 151666,
                "eos_token_id": 151643,
            }),
            Self::Sdar4B => json!({
                "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_act": "silu", "hidden_size": 2560,
                "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0, "max_position_embeddings": 32768, "tie_word_embeddings": false,
                "attention_bias": false, "block_size": 4, "mask_token_id": 151669, "eos_token_id": 151643,
            }),
            Self::Llama2_7B => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "max_position_embeddings": 8192, "tie_word_embeddings": false, "eos_token_id": 2,
            }),
            Self::SmolLm2 => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
                "max_position_embeddings": 8192, "tie_word_embeddings": true, "eos_token_id": 2,
            }),
        }
    }

    /// The config, as a model is loaded with.
    pub(crate) fn config(self) -> anyhow::Result<ModelConfig> {
        ModelConfig::from_hf_json(&self.keys().to_string(), Path::new(self.name()), &ConfigHints::default())
            .with_context(|| format!("the config of {}", self.name()))
    }
}

/// Parameters of the matrices that every row is multiplied with: all but an embedding of its own, norms and biases.
pub(super) fn matrix_params(config: &ModelConfig) -> usize {
    let matrices = matrices(config);
    let layer: usize = matrices.iter().map(Matrix::params).sum();
    config.num_layers * layer + config.vocab_size * config.hidden_size
}

/// The matrix products of one layer as they are launched: layers of one input side by side.
pub(super) fn matrices(config: &ModelConfig) -> [Matrix; 4] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    [
        Matrix { name: "qkv", parts: vec![q, kv, kv], inputs: hidden },
        Matrix { name: "output", parts: vec![hidden], inputs: q },
        Matrix { name: "gate and up", parts: vec![inner, inner], inputs: hidden },
        Matrix { name: "down", parts: vec![hidden], inputs: inner },
    ]
}

/// One matrix product of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    pub(super) name: &'static str,
    /// Outputs of the weights that lie side by side.
    pub(super) parts: Vec<usize>,
    pub(super) inputs: usize,
}

impl Matrix {
    fn params(&self) -> usize {
        self.parts.iter().sum::<usize>() * self.inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters as published with the models, embeddings included: LLaDA 8.02 B (its model card), Dream 7.62 B and
    /// SDAR-4B (Qwen2.5-7B and Qwen3-4B, their parents; SDAR has a head of its own), Llama 2 6.74 B, SmolLM2 134.5 M.
    #[test]
    fn shapes_have_the_published_numbers_of_parameters() {
        let count = |shape: Shape| {
            let config = shape.config().unwrap();
            let own_embedding = if config.tie_embeddings { 0 } else { config.vocab_size * config.hidden_size };
            (matrix_params(&config) + own_embedding) as f64
        };
        for (shape, published) in [
            (Shape::Llada8B, 8.02e9),
            (Shape::Dream7B, 7.62e9),
            (Shape::Sdar4B, 4.41e9),
            (Shape::Llama2_7B, 6.74e9),
            (Shape::SmolLm2, 134.5e6),
        ] {
            let ratio = count(shape) / published;
            assert!(
                (0.995..1.005).contains(&ratio),
                "{}: {} parameters, published {published}",
                shape.name(),
                count(shape)
            );
        }
    }

    #[test]
    fn families_have_their_attention() {
        use models::AttentionKind;
        assert_eq!(Shape::Llada8B.config().unwrap().attention, AttentionKind::Full);
        assert_eq!(Shape::Dream7B.config().unwrap().attention, AttentionKind::Full);
        assert!(matches!(Shape::Sdar4B.config().unwrap().attention, AttentionKind::BlockCausal { block_len: 4, .. }));
        assert_eq!(Shape::Llama2_7B.config().unwrap().attention, AttentionKind::Causal);
        assert!(Shape::Dream7B.config().unwrap().qkv_bias && Shape::Sdar4B.config().unwrap().qk_norm);
    }
}
