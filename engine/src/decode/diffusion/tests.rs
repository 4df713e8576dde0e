//! Loop traces of the LocalLeap specification, and the decoder on mock models: no tensors.

use models::{BackboneSpec, BlockOrigin, DiffusionHints, KvLayout};

use super::*;
use crate::{
    cost::{CostTable, PassCost},
    decode::{EndRule, commit::LocalLeap},
    request::{DecodingOptions, DiffusionOptions, EarlyStop, InfillPart, Policy, Preset, Request, StopRules},
};

const MASK: TokenId = TokenId(99);
const END: TokenId = TokenId(98);

fn spec(attention: AttentionKind, alignment: LogitAlignment) -> BackboneSpec {
    BackboneSpec {
        family: "llada".into(),
        vocab_size: 100,
        context_len: 256,
        attention,
        alignment,
        mask_id: Some(MASK),
        kv: KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 2, element_bytes: 4 },
        has_solver: false,
        num_params: 0,
        num_active_params: 0,
        attention_dim: 1,
        weight_bytes: 0,
    }
}

fn full() -> BackboneSpec {
    spec(AttentionKind::Full, LogitAlignment::SameSlot)
}

fn blocks(block_len: usize, alignment: LogitAlignment) -> BackboneSpec {
    spec(AttentionKind::BlockCausal { block_len, origin: BlockOrigin::Start }, alignment)
}

fn request(prompt_len: usize, max_tokens: usize, diffusion: DiffusionOptions) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        decoding: DecodingOptions { diffusion, ..DecodingOptions::default() },
        ..Request::new((0..prompt_len as u32).map(TokenId).collect())
    }
}

fn decoder(spec: &BackboneSpec, request: &Request) -> Diffusion {
    let config = DiffusionConfig::resolve(spec, spec.context_len, DiffusionHints::default(), request).unwrap();
    Diffusion::new(config, &request.prompt)
}

/// What one run of a decoder did.
#[derive(Debug, Default, PartialEq)]
struct Trace {
    /// Positions fixed by each pass with scores.
    fixed: Vec<Vec<usize>>,
    /// Rows fed by each pass.
    spans: Vec<Range<usize>>,
    /// Tokens that left, in order.
    text: Vec<TokenId>,
}

/// Runs a decoder against `mock(position, tokens on the canvas) -> (token, confidence)` until the text ends or `max`
/// tokens have left.
fn run(
    decoder: &mut Diffusion,
    max: usize,
    row_cap: usize,
    mock: impl Fn(usize, &[TokenId]) -> (TokenId, f32),
) -> Trace {
    let (table, stop) = (CostTable::from_points(Vec::new()), StopRules::default());
    let own = [END];
    let mut tokens = decoder.canvas.tokens()[..decoder.prompt_len].to_vec();
    let prompt_len = tokens.len();
    let mut kv_len = 0;
    let mut trace = Trace::default();
    let ahead = decoder.ahead();
    for _ in 0..10_000 {
        let seq = SeqView {
            tokens: &tokens,
            prompt_len,
            kv_len,
            budget_left: max - trace.text.len(),
            row_cap,
            cost: PassCost::new(&table, 0, 0.0),
            ends: EndRule { own: &own, stop: &stop },
        };
        let plan = decoder.plan(&seq);
        assert_eq!(plan, decoder.plan(&seq), "the same state, the same plan");
        let first = plan.start + plan.scored.start + ahead;
        let scores = (first..first + plan.scored.len()).map(|position| {
            let (token, confidence) = mock(position, decoder.canvas.tokens());
            TokenScore { token, confidence: Some(confidence), ..TokenScore::default() }
        });
        let scores: Vec<_> = scores.collect();
        let outcome = decoder.judge(&seq, &plan, scores).unwrap();
        kv_len = match outcome.kv {
            KvEffect::Keep => plan.end(),
            KvEffect::Truncate(len) => len,
            KvEffect::Refresh => 0,
        };
        trace.spans.push(plan.start..plan.end());
        if let Some(change) = outcome.canvas {
            trace.fixed.push(change.fixed.iter().map(|(slot, _)| slot + prompt_len).collect());
        }
        for score in outcome.commits {
            tokens.push(score.token);
            trace.text.push(score.token);
            if score.token == END || trace.text.len() == max {
                return trace;
            }
        }
        if decoder.canvas.block().is_none() {
            return trace;
        }
    }
    panic!("no end: {trace:?}");
}

