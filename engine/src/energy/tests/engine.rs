//! Metering through the worker: what passes compute is what is charged.

use models::AttentionKind;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    DecodingOptions, EngineSettings, Event, Finish, Request, Strategy as Decoding, TokenId,
    energy::{SourceClass, Status, Unavailable},
    testing::{BYTE_VOCAB, Harness, Rule, Scripted, model, scripted},
};

fn engine_settings() -> EngineSettings {
    EngineSettings { threads: Some(1), max_concurrent: 16, kv_tokens: Some(4096), ..EngineSettings::default() }
}

fn request(prompt: Vec<u32>, max_tokens: usize, strategy: Decoding) -> Request {
    let decoding = DecodingOptions { strategy, ..DecodingOptions::default() };
    let prompt = prompt.into_iter().map(TokenId).collect();
    Request { max_tokens: Some(max_tokens), decoding, ..Request::new(prompt) }
}

/// The last event, if it has come.
fn finish(stream: &mut mpsc::Receiver<Event>) -> Option<Finish> {
    while let Ok(event) = stream.try_recv() {
        if let Event::Finished(finish) = event {
            return Some(finish);
        }
    }
    None
}

#[test]
fn sums_stay_exact_with_many_requests_that_come_and_go() {
    let bench = Bench::new();
    let wrapping = SourceClass::Counter { modulus_uj: Some(50_000_000) };
    let domain = |id, class| crate::energy::Domain { max_watts: 80.0, ..ScriptedMeter::host(id, class) };
    bench.meter.add(domain("rapl:package-0", wrapping), 40.0);
    bench.meter.add(domain("rapl:dram-0", SourceClass::InstantPower { averaging: None }), 3.7);
    let (monitor, mut sampler) = bench.start();
    let mut harness = Harness::metered(scripted(Rule::Hash { seed: 5 }).unwrap(), engine_settings(), &monitor).unwrap();
    let mut runner = TestRunner::deterministic();
    let mut draw = |range: std::ops::Range<u32>| range.new_tree(&mut runner).unwrap().current();
    let mut streams: Vec<Option<mpsc::Receiver<Event>>> = Vec::new();
    let mut tickets = Vec::new();
    let mut measured = vec![0; 2];
    let mut turn = 0;
    loop {
        turn += 1;
        if streams.len() < 64 {
            let prompt = (0..draw(1..200)).map(|i| (i * 31 + turn) % 256).collect();
            let strategy = if draw(0..2) == 0 { Decoding::Ar } else { Decoding::Jacobi };
            streams.push(Some(harness.submit(request(prompt, draw(1..40) as usize, strategy))));
        }
        let busy = harness.step();
        for stream in &mut streams {
            if let Some(finish) = stream.as_mut().and_then(finish) {
                tickets.push(finish.ticket.unwrap());
                *stream = None;
            } else if draw(0..60) == 0 {
                // The client goes away.
                *stream = None;
            }
        }
        bench.clock.advance(Duration::from_micros(draw(1..9000).into()));
        if draw(0..50) == 0 {
            let failure = (draw(0..2) == 0).then_some(Unavailable::ReadFailed);
            bench.meter.fail("rapl:dram-0", failure);
        }
        sampler.tick();
        let now = check_sums(&monitor);
        assert!(now.iter().zip(&measured).all(|(now, before)| now >= before), "{now:?} after {measured:?}");
        measured = now;
        if !busy && streams.len() == 64 {
            break;
        }
        assert!(turn < 100_000);
    }
    bench.meter.fail("rapl:dram-0", None);
    bench.clock.advance(5 * MS);
    sampler.hurry();
    check_sums(&monitor);
    assert!(tickets.len() > 10, "{}", tickets.len());
    for ticket in tickets {
        assert!(monitor.request(&[ticket]).unwrap().is_final);
    }
    let snapshot = monitor.snapshot();
    let accounts = snapshot.accounts;
    let given = accounts.requests_uj + accounts.idle_uj + accounts.load_uj + accounts.warmup_uj + accounts.other_uj;
    assert_eq!(given, check_sums(&monitor).iter().sum::<u64>());
}

/// Runs a request to its end, with 10 ms between its passes.
fn charged(harness: &mut Harness, bench: &Bench, sampler: &mut HandSampler, request: Request) -> Finish {
    let mut stream = harness.submit(request);
    loop {
        harness.step();
        bench.clock.advance(10 * MS);
        sampler.tick();
        if let Some(finish) = finish(&mut stream) {
            sampler.hurry();
            return finish;
        }
    }
}

