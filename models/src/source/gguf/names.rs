//! GGUF names of tensors and their Hugging Face counterparts.

/// The Hugging Face name of a GGUF tensor; `None` if it has none.
pub(super) fn hugging_face_name(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("blk.") {
        let (layer, rest) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (module, kind) = rest.split_once('.')?;
        let module = match module {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            "ffn_gate_inp" => "mlp.gate",
            "ffn_gate_exps" => "mlp.experts.gate_proj",
            "ffn_up_exps" => "mlp.experts.up_proj",
            "ffn_down_exps" => "mlp.experts.down_proj",
            _ => return None,
        };
        return Some(format!("model.layers.{layer}.{module}.{kind}"));
    }
    let name = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => return None,
    };
    Some(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_their_number_and_kind() {
        assert_eq!(hugging_face_name("blk.12.attn_q.bias").as_deref(), Some("model.layers.12.self_attn.q_proj.bias"));
        assert_eq!(hugging_face_name("output.weight").as_deref(), Some("lm_head.weight"));
        assert_eq!(hugging_face_name("blk.0.ssm_in.weight"), None);
        assert_eq!(hugging_face_name("blk.x.attn_q.weight"), None);
    }
}
