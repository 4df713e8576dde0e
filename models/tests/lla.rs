//! Models with local linear attention beyond their logits (those are in `parity.rs`): configs, ridges, what a pass
//! reports, and the softmax model that is left without steps.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

mod common;

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};
use common::{
    Meta, gguf, metadata,
    passes::{self, PAGE_LEN, golden, largest_error, tensor},
    weights,
};
use models::{
    AttentionChoice, Backbone, ForwardBatch, KvCache, LoadOptions, LoadedModel, ModelError, ModelSource, PageId,
    Quantize, Segment, SolverReport, TokenId, Visibility, source::load,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const RIDGE: &str = "model.layers.1.self_attn.ridge";

fn options() -> LoadOptions {
    LoadOptions { tokenizer: Some(golden("tokenizer.json")), ..LoadOptions::default() }
}

fn load_with(folder: &Path, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
    load(&ModelSource::Folder(folder.into()), options)
}

fn load_folder(folder: &TempDir) -> Result<LoadedModel, ModelError> {
    load_with(folder.path(), &options())
}

/// A copy of a checkpoint whose config is changed.
fn changed(name: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let source = golden("lla").join(name);
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(source.join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn without(key: &str) -> impl FnOnce(&mut Value) {
    move |config| drop(config.as_object_mut().unwrap().remove(key).unwrap())
}

/// A copy of a checkpoint whose weights are changed.
fn reweighted(name: &str, edit: impl FnOnce(&mut HashMap<String, Tensor>)) -> TempDir {
    let folder = changed(name, |_| ());
    let path = folder.path().join("model.safetensors");
    let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    fs::remove_file(&path).unwrap();
    safetensors::save(&tensors, &path).unwrap();
    folder
}

fn with_ridge(theta: &[f32]) -> TempDir {
    let theta = Tensor::new(theta, &Device::Cpu).unwrap();
    reweighted("tied", |tensors| drop(tensors.insert(RIDGE.into(), theta)))
}

/// Asserts that loading failed, on one line, with this cause.
#[track_caller]
fn refused(result: Result<LoadedModel, ModelError>, cause: &str) {
    let message = result.expect_err(cause).to_string();
    assert!(message.contains(cause), "`{message}` does not say `{cause}`");
    assert!(!message.contains('\n'), "`{message}` has more than one line");
}

fn tokens() -> Vec<TokenId> {
    (0..33).map(|i| TokenId(i * 37 % 100)).collect()
}

fn logits(model: &mut LoadedModel) -> Vec<Vec<f32>> {
    passes::logits(model.backbone.as_mut(), &tokens(), &[33], Visibility::Causal)
}

/// The report of one pass over `tokens`, of which only the last row is scored, if any.
fn report(backbone: &mut dyn Backbone, scored: bool) -> Option<SolverReport> {
    let mut kv = KvCache::new(backbone.spec().kv, 5, PAGE_LEN).unwrap();
    let pages: Vec<PageId> = (0..5).map(PageId).collect();
    let tokens = tokens();
    let scored = if scored { 32..33 } else { 0..0 };
    let segment = Segment { tokens: &tokens, start: 0, visibility: Visibility::Causal, scored, pages: &pages };
    backbone.forward(&ForwardBatch { segments: vec![segment] }, &mut kv).unwrap().solver().cloned()
}

#[test]
fn a_config_that_cannot_be_is_refused_with_its_cause() {
    for (field, value, cause) in [
        ("lla_ridge_floor", json!(null), "missing field `lla_ridge_floor`"),
        ("lla_ridge_floor", json!(0.0), "`lla_ridge_floor` is 0, it must be above 0"),
        ("lla_ridge_floor", json!(-0.5), "`lla_ridge_floor` is -0.5"),
        ("lla_ridge_floor", json!(1e-60), "`lla_ridge_floor` is 0.0000"),
        ("lla_ridge_floor", json!(1e300), "finite in f32"),
        ("lla_ridge_floor", json!("small"), "expected f64"),
        ("lla_scale", json!(-1.0), "`lla_scale` is -1"),
        ("lla_tolerance", json!(1.0), "`lla_tolerance` is 1, it must be at least 0 and below 1"),
        ("lla_tolerance", json!(-1e-5), "`lla_tolerance` is -0.00001"),
        ("lla_max_iterations", json!(1u64 << 40), "`lla_max_iterations` is 1099511627776, it must be at most 65536"),
        ("lla_max_iterations", json!(-1), "invalid value"),
        ("lla_ridge", json!(1.0), "`lla_ridge` is not known; supported: lla_ridge_floor, lla_scale, lla_tolerance"),
        ("sliding_window", json!(0), "`sliding_window` is 0"),
        ("use_sliding_window", json!(true), "there is no `sliding_window`"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("hidden_act", json!("gelu"), "supported: silu"),
        ("num_attention_heads", json!(8), "`model.layers.0.self_attn.k_proj.weight` has shape [32, 64]"),
    ] {
        refused(load_folder(&changed("tied", |config| config[field] = value)), cause);
    }
    refused(load_folder(&changed("tied", without("lla_ridge_floor"))), "missing field `lla_ridge_floor`");
}

#[test]
fn ridges_that_cannot_be_are_refused_by_name() {
    let contains = |value: &str| format!("tensor `{RIDGE}` contains {value}");
    refused(load_folder(&with_ridge(&[0.0, f32::NAN, 0.0, 0.0])), &contains("NaN"));
    refused(load_folder(&with_ridge(&[0.0, f32::NEG_INFINITY, 0.0, 0.0])), &contains("-inf"));
    refused(load_folder(&with_ridge(&[0.0; 3])), &format!("`{RIDGE}` has shape [3], the config asks for [4]"));
    // Each is finite; their sum is not, in f32.
    let folder = with_ridge(&[0.0, 0.0, 3e38, 0.0]);
    load_folder(&folder).unwrap();
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["lla_ridge_floor"] = json!(3e38);
    fs::write(&path, config.to_string()).unwrap();
    refused(load_folder(&folder), &contains("3"));
    refused(load_folder(&folder), "infinite in f32");

    let missing = reweighted("tied", |tensors| drop(tensors.remove(RIDGE)));
    refused(load_folder(&missing), &format!("has no tensor `{RIDGE}`"));
    let other_name = reweighted("tied", |tensors| {
        let theta = tensors[RIDGE].clone();
        tensors.insert(format!("{RIDGE}.weight"), theta);
    });
    refused(
        load_folder(&other_name),
        "a leapfrog_lla model does not use, among them `model.layers.1.self_attn.ridge.weight`",
    );
}

#[test]
fn other_ways_to_attend_are_refused_as_for_all_causal_models() {
    let folder = golden("lla/tied");
    let attention = LoadOptions { attention: Some(AttentionChoice::Full), ..options() };
    refused(load_with(&folder, &attention), "none to choose, leapfrog_lla models are causal");
    let mask = LoadOptions { mask_id: Some(TokenId(3)), ..options() };
    refused(load_with(&folder, &mask), "leapfrog_lla models are causal and have no mask token");
    let hinted = changed("tied", |_| ());
    fs::write(hinted.path().join("diffusion.json"), r#"{"block_length": 8}"#).unwrap();
    refused(load_folder(&hinted), "the family `leapfrog_lla` is not decoded that way");
    fs::rename(hinted.path().join("diffusion.json"), hinted.path().join("jacobi.json")).unwrap();
    fs::write(hinted.path().join("jacobi.json"), r#"{"n": 8}"#).unwrap();
    assert_eq!(load_folder(&hinted).unwrap().jacobi.unwrap().width, 8);

    let mut metadata = metadata();
    metadata[0].1 = Meta::Text("leapfrog_lla".into());
    let file = TempDir::new().unwrap();
    let path = file.path().join("tiny.gguf");
    fs::write(&path, gguf(&metadata, &weights())).unwrap();
    let result = load(&ModelSource::Gguf(path), &LoadOptions::default());
    refused(result, "the architecture `leapfrog_lla` is not supported; supported are llama, qwen2");
}

#[test]
fn the_model_type_alone_names_the_family() {
    let model = load_folder(&changed("tied", without("architectures"))).unwrap();
    let spec = model.backbone.spec();
    assert_eq!((spec.family.as_str(), spec.has_solver), ("leapfrog_lla", true));
    let all: usize = safetensors::load(golden("lla/tied/model.safetensors"), &Device::Cpu)
        .unwrap()
        .values()
        .map(Tensor::elem_count)
        .sum();
    assert_eq!(spec.num_params, all, "ridges are parameters");
}

#[test]
fn a_window_may_be_switched_off_and_counts_only_where_it_is_shorter() {
    let of = |edit: fn(&mut Value)| logits(&mut load_folder(&changed("window", edit)).unwrap());
    let narrow = of(|_| ());
    let wide = of(|config| config["sliding_window"] = json!(null));
    assert_eq!(narrow[..9], wide[..9], "no row sees more than nine positions yet");
    assert_ne!(narrow[9], wide[9]);
    assert_eq!(of(|config| config["use_sliding_window"] = json!(true)), narrow);
    assert_eq!(of(|config| config["use_sliding_window"] = json!(false)), wide);
    assert_eq!(of(|config| config["sliding_window"] = json!(33)), wide);
}

/// Ridges stay f32: a ridge that only f32 can tell from another changes the logits of a quantised model.
#[test]
fn ridges_are_not_quantised() {
    for quantize in [Quantize::F32, Quantize::Q8_0, Quantize::Q4K] {
        let of = |theta: f32| {
            let folder = with_ridge(&[theta, 0.1, 0.2, 0.3]);
            load_with(folder.path(), &LoadOptions { quantize: Some(quantize), ..options() }).unwrap()
        };
        let (mut one, mut other) = (of(1.0), of(1.0 + 4.0 * f32::EPSILON));
        assert_ne!(logits(&mut one), logits(&mut other), "{quantize:?}");
        // Two norms of the layer, two of heads and the ridges, twice; and the last norm. Rows of 80 fit no block.
        let vectors = one.summary.formats.get("F32").map(|used| used.num_tensors);
        let matrices = if quantize == Quantize::F32 { 15 } else { 2 };
        assert_eq!(vectors, Some(11 + matrices), "{quantize:?}: {:?}", one.summary);
    }
}

#[test]
fn a_pass_reports_the_systems_of_all_its_rows() {
    let mut model = load_folder(&changed("tied", |_| ())).unwrap();
    for scored in [true, false] {
        let report = report(model.backbone.as_mut(), scored).unwrap();
        // Rows, heads, layers.
        assert_eq!(report.num_queries, 33 * 4 * 2);
        let details = report.details.as_ref().unwrap();
        assert_eq!(details.iterations.iter().sum::<usize>(), report.num_queries);
        assert_eq!(report.most_steps + 1, details.iterations.len());
        let steps = details.iterations.iter().enumerate().map(|(steps, count)| steps * count);
        assert_eq!(report.num_steps, steps.sum::<usize>());
        // The first row sees one key, so that its right side is a multiple of every direction: one step.
        assert!(details.iterations[1] >= 8 && report.most_steps > 4, "{report:?}");
        assert_eq!((report.num_capped, report.num_fallbacks, details.changes.len()), (0, 0, 2));
        assert!(details.largest_eta > 1.0 && details.changes.iter().all(|change| *change > 0.1), "{report:?}");
    }
    let mut stopped = load_folder(&changed("tied", |config| config["lla_max_iterations"] = json!(2))).unwrap();
    let report = report(stopped.backbone.as_mut(), true).unwrap();
    assert!(report.most_steps == 2 && report.num_capped > report.num_queries / 2, "{report:?}");
}

/// Without steps, local linear attention is softmax attention: a Qwen3 with the same weights.
#[test]
fn without_steps_it_is_the_softmax_model_of_the_same_weights() {
    let mut none = load_folder(&changed("tied", |config| config["lla_max_iterations"] = json!(0))).unwrap();
    let twin = reweighted("tied", |tensors| tensors.retain(|name, _| !name.ends_with("ridge")));
    let path = twin.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["head_dim"] = json!(16);
    fs::write(&path, config.to_string()).unwrap();
    let mut twin = load_folder(&twin).unwrap();
    let expected = tensor(logits(&mut twin)).to_dtype(DType::F32).unwrap();
    let error = largest_error(&logits(&mut none), &expected);
    assert!(error < 2e-6, "relative error {error:e}");
    assert_eq!(report(twin.backbone.as_mut(), true), None);
    let full = logits(&mut load_folder(&changed("tied", |_| ())).unwrap());
    assert!(largest_error(&full, &expected) > 0.1, "with steps it is another model");
}
