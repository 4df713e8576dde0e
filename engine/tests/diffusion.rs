//! Diffusion through the whole engine on scripted models: batches, caches, sampling, infill, frames, cancellation.
#![expect(clippy::unwrap_used, reason = "a failed step of a test may stop it where it stands")]

use engine::{
    CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, EngineSettings, Event, FinishReason, Frame, InfillPart,
    Policy, Remasking, Request, Sampling, StopRules, Strategy, SubmitError, TokenId,
    testing::{BYTE_VOCAB, END, Harness, Rule, Scripted, Transcript, model},
};
use models::{AttentionKind, BlockOrigin, LogitAlignment};
use proptest::prelude::*;

const MASK: TokenId = TokenId(BYTE_VOCAB as u32 - 1);
const FULL: AttentionKind = AttentionKind::Full;

fn blocks(block_len: usize) -> AttentionKind {
    AttentionKind::BlockCausal { block_len, origin: BlockOrigin::Start }
}

fn harness_with(rule: Rule, attention: AttentionKind, alignment: LogitAlignment, settings: EngineSettings) -> Harness {
    let backbone = Scripted::diffusion(rule, BYTE_VOCAB, 512, attention).with_alignment(alignment);
    Harness::new(model(backbone).unwrap(), settings).unwrap()
}

fn settings() -> EngineSettings {
    EngineSettings { threads: Some(1), max_rows: 4096, ..EngineSettings::default() }
}

fn harness(attention: AttentionKind) -> Harness {
    harness_with(Rule::Hash { seed: 7 }, attention, LogitAlignment::SameSlot, settings())
}

/// Scripted confidences lie around 0.1.
fn options() -> DiffusionOptions {
    DiffusionOptions { threshold: Some(0.105), relaxed_threshold: Some(0.1), ..DiffusionOptions::default() }
}

fn request(prompt: &[u32], max_tokens: usize, diffusion: DiffusionOptions) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        stop: StopRules { ignore_eos: true, ..StopRules::default() },
        decoding: DecodingOptions { diffusion, ..DecodingOptions::default() },
        ..Request::new(prompt.iter().copied().map(TokenId).collect())
    }
}

fn text_of(transcript: &Transcript) -> (&[TokenId], usize) {
    let finish = transcript.finish().unwrap_or_else(|| panic!("it did not finish: {:?}", transcript.events.last()));
    (&transcript.tokens, finish.stats.forward_passes)
}

/// Eight requests that differ in everything.
fn crowd(attention: AttentionKind) -> Vec<Request> {
    let prompts: [&[u32]; 8] = [&[1], &[2, 3], &[9; 31], &[4; 32], &[5; 33], &[6, 1, 2], &[8; 64], &[7; 40]];
    let is_full = attention == FULL;
    (0u64..)
        .zip(prompts)
        .map(|(i, prompt)| {
            let policy = [Policy::LocalLeap, Policy::Quota, Policy::Dynamic, Policy::Editing][i as usize % 4];
            let full_caches = [CacheMode::None, CacheMode::Prefix, CacheMode::Dual];
            let block_caches = [CacheMode::None, CacheMode::Block];
            let cache = if is_full { full_caches[i as usize % 3] } else { block_caches[i as usize % 2] };
            let options = DiffusionOptions {
                policy: Some(policy),
                cache: Some(cache),
                block_length: is_full.then_some([8, 32, 5][i as usize % 3]),
                threshold: (policy != Policy::Quota).then_some(0.1),
                ..DiffusionOptions::default()
            };
            let temperature = if i % 2 == 0 { 0.0 } else { 0.8 };
            let sampling =
                Sampling { temperature, seed: i, presence_penalty: (i % 3) as f32 / 2.0, ..Sampling::default() };
            Request { sampling, logprobs: (i == 3).then_some(2), ..request(prompt, 20 + 3 * i as usize, options) }
        })
        .collect()
}

