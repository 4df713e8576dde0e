//! A small run from tokenizer to served model: the trainer learns, resumes where it stopped, and exports what the server
//! computes.

#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use std::{path::Path, sync::Arc};

use models::{
    ForwardBatch, KvCache, LoadOptions, LogitAlignment, ModelSource, PageId, Segment, TokenId, Visibility, source::load,
};
use zoo::{
    Mixer, Net, Rows, Shape, Text, ZooError,
    export::{Family, export},
    tasks::{Split, Task},
    train::{Ar, Consistency, Masked, Recipe, RunOptions, TrainSettings, Trajectories, finished, train},
};

fn settings(text: &Text, steps: usize, qkv_bias: bool) -> TrainSettings {
    let vocab = text.vocab().next_multiple_of(32);
    let shape = Shape {
        vocab,
        hidden: 32,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        ffn: 64,
        qkv_bias,
        qk_norm: false,
        mixer: Mixer::Softmax,
    };
    TrainSettings {
        steps,
        warm_up: 2,
        learning_rate: 4e-3,
        rows: 300,
        micro_batches: 2,
        seed: 1,
        mix: [40, 18, 20, 8, 14],
        shape,
    }
}

fn run<R: Recipe>(recipe: &R, settings: &TrainSettings, folder: &Path, threads: usize) -> Result<Net, ZooError> {
    let options = RunOptions { folder: folder.into(), threads, save_every: 3 };
    train(recipe, settings, &options, || Net::new(settings.shape.clone(), settings.seed))
}

fn text() -> Text {
    Text::train(400, 40, 0).unwrap()
}

fn assert_same(left: &Net, right: &Net) {
    for (name, var) in left.parameters() {
        let [left, right] =
            [var, &right.parameters()[name]].map(|v| v.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(left, right, "{name}");
    }
}

/// The state after three steps of six, as if the run had been cut off there.
fn cut_off(folder: &Path, whole: &TrainSettings, recipe: &impl Recipe) {
    let short = TrainSettings { steps: 3, ..whole.clone() };
    run(recipe, &short, folder, 1).unwrap();
    let path = folder.join("run.json");
    let mut state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    state["settings"]["steps"] = whole.steps.into();
    std::fs::write(path, state.to_string()).unwrap();
}

#[test]
fn a_run_repeats_with_any_number_of_threads() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&text, 4, false);
    let ar = Ar::new(text.clone(), &settings, 1).unwrap();
    let consistency = Consistency::new(text.clone(), &settings, 1, 8).unwrap();
    let trajectories = Trajectories::new(text, &settings, 1, 16).unwrap();
    for recipe in 0..3 {
        let at = |threads: usize| folder.path().join(format!("{recipe}-{threads}"));
        let nets = [1, 2].map(|threads| match recipe {
            0 => run(&ar, &settings, &at(threads), threads).unwrap(),
            1 => run(&consistency, &settings, &at(threads), threads).unwrap(),
            _ => run(&trajectories, &settings, &at(threads), threads).unwrap(),
        });
        assert_same(&nets[0], &nets[1]);
    }
}

#[test]
fn a_run_that_was_cut_off_goes_on_to_the_same_end() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let constant = |steps| TrainSettings { warm_up: 1_000_000, ..settings(&text, steps, false) };
    let recipe = Ar::new(text.clone(), &constant(6), 1).unwrap();
    let whole = run(&recipe, &constant(6), &folder.path().join("whole"), 2).unwrap();
    let cut = folder.path().join("cut");
    cut_off(&cut, &constant(6), &recipe);
    assert_same(&whole, &run(&recipe, &constant(6), &cut, 2).unwrap());

    // A recipe that keeps something from step to step.
    let pooled = Trajectories::new(text.clone(), &constant(6), 1, 16).unwrap();
    let whole = run(&pooled, &constant(6), &folder.path().join("whole-pool"), 2).unwrap();
    let cut_pool = folder.path().join("cut-pool");
    cut_off(&cut_pool, &constant(6), &pooled);
    assert_same(&whole, &run(&pooled, &constant(6), &cut_pool, 2).unwrap());

    let other = TrainSettings { learning_rate: 1e-3, ..constant(6) };
    let error = run(&recipe, &other, &cut, 2).unwrap_err().to_string();
    assert!(error.contains("other settings"), "{error}");
    let other = Masked::full(text.clone(), &constant(6), 1, 16).unwrap();
    assert!(run(&other, &constant(6), &cut, 2).is_err(), "another recipe's checkpoint");
}

