//! Models on a device through the whole engine, with kernels that run on the host: the tokens of the processor, the same
//! tokens for every strategy, batch and chunk, and everything that a request may ask of a sampler.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]
#![allow(clippy::print_stdout)]

use engine::{
    DecodingOptions, EngineSettings, Event, LoadOptions, LoadedModel, ModelSource, Request, Sampling, Strategy,
    TokenId, WindowPolicy, load, load_on,
    testing::{Harness, Transcript},
};

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}

fn on_device(name: &str) -> LoadedModel {
    let device = device_tests::any_device();
    load_on(&name.parse::<ModelSource>().unwrap(), &LoadOptions::default(), &device).unwrap()
}

fn on_processor(name: &str) -> LoadedModel {
    load(&name.parse::<ModelSource>().unwrap(), &LoadOptions::default()).unwrap()
}

fn settings() -> EngineSettings {
    EngineSettings {
        threads: Some(2),
        kv_tokens: Some(2048),
        max_concurrent: 8,
        max_rows: 64,
        interleave_rows: 16,
        ..EngineSettings::default()
    }
}

fn prompts(model: &LoadedModel) -> Vec<Vec<TokenId>> {
    let texts = [
        "What is 2 + 2?\n",
        "Tom has 3 apples and buys 4 more. How many apples does he have?\n",
        "Hello! Who are you?\n",
        "List the names of all people older than 30.\n",
    ];
    texts.iter().map(|text| model.tokenizer.encode(text, false).unwrap()).collect()
}

fn request(prompt: Vec<TokenId>, strategy: Strategy) -> Request {
    let decoding = DecodingOptions { strategy, ..DecodingOptions::default() };
    Request { max_tokens: Some(24), decoding, ..Request::new(prompt) }
}

#[test]
fn the_built_in_models_say_what_they_say_on_the_processor() {
    if skipped() {
        return;
    }
    for name in ["leapfrog-ar", "leapfrog-cllm", "leapfrog-lla", "leapfrog-diffusion", "leapfrog-block"] {
        let model = on_device(name);
        let prompts = prompts(&model);
        let mut device = Harness::new(model, settings()).unwrap();
        let mut processor = Harness::new(on_processor(name), settings()).unwrap();
        for prompt in prompts {
            let request = request(prompt, Strategy::Auto);
            let expected = processor.run_one(request.clone());
            let got = device.run_one(request);
            assert_eq!(got.tokens, expected.tokens, "{name}");
        }
    }
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

fn tokens(transcripts: &[Transcript]) -> Vec<Vec<TokenId>> {
    transcripts.iter().map(|transcript| transcript.tokens.clone()).collect()
}

#[test]
fn every_width_batch_and_chunk_says_what_ar_says_alone() {
    if skipped() {
        return;
    }
    let model = on_device("leapfrog-cllm");
    let prompts = prompts(&model);
    let mut alone = Harness::new(model, settings()).unwrap();
    let chunks = EngineSettings { max_rows: 5, interleave_rows: 3, ..settings() };
    let mut chunked = Harness::new(on_device("leapfrog-cllm"), chunks).unwrap();
    for temperature in [0.0, 0.9] {
        let sampling = Sampling { temperature, seed: 11, ..Sampling::default() };
        let of = |prompt: &Vec<TokenId>, decoding| Request {
            sampling: sampling.clone(),
            decoding,
            ..request(prompt.clone(), Strategy::Ar)
        };
        let ar = || DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
        let expected: Vec<Vec<TokenId>> = prompts.iter().map(|prompt| alone.run_one(of(prompt, ar())).tokens).collect();
        for decoding in [ar(), jacobi(3, WindowPolicy::Shrinking), jacobi(16, WindowPolicy::Sliding)] {
            let together = alone.run(prompts.iter().map(|prompt| of(prompt, decoding.clone())).collect());
            assert_eq!(tokens(&together), expected, "T = {temperature}, {decoding:?}");
        }
        let together = chunked.run(prompts.iter().map(|prompt| of(prompt, ar())).collect());
        assert_eq!(tokens(&together), expected, "T = {temperature}, in chunks");
        assert_eq!(chunked.pages_used(), 0);
    }
}

/// The log-probabilities of a transcript's tokens.
fn logprobs(transcript: &Transcript) -> Vec<f32> {
    let commits = transcript.events.iter().filter_map(|event| match event {
        Event::Committed(commit) => Some(&commit.tokens),
        _ => None,
    });
    commits.flatten().filter_map(|record| record.logprob).collect()
}

#[test]
fn all_that_a_request_may_ask_of_the_sampler_is_honoured() {
    if skipped() {
        return;
    }
    let sampled = |sampling: Sampling| Sampling { temperature: 0.8, seed: 3, ..sampling };
    let cases = [
        Sampling { logit_bias: vec![(TokenId(40), 30.0)], ..Sampling::default() },
        Sampling { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() },
        sampled(Sampling { top_p: 0.8, ..Sampling::default() }),
        sampled(Sampling { top_k: Some(5), min_p: 0.05, ..Sampling::default() }),
    ];
    // A canvas draws its slots anew in every step, so that one draw between two tokens of nearly the same score sends it
    // on another way; without draws it takes a tie of the model itself.
    for (name, cases) in [("leapfrog-ar", &cases[..]), ("leapfrog-block", &cases[..2])] {
        let model = on_device(name);
        let prompt = prompts(&model).swap_remove(1);
        let mut device = Harness::new(model, settings()).unwrap();
        let mut processor = Harness::new(on_processor(name), settings()).unwrap();
        for sampling in cases {
            let request =
                Request { sampling: sampling.clone(), logprobs: Some(3), ..request(prompt.clone(), Strategy::Auto) };
            let (expected, got) = (processor.run_one(request.clone()), device.run_one(request));
            assert_eq!(got.tokens, expected.tokens, "{name}, {sampling:?}");
            let (expected, got) = (logprobs(&expected), logprobs(&got));
            assert_eq!((got.len(), got.is_empty()), (expected.len(), false));
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 0.05, "{name}, {sampling:?}: {worst}");
        }
    }
}

#[test]
fn a_full_cache_delays_requests_and_fails_none() {
    if skipped() {
        return;
    }
    let model = on_device("leapfrog-ar");
    let prompts = prompts(&model);
    let expected: Vec<Vec<TokenId>> = {
        let mut roomy = Harness::new(model, settings()).unwrap();
        prompts.iter().map(|prompt| roomy.run_one(request(prompt.clone(), Strategy::Ar)).tokens).collect()
    };
    // Pages for one request and a half.
    let small = EngineSettings { kv_tokens: Some(96), ..settings() };
    let mut harness = Harness::new(on_device("leapfrog-ar"), small).unwrap();
    let together = harness.run(prompts.iter().map(|prompt| request(prompt.clone(), Strategy::Ar)).collect());
    assert_eq!(tokens(&together), expected);
    assert_eq!(harness.pages_used(), 0);
}