/// The mock of the specification: percent confidence of slot `j` is `min(99, base[j] + 2 n)` with `n` slots filled.
fn mock(base: [u32; 16], ends: &[usize]) -> impl Fn(usize, &[TokenId]) -> (TokenId, f32) {
    let ends = ends.to_vec();
    move |position, tokens| {
        let filled = tokens[3..].iter().filter(|token| **token != MASK).count() as u32;
        let percent = (base[position - 3] + 2 * filled).min(99);
        let token = if ends.contains(&position) { END } else { TokenId(position as u32) };
        (token, percent as f32 / 100.0)
    }
}

const BASE: [u32; 16] = [70, 88, 93, 77, 60, 79, 91, 74, 50, 64, 66, 80, 62, 72, 58, 69];

fn options() -> DiffusionOptions {
    DiffusionOptions { block_length: Some(8), gen_length: Some(16), ..DiffusionOptions::default() }
}

fn local_leap() -> DiffusionOptions {
    DiffusionOptions { radius: Some(2), ..options() }
}

#[test]
fn loop_trace_of_local_leap() {
    let mut decoder = decoder(&full(), &request(3, 16, local_leap()));
    let trace = run(&mut decoder, 16, 1, mock(BASE, &[]));
    let expected: [&[usize]; 7] = [&[4, 5, 6, 8, 9], &[10], &[3], &[7], &[12, 13, 14, 15, 16], &[17, 18], &[11]];
    assert_eq!(trace.fixed, expected);
    let stats = decoder.diffusion().unwrap();
    assert_eq!((stats.denoising_steps, stats.blocks), (7, 2));
    assert_eq!(stats.commits.top + stats.commits.anchor + stats.commits.relaxed, 16);
    assert_eq!(trace.text, (3..19).map(TokenId).collect::<Vec<_>>());
}

#[test]
fn loop_trace_of_the_threshold() {
    let options = DiffusionOptions { policy: Some(Policy::Threshold), ..options() };
    let trace = run(&mut decoder(&full(), &request(3, 16, options)), 16, 1, mock(BASE, &[]));
    let expected: [&[usize]; 15] =
        [&[5, 9], &[4], &[8], &[6], &[10], &[3], &[7], &[14], &[16], &[18], &[13], &[12], &[15], &[17], &[11]];
    assert_eq!(trace.fixed, expected);
}

#[test]
fn loop_trace_of_the_quota() {
    for (steps, passes) in [(16, 16), (8, 8)] {
        let options = DiffusionOptions { policy: Some(Policy::Quota), steps: Some(steps), ..options() };
        let trace = run(&mut decoder(&full(), &request(3, 16, options)), 16, 1, mock(BASE, &[]));
        assert_eq!(trace.fixed.len(), passes);
        assert!(trace.fixed.iter().all(|fixed| fixed.len() == 16 / steps));
    }
}

#[test]
fn loop_trace_of_one_large_block() {
    let options = DiffusionOptions { block_length: Some(16), ..local_leap() };
    let trace = run(&mut decoder(&full(), &request(3, 16, options)), 16, 1, mock(BASE, &[]));
    let expected: [&[usize]; 8] = [&[4, 5, 6, 8, 9], &[13, 14, 16], &[10, 12], &[3], &[17, 18], &[15], &[7], &[11]];
    assert_eq!(trace.fixed, expected);
}

#[test]
fn an_end_token_stops_where_the_mode_says() {
    for (early_stop, end, passes, text_len) in [
        (EarlyStop::Block, 9, 4, 7),
        (EarlyStop::Prefix, 9, 4, 7),
        (EarlyStop::None, 9, 7, 7),
        (EarlyStop::Prefix, 4, 3, 2),
        (EarlyStop::Block, 4, 4, 2),
        (EarlyStop::None, 4, 7, 2),
    ] {
        let options = DiffusionOptions { early_stop: Some(early_stop), ..local_leap() };
        let mut decoder = decoder(&full(), &request(3, 16, options));
        let trace = run(&mut decoder, 16, 1, mock(BASE, &[end]));
        assert_eq!(trace.fixed.len(), passes, "{early_stop:?}, end at {end}");
        assert_eq!(trace.text.len(), text_len, "{early_stop:?}, end at {end}");
        assert_eq!(trace.text.last(), Some(&END));
        if early_stop == EarlyStop::Block {
            assert!(decoder.canvas.tokens()[11..].iter().all(|token| *token == END), "the rest is filled with ends");
        }
        assert!(early_stop == EarlyStop::Prefix || !decoder.canvas.tokens().contains(&MASK));
    }
}

