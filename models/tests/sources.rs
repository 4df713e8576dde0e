//! Models from folders, GGUF files, the program itself and the Hub's cache; and what happens when they are broken.

mod common;

use std::{
    collections::BTreeSet,
    env, fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use common::{Meta, edit_config, gguf, metadata, safetensors, weights, write_folder};
use models::{
    AttentionKind, BuiltIn, ForwardBatch, KvCache, LoadOptions, LoadedModel, ModelError, ModelSource, PageId, Quantize,
    Segment, TokenId, Visibility, source::load,
};
use serde_json::json;
use tempfile::TempDir;

fn tiny_folder() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    write_folder(folder.path());
    folder
}

fn load_folder(folder: &Path) -> Result<LoadedModel, ModelError> {
    load(&ModelSource::Folder(folder.into()), &LoadOptions::default())
}

fn load_gguf(bytes: &[u8]) -> Result<LoadedModel, ModelError> {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, bytes).expect("writable");
    load(&ModelSource::Gguf(path), &LoadOptions::default())
}

/// Logits of the last of a few tokens.
fn logits(model: &mut LoadedModel) -> Vec<f32> {
    let mut kv = KvCache::new(model.backbone.spec().kv, 1, 16).expect("a small KV cache");
    let tokens: Vec<TokenId> = [256, 84, 104, 101, 32, 200].map(TokenId).to_vec();
    let visibility = match model.backbone.spec().attention {
        AttentionKind::Causal => Visibility::Causal,
        AttentionKind::Full | AttentionKind::BlockCausal { .. } => Visibility::Through(tokens.len()),
    };
    let segment =
        Segment { tokens: &tokens, start: 0, visibility, scored: tokens.len() - 1..tokens.len(), pages: &[PageId(0)] };
    let batch = ForwardBatch { segments: vec![segment] };
    model.backbone.forward(&batch, &mut kv).expect("a forward pass").values().to_vec()
}

#[test]
fn a_folder_and_a_gguf_file_of_the_same_weights_agree_bit_for_bit() {
    let folder = tiny_folder();
    let mut from_folder = load_folder(folder.path()).expect("the folder loads");
    let mut from_gguf = load_gguf(&gguf(&metadata(), &weights())).expect("the GGUF file loads");
    let expected = logits(&mut from_folder);
    assert!(expected.iter().all(|value| value.is_finite()));
    assert_eq!(expected.len(), common::VOCAB);
    assert_eq!(logits(&mut from_gguf), expected);

    let text = "the  <think>the end<|im_end|>";
    let tokens = from_folder.tokenizer.encode(text, true).expect("encodes");
    assert_eq!(from_gguf.tokenizer.encode(text, true).expect("encodes"), tokens);
    assert!(tokens.len() > 4, "the truncation in the file is ignored");
    for model in [&from_folder, &from_gguf] {
        assert_eq!(model.stop_ids, [TokenId(257), TokenId(259)], "eos and the end of a ChatML turn");
    }
    let template = from_gguf.chat_template.expect("the file has a template");
    let rendered = template.render(&json!([{"content": "hi"}]), None, false, &Default::default());
    assert_eq!(rendered.expect("renders"), "<|bos|>hi");
}

#[test]
fn shards_are_one_model() {
    let folder = tiny_folder();
    let expected = logits(&mut load_folder(folder.path()).expect("one file loads"));
    let all = weights();
    let (first, second) = all.split_at(5);
    let mut map = serde_json::Map::new();
    for (name, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        fs::write(folder.path().join(name), safetensors(part)).expect("writable");
        map.extend(part.iter().map(|weight| (weight.name.clone(), json!(name))));
    }
    fs::remove_file(folder.path().join("model.safetensors")).expect("it is there");
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": map }).to_string()).expect("writable");
    assert_eq!(logits(&mut load_folder(folder.path()).expect("shards load")), expected);

    fs::write(&index, json!({ "weight_map": { "x": "../a.safetensors" } }).to_string()).expect("writable");
    refused(load_folder(folder.path()), "not the name of a file in the same folder");
    fs::write(&index, json!({ "weight_map": { "x": "c.safetensors" } }).to_string()).expect("writable");
    refused(load_folder(folder.path()), "no such file or folder");
}