#[test]
fn a_batch_of_eight_canvases_equals_each_alone() {
    for attention in [FULL, blocks(4), blocks(32)] {
        for alignment in [LogitAlignment::SameSlot, LogitAlignment::NextSlot] {
            let rule = Rule::Hash { seed: 7 };
            let mut together = harness_with(rule.clone(), attention, alignment, settings());
            let crowd = crowd(attention);
            let transcripts = together.run(crowd.clone());
            assert_eq!(together.pages_used(), 0);
            // With rows for one canvas at a time they take turns; the text is the same.
            let narrow = EngineSettings { max_rows: 40, interleave_rows: 32, ..settings() };
            let in_turn = harness_with(rule.clone(), attention, alignment, narrow).run(crowd.clone());
            for (index, request) in crowd.into_iter().enumerate() {
                let alone = harness_with(rule.clone(), attention, alignment, settings()).run_one(request);
                assert_eq!(text_of(&transcripts[index]), text_of(&alone), "{attention:?}, request {index}");
                assert_eq!(in_turn[index].tokens, alone.tokens, "{attention:?}, request {index} in turn");
                assert!(!alone.tokens.contains(&MASK));
            }
        }
    }
}

#[test]
fn scarce_pages_change_no_text() {
    // Room for one full context: block-causal sequences are preempted, canvases wait.
    for attention in [FULL, blocks(4)] {
        let scarce = EngineSettings { kv_tokens: Some(512), ..settings() };
        let mut harness = harness_with(Rule::Hash { seed: 7 }, attention, LogitAlignment::SameSlot, scarce);
        let long = |i: u32| request(&[i; 100], 160, options());
        let together = harness.run((0..5).map(long).collect());
        for (i, transcript) in (0..).zip(&together) {
            let alone = self::harness(attention).run_one(long(i));
            assert_eq!(transcript.tokens, alone.tokens, "{attention:?}, request {i}");
        }
        assert_eq!(harness.pages_used(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_block_cache_changes_nothing(
        block_len in prop_oneof![Just(4usize), Just(8), Just(32)],
        prompt_len in 1usize..70,
        max_tokens in 1usize..60,
        shifted: bool,
        policy in prop_oneof![Just(Policy::LocalLeap), Just(Policy::Quota), Just(Policy::Dynamic), Just(Policy::Editing)],
        temperature in prop_oneof![Just(0.0f32), Just(0.7)],
        seed: u64,
    ) {
        let alignment = if shifted { LogitAlignment::NextSlot } else { LogitAlignment::SameSlot };
        let run = |cache| {
            let threshold = (policy != Policy::Quota).then_some(0.1);
            let diffusion = DiffusionOptions {
                policy: Some(policy), cache: Some(cache), threshold, ..DiffusionOptions::default()
            };
            let sampling = Sampling { temperature, seed, ..Sampling::default() };
            let request = Request { sampling, ..request(&vec![3; prompt_len], max_tokens, diffusion) };
            harness_with(Rule::Hash { seed }, blocks(block_len), alignment, settings()).run_one(request)
        };
        let (cached, plain) = (run(CacheMode::Block), run(CacheMode::None));
        prop_assert_eq!(text_of(&cached), text_of(&plain));
        prop_assert_eq!(cached.tokens.len(), max_tokens);
    }

    #[test]
    fn laws_of_every_canvas(
        prompt_len in 1usize..40,
        max_tokens in 1usize..70,
        block_length in 1usize..40,
        policy in prop_oneof![
            Just(Policy::LocalLeap), Just(Policy::Quota), Just(Policy::Dynamic), Just(Policy::Threshold),
            Just(Policy::Factor),
        ],
        early_stop in prop_oneof![Just(EarlyStop::Prefix), Just(EarlyStop::Block), Just(EarlyStop::None)],
        cache in prop_oneof![Just(CacheMode::None), Just(CacheMode::Prefix), Just(CacheMode::Dual)],
        ends_often: bool,
        seed: u64,
    ) {
        // One token of three ends the text, where ends are wanted.
        let asked: Vec<TokenId> = (0..86).map(TokenId).filter(|_| ends_often).collect();
        let diffusion = DiffusionOptions {
            policy: Some(policy), block_length: Some(block_length), cache: Some(cache), early_stop: Some(early_stop),
            ..DiffusionOptions::default()
        };
        let stop = StopRules { ignore_eos: true, token_ids: asked.clone(), ..StopRules::default() };
        let request = Request { stop, frames: true, ..request(&vec![200; prompt_len], max_tokens, diffusion) };
        let mut harness = harness_with(Rule::Hash { seed }, FULL, LogitAlignment::SameSlot, settings());
        let transcript = harness.run_one(request);
        let finish = transcript.finish().unwrap();
        prop_assert_eq!(harness.pages_used(), 0);
        prop_assert!(!transcript.tokens.contains(&MASK));
        let end = transcript.tokens.iter().position(|token| asked.contains(token));
        match finish.reason {
            FinishReason::Stop => prop_assert_eq!(end, Some(transcript.tokens.len() - 1)),
            FinishReason::Length => {
                prop_assert_eq!(end, None);
                prop_assert_eq!(transcript.tokens.len(), max_tokens);
            }
        }
        let stats = finish.stats.diffusion.clone().unwrap();
        let canvas = max_tokens.div_ceil(block_length) * block_length;
        prop_assert!(stats.denoising_steps <= canvas && stats.denoising_steps >= stats.blocks.min(1));
        // Every step fixes at least one slot, and no slot twice.
        let mut slots = Vec::new();
        for event in &transcript.events {
            if let Event::Frame(Frame { fixed, .. }) = event {
                prop_assert!(!fixed.is_empty());
                slots.extend(fixed.iter().map(|(slot, _)| *slot));
            }
        }
        let num_fixed = slots.len();
        slots.sort_unstable();
        slots.dedup();
        prop_assert_eq!(slots.len(), num_fixed);
        prop_assert_eq!(num_fixed, stats.commits.top + stats.commits.anchor + stats.commits.relaxed);
    }
}

#[test]
fn seeds_repeat_and_differ() {
    let run = |seed, choice| {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        harness(FULL).run_one(Request { sampling, choice, ..request(&[1, 2], 32, options()) }).tokens
    };
    assert_eq!(run(5, 0), run(5, 0));
    assert_ne!(run(5, 0), run(6, 0));
    assert_ne!(run(5, 0), run(5, 1));
}

#[test]
fn every_sampling_field_is_honoured() {
    let run = |request: Request| harness(FULL).run_one(request);
    let base = || request(&[1, 2], 32, options());
    let plain = run(base()).tokens;
    let banned = plain[0];
    let bias = Sampling { logit_bias: vec![(banned, -100.0)], ..Sampling::default() };
    assert!(!run(Request { sampling: bias, ..base() }).tokens.contains(&banned));
    let bias = Sampling { logit_bias: vec![(TokenId(65), 100.0)], ..Sampling::default() };
    assert_eq!(run(Request { sampling: bias, ..base() }).tokens, [TokenId(65); 32]);
    // Bias cannot bring the mask back.
    let bias = Sampling { logit_bias: vec![(MASK, 100.0)], ..Sampling::default() };
    assert_eq!(run(Request { sampling: bias, ..base() }).tokens, plain);
    // A heavy penalty on what is there already, also behind the slot, leaves no token twice unless in one pass.
    let one_a_pass = DiffusionOptions { policy: Some(Policy::Quota), ..DiffusionOptions::default() };
    let boosted = vec![(TokenId(65), 6.0), (TokenId(66), 5.5)];
    let sampling = Sampling { logit_bias: boosted, frequency_penalty: 2.0, ..Sampling::default() };
    let penalised = run(Request { sampling: sampling.clone(), ..request(&[1], 32, one_a_pass.clone()) }).tokens;
    let count = |tokens: &[TokenId], id| tokens.iter().filter(|token| **token == TokenId(id)).count();
    let free = Sampling { frequency_penalty: 0.0, ..sampling };
    let unpenalised = run(Request { sampling: free, ..request(&[1], 32, one_a_pass) }).tokens;
    assert!(count(&penalised, 65) < count(&unpenalised, 65), "{penalised:?} {unpenalised:?}");
    let top_k = Sampling { temperature: 2.0, top_k: Some(1), ..Sampling::default() };
    let greedy = Sampling::default();
    let tokens = |sampling| run(Request { sampling, ..base() }).tokens;
    assert_eq!(tokens(top_k), tokens(greedy), "one candidate left");
}

#[test]
fn logprobs_have_an_entry_for_every_token() {
    let transcript = harness(FULL).run_one(Request { logprobs: Some(3), ..request(&[1], 10, options()) });
    let records: Vec<_> = transcript
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Committed(commit) => Some(&commit.tokens),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(records.len(), 10);
    assert!(records.iter().all(|record| record.logprob.is_some_and(|p| p < 0.0) && record.top.len() == 3));
    assert!(records.iter().all(|record| record.top[0].0 == record.id), "greedy: the likeliest, and never the mask");
}

/// A table that says `text` from position `start` on and then ends for good.
fn says(text: &str, start: usize) -> Rule {
    let mut table = vec![TokenId(0); start];
    table.extend(text.bytes().map(|byte| TokenId(u32::from(byte))));
    table.resize(512, END);
    Rule::Table(table)
}

#[test]
fn a_short_answer_does_not_pay_for_the_canvas() {
    for (attention, most) in [(FULL, 9), (blocks(4), 12)] {
        let mut harness = harness_with(says("Hello!", 3), attention, LogitAlignment::SameSlot, settings());
        let options = DiffusionOptions { policy: Some(Policy::Quota), ..DiffusionOptions::default() };
        let options = DiffusionOptions { remasking: Some(Remasking::Sequential), ..options };
        let stop = StopRules::default();
        let transcript = harness.run_one(Request { stop, ..request(&[1, 2, 3], 256, options) });
        assert_eq!(transcript.text, "Hello!");
        let finish = transcript.finish().unwrap();
        assert_eq!((finish.reason, finish.completion_tokens), (FinishReason::Stop, 7));
        assert!(finish.stats.forward_passes <= most, "{}", finish.stats.forward_passes);
    }
}

#[test]
fn stop_strings_cut_across_blocks() {
    let mut harness = harness_with(says("one two three", 1), FULL, LogitAlignment::SameSlot, settings());
    let options = DiffusionOptions { block_length: Some(4), ..DiffusionOptions::default() };
    let stop = StopRules { strings: vec!["wo t".into()], ..StopRules::default() };
    let transcript = harness.run_one(Request { stop, ..request(&[1], 32, options) });
    assert_eq!(transcript.text, "one t");
    assert_eq!(transcript.finish().unwrap().stop_string.as_deref(), Some("wo t"));
}

#[test]
fn min_tokens_holds_the_end_back() {
    let mut harness = harness_with(says("Hi", 1), FULL, LogitAlignment::SameSlot, settings());
    let stop = StopRules { min_tokens: 5, ..StopRules::default() };
    let transcript = harness.run_one(Request { stop, ..request(&[1], 32, DiffusionOptions::default()) });
    assert_eq!(transcript.tokens.len(), 6, "five tokens, then the end");
    assert_eq!(transcript.tokens[5], END);
}

#[test]
fn holes_have_texts_of_their_own() {
    let mut table = vec![TokenId(0); 512];
    for (at, text) in [(2, "ab"), (10, "xyz")] {
        for (offset, byte) in text.bytes().enumerate() {
            table[at + offset] = TokenId(u32::from(byte));
        }
    }
    table[4] = END;
    let mut harness = harness_with(Rule::Table(table), FULL, LogitAlignment::SameSlot, settings());
    let given = |text: &str| InfillPart::Fixed(text.bytes().map(|byte| TokenId(u32::from(byte))).collect());
    let infill = vec![InfillPart::Hole(5), given("-+-"), InfillPart::Hole(3), given("!")];
    let stop = StopRules::default();
    let request = Request { infill, stop, max_tokens: None, ..request(&[1, 2], 0, DiffusionOptions::default()) };
    let transcript = harness.run_one(request);
    let mut texts = [String::new(), String::new()];
    for event in &transcript.events {
        if let Event::Committed(commit) = event {
            texts[commit.hole].push_str(&commit.text);
        }
    }
    assert_eq!(texts, ["ab", "xyz"]);
    let finish = transcript.finish().unwrap();
    assert_eq!((finish.reason, finish.completion_tokens), (FinishReason::Length, 6));
    assert_eq!(harness.pages_used(), 0);
}

#[test]
fn equal_beginnings_are_read_once() {
    let tokens: Vec<u32> = (0..100).collect();
    let ar = DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
    let causal = || model(Scripted::causal(Rule::Hash { seed: 7 }, BYTE_VOCAB, 512)).unwrap();
    let units = |alignment| {
        let backbone =
            Scripted::diffusion(Rule::Hash { seed: 7 }, BYTE_VOCAB, 512, blocks(8)).with_alignment(alignment);
        model(backbone).unwrap()
    };
    let cases: [(&dyn Fn() -> engine::LoadedModel, DecodingOptions, usize); 3] = [
        (&causal, ar, 96),
        (&|| units(LogitAlignment::SameSlot), DecodingOptions::default(), 96),
        (&|| units(LogitAlignment::NextSlot), DecodingOptions::default(), 96),
    ];
    for (make, decoding, shared) in cases {
        let ask =
            |prompt: &[u32]| Request { decoding: decoding.clone(), ..request(prompt, 30, DiffusionOptions::default()) };
        let fresh = |prompt: &[u32]| Harness::new(make(), settings()).unwrap().run_one(ask(prompt)).tokens;
        let mut harness = Harness::new(make(), settings()).unwrap();
        let cached = |transcript: &Transcript| transcript.finish().unwrap().stats.cached_tokens;
        let first = harness.run_one(ask(&tokens));
        assert_eq!((cached(&first), &first.tokens), (0, &fresh(&tokens)));
        let again = harness.run_one(ask(&tokens));
        assert_eq!((cached(&again), &again.tokens), (shared, &first.tokens));
        // Another end, and a beginning that ends within a page.
        let other: Vec<u32> = tokens[..70].iter().copied().chain([200, 201]).collect();
        let other_text = harness.run_one(ask(&other));
        assert_eq!((cached(&other_text), &other_text.tokens), (64, &fresh(&other)));
        // The next turn of a chat: what was generated is shared too.
        let turn: Vec<u32> = tokens.iter().copied().chain(first.tokens.iter().map(|token| token.0)).collect();
        let turn: Vec<u32> = turn.into_iter().chain([203; 9]).collect();
        let next = harness.run_one(ask(&turn));
        assert_eq!(next.tokens, fresh(&turn));
        assert!(cached(&next) >= shared);
        assert_eq!(harness.pages_used(), 0);
    }
    // A whole canvas depends on all of its tokens: nothing is shared.
    let mut whole = harness(FULL);
    for _ in 0..2 {
        let transcript = whole.run_one(request(&tokens, 8, options()));
        assert_eq!(transcript.finish().unwrap().stats.cached_tokens, 0);
    }
}

#[test]
fn a_client_that_leaves_frees_its_canvas_within_one_step() {
    let mut harness = harness(FULL);
    let stream = harness.submit(request(&[1; 50], 200, DiffusionOptions::default()));
    let slow = DiffusionOptions { policy: Some(Policy::Quota), ..DiffusionOptions::default() };
    let stays = harness.submit(request(&[2; 50], 32, slow));
    for _ in 0..3 {
        harness.step();
    }
    let both = harness.pages_used();
    // 200 tokens are a canvas of seven blocks.
    assert_eq!(both, 274usize.div_ceil(32) + 82usize.div_ceil(32));
    drop(stream);
    harness.step();
    assert_eq!(harness.pages_used(), 82usize.div_ceil(32));
    drop(stays);
    harness.step();
    assert_eq!(harness.pages_used(), 0);
}

#[test]
fn requests_that_fit_no_model_are_refused_at_submit() {
    let start = |backbone| engine::Engine::start(model(backbone).unwrap(), settings()).unwrap();
    let diffusion = start(Scripted::diffusion(Rule::Successor, BYTE_VOCAB, 512, FULL));
    let causal = start(Scripted::causal(Rule::Successor, BYTE_VOCAB, 512));
    let param = |engine: &engine::Engine, request: Request| match engine.submit(vec![request]) {
        Err(SubmitError::InvalidParameter { param, .. }) => param,
        other => panic!("{other:?}"),
    };
    let with = |strategy| {
        let decoding = DecodingOptions { strategy, ..DecodingOptions::default() };
        Request { decoding, ..Request::new(vec![TokenId(1)]) }
    };
    assert_eq!(param(&diffusion, with(Strategy::Ar)), "decoding.strategy");
    assert_eq!(param(&diffusion, with(Strategy::Jacobi)), "decoding.strategy");
    assert_eq!(param(&causal, with(Strategy::Diffusion)), "decoding.strategy");
    assert_eq!(param(&causal, request(&[1], 4, options())), "decoding");
    let holes = Request { infill: vec![InfillPart::Hole(3)], ..Request::new(vec![TokenId(1)]) };
    assert_eq!(param(&causal, holes), "suffix");
    let frames = Request { frames: true, ..Request::new(vec![TokenId(1)]) };
    assert_eq!(param(&causal, frames), "stream_options.include_frames");
    let masked = Request::new(vec![TokenId(1), MASK]);
    assert_eq!(param(&diffusion, masked), "prompt");
}