#[test]
fn a_threshold_above_one_commits_one_token_a_pass() {
    let request = request(3, 16, local_leap());
    let config = DiffusionConfig::resolve(&full(), 256, DiffusionHints::default(), &request).unwrap();
    let policy = LocalLeap { threshold: 1.5, relaxed: Some(0.0), radius: 4 };
    let mut decoder = Diffusion::with_policy(config, &request.prompt, Box::new(policy));
    let trace = run(&mut decoder, 16, 1, mock(BASE, &[]));
    assert_eq!(trace.fixed.len(), 16);
    assert!(trace.fixed.iter().all(|fixed| fixed.len() == 1));
}

#[test]
fn a_quota_without_steps_is_one_slot_a_step_in_every_family() {
    for family in ["llada", "dream", "a2d"] {
        let options = DiffusionOptions { policy: Some(Policy::Quota), ..options() };
        let spec = BackboneSpec { family: family.into(), ..full() };
        let trace = run(&mut decoder(&spec, &request(3, 16, options)), 16, 1, mock(BASE, &[]));
        assert_eq!(trace.fixed.len(), 16, "{family}");
    }
}

#[test]
fn a_model_says_how_long_its_blocks_and_canvases_are() {
    let hints = DiffusionHints { block_length: Some(4), gen_length: Some(24), ..DiffusionHints::default() };
    let shape = |hints, request: &Request| {
        let config = DiffusionConfig::resolve(&full(), 256, hints, request).unwrap();
        (config.shape, config.capacity())
    };
    let open = Request { max_tokens: None, ..request(3, 16, DiffusionOptions::default()) };
    assert_eq!(shape(hints, &open), (Shape::Whole { block_len: 4 }, Some(24)));
    assert_eq!(
        shape(DiffusionHints::default(), &open),
        (Shape::Whole { block_len: 32 }, Some(253)),
        "cut to the context"
    );
    let asked = request(3, 10, DiffusionOptions { block_length: Some(8), ..DiffusionOptions::default() });
    assert_eq!(shape(hints, &asked), (Shape::Whole { block_len: 8 }, Some(16)), "the request comes first");
}

#[test]
fn a_model_says_how_sure_is_sure_enough() {
    let hints = DiffusionHints {
        threshold: Some(0.96),
        relaxed_threshold: Some(0.9),
        radius: Some(2),
        ..DiffusionHints::default()
    };
    let leap = |options: DiffusionOptions| match DiffusionConfig::resolve(&full(), 256, hints, &request(3, 16, options))
        .unwrap()
        .policy
    {
        PolicyConfig::LocalLeap { threshold, relaxed, radius } => {
            ((threshold * 1000.0).round(), (relaxed * 1000.0).round(), radius)
        }
        other => panic!("{other:?}"),
    };
    let preset = |preset| DiffusionOptions { preset: Some(preset), ..DiffusionOptions::default() };
    assert_eq!(leap(DiffusionOptions::default()), (960.0, 900.0, 2));
    assert_eq!(leap(preset(Preset::Balanced)), (960.0, 900.0, 2));
    assert_eq!(leap(preset(Preset::Quality)), (980.0, 950.0, 2));
    assert_eq!(leap(preset(Preset::Fast)), (920.0, 800.0, 2));
    let asked = DiffusionOptions { threshold: Some(0.7), radius: Some(5), ..DiffusionOptions::default() };
    assert_eq!(leap(asked), (700.0, 900.0, 5), "the request comes first");
}

