//! A tiny mixture of experts from safetensors, one tensor an expert, and from GGUF, where a tensor holds all of a layer.

mod common;

use std::fs;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use common::{
    FFN, HEAD_DIM, HEADS, HIDDEN, LAYERS, Meta, VOCAB, Weight,
    passes::{largest_error, logits, tensor},
};
use models::{
    LoadOptions, LoadedModel, LogitAlignment, ModelConfig, ModelSource, Quantize, TokenId, Visibility,
    loader::FileBytes,
    source::{gguf::GgufFile, load},
};
use serde_json::json;
use tempfile::TempDir;

const EXPERTS: usize = 4;
const EXPERT_SIZE: usize = 32;

/// The weights with merged experts. The first layer is dense if asked for.
fn merged_weights(first_is_dense: bool) -> Vec<Weight> {
    let mut random = common::random();
    let mut weights = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = (0..shape.iter().product()).map(|_| 3.0 * random() + offset).collect();
        weights.push(Weight { name: format!("{name}.weight"), shape: shape.to_vec(), values });
    };
    add("model.embed_tokens".into(), &[VOCAB, HIDDEN]);
    for layer in 0..LAYERS {
        let mut part = |part: &str, shape: &[usize]| add(format!("model.layers.{layer}.{part}"), shape);
        part("input_layernorm", &[HIDDEN]);
        for projection in ["q_proj", "k_proj", "v_proj"] {
            part(&format!("self_attn.{projection}"), &[HEADS * HEAD_DIM, HIDDEN]);
        }
        part("self_attn.q_norm", &[HEAD_DIM]);
        part("self_attn.k_norm", &[HEAD_DIM]);
        part("self_attn.o_proj", &[HIDDEN, HEADS * HEAD_DIM]);
        part("post_attention_layernorm", &[HIDDEN]);
        if first_is_dense && layer == 0 {
            part("mlp.gate_proj", &[FFN, HIDDEN]);
            part("mlp.up_proj", &[FFN, HIDDEN]);
            part("mlp.down_proj", &[HIDDEN, FFN]);
        } else {
            part("mlp.gate", &[EXPERTS, HIDDEN]);
            part("mlp.experts.gate_proj", &[EXPERTS, EXPERT_SIZE, HIDDEN]);
            part("mlp.experts.up_proj", &[EXPERTS, EXPERT_SIZE, HIDDEN]);
            part("mlp.experts.down_proj", &[EXPERTS, HIDDEN, EXPERT_SIZE]);
        }
    }
    add("model.norm".into(), &[HIDDEN]);
    add("lm_head".into(), &[VOCAB, HIDDEN]);
    weights
}

/// The same with a tensor for every expert.
fn separate(merged: &[Weight]) -> Vec<Weight> {
    let split = |weight: &Weight| match weight.shape[..] {
        [experts, outputs, inputs] => (0..experts)
            .map(|expert| Weight {
                name: weight.name.replace(".experts.", &format!(".experts.{expert}.")),
                shape: vec![outputs, inputs],
                values: weight.values[expert * outputs * inputs..][..outputs * inputs].to_vec(),
            })
            .collect(),
        _ => vec![weight.clone()],
    };
    merged.iter().flat_map(split).collect()
}

fn folder(first_is_dense: bool) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    common::write_folder(folder.path());
    let write = |name: &str, bytes: Vec<u8>| fs::write(folder.path().join(name), bytes).expect("writable");
    write("model.safetensors", common::safetensors(&separate(&merged_weights(first_is_dense))));
    common::edit_config(folder.path(), |config| {
        *config = json!({
            "architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "vocab_size": VOCAB, "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "max_position_embeddings": common::CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "hidden_act": "silu", "num_experts": EXPERTS, "num_experts_per_tok": 2, "mask_token_id": 258,
            "expert_intermediate_size": EXPERT_SIZE, "dense_intermediate_size": FFN, "qk_layernorm": true,
            "moe_layer_freq": [u8::from(!first_is_dense), 1], "eos_token_id": 257,
        });
    });
    folder
}

fn metadata() -> Vec<(String, Meta)> {
    let mut metadata = common::metadata();
    metadata.retain(|(key, _)| !key.ends_with("feed_forward_length") && !key.ends_with("head_count_kv"));
    for (key, value) in &mut metadata {
        *key = key.replace("llama.", "llada-moe.");
        if key == "general.architecture" {
            *value = Meta::Text("llada-moe".into());
        }
    }
    metadata.push(("llada-moe.expert_count".into(), Meta::U32(EXPERTS as u32)));
    metadata.push(("llada-moe.expert_used_count".into(), Meta::U32(2)));
    metadata.push(("llada-moe.attention.causal".into(), Meta::Bool(false)));
    metadata.push(("tokenizer.ggml.mask_token_id".into(), Meta::U32(258)));
    metadata
}

fn load_gguf(bytes: &[u8]) -> LoadedModel {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, bytes).expect("writable");
    load(&ModelSource::Gguf(path), &LoadOptions::default()).expect("it loads")
}

fn load_folder(folder: &TempDir, quantize: Option<Quantize>) -> LoadedModel {
    let options = LoadOptions { quantize, ..LoadOptions::default() };
    load(&ModelSource::Folder(folder.path().into()), &options).expect("it loads")
}