/// Passes that take a millisecond for each row, so that energy tells how many rows there were.
#[derive(Debug)]
struct Ticking<B> {
    inner: B,
    clock: ManualClock,
}

impl<B: models::Backbone> models::Backbone for Ticking<B> {
    fn spec(&self) -> &models::BackboneSpec {
        self.inner.spec()
    }

    fn forward(
        &mut self,
        batch: &models::ForwardBatch<'_>,
        kv: &mut models::KvCache,
    ) -> Result<models::Logits, models::ModelError> {
        self.clock.advance(MS * batch.num_rows() as u32);
        self.inner.forward(batch, kv)
    }
}

fn ticking(bench: &Bench, rule: Rule) -> models::source::LoadedModel {
    model(Ticking { inner: Scripted::causal(rule, BYTE_VOCAB, 2048), clock: bench.clock.clone() }).unwrap()
}

#[test]
fn a_prompt_is_prefill_and_what_was_cached_costs_nothing() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    sampler.hurry();
    let mut harness = Harness::metered(ticking(&bench, Rule::Hash { seed: 5 }), engine_settings(), &monitor).unwrap();
    sampler.hurry();
    assert!(monitor.snapshot().accounts.warmup_uj > 0, "the calibration");
    let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 256).collect();
    let run = |harness: &mut Harness, sampler: &mut HandSampler| {
        let finish = charged(harness, &bench, sampler, request(prompt.clone(), 5, Decoding::Ar));
        let energy = monitor.request(&[finish.ticket.unwrap()]).unwrap();
        assert_eq!(energy.status, Status::Measured);
        (finish.stats.cached_tokens, energy.prefill_uj.unwrap(), energy.decode_uj.unwrap())
    };
    // 10 mJ a row; four more passes of one row each.
    let (cached, prefill, decode) = run(&mut harness, &mut sampler);
    assert_eq!((cached, prefill, decode), (0, 1_000_000, 40_000));
    let (cached, prefill, decode) = run(&mut harness, &mut sampler);
    assert!(cached >= 64);
    assert_eq!((prefill, decode), (10_000 * (100 - cached as u64), 40_000));
    check_sums(&monitor);
}

#[test]
fn rejected_drafts_are_charged() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    let mut harness = Harness::metered(ticking(&bench, Rule::Hash { seed: 5 }), engine_settings(), &monitor).unwrap();
    let mut decode = |strategy| {
        let prompt = (0..20).map(|i| i * 7 % 256).collect();
        let mut asked = request(prompt, 10, strategy);
        (asked.decoding.width, asked.decoding.adaptive) = (Some(8), Some(false));
        let finish = charged(&mut harness, &bench, &mut sampler, asked);
        let energy = monitor.request(&[finish.ticket.unwrap()]).unwrap();
        (energy.decode_uj.unwrap(), finish.stats.scored_rows as u64)
    };
    let (ar, rows) = decode(Decoding::Ar);
    assert_eq!((ar, rows), (90_000, 10));
    let (jacobi, rows) = decode(Decoding::Jacobi);
    assert!(rows > 20);
    // All scored rows but the last of the prompt, which is prefill.
    assert!(jacobi >= 10_000 * (rows - 1), "{jacobi} for {rows} rows");
    check_sums(&monitor);
}

#[test]
fn every_pass_over_a_canvas_is_charged() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    sampler.hurry();
    let inner = Scripted::diffusion(Rule::Hash { seed: 5 }, BYTE_VOCAB, 512, AttentionKind::Full);
    let mut harness =
        Harness::metered(model(Ticking { inner, clock: bench.clock.clone() }).unwrap(), engine_settings(), &monitor)
            .unwrap();
    let prompt = (0..20).map(|i| i * 7 % 256).collect();
    let finish = charged(&mut harness, &bench, &mut sampler, request(prompt, 32, Decoding::Diffusion));
    let energy = monitor.request(&[finish.ticket.unwrap()]).unwrap();
    assert_eq!(energy.status, Status::Measured);
    assert_eq!(energy.prefill_uj, Some(200_000), "the prompt is read once");
    assert!(energy.decode_uj.unwrap() > 10_000 * 32, "{energy:?}");
    check_sums(&monitor);
}
