//! Whole outputs of every family and policy against those of a PyTorch reference (`models/tests/golden/diffusion`): the
//! same tokens, fixed in the same passes.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use std::{fs, path::PathBuf};

use engine::{
    AttentionKind, CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, EngineSettings, Event, LoadOptions,
    LoadedModel, ModelSource, Request, TokenId, load, testing::Harness,
};
use serde::Deserialize;
use serde_json::{Value, json};

const FOLDERS: [&str; 11] = [
    "llada",
    "llada-gqa",
    "illada",
    "dream",
    "sdar",
    "fast-dllm-v2",
    "a2d-qwen3-mdlm",
    "a2d-qwen3-bd3lm",
    "a2d-qwen2-mdlm",
    "llada-moe",
    "llada2",
];

#[derive(Deserialize)]
struct Golden {
    mask_id: u32,
    /// Block length of a block-causal model.
    block_length: Option<usize>,
    decodes: Vec<Decode>,
}

/// One run of the reference decoder.
#[derive(Deserialize)]
struct Decode {
    name: String,
    policy: Value,
    remasking: Value,
    params: Params,
    cache: Value,
    prompt: Vec<u32>,
    gen_length: usize,
    block_length: usize,
    /// The canvas behind the prompt.
    tokens: Vec<u32>,
    /// Forward passes that scored slots.
    nfe: usize,
    /// Absolute positions committed by each of them.
    passes: Vec<Vec<usize>>,
    /// Positions and tokens overwritten by each of them; empty unless the policy edits.
    edits: Vec<Vec<(usize, u32)>>,
}

#[derive(Deserialize)]
struct Params {
    steps: Option<usize>,
    threshold: Option<f32>,
    relaxed_threshold: Option<f32>,
    radius: Option<usize>,
    factor: Option<f32>,
    edit_threshold: Option<f32>,
    max_post_steps: Option<usize>,
    sub_block_length: Option<usize>,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden/diffusion").join(name)
}

/// A tokenizer with a token for every row of a tiny vocabulary.
fn tokenizer(vocab_size: u64) -> Value {
    let vocab: serde_json::Map<_, _> = (0..vocab_size).map(|id| (format!("t{id}"), id.into())).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

fn model(name: &str, golden: &Golden) -> LoadedModel {
    let scratch = tempfile::tempdir().unwrap();
    // The folder's name tells an mdlm from a bd3lm.
    let copy = scratch.path().join(name);
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_str(&fs::read_to_string(copy.join("config.json")).unwrap()).unwrap();
    if config["bd_size"].is_null() && golden.block_length.is_some() {
        // Published configs of A2D models do not say it; a tiny model's blocks are shorter than the published ones.
        config["block_size"] = golden.block_length.into();
    }
    fs::write(copy.join("config.json"), config.to_string()).unwrap();
    let path = copy.join("tokenizer.json");
    fs::write(&path, tokenizer(config["vocab_size"].as_u64().unwrap()).to_string()).unwrap();
    // Where the config names the mask token, it is found there.
    let mask_id = config["mask_token_id"].is_null().then_some(TokenId(golden.mask_id));
    let options = LoadOptions { mask_id, ..LoadOptions::default() };
    let mut model = load(&ModelSource::Folder(copy), &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    // The reference decodes the whole canvas, whatever is in it.
    model.stop_ids.clear();
    model
}

/// What happened: tokens by slot, and the absolute positions that each pass fixed.
fn run(harness: &mut Harness, request: Request) -> (Vec<u32>, Vec<Vec<usize>>, usize) {
    let prompt_len = request.prompt.len();
    let num_tokens = request.max_tokens.unwrap();
    let transcript = harness.run_one(request);
    let finish = transcript.finish().unwrap_or_else(|| panic!("{:?}", transcript.events.last()));
    let mut canvas = vec![u32::MAX; num_tokens];
    let mut passes = Vec::new();
    for event in &transcript.events {
        if let Event::Frame(frame) = event {
            frame.fixed.iter().for_each(|(slot, token)| canvas[*slot] = token.0);
            passes.push(frame.fixed.iter().map(|(slot, _)| slot + prompt_len).collect());
        }
    }
    let ids: Vec<u32> = transcript.tokens.iter().map(|token| token.0).collect();
    assert_eq!(ids, canvas, "the text is what the frames fixed");
    (canvas, passes, finish.stats.diffusion.clone().unwrap().denoising_steps)
}

#[test]
fn every_family_and_policy_decodes_as_the_reference() {
    let mut num_runs = 0;
    for name in FOLDERS {
        let golden: Golden =
            serde_json::from_str(&fs::read_to_string(folder(name).join("golden.json")).unwrap()).unwrap();
        let model = model(name, &golden);
        let attention = model.backbone.spec().attention;
        let mut harness =
            Harness::new(model, EngineSettings { threads: Some(2), ..EngineSettings::default() }).unwrap();
        for decode in golden.decodes {
            let cache = match serde_json::from_value(decode.cache.clone()).unwrap() {
                CacheMode::None if attention != AttentionKind::Full => vec![CacheMode::None, CacheMode::Block],
                cache => vec![cache],
            };
            for cache in cache {
                let what = format!("{name}, {}, {cache:?}", decode.name);
                let (tokens, passes, steps) = run(&mut harness, request(&decode, attention, cache));
                assert_eq!(tokens, decode.tokens, "{what}");
                assert_eq!(steps, decode.nfe, "{what}");
                let expected = decode.passes.iter().enumerate().map(|(pass, commits)| {
                    let edits = decode.edits.get(pass).into_iter().flatten().map(|edit| edit.0);
                    let mut all: Vec<usize> = commits.iter().copied().chain(edits).collect();
                    all.sort_unstable();
                    all
                });
                assert_eq!(passes, expected.collect::<Vec<_>>(), "{what}");
                num_runs += 1;
            }
        }
    }
    assert!(num_runs > 200, "{num_runs} runs: the goldens are incomplete");
    println!("{num_runs} runs equal to the reference");
}

fn request(decode: &Decode, attention: AttentionKind, cache: CacheMode) -> Request {
    let params = &decode.params;
    let diffusion = DiffusionOptions {
        policy: Some(serde_json::from_value(decode.policy.clone()).unwrap()),
        remasking: Some(serde_json::from_value(decode.remasking.clone()).unwrap()),
        steps: params.steps,
        block_length: Some(params.sub_block_length.unwrap_or(decode.block_length)),
        gen_length: (attention == AttentionKind::Full).then_some(decode.gen_length),
        threshold: params.threshold,
        relaxed_threshold: params.relaxed_threshold,
        radius: params.radius,
        factor: params.factor,
        edit_threshold: params.edit_threshold,
        max_post_steps: params.max_post_steps,
        cache: Some(cache),
        early_stop: Some(EarlyStop::None),
        ..DiffusionOptions::default()
    };
    Request {
        max_tokens: Some(decode.tokens.len()),
        decoding: DecodingOptions { diffusion, ..DecodingOptions::default() },
        frames: true,
        ..Request::new(decode.prompt.iter().copied().map(TokenId).collect())
    }
}
