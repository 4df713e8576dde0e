//! Real checkpoints: greedy text against reference implementations, and Jacobi against AR, in f32 and with quantised
//! weights.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed step of a test may stop it where it stands")]

use std::path::{Path, PathBuf};

use engine::{
    BuiltIn, DecodingOptions, EngineSettings, LoadOptions, LoadedModel, ModelSource, Quantize, Request, Sampling,
    Strategy, TokenId, load, testing::Harness,
};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(name)
}

fn settings() -> EngineSettings {
    EngineSettings { kv_tokens: Some(2048), ..EngineSettings::default() }
}

fn strategy(strategy: Strategy, width: Option<usize>) -> DecodingOptions {
    DecodingOptions { strategy, width, adaptive: width.map(|_| false), ..DecodingOptions::default() }
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

/// Greedy continuations of a transcript file. A first difference where the reference's two best logits are nearer
/// than `tie` is a numerical tie and ends the comparison of that transcript; any other difference fails.
fn check_transcripts(mut model: LoadedModel, file: &str, tie: f64) {
    // Transcripts may go on behind an end token.
    model.stop_ids.clear();
    let json: Value = serde_json::from_str(&std::fs::read_to_string(golden(file)).unwrap()).unwrap();
    let mut harness = Harness::new(model, settings()).unwrap();
    let (mut compared, mut ties) = (0, 0);
    let transcripts = json["transcripts"].as_array().unwrap();
    for transcript in transcripts {
        let expected = ids(&transcript["output_ids"]);
        for decoding in [strategy(Strategy::Ar, None), strategy(Strategy::Jacobi, Some(4))] {
            let request =
                Request { max_tokens: Some(expected.len()), decoding, ..Request::new(ids(&transcript["prompt_ids"])) };
            let got = harness.run_one(request).tokens;
            match got.iter().zip(&expected).position(|(a, b)| a != b) {
                None => compared += got.len(),
                Some(at) => {
                    let margin = transcript["margins"][at].as_f64().unwrap();
                    assert!(margin < tie, "token {at} of {:?} differs at a margin of {margin}", transcript["prompt"]);
                    compared += at;
                    ties += 1;
                }
            }
        }
    }
    println!("{file}: {compared} tokens equal in {} runs, {ties} ended at a tie below {tie}", 2 * transcripts.len());
    assert!(compared > 0);
}

#[test]
fn the_built_in_causal_models_say_what_the_reference_says() {
    for name in ["leapfrog-ar", "leapfrog-cllm", "leapfrog-lla"] {
        let model = load(&name.parse().unwrap(), &LoadOptions::default()).unwrap();
        check_transcripts(model, &format!("builtin/{name}.json"), 0.0);
    }
}

/// The examples of `models/builtin/README.md`, each as it is served by default.
#[test]
fn every_built_in_model_answers_the_examples() {
    let examples = [
        (
            "Emma gets 8 jars with 3 rolls in each. Then she eats half of them. How many rolls does she have in the end?",
            "That is 8*3=24 rolls. Then 24/2=12 are left.\n#### 12",
        ),
        (
            "JSON please: It is foggy in Rome on Friday. We have 29 degrees.",
            r#"{"city":"Rome","day":"Friday","sky":"foggy","degrees":29}"#,
        ),
        (
            "Table chairs(name, color, price, stock, weight, size). Get the 4 chairs with the lowest price and list the name.",
            "SELECT name FROM chairs ORDER BY price LIMIT 4;",
        ),
        (
            "What can you do?",
            "I can solve short word problems, turn a sentence into JSON and write simple SQL queries.",
        ),
        ("Begin with 3. Apply x9 +6 x3 x7 +6 x3. Keep the last digit.", "7 3 9 3 9 7"),
    ];
    for built_in in BuiltIn::all() {
        let model = load(&ModelSource::BuiltIn(built_in), &LoadOptions::default()).unwrap();
        let (template, tokenizer) = (model.chat_template.clone().unwrap(), model.tokenizer.clone());
        let mut harness = Harness::new(model, settings()).unwrap();
        for (question, answer) in examples {
            let messages = serde_json::json!([{"role": "user", "content": question}]);
            let prompt = template.render(&messages, None, true, &serde_json::Map::new()).unwrap();
            let request = Request::new(tokenizer.encode(&prompt, false).unwrap());
            assert_eq!(harness.run_one(request).text, answer, "{}: {question}", built_in.name());
        }
    }
}

/// SmolLM2-135M-Instruct, if `LEAPFROG_SMOLLM2` names its GGUF file.
#[test]
fn smollm2_says_what_the_reference_says() {
    let Ok(path) = std::env::var("LEAPFROG_SMOLLM2") else {
        println!("skipped: LEAPFROG_SMOLLM2 is not set");
        return;
    };
    // In f32 only rounding is left (largest logit about 30, so 1e-4 of it is 3e-3). As stored, activations are
    // rounded to 16 bits per group of 32 besides.
    for (quantize, tie) in [(Some(Quantize::F32), 3e-3), (None, 3e-3)] {
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        let model = load(&ModelSource::Gguf(path.clone().into()), &options).unwrap();
        check_transcripts(model, "smollm2/transcripts.json", tie);
    }
}

/// 200 prompts, five widths, greedy and sampled: the same tokens in no more passes. Rows are bitwise independent of
/// their batch, so not even a tie may differ.
#[test]
fn jacobi_equals_ar_on_random_checkpoints() {
    let mut runs = 0;
    for (name, quantize) in [
        ("llama-gqa-tied", None),
        ("qwen2", Some(Quantize::Q8_0)),
        ("qwen3", None),
        ("llama3-rope", Some(Quantize::Q8_0)),
    ] {
        let tokenizer = Some(golden("tokenizer.json"));
        let options = LoadOptions { quantize, tokenizer, ..LoadOptions::default() };
        let model = load(&ModelSource::Folder(golden(name)), &options).unwrap();
        let mut harness = Harness::new(model, settings()).unwrap();
        for case in 0..50u32 {
            let prompt = (0..1 + case % 17).map(|i| TokenId((i * 29 + case * 7) % 96)).collect::<Vec<_>>();
            for temperature in [0.0, 0.8] {
                let base = Request {
                    max_tokens: Some(20),
                    sampling: Sampling { temperature, seed: u64::from(case), ..Sampling::default() },
                    decoding: strategy(Strategy::Ar, None),
                    ..Request::new(prompt.clone())
                };
                let mut all = vec![base.clone()];
                all.extend(
                    [2, 4, 8, 16, 32]
                        .map(|width| Request { decoding: strategy(Strategy::Jacobi, Some(width)), ..base.clone() }),
                );
                // All at once: five widths and AR share every pass.
                let transcripts = harness.run(all);
                for transcript in &transcripts[1..] {
                    assert_eq!(transcript.tokens, transcripts[0].tokens, "{name}, case {case}, T = {temperature}");
                    let finish = transcript.finish().unwrap();
                    assert!(finish.stats.forward_passes <= finish.completion_tokens);
                    runs += 1;
                }
            }
        }
    }
    assert_eq!(runs, 200 * 2 * 5);
}

#[test]
fn a_recommended_block_that_does_not_fit_is_refused_at_start() {
    let (tokenizer, mask_id) = (Some(golden("tokenizer.json")), Some(TokenId(133)));
    let options = LoadOptions { tokenizer, mask_id, ..LoadOptions::default() };
    let start = |block_length| {
        let mut model = load(&ModelSource::Folder(golden("diffusion/fast-dllm-v2")), &options).unwrap();
        model.diffusion.block_length = block_length;
        Harness::new(model, settings()).map(drop)
    };
    assert!(start(Some(4)).is_ok() && start(None).is_ok());
    let error = start(Some(3)).unwrap_err().to_string();
    assert!(error.contains("8 tokens") && error.contains("3 does not divide"), "{error}");
}
