//! What is read off the files of diffusion models: family, attention, mask token, end tokens; and what is refused.

mod common;

use std::{fs, path::Path};

use common::{passes::golden, tokenizer, weights, write_folder};
use models::{
    AttentionChoice, AttentionKind, LoadOptions, LoadedModel, ModelError, ModelSource, TokenId, source::load,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with the tiny Llama as a diffusion model of the given architecture, and its mask in the tokenizer as id 258.
fn diffusion_folder(name: &str, architecture: &str, mask: &str) -> TempDir {
    let folder = tempfile::Builder::new().prefix(name).tempdir().expect("a temporary folder");
    write_folder(folder.path());
    common::edit_config(folder.path(), |config| config["architectures"] = json!([architecture]));
    let tokenizer = tokenizer().to_string().replace("<|im_start|>", mask);
    write(folder.path(), "tokenizer.json", &tokenizer);
    folder
}

fn a2d_folder(name: &str) -> TempDir {
    diffusion_folder(name, "A2DLlamaLMHeadModel", "<|mask|>")
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).expect("writable");
}

fn load_with(folder: &Path, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
    load(&ModelSource::Folder(folder.into()), options)
}

fn load_folder(folder: &Path) -> Result<LoadedModel, ModelError> {
    load_with(folder, &LoadOptions::default())
}

fn mask_of(result: Result<LoadedModel, ModelError>) -> Option<TokenId> {
    result.expect("it loads").backbone.spec().mask_id
}

/// Asserts that loading failed, on one line, with this cause.
#[track_caller]
fn refused(result: Result<LoadedModel, ModelError>, cause: &str) {
    let message = result.expect_err(cause).to_string();
    assert!(message.contains(cause), "`{message}` does not say `{cause}`");
    assert!(!message.contains('\n'), "`{message}` has more than one line");
}

/// A copy of a golden whose config is changed.
fn changed_golden(name: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let source = golden("diffusion").join(name);
    for entry in fs::read_dir(&source).expect("readable") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("writable");
    }
    let text = fs::read_to_string(source.join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_str(&text).expect("valid JSON");
    edit(&mut config);
    write(folder.path(), "config.json", &config.to_string());
    folder
}

fn load_golden(folder: &Path) -> Result<LoadedModel, ModelError> {
    let options =
        LoadOptions { tokenizer: Some(golden("tokenizer.json")), mask_id: Some(TokenId(3)), ..LoadOptions::default() };
    load_with(folder, &options)
}