#[test]
fn weights_are_quantised_on_request() {
    let folder = tiny_folder();
    let source = ModelSource::Folder(folder.path().into());
    let load_as = |quantize| load(&source, &LoadOptions { quantize, ..LoadOptions::default() }).expect("it loads");
    let plain = load_as(None);
    let mut q8 = load_as(Some(Quantize::Q8_0));
    let matrices = 2 + 7 * common::LAYERS;
    let vectors = 1 + 2 * common::LAYERS;
    let count = |model: &LoadedModel, format: &str| model.summary.formats.get(format).map(|used| used.num_tensors);
    assert_eq!(count(&plain, "F32"), Some(matrices + vectors));
    assert_eq!((count(&q8, "F32 -> Q8_0"), count(&q8, "F32")), (Some(matrices), Some(vectors)));
    // 32 and 64 are not multiples of 256: every matrix falls back.
    let q4 = load_as(Some(Quantize::Q4K));
    assert_eq!(count(&q4, "F32 -> Q8_0"), Some(matrices));

    let expected = logits(&mut load_as(Some(Quantize::F32)));
    let got = logits(&mut q8);
    let norm = expected.iter().map(|value| value * value).sum::<f32>().sqrt();
    let error = expected.iter().zip(&got).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    // A code of 8 bits is off by at most 1/254 of the largest of its block; some ten layers add up.
    assert!(error > 0.0 && error < 0.05 * norm, "relative error {}", error / norm);
}

#[test]
fn the_built_in_models_load() {
    for built_in in BuiltIn::all() {
        let source = ModelSource::BuiltIn(built_in);
        let mut model = load(&source, &LoadOptions::default()).expect("it is part of the program");
        assert_eq!((model.id.as_str(), source.id().as_str()), (built_in.name(), built_in.name()));
        assert!(model.chat_template.is_some() && !built_in.summary().is_empty());
        assert!(logits(&mut model).iter().all(|value| value.is_finite()), "{built_in:?}");
    }
}

#[test]
fn built_in_models_are_found_by_their_names() {
    let all: Vec<ModelSource> = BuiltIn::all().map(ModelSource::BuiltIn).collect();
    assert_eq!(all[0], ModelSource::default());
    let names: BTreeSet<&str> = BuiltIn::all().map(BuiltIn::name).collect();
    assert_eq!(names.len(), all.len(), "no name twice");
    for source in &all {
        assert_eq!(source.id().parse::<ModelSource>().expect("known"), *source);
    }
    for unknown in ["leapfrog-xyz", "leapfrog"] {
        let error = unknown.parse::<ModelSource>().expect_err(unknown).to_string();
        assert!(error.contains(unknown) && names.iter().all(|name| error.contains(name)), "{error}");
    }
    let error = "builtin".parse::<ModelSource>().expect_err("several").to_string();
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
}

#[test]
fn the_word_builtin_stands_for_those_that_are_not_named() {
    let all: Vec<ModelSource> = BuiltIn::all().map(ModelSource::BuiltIn).collect();
    let parse = |texts: &[&str]| ModelSource::parse_all(texts.iter().copied());
    assert_eq!(parse(&[]).expect("nothing"), []);
    assert_eq!(parse(&["builtin", "builtin"]).expect("known"), all);
    let other: ModelSource = "org/name".parse().expect("an id");
    assert_eq!(parse(&["org/name", "builtin"]).expect("known"), [vec![other.clone()], all.clone()].concat());
    let last = all.last().expect("there is one").clone();
    let rest = all[..all.len() - 1].to_vec();
    let name = last.id();
    assert_eq!(parse(&["builtin", &name]).expect("known"), [rest.clone(), vec![last.clone()]].concat());
    let twice = parse(&[&name, "org/name", &name, "builtin"]).expect("known");
    assert_eq!(twice, [vec![last.clone(), other, last], rest].concat(), "what is named twice stays so");
    assert!(parse(&["builtin", "leapfrog-xyz"]).is_err());
}

