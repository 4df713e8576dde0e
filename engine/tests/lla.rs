//! A model with local linear attention through the whole engine: the same tokens for every strategy, batch, chunk and
//! shared prefix; and what is counted of its systems.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use std::path::{Path, PathBuf};

use engine::{
    DecodingOptions, Engine, EngineSettings, LoadOptions, LoadedModel, ModelSource, Quantize, Request, Sampling,
    Strategy, TokenId, WindowPolicy, load,
    testing::{Harness, Rule, Transcript, collect, scripted},
};
use prometheus_client::{encoding::text, registry::Registry};

/// Layers times heads of both checkpoints.
const QUERIES_PER_ROW: u64 = 2 * 4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(name)
}

fn model(name: &str, quantize: Option<Quantize>) -> LoadedModel {
    let options = LoadOptions { quantize, tokenizer: Some(golden("tokenizer.json")), ..LoadOptions::default() };
    let mut model = load(&ModelSource::Folder(golden("lla").join(name)), &options).unwrap();
    // Whatever the random weights say.
    model.stop_ids.clear();
    model
}

fn settings() -> EngineSettings {
    EngineSettings { threads: Some(2), kv_tokens: Some(4096), max_concurrent: 16, ..EngineSettings::default() }
}

fn ar() -> DecodingOptions {
    DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() }
}

fn jacobi(width: usize, window: WindowPolicy) -> DecodingOptions {
    DecodingOptions {
        strategy: Strategy::Jacobi,
        width: Some(width),
        adaptive: Some(false),
        window: Some(window),
        ..DecodingOptions::default()
    }
}

fn request(prompt: Vec<TokenId>, temperature: f32, seed: u64) -> Request {
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    Request { max_tokens: Some(24), sampling, decoding: ar(), ..Request::new(prompt) }
}

fn prompt(len: u32, seed: u32) -> Vec<TokenId> {
    (0..len).map(|i| TokenId((i * i * 7 + i * 29 + seed * 13) % 100)).collect()
}

#[test]
fn every_width_and_temperature_says_what_ar_says_alone() {
    for (name, quantize) in [("tied", None), ("tied", Some(Quantize::Q8_0)), ("window", None)] {
        let (mut alone, mut crowd) = (0, 0);
        let harness = || Harness::new(model(name, quantize), settings()).unwrap();
        let mut together = harness();
        // The longest prompt and its answer reach beyond two pages and many windows.
        for (case, len) in [1, 2, 7, 31, 64, 90].into_iter().enumerate() {
            for temperature in [0.0, 0.7, 1.0] {
                let base = request(prompt(len, case as u32), temperature, case as u64);
                let expected = harness().run_one(base.clone());
                assert_eq!(expected.tokens.len(), 24);
                alone += expected.finish().unwrap().stats.scored_rows;
                let widths = [(2, WindowPolicy::Sliding), (3, WindowPolicy::Shrinking), (8, WindowPolicy::Sliding)];
                let widths = widths.into_iter().chain([(16, WindowPolicy::Shrinking), (32, WindowPolicy::Sliding)]);
                let mut requests = vec![base.clone()];
                requests
                    .extend(widths.map(|(width, window)| Request { decoding: jacobi(width, window), ..base.clone() }));
                for (index, transcript) in together.run(requests).into_iter().enumerate() {
                    let what = format!("{name} {quantize:?}, case {case}, T = {temperature}, request {index}");
                    assert_eq!(transcript.tokens, expected.tokens, "{what}");
                    crowd += transcript.finish().unwrap().stats.scored_rows;
                }
            }
        }
        assert!(crowd > 6 * 2 * alone, "most guesses of a random model are wrong: {crowd} rows scored, {alone} by AR");
        assert_eq!(together.pages_used(), 0);
    }
}