#[test]
fn the_mask_is_looked_up_in_order() {
    let folder = a2d_folder("mdlm");
    assert_eq!(mask_of(load_folder(folder.path())), Some(TokenId(258)), "as the family spells it");
    write(folder.path(), "special_tokens_map.json", r#"{"mask_token": "<|bos|>"}"#);
    assert_eq!(mask_of(load_folder(folder.path())), Some(TokenId(256)), "as the map of special tokens says");
    write(folder.path(), "tokenizer_config.json", r#"{"mask_token": {"content": "<|im_end|>", "special": true}}"#);
    assert_eq!(mask_of(load_folder(folder.path())), Some(TokenId(259)), "as the tokenizer's config says");
    common::edit_config(folder.path(), |config| {
        config["architectures"] = json!(["A2DLlamaLMHeadModel"]);
        config["mask_token_id"] = json!(260);
    });
    assert_eq!(mask_of(load_folder(folder.path())), Some(TokenId(260)), "as the config says");
    let options = LoadOptions { mask_id: Some(TokenId(261)), ..LoadOptions::default() };
    assert_eq!(mask_of(load_with(folder.path(), &options)), Some(TokenId(261)), "as the user says");
}

#[test]
fn a_mask_that_cannot_be_is_refused() {
    let folder = a2d_folder("mdlm");
    let with = |mask| load_with(folder.path(), &LoadOptions { mask_id: Some(TokenId(mask)), ..LoadOptions::default() });
    refused(with(264), "the mask token 264 (--mask-id) is outside the model's 264 embeddings");
    refused(with(u32::MAX), "is outside the model's 264 embeddings");
    refused(with(65), "the mask token 65 is `A`, which ordinary text is spelled with");
    common::edit_config(folder.path(), |config| {
        config["architectures"] = json!(["A2DLlamaLMHeadModel"]);
        config["mask_token_id"] = json!(151_669);
    });
    refused(load_folder(folder.path()), "the mask token 151669 (`mask_token_id` of the config) is outside");

    // Id 5 is iLLaDA's mask by number only, and `&` here.
    let folder = diffusion_folder("illada", "ILLaDAForCausalLM", "<|mask|>");
    refused(load_folder(folder.path()), "names no mask token");
    refused(load_folder(folder.path()), "give --mask-id");
    let folder = diffusion_folder("illada", "ILLaDAForCausalLM", "<[MASK]>");
    assert_eq!(mask_of(load_folder(folder.path())), Some(TokenId(258)));

    let folder = diffusion_folder("llama", "LlamaForCausalLM", "<|mask|>");
    assert_eq!(mask_of(load_folder(folder.path())), None);
    let options = LoadOptions { mask_id: Some(TokenId(3)), ..LoadOptions::default() };
    refused(load_with(folder.path(), &options), "llama models are causal and have no mask token");
}

#[test]
fn literal_mask_text_stays_text() {
    let folder = a2d_folder("mdlm");
    let model = load_folder(folder.path()).expect("it loads");
    let mask = model.backbone.spec().mask_id.expect("a diffusion model");
    let message = "say <|mask|> twice: <|mask|><|mask|>";
    let plain = model.tokenizer.encode(message, true).expect("encodes");
    let chat = model.tokenizer.encode_chat(&format!("<|bos|>{message}<|im_end|>")).expect("encodes");
    for tokens in [&plain, &chat] {
        assert!(!tokens.contains(&mask), "{tokens:?}");
        assert_eq!(model.tokenizer.decode(tokens), message);
    }
    // What is structure stays structure, with the ids it had.
    assert_eq!((chat.first(), chat.last()), (Some(&TokenId(256)), Some(&TokenId(259))));
    assert_eq!(model.tokenizer.token_id("<think>"), Some(TokenId(260)));
    // The mask itself can still be shown, and adds nothing to a text.
    assert_eq!(model.tokenizer.token_text(mask), "<|mask|>");
    assert_eq!(model.tokenizer.token_id("<|mask|>"), Some(mask));
    assert_eq!((model.tokenizer.vocab_size(), model.tokenizer.is_special(mask)), (264, true));
    assert_eq!(model.tokenizer.decode(&[mask, TokenId(65), mask]), "A");
    // The name that the tokenizer hides the mask behind is not text either.
    for text in ["\u{FDD0}mask\u{FDD1}", "a\u{FDD0}mask\u{FDD1}b"] {
        let error = model.tokenizer.encode(text, false).expect_err("reserved");
        assert!(matches!(error, ModelError::Tokenize { .. }), "{error}");
    }
    model.tokenizer.encode("\u{FDD0}mask", false).expect("a noncharacter alone is harmless");
}

#[test]
fn a_mask_that_merges_lead_to_is_out_of_reach_too() {
    let folder = a2d_folder("mdlm");
    // `th`, on which `the` and ` the` are built.
    let options = LoadOptions { mask_id: Some(TokenId(261)), ..LoadOptions::default() };
    let model = load_with(folder.path(), &options).expect("it loads");
    let tokens = model.tokenizer.encode("the theme", false).expect("encodes");
    assert!(!tokens.contains(&TokenId(261)), "{tokens:?}");
    assert_eq!(model.tokenizer.decode(&tokens), "the theme");
}

#[test]
fn an_unknown_architecture_is_told_all_known_ones() {
    let folder = a2d_folder("mdlm");
    common::edit_config(folder.path(), |config| config["architectures"] = json!(["DiffusionGemmaForBlockDiffusion"]));
    let message = load_folder(folder.path()).expect_err("not supported").to_string();
    for known in [
        "`DiffusionGemmaForBlockDiffusion` is not supported",
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
        "LeapfrogLlaForCausalLM",
        "LLaDAModelLM",
        "ILLaDAForCausalLM",
        "DreamModel",
        "SDARForCausalLM",
        "Fast_dLLM_QwenForCausalLM",
        "A2DQwen3LMHeadModel",
        "A2DQwen2LMHeadModel",
        "A2DLlamaLMHeadModel",
        "LLaDAMoEModel,",
        "LLaDAMoEModelLM",
        "LLaDA2MoeModelLM",
    ] {
        assert!(message.contains(known), "`{message}` does not name {known}");
    }
}

#[test]
fn an_a2d_model_says_how_it_attends_by_name_or_by_option() {
    let attention = |folder: &TempDir, choice| {
        let options = LoadOptions { attention: choice, ..LoadOptions::default() };
        load_with(folder.path(), &options).map(|model| model.backbone.spec().attention)
    };
    let is_full = |kind: Result<AttentionKind, ModelError>| kind.expect("it loads") == AttentionKind::Full;
    assert!(is_full(attention(&a2d_folder("some-MDLM-v0.1"), None)));
    assert!(!is_full(attention(&a2d_folder("some-bd3lm-v0.1"), None)));
    // What the user says goes before the name.
    assert!(is_full(attention(&a2d_folder("some-bd3lm-v0.1"), Some(AttentionChoice::Full))));
    let folder = a2d_folder("nameless");
    refused(load_folder(folder.path()), "give --attention full or --attention block_causal");
    assert!(is_full(attention(&folder, Some(AttentionChoice::Full))));
    assert!(!is_full(attention(&folder, Some(AttentionChoice::BlockCausal))));
}

#[test]
fn a_choice_of_attention_that_a_family_does_not_have_is_refused() {
    let with = |folder: &TempDir, choice, mask| {
        let options = LoadOptions { attention: Some(choice), mask_id: mask, ..LoadOptions::default() };
        load_with(folder.path(), &options)
    };
    let illada = diffusion_folder("illada", "ILLaDAForCausalLM", "<[MASK]>");
    with(&illada, AttentionChoice::Full, None).expect("that is how it attends");
    refused(with(&illada, AttentionChoice::BlockCausal, None), "supported: full, as illada models are trained");
    let llama = diffusion_folder("llama", "LlamaForCausalLM", "<|mask|>");
    refused(with(&llama, AttentionChoice::Full, None), "llama models are causal");
}

#[test]
fn the_chat_formats_of_the_families_end_turns() {
    let stop_ids = |spellings: &[(&str, &str)]| {
        let folder = a2d_folder("mdlm");
        let mut text = tokenizer().to_string().replace("<|im_start|>", "<|mask|>");
        for (from, to) in spellings {
            text = text.replace(from, to);
        }
        write(folder.path(), "tokenizer.json", &text);
        load_folder(folder.path()).expect("it loads").stop_ids
    };
    let llada = stop_ids(&[("<|im_end|>", "<|eot_id|>"), ("<|bos|>", "<|endoftext|>")]);
    assert_eq!(llada, [256, 257, 259].map(TokenId), "<|endoftext|>, the config's, <|eot_id|>");
    let mixture = stop_ids(&[("<|im_end|>", "<|role_end|>"), ("<|bos|>", "<|endoftext|>")]);
    assert_eq!(mixture, [256, 257, 259].map(TokenId), "<|endoftext|>, the config's, <|role_end|>");
}

#[test]
fn the_mask_does_not_end_a_text() {
    let folder = a2d_folder("mdlm");
    let options = LoadOptions { mask_id: Some(TokenId(259)), ..LoadOptions::default() };
    let model = load_with(folder.path(), &options).expect("it loads");
    assert_eq!(model.stop_ids, [TokenId(257)], "<|im_end|> is the mask");
}

#[test]
fn a_diffusion_model_without_a_recommended_temperature_has_zero() {
    let folder = a2d_folder("mdlm");
    let temperature = |folder: &TempDir| load_folder(folder.path()).expect("it loads").generation.temperature;
    assert_eq!(temperature(&folder), Some(0.0));
    write(folder.path(), "generation_config.json", r#"{"top_p": 0.95}"#);
    assert_eq!(temperature(&folder), Some(0.0));
    write(folder.path(), "generation_config.json", r#"{"temperature": 0.6}"#);
    assert_eq!(temperature(&folder), Some(0.6));
    assert_eq!(temperature(&diffusion_folder("llama", "LlamaForCausalLM", "<|mask|>")), None);
}

#[test]
fn hints_for_another_way_of_decoding_are_refused() {
    let causal = || diffusion_folder("llama", "LlamaForCausalLM", "<|mask|>");
    let hints = [("jacobi.json", r#"{"n": 8}"#), ("diffusion.json", r#"{"block_length": 8}"#)];
    for (folder, refused) in [(a2d_folder("mdlm"), 0), (causal(), 1)] {
        for (index, (name, text)) in hints.into_iter().enumerate() {
            write(folder.path(), name, text);
            let loaded = load_folder(folder.path());
            fs::remove_file(folder.path().join(name)).expect("removable");
            match loaded {
                Ok(_) => assert_ne!(index, refused, "{name}"),
                Err(error) => {
                    assert_eq!(index, refused, "{name}: {error}");
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
        }
    }
}

#[test]
fn recommendations_that_no_decoder_can_use_are_refused() {
    let folder = a2d_folder("mdlm");
    for (name, bad) in [
        ("block_length", "0"),
        ("gen_length", "100000"),
        ("radius", "5000"),
        ("threshold", "0.0"),
        ("threshold", "1.5"),
        ("relaxed_threshold", "-0.1"),
    ] {
        write(folder.path(), "diffusion.json", &format!(r#"{{"{name}": {bad}}}"#));
        let error = load_folder(folder.path()).expect_err("refused").to_string();
        assert!(error.contains(&format!("`{name}` is")) && error.contains("diffusion.json"), "{error}");
    }
    write(folder.path(), "diffusion.json", r#"{"radius": 0, "threshold": 1.0, "relaxed_threshold": 0.0}"#);
    assert!(load_folder(folder.path()).is_ok());
}

#[test]
fn only_an_a2d_model_takes_a_head_that_its_config_denies() {
    let num_params = |name, architecture, weights: &[common::Weight]| {
        let folder = diffusion_folder(name, architecture, "<|mask|>");
        fs::write(folder.path().join("model.safetensors"), common::safetensors(weights)).expect("writable");
        common::edit_config(folder.path(), |config| {
            config["architectures"] = json!([architecture]);
            config["tie_word_embeddings"] = json!(true);
        });
        load_folder(folder.path()).expect("it loads").backbone.spec().num_params
    };
    let mut weights = weights();
    let all: usize = weights.iter().map(|weight| weight.values.len()).sum();
    let shared = all - common::VOCAB * common::HIDDEN;
    assert_eq!(num_params("mdlm", "A2DLlamaLMHeadModel", &weights), all);
    assert_eq!(num_params("llama", "LlamaForCausalLM", &weights), shared);
    let embedding = weights[0].values.clone();
    weights.last_mut().expect("the head").values = embedding;
    assert_eq!(num_params("mdlm", "A2DLlamaLMHeadModel", &weights), shared, "a copy of the embeddings");
}

#[test]
fn llada_may_share_its_embeddings() {
    let separate = load_golden(changed_golden("llada-gqa", |_| {}).path()).expect("it loads");
    let shared = changed_golden("llada-gqa", |config| config["weight_tying"] = json!(true));
    let shared = load_golden(shared.path()).expect("it loads");
    let head = 128 * 48;
    assert_eq!(separate.backbone.spec().num_params - head, shared.backbone.spec().num_params);
}

#[test]
fn settings_that_the_layers_of_llada_do_not_have_are_refused() {
    for (field, value) in [
        ("alibi", json!(true)),
        ("input_emb_norm", json!(true)),
        ("attention_layer_norm", json!(true)),
        ("layer_norm_type", json!("default")),
        ("layer_norm_type", json!("gemma_rms")),
        ("layer_norm_with_affine", json!(false)),
        ("block_type", json!("sequential")),
        ("scale_logits", json!(true)),
        ("activation_type", json!("swiglu")),
        ("include_bias", json!(true)),
        ("rope", json!(false)),
        ("rope", json!(null)),
        ("clip_qkv", json!(8.0)),
        ("rope_scaling", json!({"type": "linear"})),
        ("quantization_config", json!({"quant_method": "awq"})),
    ] {
        let folder = changed_golden("llada-gqa", |config| config[field] = value.clone());
        refused(load_golden(folder.path()), &format!("`{field}` is"));
    }
    let folder = changed_golden("llada-gqa", |config| {
        config.as_object_mut().expect("an object").remove("d_model");
    });
    refused(load_golden(folder.path()), "missing field `d_model`");
}

#[test]
fn absurd_configs_are_refused_before_anything_is_reserved() {
    let huge = json!(1u64 << 60);
    for (name, field, value, cause) in [
        ("llada", "n_layers", huge.clone(), "number of layers"),
        ("llada", "d_model", huge.clone(), "hidden_size"),
        ("llada", "embedding_size", huge.clone(), "vocab_size"),
        ("llada", "max_sequence_length", json!(0), "context length is 0"),
        ("llada", "n_heads", json!(0), "number of heads is 0"),
        ("llada-moe", "num_experts", json!(0), "number of experts is 0"),
        ("llada-moe", "num_experts", huge.clone(), "number of experts is"),
        ("llada-moe", "num_experts_per_tok", json!(9), "number of experts per token is 9, it must be between 1 and 8"),
        ("llada-moe", "expert_intermediate_size", json!(0), "width of an expert is 0"),
        ("llada-moe", "moe_layer_freq", json!([1]), "`moe_layer_freq` is"),
        ("llada-moe", "moe_layer_freq", json!([1, 2]), "`moe_layer_freq` is"),
        ("llada-moe", "moe_router_score_function", json!("tanh"), "supported: softmax, sigmoid"),
        ("llada-moe", "shared_expert_intermediate_size", json!(64), "shared_expert_intermediate_size"),
        ("llada-moe", "routed_scaling_factor", json!(-1.0), "routed scaling factor"),
        ("llada2", "first_k_dense_replace", huge.clone(), "dense layers of 3"),
        ("llada2", "num_shared_experts", huge.clone(), "shared experts"),
        ("llada2", "n_group", json!(5), "cannot come from"),
        ("llada2", "n_group", json!(16), "cannot come from"),
        ("llada2", "topk_group", json!(0), "cannot come from"),
        ("llada2", "topk_group", json!(5), "cannot come from"),
        ("llada2", "num_experts_per_tok", json!(12), "cannot come from"),
        ("llada2", "partial_rotary_factor", json!(1.5), "partial_rotary_factor"),
        ("llada2", "partial_rotary_factor", json!(0.2), "RoPE cannot rotate 3 of the 16"),
        ("llada2", "block_size", json!(0), "block length is 0"),
        ("llada2", "block_size", huge, "block length is"),
        ("sdar", "block_size", json!(0), "block length is 0"),
        ("fast-dllm-v2", "bd_size", json!(0), "block length is 0"),
        ("dream", "intermediate_size", json!(null), "missing field `intermediate_size`"),
        ("dream", "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("dream", "mask_token_id", json!(-1), "invalid value"),
    ] {
        let folder = changed_golden(name, |config| config[field] = value.clone());
        refused(load_golden(folder.path()), cause);
    }
}

#[test]
fn missing_and_superfluous_experts_are_named() {
    let fewer = changed_golden("llada-moe", |config| config["num_experts"] = json!(7));
    refused(
        load_golden(fewer.path()),
        "`model.layers.0.mlp.gate.weight` has shape [8, 48], the config asks for [7, 48]",
    );
    let dense = changed_golden("llada-moe", |config| config["moe_layer_freq"] = json!([0, 1]));
    refused(load_golden(dense.path()), "has no tensor `model.layers.0.mlp.gate_proj.weight`");
    let no_bias = changed_golden("llada2", |config| config["moe_router_enable_expert_bias"] = json!(false));
    refused(
        load_golden(no_bias.path()),
        "a llada2 model does not use, among them `model.layers.1.mlp.gate.expert_bias`",
    );
}