#[test]
fn caches_feed_what_they_should() {
    let spans = |alignment, cache| {
        let options = DiffusionOptions { cache: Some(cache), policy: Some(Policy::Quota), steps: Some(4), ..options() };
        let spec = spec(AttentionKind::Full, alignment);
        run(&mut decoder(&spec, &request(3, 16, options)), 16, 1, mock(BASE, &[])).spans
    };
    use CacheMode::{Dual, None, Prefix};
    use LogitAlignment::{NextSlot, SameSlot};
    assert_eq!(spans(SameSlot, None), [0..19, 0..19, 0..19, 0..19]);
    assert_eq!(spans(SameSlot, Prefix), [0..19, 3..19, 0..19, 11..19]);
    assert_eq!(spans(SameSlot, Dual), [0..19, 3..11, 0..19, 11..19]);
    assert_eq!(spans(NextSlot, Prefix), [0..19, 2..19, 0..19, 10..19], "the row before scores the first slot");
    assert_eq!(spans(NextSlot, Dual), [0..19, 2..11, 0..19, 10..19]);
}

#[test]
fn finished_blocks_are_fed_once_more_with_the_next() {
    let options = DiffusionOptions { policy: Some(Policy::Quota), steps: Some(2), ..DiffusionOptions::default() };
    let any = |position: usize, _: &[TokenId]| (TokenId(position as u32), 0.5);
    // SDAR divides whole blocks: two slots a step, also where the prompt takes a part.
    let spec = BackboneSpec { family: "sdar".into(), ..blocks(4, LogitAlignment::SameSlot) };
    let trace = run(&mut decoder(&spec, &request(6, 8, options.clone())), 8, 8, any);
    // Slots 6 and 7 share the block 4..8 with the prompt; then 8..12 and 12..16 follow, of which two slots are asked.
    assert_eq!(trace.spans, [0..8, 4..12, 8..12, 8..16]);
    assert_eq!(trace.fixed, [vec![6, 7], vec![8, 9], vec![10, 11], vec![12, 13]]);
    let plain = DiffusionOptions { cache: Some(CacheMode::None), ..options };
    let uncached = run(&mut decoder(&spec, &request(6, 8, plain)), 8, 8, any);
    assert_eq!((uncached.fixed, uncached.text), (trace.fixed, trace.text), "the cache changes no commit");
}

#[test]
fn a_long_prompt_is_read_in_whole_blocks() {
    let any = |position: usize, _: &[TokenId]| (TokenId(position as u32), 0.99);
    let spec = blocks(4, LogitAlignment::SameSlot);
    let request = request(41, 4, DiffusionOptions::default());
    assert_eq!(run(&mut decoder(&spec, &request), 3, 18, any).spans, [0..16, 16..32, 32..44]);
    assert_eq!(run(&mut decoder(&spec, &request), 3, 1, any).spans.len(), 10, "never less than a block");
}

#[test]
fn the_last_row_of_a_block_hands_over_the_next_token() {
    let any = |position: usize, _: &[TokenId]| (TokenId(position as u32), 0.99);
    let spec = blocks(4, LogitAlignment::NextSlot);
    for prompt_len in [3, 4, 5, 8] {
        let request = request(prompt_len, 9, DiffusionOptions::default());
        let trace = run(&mut decoder(&spec, &request), 9, 64, any);
        assert_eq!(trace.text, (prompt_len as u32..prompt_len as u32 + 9).map(TokenId).collect::<Vec<_>>());
        let borders = trace.fixed.iter().filter(|fixed| fixed[0] % 4 == 0);
        assert!(borders.clone().count() >= 2);
        assert!(borders.clone().all(|fixed| fixed.len() == 1), "handed over alone: {:?}", trace.fixed);
        // The pass that hands over also stores the finished block.
        for (span, fixed) in trace.spans.iter().zip(&trace.fixed).filter(|(_, fixed)| fixed[0] % 4 == 0) {
            assert_eq!(span.end, fixed[0]);
        }
    }
}

