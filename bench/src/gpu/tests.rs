//! The whole measurement on a device whose kernels run on the host, with a shape that is small enough for it.

use std::path::Path;

use ::kernels::device::ScoreQuery;
use clap::Parser;
use device_tests::{HostDevice, Order};
use models::{
    Backbone, Capacity, ConfigHints, ForwardBatch, PageId, Segment, TokenId, Visibility, device::DeviceTransformer,
};
use serde_json::json;

use super::{log::figure, *};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: GpuArgs,
}

fn args(line: &[&str]) -> GpuArgs {
    Line::parse_from(std::iter::once("gpu").chain(line.iter().copied())).args
}

fn tiny(family: &str) -> (String, ModelConfig) {
    let keys = match family {
        "llada" => json!({
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "activation_type": "silu", "block_type": "llama",
            "layer_norm_type": "rms", "rope": true, "include_bias": false, "include_qkv_bias": false, "d_model": 64,
            "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "mlp_hidden_size": 64, "vocab_size": 96,
            "embedding_size": 96, "max_sequence_length": 256, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
            "weight_tying": false, "mask_token_id": 90, "eos_token_id": 1,
        }),
        "sdar" => json!({
            "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "vocab_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 256,
            "tie_word_embeddings": false, "attention_bias": false, "block_size": 4, "mask_token_id": 90,
            "eos_token_id": 1,
        }),
        _ => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 80, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 256,
            "tie_word_embeddings": true, "eos_token_id": 2,
        }),
    };
    let hints = ConfigHints::default();
    (family.into(), ModelConfig::from_hf_json(&keys.to_string(), Path::new(family), &hints).unwrap())
}

/// A setup of the host's, or `None` without a C++ compiler.
fn setup(line: &[&str]) -> Option<Setup> {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
        return None;
    }
    let args = args(line);
    let device: Arc<dyn Device> = HostDevice::new(1 << 30, Order::Forward);
    let (format, precision) = args.format.on_device();
    let only = |part: &Part| args.only.is_empty() || args.only.contains(part);
    Some(Setup {
        facts: Facts::measure(&device, 2, 1 << 20).unwrap(),
        device,
        parts: Part::ALL.into_iter().filter(only).collect(),
        rows: args.rows.clone(),
        most_rows: 8,
        contexts: args.contexts.clone(),
        precision,
        format,
        rounds: 2,
        repeats: 1,
        cold_bytes: 0,
        check: Effort { num_prompts: 2, tokens: 8 },
        num_traces: 1,
        prompt: Some(8),
        python: args.python.clone(),
        began: Instant::now(),
        budget_s: args.budget_s,
    })
}

fn measured(setup: &Setup, families: &[&str]) -> Log {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(setup.facts.clone(), Some(folder.path().into()));
    let models: Vec<_> = families.iter().map(|family| tiny(family)).collect();
    measure(setup, &models, &mut log).unwrap();
    let raw: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("raw.json")).unwrap()).unwrap();
    assert_eq!(raw["cells"].as_array().unwrap().len(), log.cells.len());
    assert_eq!(fs::read_to_string(folder.path().join("summary.md")).unwrap(), log.summary());
    log
}

fn all_measured(log: &Log, part: Part) -> Vec<&Cell> {
    let cells: Vec<&Cell> = log.cells.iter().filter(|cell| cell.part == part).collect();
    assert!(!cells.is_empty(), "no cell of {part:?}");
    for cell in &cells {
        assert!(cell.left_out.is_none(), "{cell:?}");
        assert!(cell.millis.iter().all(|millis| *millis > 0.0), "{cell:?}");
        assert!(cell.figures.values().all(|value| value.is_finite()), "{cell:?}");
    }
    cells
}

#[test]
fn passes_and_steps_are_measured_and_what_does_not_fit_is_left_out() {
    let Some(setup) = setup(&["--only", "forward,steps", "--rows", "1,8", "--contexts", "0,40,1000"]) else { return };
    let log = measured(&setup, &["llama"]);
    let forward: Vec<&Cell> = log.cells.iter().filter(|cell| cell.part == Part::Forward).collect();
    assert_eq!(forward.len(), 6);
    for cell in forward {
        match cell.context {
            Some(1000) => assert!(cell.left_out.as_deref().unwrap().contains("there is room for 256"), "{cell:?}"),
            _ => {
                assert_eq!((cell.millis.len(), &cell.left_out), (2, &None), "{cell:?}");
                assert!(cell.figures[figure::MEMORY_SHARE] > 0.0, "{cell:?}");
                // The host has no datasheet.
                assert!(!cell.figures.contains_key(figure::MATRIX_SHARE), "{cell:?}");
            }
        }
    }
    for cell in all_measured(&log, Part::Steps) {
        assert_eq!(cell.context, Some(40));
        assert!(cell.figures[figure::OVER_DEVICE] > 0.0);
    }
}

