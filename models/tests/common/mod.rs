//! A tiny random Llama, written as a Hugging Face folder and as a GGUF file; and forward passes over whole sequences.

// Each test file compiles this module on its own and uses a part of it.
#![allow(dead_code)]

pub(crate) mod passes;

use std::{collections::HashMap, fs, path::Path};

use serde_json::{Value, json};

pub(crate) const VOCAB: usize = 264;
pub(crate) const HIDDEN: usize = 32;
pub(crate) const FFN: usize = 64;
pub(crate) const LAYERS: usize = 2;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 8;
pub(crate) const CONTEXT: usize = 64;

/// A tensor by its Hugging Face name.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Numbers between -0.25 and 0.25 from a fixed seed.
pub(crate) fn random() -> impl FnMut() -> f32 {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.5
    }
}

/// The weights of the tiny model, from a fixed seed. The head is separate.
pub(crate) fn weights() -> Vec<Weight> {
    let mut random = random();
    let mut weights = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| random() + if shape.len() == 1 { 1.0 } else { 0.0 }).collect();
        weights.push(Weight { name, shape: shape.to_vec(), values });
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
    for layer in 0..LAYERS {
        let mut part = |part: &str, shape: &[usize]| add(format!("model.layers.{layer}.{part}.weight"), shape);
        part("input_layernorm", &[HIDDEN]);
        part("self_attn.q_proj", &[HEADS * HEAD_DIM, HIDDEN]);
        part("self_attn.k_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        part("self_attn.v_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        part("self_attn.o_proj", &[HIDDEN, HEADS * HEAD_DIM]);
        part("post_attention_layernorm", &[HIDDEN]);
        part("mlp.gate_proj", &[FFN, HIDDEN]);
        part("mlp.up_proj", &[FFN, HIDDEN]);
        part("mlp.down_proj", &[HIDDEN, FFN]);
    }
    add("model.norm.weight".into(), &[HIDDEN]);
    add("lm_head.weight".into(), &[VOCAB, HIDDEN]);
    weights
}

/// The `config.json` of the tiny model.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "hidden_act": "silu",
        "eos_token_id": 257, "bos_token_id": 256,
    })
}

/// The characters of a byte-level vocabulary, by byte.
pub(crate) fn byte_characters() -> Vec<String> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..256u32)
        .map(|byte| {
            let code = if printable(&byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).expect("below the surrogates").to_string()
        })
        .collect()
}