#[test]
fn a_checkpoint_that_was_cut_off_leaves_the_one_before() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&text, 6, false);
    let recipe = Ar::new(text, &settings, 1).unwrap();
    let run_json = folder.path().join("run.json");
    // As if the program had ended after the tensors of step 6 and before the rest: what stands is step 3.
    let short = TrainSettings { steps: 3, ..settings };
    run(&recipe, &short, folder.path(), 1).unwrap();
    let before = std::fs::read(&run_json).unwrap();
    let tensors = folder.path().join("state-3.safetensors");
    let kept = std::fs::read(&tensors).unwrap();
    std::fs::write(folder.path().join("state-6.safetensors"), b"half of it").unwrap();
    assert!(finished(folder.path()).unwrap());
    run(&recipe, &short, folder.path(), 1).unwrap();
    assert_eq!(std::fs::read(&run_json).unwrap(), before);
    assert_eq!(std::fs::read(&tensors).unwrap(), kept);
}

#[test]
fn every_recipe_learns() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let losses = |name: &str| -> Vec<f64> {
        let log = std::fs::read_to_string(folder.path().join(name).join("log.csv")).unwrap();
        log.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect()
    };
    let at = |name: &str| folder.path().join(name);
    let (causal, masked) = (settings(&text, 40, false), settings(&text, 40, true));
    run(&Ar::new(text.clone(), &causal, 1).unwrap(), &causal, &at("ar"), 2).unwrap();
    run(&Consistency::new(text.clone(), &causal, 1, 8).unwrap(), &causal, &at("cllm"), 2).unwrap();
    run(&Masked::blocks(text.clone(), &masked, 1, 16).unwrap(), &masked, &at("blocks"), 2).unwrap();
    run(&Masked::full(text.clone(), &masked, 1, 16).unwrap(), &masked, &at("full"), 2).unwrap();
    run(&Trajectories::new(text, &masked, 1, 16).unwrap(), &masked, &at("trajectories"), 2).unwrap();
    for name in ["ar", "cllm", "blocks", "full", "trajectories"] {
        let losses = losses(name);
        assert_eq!(losses.len(), 2, "{name}");
        assert!(losses[1] < losses[0] * 0.95, "{name}: {losses:?}");
    }
}

/// Logits of every row as the server computes them.
fn served(folder: &Path, tokens: &[u32], visibility: Visibility) -> Vec<Vec<f32>> {
    let mut model = load(&ModelSource::Folder(folder.into()), &LoadOptions::default()).unwrap();
    assert_eq!(model.backbone.spec().alignment, LogitAlignment::NextSlot);
    let tokens: Vec<TokenId> = tokens.iter().map(|id| TokenId(*id)).collect();
    let mut kv = KvCache::new(model.backbone.spec().kv, 1, tokens.len()).unwrap();
    let pages = [PageId(0)];
    let segment = Segment { tokens: &tokens, start: 0, visibility, scored: 0..tokens.len(), pages: &pages };
    let logits = model.backbone.forward(&ForwardBatch { segments: vec![segment] }, &mut kv).unwrap();
    (0..tokens.len()).map(|row| logits.row(row).to_vec()).collect()
}

