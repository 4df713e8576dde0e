//! The laws of `engine/specs/jacobi.md`, section 8, through the whole engine.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use engine::{
    DecodingOptions, EngineSettings, Event, FinishReason, GuessRule, Request, Sampling, StopRules, Strategy, TokenId,
    WindowPolicy,
    testing::{END, Harness, ReferenceConfig, ReferenceLlama, Rule, Transcript, model, scripted},
};
use proptest::{prelude::*, strategy::Strategy as Generator};

const WIDTHS: [usize; 10] = [1, 2, 3, 4, 5, 7, 8, 16, 32, 64];

fn jacobi(width: usize, window: WindowPolicy, guess: GuessRule) -> DecodingOptions {
    DecodingOptions {
        strategy: Strategy::Jacobi,
        width: Some(width),
        adaptive: Some(false),
        window: Some(window),
        guess: Some(guess),
        ..DecodingOptions::default()
    }
}

fn ar() -> DecodingOptions {
    DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() }
}

fn settings() -> EngineSettings {
    EngineSettings { threads: Some(1), kv_tokens: Some(2048), ..EngineSettings::default() }
}

fn hash_harness(seed: u64) -> Harness {
    Harness::new(scripted(Rule::Hash { seed }).unwrap(), settings()).unwrap()
}

fn request(prompt: &[u32], max_tokens: usize, decoding: DecodingOptions) -> Request {
    let prompt = prompt.iter().copied().map(TokenId).collect();
    Request { max_tokens: Some(max_tokens), decoding, ..Request::new(prompt) }
}

fn text_and_reason(transcript: &Transcript) -> (String, Vec<TokenId>, FinishReason) {
    (transcript.text.clone(), transcript.tokens.clone(), transcript.finish().expect("it finished").reason)
}

fn any_decoding() -> impl Generator<Value = DecodingOptions> {
    let window = prop_oneof![Just(WindowPolicy::Shrinking), Just(WindowPolicy::Sliding)];
    let guess = prop_oneof![Just(GuessRule::ContextRandom), Just(GuessRule::Lookup)];
    (0..WIDTHS.len(), window, guess, any::<bool>()).prop_map(|(width, window, guess, adaptive)| DecodingOptions {
        adaptive: Some(adaptive),
        ..jacobi(WIDTHS[width], window, guess)
    })
}