#[test]
fn the_bytes_of_a_pass_are_counted() {
    let Some(setup) = setup(&[]) else { return };
    for (family, expected_weights) in
        [("llama", 80 * 64 + 2 * 64 * (64 + 2 * 32 + 64 + 3 * 96)), ("llada", 96 * 64 + 64 * (4 * 64 + 3 * 64))]
    {
        let (name, config) = tiny(family);
        let layers = config.num_layers * config.num_kv_heads * config.head_dim * 2 * 2;
        assert_eq!(shapes::matrix_params(&config), expected_weights);
        let subject = Subject::new(&setup, (&name, config.clone()), (8, 64)).unwrap();
        // Outputs of weights are padded to tiles of 128.
        assert!(subject.read_bytes(0, 0) >= (2 * expected_weights) as f64);
        assert_eq!(subject.read_bytes(3, 7) - subject.read_bytes(0, 0), (10 * layers) as f64);
        // A row behind 7 positions sees 8, the next one 9.
        let width = config.num_heads * config.head_dim;
        let attention = 4 * (8 + 9) * width * config.num_layers;
        assert_eq!(subject.operations(2, 7), (4 * expected_weights + attention) as f64);
    }
}

#[test]
fn strategies_are_replayed_as_their_families_decode() {
    let Some(setup) = setup(&["--only", "decoding", "--rows", "8", "--contexts", "0"]) else { return };
    let log = measured(&setup, &["llama", "llada", "sdar"]);
    let cells = all_measured(&log, Part::Decoding);
    let names: Vec<_> = cells.iter().map(|cell| (cell.model.as_str(), cell.what.as_str())).collect();
    let expected = [
        ("llama", "ar"),
        ("llama", "jacobi"),
        ("llada", "ar"),
        ("llada", "threshold"),
        ("llada", "local_leap"),
        ("sdar", "ar"),
        ("sdar", "threshold"),
        ("sdar", "local_leap"),
    ];
    assert_eq!(names, expected);
    for cell in &cells {
        let seconds = cell.millis.iter().sum::<f64>() / 1e3;
        let tokens = cell.figures[figure::TOKENS_PER_S] * seconds;
        assert!((tokens - tokens.round()).abs() < 1e-6, "{cell:?}");
        if cell.what == "ar" {
            assert_eq!(cell.figures[figure::TOKENS_PER_PASS], 1.0, "{cell:?}");
        }
        assert!(cell.figures[figure::PASSES] >= 1.0 && tokens >= 1.0, "{cell:?}");
    }
}

#[test]
fn kernels_and_scores_are_measured_alone() {
    for format in ["bf16", "f16"] {
        let line = ["--only", "score,kernels", "--rows", "1,8", "--contexts", "0,40", "--format", format];
        let Some(setup) = setup(&line) else { return };
        let log = measured(&setup, &["llada"]);
        // Three kinds of rows and two numbers of them; five matrices with 1 and 8 rows, attention with one row.
        assert_eq!(all_measured(&log, Part::Score).len(), 6);
        assert_eq!(all_measured(&log, Part::Kernels).len(), 12);
    }
}

#[test]
fn the_device_is_checked_against_the_processor() {
    let Some(setup) = setup(&["--only", "check"]) else { return };
    let log = measured(&setup, &[]);
    let cells = all_measured(&log, Part::Check);
    // Five models: tokens, batches and replays; three with Jacobi.
    assert_eq!(cells.len(), 18);
    for cell in cells {
        assert_eq!(cell.figures[figure::WRONG], 0.0, "{cell:?}");
        assert!(cell.figures[figure::PROMPTS] >= 2.0, "{cell:?}");
    }
}

#[test]
fn a_python_without_torch_and_a_spent_budget_are_said() {
    let Some(setup) = setup(&["--only", "torch", "--python", "/no/such/python"]) else { return };
    let log = measured(&setup, &["llama"]);
    let reason = log.cells.iter().find(|cell| cell.part == Part::Torch).and_then(|cell| cell.left_out.clone()).unwrap();
    assert!(reason.contains("/no/such/python"), "{reason}");
    let spent = Setup { budget_s: 1e-9, parts: vec![Part::Forward, Part::Kernels, Part::Torch], ..setup };
    let log = measured(&spent, &["llama"]);
    for part in [Part::Forward, Part::Kernels, Part::Torch] {
        let mut cells = log.cells.iter().filter(|cell| cell.part == part).peekable();
        assert!(cells.peek().is_some(), "nothing is said of {part:?}");
        assert!(cells.all(|cell| cell.left_out.as_deref() == Some(SPENT)));
    }
}