#[test]
fn editing_overwrites_and_ends() {
    // Every slot first proposes 50 with confidence 0.8, and once the block is full its own token.
    let fickle = |position: usize, tokens: &[TokenId]| {
        let is_full = !tokens.contains(&MASK);
        (if is_full { TokenId(position as u32) } else { TokenId(50) }, 0.8)
    };
    let options = DiffusionOptions { policy: Some(Policy::Editing), ..DiffusionOptions::default() };
    let mut decoder = decoder(&blocks(4, LogitAlignment::SameSlot), &request(4, 4, options.clone()));
    let trace = run(&mut decoder, 4, 64, fickle);
    assert_eq!(trace.fixed, [vec![4, 5, 6, 7], vec![4, 5, 6, 7], vec![]], "filled, edited, confirmed");
    assert_eq!(trace.text, (4..8).map(TokenId).collect::<Vec<_>>(), "nothing leaves before it is confirmed");
    assert_eq!(decoder.diffusion().unwrap().edits, 4);
    // A model that never settles is stopped.
    let restless = |position: usize, tokens: &[TokenId]| {
        (if tokens[position] == TokenId(1) { TokenId(2) } else { TokenId(1) }, 0.8)
    };
    let options = DiffusionOptions { max_post_steps: Some(5), ..options };
    let mut decoder = self::decoder(&blocks(4, LogitAlignment::SameSlot), &request(4, 4, options));
    assert_eq!(run(&mut decoder, 4, 64, restless).fixed.len(), 1 + 5);
}

#[test]
fn holes_are_filled_one_after_another_and_end_by_themselves() {
    let infill = vec![InfillPart::Hole(6), InfillPart::Fixed(vec![TokenId(40), TokenId(41)]), InfillPart::Hole(3)];
    let request = Request { infill, ..request(3, 9, DiffusionOptions::default()) };
    let mut decoder = decoder(&full(), &request);
    // The first hole, positions 3..9, ends at 5; the second is 11..14.
    let trace = run_to_end(&mut decoder, |position, _| {
        (if position == 5 { END } else { TokenId(position as u32) }, if position < 6 { 0.95 } else { 0.2 })
    });
    assert_eq!(trace.text, [3, 4, 98, 11, 12, 13].map(TokenId));
    assert_eq!(trace.fixed, [vec![3, 4, 5], vec![11], vec![12], vec![13]]);
    assert_eq!(decoder.canvas.tokens()[9..11], [TokenId(40), TokenId(41)]);
}

/// As [`run`], but end tokens do not stop it.
fn run_to_end(decoder: &mut Diffusion, mock: impl Fn(usize, &[TokenId]) -> (TokenId, f32)) -> Trace {
    let (table, stop, own) = (CostTable::from_points(Vec::new()), StopRules::default(), [END]);
    let tokens = decoder.canvas.tokens()[..decoder.prompt_len].to_vec();
    let mut trace = Trace::default();
    while decoder.canvas.block().is_some() {
        let ends = EndRule { own: &own, stop: &stop };
        let cost = PassCost::new(&table, 0, 0.0);
        let seq = SeqView { tokens: &tokens, prompt_len: 3, kv_len: 0, budget_left: 9, row_cap: 99, cost, ends };
        let plan = decoder.plan(&seq);
        let first = plan.start + plan.scored.start;
        let score = |position| {
            let (token, confidence) = mock(position, decoder.canvas.tokens());
            TokenScore { token, confidence: Some(confidence), ..TokenScore::default() }
        };
        let scores = (first..first + plan.scored.len()).map(score).collect();
        let outcome = decoder.judge(&seq, &plan, scores).unwrap();
        let fixed = outcome.canvas.unwrap().fixed;
        trace.fixed.push(fixed.iter().map(|(slot, _)| slot + 3).collect());
        trace.text.extend(outcome.commits.iter().map(|score| score.token));
    }
    trace
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let diffusion = |diffusion: DiffusionOptions| request(3, 16, diffusion);
    let base = DiffusionOptions::default;
    let error = |spec: &BackboneSpec, request: &Request| match DiffusionConfig::resolve(
        spec,
        256,
        DiffusionHints::default(),
        request,
    ) {
        Err(crate::SubmitError::InvalidParameter { param, .. }) => param,
        other => panic!("{other:?} for {request:?}"),
    };
    let whole = full();
    let units = blocks(4, LogitAlignment::SameSlot);
    for (options, param) in [
        (DiffusionOptions { threshold: Some(0.0), ..base() }, "decoding.threshold"),
        (DiffusionOptions { threshold: Some(1.1), ..base() }, "decoding.threshold"),
        (DiffusionOptions { threshold: Some(f32::NAN), ..base() }, "decoding.threshold"),
        (DiffusionOptions { relaxed_threshold: Some(-0.1), ..base() }, "decoding.relaxed_threshold"),
        (DiffusionOptions { steps: Some(0), ..base() }, "decoding.steps"),
        (DiffusionOptions { policy: Some(Policy::Quota), steps: Some(usize::MAX), ..base() }, "decoding.steps"),
        (DiffusionOptions { block_length: Some(usize::MAX), ..base() }, "decoding.block_length"),
        (
            DiffusionOptions { policy: Some(Policy::Editing), max_post_steps: Some(usize::MAX), ..base() },
            "decoding.max_post_steps",
        ),
        (DiffusionOptions { steps: Some(8), ..base() }, "decoding.steps"),
        (DiffusionOptions { gen_length: Some(1000), ..base() }, "decoding.gen_length"),
        (DiffusionOptions { cache: Some(CacheMode::Block), ..base() }, "decoding.cache"),
        (DiffusionOptions { policy: Some(Policy::Quota), threshold: Some(0.5), ..base() }, "decoding.threshold"),
        (DiffusionOptions { policy: Some(Policy::Threshold), radius: Some(3), ..base() }, "decoding.radius"),
        (DiffusionOptions { remasking: Some(crate::request::Remasking::Entropy), ..base() }, "decoding.remasking"),
    ] {
        assert_eq!(error(&whole, &diffusion(options)), param);
    }
    for (options, param) in [
        (DiffusionOptions { cache: Some(CacheMode::Dual), ..base() }, "decoding.cache"),
        (DiffusionOptions { gen_length: Some(8), ..base() }, "decoding.gen_length"),
        (DiffusionOptions { block_length: Some(3), ..base() }, "decoding.block_length"),
    ] {
        assert_eq!(error(&units, &diffusion(options)), param);
    }
    let hole = Request { infill: vec![InfillPart::Hole(4)], ..diffusion(base()) };
    assert_eq!(error(&units, &hole), "suffix");
    let masked = Request { prompt: vec![TokenId(1), MASK], ..diffusion(base()) };
    assert_eq!(error(&whole, &masked), "prompt");
    assert_eq!(error(&whole, &Request { prompt_logprobs: Some(0), ..diffusion(base()) }), "prompt_logprobs");
}