fn any_sampling() -> impl Generator<Value = Sampling> {
    let temperature = prop_oneof![Just(0.0f32), Just(0.3), Just(1.0), Just(2.0)];
    let top_k = prop_oneof![Just(None), Just(Some(3)), Just(Some(40))];
    let penalties = prop_oneof![Just((1.0f32, 0.0f32, 0.0f32)), Just((1.3, 0.0, 0.0)), Just((1.1, 0.7, 0.4))];
    let bias = prop_oneof![Just(Vec::new()), Just(vec![(TokenId(7), 3.0f32), (TokenId(65), -100.0)])];
    let top_p = prop_oneof![Just(1.0f32), Just(0.8)];
    let min_p = prop_oneof![Just(0.0f32), Just(0.1)];
    (temperature, top_k, top_p, min_p, penalties, bias, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, (repetition, presence, frequency), logit_bias, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            logit_bias,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any width, window, guess rule, sampling and stop rule: the tokens and the reason are those of AR, every pass
    /// commits something, and the counts add up.
    #[test]
    fn jacobi_equals_ar(
        model_seed in 0u64..8,
        prompt in proptest::collection::vec(0u32..256, 1..40),
        max_tokens in 0usize..70,
        choice in 0u32..3,
        decoding in any_decoding(),
        sampling in any_sampling(),
        min_tokens in 0usize..6,
        ignore_eos in any::<bool>(),
        stop_byte in proptest::option::of(0u32..256),
    ) {
        let mut harness = hash_harness(model_seed);
        let stop = StopRules {
            token_ids: stop_byte.into_iter().map(TokenId).collect(), min_tokens, ignore_eos, ..StopRules::default()
        };
        let base = Request { sampling, choice, stop, ..request(&prompt, max_tokens, ar()) };
        let expected = harness.run_one(base.clone());
        let got = harness.run_one(Request { decoding, ..base });
        prop_assert_eq!(text_and_reason(&got), text_and_reason(&expected));
        for (transcript, is_ar) in [(&expected, true), (&got, false)] {
            let finish = transcript.finish().unwrap();
            let stats = &finish.stats;
            let summed: u64 = (1..).zip(&stats.acceptance_histogram).map(|(accepted, count)| accepted * count).sum();
            prop_assert_eq!(summed as usize, finish.completion_tokens);
            prop_assert!(stats.forward_passes <= finish.completion_tokens);
            prop_assert!(!is_ar || stats.forward_passes == finish.completion_tokens);
            prop_assert!(finish.completion_tokens <= max_tokens);
        }
        prop_assert_eq!(harness.pages_used(), 0);
    }

    /// After every step the cache holds everything but the pending token.
    #[test]
    fn the_cache_is_one_token_behind(
        prompt in proptest::collection::vec(0u32..256, 1..20),
        decoding in any_decoding(),
    ) {
        let mut harness = hash_harness(3);
        let _stream = harness.submit(request(&prompt, 40, decoding));
        while harness.step() {
            for (num_tokens, kv_len) in harness.kv_lens() {
                prop_assert_eq!(kv_len + 1, num_tokens);
            }
        }
    }

    /// A sequence says the same alone, in a crowd, and when neighbours come and go, even if it loses its pages
    /// to them.
    #[test]
    fn alone_equals_batched(
        prompts in proptest::collection::vec(proptest::collection::vec(0u32..256, 1..60), 8),
        joins in proptest::collection::vec(0usize..12, 8),
        decodings in proptest::collection::vec(any_decoding(), 8),
        sampling in any_sampling(),
        kv_tokens in prop_oneof![Just(128usize), Just(2048)],
    ) {
        let requests: Vec<Request> = prompts.iter().zip(decodings).map(|(prompt, decoding)| Request {
            sampling: sampling.clone(), ..request(prompt, 30, decoding)
        }).collect();
        let settings = EngineSettings { kv_tokens: Some(kv_tokens), interleave_rows: 8, ..settings() };
        let harness = || Harness::new(scripted(Rule::Hash { seed: 5 }).unwrap(), settings.clone()).unwrap();
        let alone: Vec<_> = requests.iter().map(|r| text_and_reason(&harness().run_one(r.clone()))).collect();
        let mut crowd = harness();
        let mut streams: Vec<_> = (0..requests.len()).map(|_| None).collect();
        for step in 0.. {
            for (i, request) in requests.iter().enumerate().filter(|(i, _)| joins[*i] == step) {
                streams[i] = Some(crowd.submit(request.clone()));
            }
            if !crowd.step() && step > 12 {
                break;
            }
        }
        for (stream, expected) in streams.into_iter().zip(alone) {
            let mut stream = stream.unwrap();
            let mut transcript = Transcript::default();
            while let Ok(event) = stream.try_recv() {
                if let Event::Committed(commit) = &event {
                    transcript.text.push_str(&commit.text);
                    transcript.tokens.extend(commit.tokens.iter().map(|record| record.id));
                }
                transcript.events.push(event);
            }
            prop_assert_eq!(text_and_reason(&transcript), expected);
        }
        prop_assert_eq!(crowd.pages_used(), 0);
    }
}

#[test]
fn a_random_llama_in_f64_never_diverges() {
    // The same with local linear attention.
    for (seed, ridge) in (0..6).zip([None, Some(0.5)].into_iter().cycle()) {
        let config = ReferenceConfig { ridge, ..ReferenceConfig::default() };
        let llama = || model(ReferenceLlama::random(config, seed)).unwrap();
        let mut harness = Harness::new(llama(), settings()).unwrap();
        for case in 0..8u32 {
            let prompt: Vec<u32> = (0..1 + case * 2).map(|i| (i * 7 + case * 5 + seed as u32) % 40).collect();
            let temperature = if case % 2 == 0 { 0.0 } else { 0.8 };
            let sampling = Sampling { temperature, seed: u64::from(case), ..Sampling::default() };
            let base = Request { sampling, ..request(&prompt, 24, ar()) };
            let expected = harness.run_one(base.clone());
            for (width, window) in
                [2, 4, 8, 16, 32].into_iter().zip([WindowPolicy::Sliding, WindowPolicy::Shrinking].into_iter().cycle())
            {
                let decoding = jacobi(width, window, GuessRule::ContextRandom);
                let got = harness.run_one(Request { decoding, ..base.clone() });
                assert_eq!(got.tokens, expected.tokens, "model {seed}, case {case}, width {width}");
            }
        }
    }
}

#[test]
fn a_model_that_never_predicts_ahead_gains_nothing() {
    let mut harness = hash_harness(11);
    let decoding = jacobi(8, WindowPolicy::Sliding, GuessRule::ContextRandom);
    let transcript = harness.run_one(Request {
        stop: StopRules { ignore_eos: true, ..StopRules::default() },
        ..request(&[1, 2, 3], 300, decoding)
    });
    let finish = transcript.finish().unwrap();
    assert_eq!(finish.completion_tokens, 300);
    let mean = finish.stats.tokens_per_forward().unwrap();
    assert!((1.0..1.1).contains(&mean), "{mean} tokens per pass, of which luck explains one in 260");
    assert!(finish.stats.scored_rows <= 8 * 300);
}

#[test]
fn a_foreseeable_model_fills_every_block() {
    let mut harness = Harness::new(scripted(Rule::Periodic { period: 5 }).unwrap(), settings()).unwrap();
    for (guess, at_least) in [(GuessRule::Lookup, 15.0), (GuessRule::ContextRandom, 7.0)] {
        let decoding = jacobi(16, WindowPolicy::Sliding, guess);
        let finish = harness.run_one(request(&[0, 1, 2, 3, 4], 640, decoding)).finish().unwrap().clone();
        let mean = finish.stats.tokens_per_forward().unwrap();
        assert!(mean > at_least, "{guess:?}: {mean}");
        assert!(mean <= 16.0);
    }
}

#[test]
fn the_context_ends_a_text_and_nothing_overflows() {
    let settings = EngineSettings { max_context: Some(48), ..settings() };
    for (prompt_len, expected) in [(1, 47), (40, 8), (47, 1)] {
        for decoding in [ar(), jacobi(64, WindowPolicy::Sliding, GuessRule::Lookup)] {
            let mut harness = Harness::new(scripted(Rule::Successor).unwrap(), settings.clone()).unwrap();
            let prompt: Vec<u32> = (0..prompt_len).map(|i| i % 7).collect();
            let transcript = harness.run_one(Request { max_tokens: None, ..request(&prompt, 0, decoding) });
            let finish = transcript.finish().unwrap();
            assert_eq!((finish.completion_tokens, finish.reason), (expected, FinishReason::Length));
        }
    }
}

#[test]
fn an_end_token_stops_at_every_offset_of_a_block() {
    for offset in 0..10usize {
        // Positions 0..3 are the prompt; the end token stands `offset` tokens behind it.
        let mut table: Vec<TokenId> = (0..3 + offset).map(|i| TokenId(40 + i as u32)).collect();
        table.push(END);
        for decoding in [
            ar(),
            jacobi(4, WindowPolicy::Shrinking, GuessRule::Lookup),
            jacobi(8, WindowPolicy::Sliding, GuessRule::Lookup),
        ] {
            let mut harness = Harness::new(scripted(Rule::Table(table.clone())).unwrap(), settings()).unwrap();
            let transcript = harness.run_one(request(&[1, 2, 3], 50, decoding));
            let finish = transcript.finish().unwrap();
            assert_eq!((finish.reason, finish.completion_tokens), (FinishReason::Stop, offset + 1));
            assert_eq!(transcript.tokens.last(), Some(&END), "the end token is reported");
            assert_eq!(transcript.text.len(), offset, "and has no text");
        }
    }
}

#[test]
fn no_budget_no_pass() {
    let mut harness = hash_harness(0);
    let transcript = harness.run_one(request(&[1, 2, 3], 0, ar()));
    let finish = transcript.finish().unwrap();
    assert_eq!((finish.completion_tokens, finish.stats.forward_passes), (0, 0));
    assert_eq!(finish.reason, FinishReason::Length);
}

#[test]
fn prompt_logprobs_do_not_depend_on_chunks() {
    let prompt: Vec<u32> = (0..150).map(|i| i * 13 % 256).collect();
    let run = |settings: EngineSettings, max_tokens| {
        let mut harness = Harness::new(scripted(Rule::Hash { seed: 2 }).unwrap(), settings).unwrap();
        let request = Request { prompt_logprobs: Some(2), logprobs: Some(1), ..request(&prompt, max_tokens, ar()) };
        harness.run_one(request)
    };
    let small = EngineSettings { max_rows: 7, ..settings() };
    for max_tokens in [0, 1, 5] {
        let whole = run(settings(), max_tokens);
        assert_eq!(run(small.clone(), max_tokens).events[0], whole.events[0]);
        let Event::Prompt(records) = &whole.events[0] else { panic!("the prompt comes first: {:?}", whole.events[0]) };
        assert_eq!(records.iter().map(|record| record.id.0).collect::<Vec<_>>(), prompt);
        assert!(records[0].logprob.is_none() && records[0].top.is_empty());
        assert!(records[1..].iter().all(|record| record.logprob.is_some_and(f32::is_finite) && record.top.len() == 2));
        assert_eq!(whole.finish().unwrap().completion_tokens, max_tokens);
    }
}

#[test]
fn stop_strings_cut_where_ar_would_cut() {
    let text = b"The answer is 42. END of story";
    let table: Vec<TokenId> = [0u8, 1].iter().chain(text).map(|&byte| TokenId(u32::from(byte))).collect();
    for stop in ["END", "42", " is", "y", ". E"] {
        let expected = std::str::from_utf8(text).unwrap().split(stop).next().unwrap();
        for decoding in [
            ar(),
            jacobi(16, WindowPolicy::Sliding, GuessRule::Lookup),
            jacobi(5, WindowPolicy::Shrinking, GuessRule::ContextRandom),
        ] {
            let mut harness = Harness::new(scripted(Rule::Table(table.clone())).unwrap(), settings()).unwrap();
            let stop_rules = StopRules { strings: vec![stop.into()], ..StopRules::default() };
            let transcript = harness.run_one(Request { stop: stop_rules, ..request(&[0, 1], 30, decoding) });
            let finish = transcript.finish().unwrap();
            assert_eq!(transcript.text, expected, "stop {stop:?}");
            assert_eq!((finish.reason, finish.stop_string.as_deref()), (FinishReason::Stop, Some(stop)));
            assert_eq!(finish.completion_tokens, expected.len() + stop.len(), "nothing behind the cut is billed");
        }
    }
}

#[test]
fn a_dropped_stream_frees_its_pages_within_one_step() {
    let mut harness = hash_harness(1);
    let kept = harness.submit(request(&[1, 2], 500, ar()));
    let dropped = harness.submit(request(&[3; 200], 500, ar()));
    harness.step();
    harness.step();
    let both = harness.pages_used();
    drop(dropped);
    harness.step();
    assert!(harness.pages_used() < both);
    assert_eq!(harness.kv_lens().len(), 1);
    drop(kept);
    assert!(!harness.step());
    assert_eq!(harness.pages_used(), 0);
}

#[test]
fn a_long_prompt_does_not_stop_the_others() {
    let settings = EngineSettings { interleave_rows: 16, ..settings() };
    let mut harness = Harness::new(scripted(Rule::Hash { seed: 1 }).unwrap(), settings).unwrap();
    let _fast = harness.submit(request(&[1, 2], 100, ar()));
    harness.step();
    let _slow = harness.submit(request(&[3; 300], 10, ar()));
    for step in 1..10 {
        harness.step();
        let lens = harness.kv_lens();
        assert_eq!(lens[0].0, 2 + 1 + step, "one token a step");
        assert_eq!(lens[1].1, step * 16, "the long prompt advances by its share");
    }
}