/// Asserts that loading failed, on one line, with this cause.
fn refused(result: Result<LoadedModel, ModelError>, cause: &str) {
    let message = result.expect_err(cause).to_string();
    assert!(message.contains(cause), "`{message}` does not say `{cause}`");
    assert!(!message.contains('\n'), "`{message}` has more than one line");
}

#[test]
fn a_broken_config_is_refused_with_its_cause() {
    let folder = tiny_folder();
    let cases: [(&str, serde_json::Value, &str); 16] = [
        ("architectures", json!(["BertModel"]), "`BertModel` is not supported; supported are LlamaForCausalLM"),
        ("num_attention_heads", json!(0), "number of heads is 0"),
        ("num_key_value_heads", json!(3), "4 heads cannot share 3 key/value heads"),
        ("head_dim", json!(7), "head_dim is 7"),
        ("vocab_size", json!(0), "vocab_size is 0"),
        ("hidden_size", json!(1u64 << 40), "hidden_size is 1099511627776"),
        ("rms_norm_eps", json!(-1.0), "epsilon"),
        ("rope_theta", json!(0.0), "rope_theta"),
        ("hidden_act", json!("gelu"), "`gelu`, which is not supported; supported: silu"),
        ("sliding_window", json!(16), "sliding_window"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "of type `yarn`"),
        ("rope_scaling", json!({"rope_type": "linear"}), "no `factor`"),
        ("quantization_config", json!({"quant_method": "awq"}), "awq"),
        ("vocab_size", json!(263), "token id 263, the model embeds 263 tokens"),
        ("intermediate_size", json!(65), "has shape [64, 32], the config asks for [65, 32]"),
    ];
    for (field, value, cause) in cases {
        edit_config(folder.path(), |config| config[field] = value.clone());
        refused(load_folder(folder.path()), cause);
    }
    edit_config(folder.path(), |config| config["eos_token_id"] = json!(null));
    let tokenizer = common::tokenizer().to_string().replace("<|im_end|>", "<|other|>");
    fs::write(folder.path().join("tokenizer.json"), tokenizer).expect("writable");
    refused(load_folder(folder.path()), "names no end-of-text token");
    // Other families name their numbers differently; what matters is that they are not supported.
    let other = json!({"architectures": ["MambaForCausalLM"], "d_model": 64}).to_string();
    fs::write(folder.path().join("config.json"), other).expect("writable");
    refused(load_folder(folder.path()), "`MambaForCausalLM` is not supported");
    fs::write(folder.path().join("config.json"), "{").expect("writable");
    refused(load_folder(folder.path()), "config.json");
    fs::remove_file(folder.path().join("config.json")).expect("it is there");
    refused(load_folder(folder.path()), "has no config.json");
}

#[test]
fn broken_weights_are_refused_with_their_cause() {
    let folder = tiny_folder();
    let path = folder.path().join("model.safetensors");
    let good = fs::read(&path).expect("readable");
    let write = |bytes: &[u8]| fs::write(&path, bytes).expect("writable");
    write(&good[..good.len() - 1]);
    refused(load_folder(folder.path()), "damaged or not a safetensors file");
    write(&[]);
    refused(load_folder(folder.path()), "damaged or not a safetensors file");
    write(&safetensors(&weights()[1..]));
    refused(load_folder(folder.path()), "has no tensor `model.embed_tokens.weight`");
    let mut more = weights();
    more.push(common::Weight { name: "model.extra.weight".into(), shape: vec![1], values: vec![0.0] });
    write(&safetensors(&more));
    refused(load_folder(folder.path()), "`model.extra.weight`");
    let mut poisoned = weights();
    poisoned.iter_mut().filter(|weight| weight.name == "model.norm.weight").for_each(|w| w.values[3] = f32::NAN);
    write(&safetensors(&poisoned));
    refused(load_folder(folder.path()), "`model.norm.weight` contains NaN");
    let mut wrong_type = good.clone();
    let at = good.windows(5).position(|window| window == b"\"F32\"").expect("a dtype");
    wrong_type[at..at + 5].copy_from_slice(b"\"I32\"");
    write(&wrong_type);
    refused(load_folder(folder.path()), "supported: F32, F16, BF16");
    fs::remove_file(&path).expect("it is there");
    refused(load_folder(folder.path()), "has no model.safetensors");
}