#[test]
fn the_server_computes_what_was_trained() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let tokens = text.problem(&Task::Math.problem(Split::Test, 0, 0)).unwrap().prompt;
    let wanted: Vec<u32> = (0..tokens.len() as u32).collect();
    let families = [
        Family::Llama,
        Family::Cllm { width: 16 },
        Family::Dream { block_len: 32, local_leap: (0.95, 0.875, 2) },
        Family::FastDllm { block_len: 16 },
        Family::Qwen3,
        Family::Lla,
    ];
    for kind in families {
        let (family, bias) = (format!("{kind:?}"), matches!(kind, Family::Dream { .. } | Family::FastDllm { .. }));
        let mixer = if kind == Family::Lla { Mixer::Lla { ridge_floor: 0.1 } } else { Mixer::Softmax };
        let qk_norm = matches!(kind, Family::Qwen3 | Family::Lla);
        let net = Net::new(Shape { qk_norm, mixer, ..settings(&text, 1, bias).shape }, 7).unwrap();
        for (name, var) in net.parameters() {
            // What the f16 file can hold, biases that are not zero, and heads that differ.
            let shift = if name.ends_with("bias") { 0.125 } else { 0.0 };
            let slope = if name.ends_with("ridge") || name.contains("_norm.weight") { 0.25 } else { 0.0 };
            let count = var.dim(var.rank() - 1).unwrap();
            let shift: Vec<f32> = (0..count).map(|at| shift + slope * at as f32 / count as f32).collect();
            let shift = candle_core::Tensor::new(shift, var.device()).unwrap();
            let halves = var.broadcast_add(&shift).unwrap().to_dtype(candle_core::DType::F16).unwrap();
            var.set(&halves.to_dtype(candle_core::DType::F32).unwrap()).unwrap();
        }
        let out = folder.path().join(&family);
        export(&net, &text, kind, &out, &serde_json::json!({})).unwrap();
        let mut rows = Rows::default();
        let (start, visibility) = match kind {
            Family::Llama | Family::Qwen3 | Family::Lla | Family::Cllm { .. } => {
                (rows.push_causal(&tokens), Visibility::Causal)
            }
            Family::Dream { .. } => (rows.push_full(&tokens), Visibility::Through(tokens.len())),
            Family::FastDllm { block_len } => {
                (rows.push_blocks(&tokens, block_len), Visibility::Blocks { origin: 0, block_len })
            }
        };
        rows.close(start);
        let own = net.logits(&net.hidden(&Arc::new(rows)).unwrap(), &wanted).unwrap().to_vec2::<f32>().unwrap();
        let served = served(&out, &tokens, visibility);
        for (row, (own, served)) in own.iter().zip(&served).enumerate() {
            assert_eq!(own.len(), served.len(), "{family}");
            let error = own.iter().zip(served).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = own.iter().map(|a| a.abs()).fold(0.0, f32::max);
            assert!(error < size * 1e-4, "{family}, row {row}: {error} of {size}");
        }
    }
}

#[test]
fn a_network_is_exported_as_what_it_is_or_not_at_all() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let net = Net::new(settings(&text, 1, false).shape, 7).unwrap();
    for family in [Family::Qwen3, Family::Lla] {
        let error = export(&net, &text, family, folder.path(), &serde_json::json!({})).unwrap_err().to_string();
        assert!(error.contains("Softmax"), "{error}");
    }
    let linear = Net::new(Shape { mixer: Mixer::Linear, ..net.shape().clone() }, 7).unwrap();
    assert!(export(&linear, &text, Family::Llama, folder.path(), &serde_json::json!({})).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_chat_template_writes_the_tokens_of_the_training() {
    let text = text();
    let folder = tempfile::tempdir().unwrap();
    let net = Net::new(settings(&text, 1, false).shape, 7).unwrap();
    export(&net, &text, Family::Llama, folder.path(), &serde_json::json!({})).unwrap();
    let model = load(&ModelSource::Folder(folder.path().into()), &LoadOptions::default()).unwrap();
    let template = model.chat_template.as_ref().unwrap();
    let mut with_history = 0;
    for task in Task::ALL {
        for index in 0..40 {
            let problem = task.problem(Split::Validation, 0, index);
            with_history += usize::from(problem.messages.len() > 1);
            let messages = serde_json::to_value(&problem.messages).unwrap();
            let prompt = template.render(&messages, None, true, &serde_json::Map::new()).unwrap();
            let served: Vec<u32> = model.tokenizer.encode_chat(&prompt).unwrap().iter().map(|id| id.0).collect();
            let trained = text.problem(&problem).unwrap();
            assert_eq!(served, trained.prompt, "{}", problem.messages[0].content);
            let answer: Vec<TokenId> = trained.answer.iter().map(|id| TokenId(*id)).collect();
            assert_eq!(model.tokenizer.decode(&answer[..answer.len() - 1]), problem.answer);
        }
    }
    assert!(with_history > 0, "some dialogues have more than one turn");
}