fn rows(model: &mut LoadedModel) -> Vec<Vec<f32>> {
    let tokens: Vec<TokenId> = (0..20).map(|at| TokenId(at * 13 % 250)).collect();
    logits(model.backbone.as_mut(), &tokens, &[20], Visibility::Through(20))
}

#[test]
fn merged_experts_are_the_same_experts() {
    let expected = rows(&mut load_folder(&folder(false), None));
    let mut model = load_gguf(&common::gguf(&metadata(), &merged_weights(false)));
    assert_eq!(rows(&mut model), expected);
    assert_eq!(model.backbone.spec().mask_id, Some(TokenId(258)));
}

/// What a GGUF file keeps in Q8_0: every matrix whose name holds `part`.
fn quantised(part: &str) -> Vec<u8> {
    common::gguf_with(&metadata(), &merged_weights(false), |weight| {
        if !weight.name.contains(part) {
            return (0, weight.values.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
        let inputs = *weight.shape.last().expect("a matrix");
        let matrix = Tensor::from_slice(&weight.values, (weight.values.len() / inputs, inputs), &Device::Cpu);
        let blocks = QTensor::quantize(&matrix.expect("a matrix"), GgmlDType::Q8_0).expect("whole blocks");
        (8, blocks.data().expect("on the CPU").into_owned())
    })
}

#[test]
fn quantised_experts_keep_their_type() {
    let mut model = load_gguf(&quantised(".experts."));
    let used = model.summary.formats["Q8_0"];
    assert_eq!(used.num_tensors, LAYERS * EXPERTS * 3);
    assert_eq!(used.bytes, LAYERS * EXPERTS * 3 * HIDDEN * EXPERT_SIZE / 32 * 34);
    let exact = tensor(rows(&mut load_folder(&folder(false), None)));
    let error = largest_error(&rows(&mut model), &exact);
    assert!(error > 1e-6 && error < 0.1, "relative error {error}");
}

#[test]
fn a_router_is_f32_whatever_the_weights_become() {
    let model = load_folder(&folder(false), Some(Quantize::Q8_0));
    let num_vectors = 1 + LAYERS * 4;
    assert_eq!(model.summary.formats["F32"].num_tensors, num_vectors + LAYERS, "vectors and routers");
    assert_eq!(model.summary.formats["F32 -> Q8_0"].num_tensors, 2 + LAYERS * (4 + EXPERTS * 3));
}

#[test]
fn a_layer_may_be_dense() {
    let mut mixed = load_folder(&folder(true), None);
    let num_params: usize = merged_weights(true).iter().map(|weight| weight.values.len()).sum();
    assert_eq!(mixed.backbone.spec().num_params, num_params);
    assert!(rows(&mut mixed).iter().flatten().all(|value| value.is_finite()));
}

#[test]
fn the_metadata_may_say_that_logits_are_shifted() {
    let aligned = |shift: Option<bool>| {
        let mut metadata = metadata();
        metadata.extend(shift.map(|shift| ("diffusion.shift_logits".into(), Meta::Bool(shift))));
        load_gguf(&common::gguf(&metadata, &merged_weights(false))).backbone.spec().alignment
    };
    assert_eq!(aligned(None), LogitAlignment::SameSlot);
    assert_eq!(aligned(Some(false)), LogitAlignment::SameSlot);
    assert_eq!(aligned(Some(true)), LogitAlignment::NextSlot);
}

#[test]
fn a_literal_mask_stays_text_in_a_gguf_tokenizer() {
    let model = load_gguf(&common::gguf(&metadata(), &merged_weights(false)));
    let text = "<|im_start|>user <|im_start|>";
    for tokens in [model.tokenizer.encode(text, true), model.tokenizer.encode_chat(text)] {
        let tokens = tokens.expect("encodes");
        assert!(!tokens.contains(&TokenId(258)), "{tokens:?}");
        assert_eq!(model.tokenizer.decode(&tokens), text);
    }
    assert_eq!(model.tokenizer.encode("<|im_end|>", false).expect("encodes"), [TokenId(259)]);
    assert_eq!((model.tokenizer.vocab_size(), &*model.tokenizer.token_text(TokenId(258))), (VOCAB, "<|im_start|>"));
}

/// What the check before loading counts is what is loaded, and the most that one tensor needs while it is converted.
#[test]
fn the_memory_that_a_model_needs_is_known_beforehand() {
    let bytes = quantised(".experts.");
    let needed = |quantize| {
        let file = GgufFile::parse(FileBytes::Owned(bytes.clone().into()), "tiny").expect("valid");
        let config = ModelConfig::from_gguf(&file, &Default::default()).expect("valid");
        file.weights(&config, quantize).needed_bytes() as usize
    };
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, &bytes).expect("writable");
    for (quantize, scratch) in [
        (None, VOCAB * HIDDEN * 4),
        (Some(Quantize::F32), VOCAB * HIDDEN * 4),
        // The blocks of the embedding, since f32 is made of a few rows at a time.
        (Some(Quantize::Q8_0), VOCAB * HIDDEN / 32 * 34),
    ] {
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        let loaded = load(&ModelSource::Gguf(path.clone()), &options).expect("it loads").summary.bytes;
        // Panels are sixteen rows: 264 rows of the embedding and of the head take the room of 272.
        assert_eq!(needed(quantize), loaded + scratch, "{quantize:?}");
    }
}