#[test]
fn a_broken_gguf_file_is_refused_with_its_cause() {
    let with = |key: &str, value: Meta| {
        let mut metadata = metadata();
        metadata.retain(|(existing, _)| existing != key);
        metadata.push((key.into(), value));
        load_gguf(&gguf(&metadata, &weights()))
    };
    refused(with("general.architecture", Meta::Text("bert".into())), "`bert` is not supported; supported are llama");
    refused(with("split.count", Meta::U32(3)), "split.count");
    refused(with("general.alignment", Meta::U32(3)), "general.alignment");
    refused(with("tokenizer.ggml.pre", Meta::Text("odd".into())), "`odd`, which is not supported; supported: default");
    refused(with("tokenizer.ggml.model", Meta::Text("t5".into())), "`t5`");
    refused(with("llama.attention.head_count", Meta::U32(0)), "number of heads is 0");
    refused(with("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)), "epsilon");
    refused(with("llama.rope.scaling.type", Meta::Text("yarn".into())), "`yarn`");
    refused(with("llama.block_count", Meta::U32(1)), "tensors that a llama model does not use");
    refused(with("llama.block_count", Meta::U32(3)), "has no tensor `model.layers.2");
    refused(with("llama.context_length", Meta::Text("long".into())), "must be an integer");

    let good = gguf(&metadata(), &weights());
    refused(load_gguf(b"GGML"), "does not start with `GGUF`");
    refused(load_gguf(&good[..good.len() - 64]), "is the download complete?");
    let mut versioned = good.clone();
    versioned[4] = 1;
    refused(load_gguf(&versioned), "supported: 2 and 3");
    let mut huge = good;
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(load_gguf(&huge), "announces 18446744073709551615 entries");
}

/// Every prefix of the header, and every byte of it replaced by some others, must load or fail with an error.
fn survives(bytes: &[u8], header_len: usize, load: impl Fn(&[u8]) -> Result<LoadedModel, ModelError>) {
    let check = |bytes: &[u8], what: String| {
        let outcome = catch_unwind(std::panic::AssertUnwindSafe(|| load(bytes).map(drop)));
        let result = outcome.unwrap_or_else(|_| panic!("{what} panicked"));
        if let Err(error) = result {
            assert!(!error.to_string().contains('\n'), "{what}: `{error}`");
        }
    };
    let step = (header_len / 200).max(1);
    for at in (0..header_len).step_by(step) {
        check(&bytes[..at], format!("cut at {at}"));
        for flip in [0x01, 0x80, 0xFF] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= flip;
            check(&flipped, format!("byte {at} ^ {flip:#x}"));
        }
        let mut huge = bytes.to_vec();
        let end = (at + 8).min(bytes.len());
        huge[at..end].fill(0xFF);
        check(&huge, format!("bytes {at}..{end} set"));
    }
}

#[test]
fn no_damage_to_a_gguf_file_panics() {
    let bytes = gguf(&metadata(), &weights());
    let data_len: usize = weights().iter().map(|weight| weight.values.len() * 4).sum();
    survives(&bytes, bytes.len() - data_len, load_gguf);
}

#[test]
fn no_damage_to_a_folder_panics() {
    let folder = tiny_folder();
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let path = folder.path().join(name);
        let good = fs::read(&path).expect("readable");
        let header_len = match name {
            "model.safetensors" => 8 + u64::from_le_bytes(good[..8].try_into().expect("8 bytes")) as usize,
            _ => good.len(),
        };
        survives(&good, header_len, |bytes| {
            fs::write(&path, bytes).expect("writable");
            load_folder(folder.path())
        });
        fs::write(&path, &good).expect("writable");
    }
    load_folder(folder.path()).expect("all files are whole again");
}