#[test]
fn a_slot_that_was_handed_over_is_not_edited() {
    let restless = |position: usize, tokens: &[TokenId]| {
        (if tokens.get(position) == Some(&TokenId(1)) { TokenId(2) } else { TokenId(1) }, 0.8)
    };
    for block_length in [1, 2, 4] {
        let options = DiffusionOptions {
            policy: Some(Policy::Editing),
            block_length: Some(block_length),
            max_post_steps: Some(2),
            ..DiffusionOptions::default()
        };
        let mut decoder = decoder(&blocks(4, LogitAlignment::NextSlot), &request(4, 8, options));
        let trace = run(&mut decoder, 8, 64, restless);
        assert_eq!(trace.text.len(), 8, "blocks of {block_length}");
        assert_eq!(trace.text[0], TokenId(1), "handed over, and still what it was");
    }
}

#[test]
fn without_steps_the_quota_is_one_slot_a_step() {
    for (block_length, gen_length) in [(8, 20), (32, 40), (5, 16)] {
        let (block_length, gen_length) = (Some(block_length), Some(gen_length));
        let options =
            DiffusionOptions { policy: Some(Policy::Quota), block_length, gen_length, ..DiffusionOptions::default() };
        let trace =
            run(&mut decoder(&full(), &request(3, 40, options)), 40, 1, |position, _| (TokenId(position as u32), 0.5));
        assert_eq!(trace.fixed.len(), gen_length.unwrap());
    }
}

#[test]
fn no_unit_is_opened_beyond_the_limit() {
    let ends = |_: usize, _: &[TokenId]| (END, 0.99);
    let options = DiffusionOptions { early_stop: Some(EarlyStop::None), ..DiffusionOptions::default() };
    let mut decoder = decoder(&blocks(4, LogitAlignment::SameSlot), &request(6, 5, options));
    let trace = run(&mut decoder, 5, 64, ends);
    assert_eq!((trace.text.as_slice(), decoder.canvas.tokens().len()), (&[END][..], 12));
    assert_eq!(decoder.diffusion().unwrap().blocks, 2, "the unit of the prompt's end, and one more");
}