/// All tokens of the tiny model: the bytes, then special tokens, then a word.
pub(crate) fn tokens() -> Vec<String> {
    let mut tokens = byte_characters();
    tokens.extend(["<|bos|>", "<|end|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    tokens.extend(["<think>", "th", "the", "Ġthe"].map(String::from));
    tokens
}

/// The `tokenizer.json` of the tiny model.
pub(crate) fn tokenizer() -> Value {
    let vocab: HashMap<String, usize> = tokens().into_iter().zip(0..).collect();
    let added = |id: usize, content: &str, special: bool| {
        json!({ "id": id, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
    };
    json!({
        "version": "1.0", "truncation": { "max_length": 4, "strategy": "LongestFirst", "stride": 0,
                                          "direction": "Right" },
        "added_tokens": [
            added(256, "<|bos|>", true), added(257, "<|end|>", true), added(258, "<|im_start|>", true),
            added(259, "<|im_end|>", true), added(260, "<think>", false),
        ],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": ["t h", "th e", "Ġ the"] },
    })
}

/// Serialises weights as f32 safetensors.
pub(crate) fn safetensors(weights: &[Weight]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for weight in weights {
        let start = data.len();
        data.extend(weight.values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(
            weight.name.clone(),
            json!({ "dtype": "F32", "shape": weight.shape, "data_offsets": [start, data.len()] }),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Writes the tiny model as a folder.
pub(crate) fn write_folder(folder: &Path) {
    let write = |name: &str, bytes: Vec<u8>| fs::write(folder.join(name), bytes).expect("writable");
    write("config.json", config().to_string().into_bytes());
    write("tokenizer.json", tokenizer().to_string().into_bytes());
    write("model.safetensors", safetensors(&weights()));
}

/// Changes `config.json` of a folder.
pub(crate) fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let mut config = config();
    edit(&mut config);
    fs::write(folder.join("config.json"), config.to_string()).expect("writable");
}

/// A metadata value of a GGUF file.
#[derive(Debug, Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    Bool(bool),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// The metadata of the tiny model.
pub(crate) fn metadata() -> Vec<(String, Meta)> {
    let special = |id: usize| if (256..260).contains(&id) { 3 } else { 1 + 3 * i32::from(id == 260) };
    let entries = [
        ("general.architecture", Meta::Text("llama".into())),
        ("llama.embedding_length", Meta::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Meta::U32(FFN as u32)),
        ("llama.block_count", Meta::U32(LAYERS as u32)),
        ("llama.attention.head_count", Meta::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Meta::U32(KV_HEADS as u32)),
        ("llama.context_length", Meta::U32(CONTEXT as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.rope.freq_base", Meta::F32(10000.0)),
        ("tokenizer.ggml.model", Meta::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens())),
        ("tokenizer.ggml.token_type", Meta::I32s((0..VOCAB).map(special).collect())),
        ("tokenizer.ggml.merges", Meta::Texts(["t h", "th e", "Ġ the"].map(String::from).to_vec())),
        ("tokenizer.ggml.bos_token_id", Meta::U32(256)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(257)),
        ("tokenizer.chat_template", Meta::Text("{{ bos_token }}{{ messages[0].content }}".into())),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Serialises weights as an f32 GGUF file, q and k interleaved as converters write them for a llama.
pub(crate) fn gguf(metadata: &[(String, Meta)], weights: &[Weight]) -> Vec<u8> {
    let is_llama = metadata.iter().any(|(_, value)| matches!(value, Meta::Text(text) if text == "llama"));
    let stored = |weight: &Weight| {
        let values = if is_llama { interleaved(weight) } else { weight.values.clone() };
        (0, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    };
    gguf_with(metadata, weights, stored)
}

/// Serialises weights as a GGUF file; `stored` gives the type code and bytes of each.
pub(crate) fn gguf_with(
    metadata: &[(String, Meta)],
    weights: &[Weight],
    stored: impl Fn(&Weight) -> (u32, Vec<u8>),
) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((weights.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut bytes, key);
        let mut kind = |code: u32| bytes.extend(code.to_le_bytes());
        match value {
            Meta::U32(value) => {
                kind(4);
                bytes.extend(value.to_le_bytes());
            }
            Meta::F32(value) => {
                kind(6);
                bytes.extend(value.to_le_bytes());
            }
            Meta::Text(text) => {
                kind(8);
                put_text(&mut bytes, text);
            }
            Meta::Bool(value) => {
                kind(7);
                bytes.push(u8::from(*value));
            }
            Meta::Texts(texts) => {
                kind(9);
                kind(8);
                bytes.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| put_text(&mut bytes, text));
            }
            Meta::I32s(values) => {
                kind(9);
                kind(5);
                bytes.extend((values.len() as u64).to_le_bytes());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Meta::F32s(values) => {
                kind(9);
                kind(6);
                bytes.extend((values.len() as u64).to_le_bytes());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
    let mut data = Vec::new();
    for weight in weights {
        put_text(&mut bytes, &gguf_name(&weight.name));
        bytes.extend((weight.shape.len() as u32).to_le_bytes());
        weight.shape.iter().rev().for_each(|len| bytes.extend((*len as u64).to_le_bytes()));
        let (code, stored) = stored(weight);
        bytes.extend(code.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(stored);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

fn gguf_name(name: &str) -> String {
    let renamed = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate.", "ffn_gate_inp."),
    ];
    renamed.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

/// Row `half * s + j` of a head goes to row `2 * j + s`.
fn interleaved(weight: &Weight) -> Vec<f32> {
    if !weight.name.contains("q_proj") && !weight.name.contains("k_proj") {
        return weight.values.clone();
    }
    let row_len = weight.shape[1];
    let half = HEAD_DIM / 2;
    let mut values = vec![0.0; weight.values.len()];
    for (row, source) in weight.values.chunks(row_len).enumerate() {
        let (head, within) = (row / HEAD_DIM, row % HEAD_DIM);
        let target = head * HEAD_DIM + 2 * (within % half) + within / half;
        values[target * row_len..][..row_len].copy_from_slice(source);
    }
    values
}