#[test]
fn no_damage_to_a_diffusion_model_panics() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let options = || LoadOptions {
        tokenizer: Some(goldens.join("tokenizer.json")),
        mask_id: Some(TokenId(3)),
        ..LoadOptions::default()
    };
    for name in ["llada", "llada-moe", "llada2"] {
        let folder = TempDir::new().expect("a temporary folder");
        for entry in fs::read_dir(goldens.join("diffusion").join(name)).expect("readable") {
            let entry = entry.expect("readable");
            fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("writable");
        }
        let path = folder.path().join("config.json");
        let good = fs::read(&path).expect("readable");
        survives(&good, good.len(), |bytes| {
            fs::write(&path, bytes).expect("writable");
            load(&ModelSource::Folder(folder.path().into()), &options())
        });
    }
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("damaged.gguf");
    let good = fs::read(goldens.join("diffusion/llada-moe.gguf")).expect("readable");
    // Metadata and the descriptions of the tensors end well before this.
    survives(&good, 8192.min(good.len()), |bytes| {
        fs::write(&path, bytes).expect("writable");
        load(&ModelSource::Gguf(path.clone()), &options())
    });
}

#[test]
fn sources_are_told_apart() {
    let folder = tiny_folder();
    let file = folder.path().join("config.json");
    let parse = |text: &str| ModelSource::from_str(text);
    let hub = |repo: &str, revision: Option<&str>, file: Option<&str>| ModelSource::Hub {
        repo: repo.into(),
        revision: revision.map(String::from),
        file: file.map(String::from),
    };
    assert_eq!(parse(&folder.path().display().to_string()).expect("exists"), ModelSource::Folder(folder.path().into()));
    assert_eq!(parse(&file.display().to_string()).expect("exists"), ModelSource::Gguf(file));
    assert_eq!(parse("org/name").expect("an id"), hub("org/name", None, None));
    assert_eq!(parse("org/na.me@v1/x").expect("an id"), hub("org/na.me", Some("v1/x"), None));
    assert_eq!(parse("org/name/sub/a.gguf@r").expect("an id"), hub("org/name", Some("r"), Some("sub/a.gguf")));
    for missing in ["./org/name", "/no/such/folder", "~/models/x", "models/x.gguf", "no.gguf", "a/b/c"] {
        let error = parse(missing).expect_err(missing);
        assert!(matches!(error, ModelError::NoSuchPath { .. }), "{missing}: {error}");
    }
    for nonsense in ["", "name", "org name"] {
        let error = parse(nonsense).expect_err(nonsense);
        assert!(matches!(error, ModelError::BadSource { .. }), "{nonsense}: {error}");
    }
}

/// Runs [`hub_child`] in a process of its own, because the cache is chosen by environment variables.
fn load_from_cache(cache: &Path, id: &str) -> String {
    let child = Command::new(env::current_exe().expect("this test"))
        .args(["--exact", "hub_child", "--ignored", "--nocapture"])
        .envs([("HF_HUB_CACHE", cache.as_os_str()), ("HF_HUB_OFFLINE", "1".as_ref()), ("TEST_HUB_ID", id.as_ref())])
        .output()
        .expect("it starts");
    String::from_utf8_lossy(&child.stdout).into_owned()
}

#[test]
#[ignore = "runs as a child of `the_hub_cache_serves_models_offline`"]
fn hub_child() {
    let Ok(id) = env::var("TEST_HUB_ID") else { return };
    let source = ModelSource::from_str(&id).expect("an id");
    match load(&source, &LoadOptions::default()) {
        Ok(model) => println!("loaded {} with {} layers", model.id, model.backbone.spec().kv.num_layers),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn the_hub_cache_serves_models_offline() {
    let cache = TempDir::new().expect("a temporary folder");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = cache.path().join("models--org--tiny");
    let snapshot: PathBuf = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).expect("writable");
    fs::create_dir_all(repo.join("refs")).expect("writable");
    fs::write(repo.join("refs/main"), commit).expect("writable");
    write_folder(&snapshot);
    fs::write(snapshot.join("tiny.gguf"), gguf(&metadata(), &weights())).expect("writable");
    for id in ["org/tiny", "org/tiny/tiny.gguf", &format!("org/tiny@{commit}")] {
        let output = load_from_cache(cache.path(), id);
        assert!(output.contains("loaded org/tiny with 2 layers"), "{id}: {output}");
    }
    let output = load_from_cache(cache.path(), "org/other");
    assert!(output.contains("refused: cannot get org/other"), "{output}");
    assert!(output.contains("HF_HUB_OFFLINE is set"), "{output}");
}
