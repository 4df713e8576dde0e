//! What the tensors of each family are called. Layers ask for names; only this table knows how a family spells them.

/// Names of tensors without `.weight` and `.bias`. Those of a layer follow its prefix `{layers}.{index}.`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) qkv: Qkv,
    pub(crate) output: &'static str,
    /// Norms over the heads of q and of k.
    pub(crate) qk_norms: [&'static str; 2],
    /// Gate, up and down.
    pub(crate) mlp: [&'static str; 3],
}

/// How q, k and v are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qkv {
    /// One matrix each.
    Separate([&'static str; 3]),
    /// One matrix: the rows of all heads of q, then k, then v.
    Fused(&'static str),
}

/// The matrix that chooses experts. It stays in f32 whatever the other weights become: a changed choice costs more
/// than all that its few bytes could save.
pub(crate) const ROUTER: &str = "mlp.gate";
/// What is added to a router's scores before experts are chosen, with its whole name; one of the two.
pub(crate) const EXPERT_BIAS: [&str; 2] = ["mlp.gate.expert_bias", "mlp.expert_bias"];
/// Experts: `{EXPERTS}.{index}.{part}`.
pub(crate) const EXPERTS: &str = "mlp.experts";
/// The MLP that every row goes through beside its experts: `{SHARED_EXPERTS}.{part}`.
pub(crate) const SHARED_EXPERTS: &str = "mlp.shared_experts";
/// What the ridges of the heads of local linear attention are made from, `[heads]`, with its whole name.
pub(crate) const RIDGE: &str = "self_attn.ridge";
/// Gate, up and down of an expert.
pub(crate) const EXPERT_PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// Whether a tensor is a router's matrix.
pub(crate) fn is_router(name: &str) -> bool {
    name.strip_suffix(".weight").and_then(|name| name.strip_suffix(ROUTER)).is_some_and(|rest| rest.ends_with('.'))
}

/// Llama, Qwen and all that kept their names; GGUF files are translated into these.
pub(crate) const USUAL: Names = Names {
    embedding: "model.embed_tokens",
    layers: "model.layers",
    norm: "model.norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    output: "self_attn.o_proj",
    qk_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    mlp: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
};

/// LLaDA, which grew out of OLMo.
pub(crate) const LLADA: Names = Names {
    embedding: "model.transformer.wte",
    layers: "model.transformer.blocks",
    norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
    attention_norm: "attn_norm",
    mlp_norm: "ff_norm",
    qkv: Qkv::Separate(["q_proj", "k_proj", "v_proj"]),
    output: "attn_out",
    qk_norms: ["q_norm", "k_norm"],
    mlp: ["ff_proj", "up_proj", "ff_out"],
};

/// LLaDA2, which grew out of Ling.
pub(crate) const LLADA2: Names = Names {
    embedding: "model.word_embeddings",
    qkv: Qkv::Fused("attention.query_key_value"),
    output: "attention.dense",
    qk_norms: ["attention.query_layernorm", "attention.key_layernorm"],
    ..USUAL
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_not_a_gate_projection() {
        assert!(is_router("model.layers.3.mlp.gate.weight"));
        for other in ["model.layers.3.mlp.gate_proj.weight", "x.mlp.gate.expert_bias", "x.other_mlp.gate.weight"] {
            assert!(!is_router(other), "{other}");
        }
    }
}