#[test]
fn floors_are_judged_by_what_was_measured() {
    let Some(setup) = setup(&[]) else { return };
    let mut log = Log::new(setup.facts.clone(), None);
    let verdicts = |log: &Log| {
        let text = floors::table(&floors::all(log), &setup.facts);
        let rows = text.lines().filter(|line| line.starts_with('|')).skip(2);
        rows.map(|line| line.rsplit(" | ").next().unwrap().trim_end_matches(" |").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(&log), ["not measured"; 6]);
    let model = Shape::Llada8B.name();
    let pass =
        |rows, millis: f64| Cell { millis: vec![millis], ..Cell::new(Part::Forward, model, forward::PASS).at(rows, 0) };
    log.add(pass(1, 4.0).with(figure::MEMORY_SHARE, 0.8)).unwrap();
    log.add(pass(32, 4.2)).unwrap();
    for ratio in [1.05, 1.2] {
        log.add(Cell::new(Part::Steps, model, forward::STEP).at(1, 0).with(figure::OVER_DEVICE, ratio)).unwrap();
    }
    let torch = Cell { millis: vec![6.0], ..Cell::new(Part::Torch, model, torch::GRAPH).at(1, 0) };
    log.add(torch.with(figure::OVER_OURS, 1.5)).unwrap();
    log.add(Cell::new(Part::Score, "", score::GREEDY).at(32, 126_464).with(figure::MEMORY_SHARE, 0.61)).unwrap();
    log.add(Cell::new(Part::Check, "leapfrog-ar", "x").with(figure::WRONG, 0.0)).unwrap();
    assert_eq!(verdicts(&log), ["met", "met, and the aim", "met", "missed", "met, and the aim", "met"]);
    log.add(Cell::new(Part::Check, "leapfrog-ar", "y").with(figure::WRONG, 1.0)).unwrap();
    assert_eq!(verdicts(&log)[0], "missed");
}

#[test]
fn arguments_are_checked() {
    let refused = |line: &[&str]| check_args(&args(line)).unwrap_err().to_string();
    assert!(refused(&["--rows", "0"]).contains("--rows"));
    assert!(refused(&["--budget-s", "0"]).contains("--budget-s is 0"));
    assert!(run(&args(&["--device", "cpu"])).unwrap_err().to_string().contains("measures a GPU"));
    assert_eq!(args(&[]).shape.len(), 5);
    let Some(setup) = setup(&[]) else { return };
    let refused = Setup::new(&args(&["--format", "q4_k", "--precision", "bf16"]), setup.device).unwrap_err();
    assert!(refused.to_string().contains("multiplied in f16, not in bf16"), "{refused}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    let error = run(&args(&[])).unwrap_err();
    assert!(format!("{error:#}").contains("cuda"), "{error:#}");
}

#[test]
fn a_timed_pass_changes_nothing() {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
        return;
    }
    let (_, config) = tiny("llama");
    let host = HostDevice::new(1 << 28, Order::Forward);
    let device: Arc<dyn Device> = host.clone();
    let mut model = DeviceTransformer::made_up(&config, &device, (Precision::F16, DeviceFormat::F16), 3).unwrap();
    let mut kv =
        model.reserve(Capacity { max_rows: 8, max_tables: 1, context_len: 32, num_pages: 4, page_len: 8 }).unwrap();
    let tokens: Vec<TokenId> = (0..5).map(|at| TokenId(at * 13 % 80)).collect();
    let pages: Vec<PageId> = [2, 0, 3, 1].map(PageId).to_vec();
    let segment = || Segment { tokens: &tokens, start: 0, visibility: Visibility::Causal, scored: 1..5, pages: &pages };
    let batch = || ForwardBatch { segments: vec![segment()] };
    let before = model.forward(&batch(), &mut kv).unwrap();
    let queries = vec![ScoreQuery::default(); 4];
    let launches = |model: &mut DeviceTransformer, kv: &_, repeats| {
        let start = host.num_launches();
        let millis = model.pass_millis(&batch(), kv, &queries, repeats).unwrap();
        assert!(millis > 0.0);
        host.num_launches() - start
    };
    // Two passes warm up; all have the same launches.
    let (three, six) = (launches(&mut model, &kv, 1), launches(&mut model, &kv, 4));
    assert_eq!(six, 2 * three);
    assert_eq!(model.forward(&batch(), &mut kv).unwrap(), before);
    let refused = model.pass_millis(&batch(), &kv, &queries[1..], 1).unwrap_err();
    assert!(refused.to_string().contains('3') && refused.to_string().contains('4'), "{refused}");
    assert!(model.pass_millis(&batch(), &kv, &queries, 0).is_err());
}