#[test]
fn chunks_and_shared_prefixes_do_not_change_a_token() {
    for name in ["tied", "window"] {
        let long = request(prompt(100, 1), 0.8, 5);
        let expected = Harness::new(model(name, None), settings()).unwrap().run_one(long.clone()).tokens;
        for max_rows in [1, 7, 33] {
            let settings = EngineSettings { max_rows, interleave_rows: max_rows, ..settings() };
            let mut harness = Harness::new(model(name, None), settings).unwrap();
            let got = harness.run_one(Request { decoding: jacobi(8, WindowPolicy::Sliding), ..long.clone() });
            assert_eq!(got.tokens, expected, "{name}, chunks of {max_rows}");
        }
        let mut harness = Harness::new(model(name, None), settings()).unwrap();
        let first = harness.run_one(long.clone());
        // The same beginning, another end: three pages are shared.
        let mut fork = long.clone();
        fork.prompt[97..].reverse();
        let fork_alone = Harness::new(model(name, None), settings()).unwrap().run_one(fork.clone());
        let transcripts = harness.run(vec![long.clone(), fork]);
        let cached = |transcript: &Transcript| transcript.finish().unwrap().stats.cached_tokens;
        assert_eq!((cached(&first), cached(&transcripts[0]), cached(&transcripts[1])), (0, 96, 96), "{name}");
        assert_eq!(transcripts[0].tokens, expected, "{name}");
        assert_eq!(transcripts[1].tokens, fork_alone.tokens, "{name}");
        assert_ne!(fork_alone.tokens, expected, "the end of the prompt is heard");
    }
}

/// Value of a metric without further labels.
fn metric(page: &str, name: &str, model: &str) -> Option<f64> {
    let start = format!("leapfrog_{name}{{model=\"{model}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.parse().unwrap())
}

#[test]
fn every_system_of_every_row_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("lla/tied").join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["lla_max_iterations"] = 1.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let options = LoadOptions { tokenizer: Some(golden("tokenizer.json")), ..LoadOptions::default() };
    let one_step = load(&ModelSource::Folder(folder.path().into()), &options).unwrap();
    let models = [("tied", model("tied", None)), ("one-step", one_step), ("plain", scripted(Rule::Successor).unwrap())];
    let engines = models.map(|(id, mut model)| {
        model.id = id.into();
        Engine::start(model, settings()).unwrap()
    });
    for engine in &engines {
        let request = Request { decoding: jacobi(4, WindowPolicy::Sliding), ..request(prompt(40, 2), 0.0, 0) };
        let mut streams = engine.submit(vec![request.clone(), request]).unwrap();
        streams.iter_mut().for_each(|stream| drop(collect(stream)));
    }
    let mut registry = Registry::default();
    Engine::register_metrics(&engines, &mut registry);
    let mut page = String::new();
    text::encode(&mut page, &registry).unwrap();

    for id in ["tied", "one-step"] {
        let of = |name: &str| metric(&page, name, id).unwrap_or_else(|| panic!("{name} of {id}:\n{page}"));
        let queries = of("forward_rows_total") * QUERIES_PER_ROW as f64;
        assert!(queries > 80.0 * QUERIES_PER_ROW as f64);
        // Passes that only measure what a pass costs are not counted.
        assert_eq!(of("lla_queries_total"), queries);
        assert_eq!(of("lla_iterations_count"), queries);
        assert_eq!(of("lla_change_count"), of("forward_passes_total") * 2.0, "two layers");
        assert!(of("lla_change_sum") > 0.0 && of("lla_largest_eta") > 0.0);
        assert_eq!(of("lla_fallbacks_total"), 0.0);
    }
    let steps =
        |id| metric(&page, "lla_iterations_sum", id).unwrap() / metric(&page, "lla_iterations_count", id).unwrap();
    let capped = |id| metric(&page, "lla_capped_total", id).unwrap() / metric(&page, "lla_queries_total", id).unwrap();
    assert!(steps("tied") > 4.0 && steps("one-step") <= 1.0, "{} and {} steps", steps("tied"), steps("one-step"));
    assert!(capped("tied") == 0.0 && capped("one-step") > 0.9, "{} and {}", capped("tied"), capped("one-step"));
    assert!(!page.lines().any(|line| line.contains("leapfrog_lla") && line.contains("model=\"plain\"")), "{page}");
}
