//! The same readings and the same steps give the same accounts, bit for bit.

use std::sync::Arc;

use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

use super::*;
use crate::energy::{
    SourceClass,
    core::Core,
    providers::{
        record::Recorder,
        replay::{Replay, TraceClock},
    },
    steps::{Account, Phase, Share},
    types::{Clock, Nanos},
};

/// Steps as a log of beginnings and ends: `(time, ticket)`, and the end of the step before if there is no ticket.
type Steps = Vec<(Nanos, Option<u64>)>;

fn shares(core: &mut Core, model: usize, number: u64) -> Vec<Share> {
    let ticket = core.open(model);
    let share = |phase, weight| Share { account: Account::Request(ticket, phase), weight };
    vec![share(Phase::Prefill, number % 7), share(Phase::Decode, number % 3)]
}

fn play(core: &mut Core, (at, step): (Nanos, Option<u64>), open: &mut Option<u64>) {
    match step {
        Some(number) => {
            let model = core.add_model("m");
            let shares = shares(core, model, number);
            *open = Some(core.begin_step(at, &[], &shares).0);
        }
        None => {
            if let Some(id) = open.take() {
                core.end_step(at, id);
            }
        }
    }
}

/// Everything that accounts hold.
fn accounts(monitor: &EnergyMonitor) -> String {
    let core = monitor.0.core();
    let tracks: Vec<_> = core.tracks.iter().map(|t| (t.measured_uj, t.system, t.gap, t.wraps(), t.resets())).collect();
    format!("{tracks:?} {:?} {:?}", core.models, core.requests)
}

#[test]
fn a_recorded_trace_gives_the_same_accounts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let bench = Bench::new();
    let wrapping = SourceClass::Counter { modulus_uj: Some(90_000_000) };
    let slow = |id, class| crate::energy::Domain { max_watts: 60.0, ..ScriptedMeter::host(id, class) };
    bench.meter.add(slow("a", wrapping), 40.0);
    bench.meter.add(slow("b", SourceClass::InstantPower { averaging: None }), 1.0 / 3.0);
    let clock: Arc<dyn Clock> = Arc::new(bench.clock.clone());
    let recorder = Recorder::create(&path, vec![bench.meter.provider()], clock.clone()).unwrap();
    let (monitor, mut sampler) = EnergyMonitor::new(&settings(), vec![Box::new(recorder)], clock.clone());
    let mut runner = TestRunner::deterministic();
    let mut steps = Steps::new();
    let mut open = None;
    sampler.tick(true);
    for number in 0..400u64 {
        let (gap, watts) = (1u64..40, 0.0..50.0f64).new_tree(&mut runner).unwrap().current();
        bench.meter.set_watts("b", watts);
        if number % 50 == 30 {
            bench.meter.fail("a", Some(crate::energy::Unavailable::ReadFailed));
        } else if number % 50 == 35 {
            bench.meter.fail("a", None);
        }
        bench.clock.advance(Duration::from_micros(1000 * gap + 137));
        let event = (clock.now(), (number % 2 == 0).then_some(number));
        steps.push(event);
        play(&mut monitor.0.core(), event, &mut open);
        bench.clock.advance(3 * MS);
        sampler.tick(true);
        check_sums(&monitor);
    }
    let first = accounts(&monitor);
    drop((monitor, sampler));

    let clock = Arc::new(TraceClock::open(&path).unwrap());
    let replay = Replay::open(&path, clock.clone()).unwrap();
    let (monitor, mut sampler) = EnergyMonitor::new(&settings(), vec![Box::new(replay)], clock.clone());
    let (mut steps, mut open) = (steps.into_iter().peekable(), None);
    loop {
        while let Some(event) = steps.next_if(|(at, _)| *at <= clock.now()) {
            play(&mut monitor.0.core(), event, &mut open);
        }
        sampler.tick(true);
        if !clock.step() {
            break;
        }
    }
    check_sums(&monitor);
    let domain = &monitor.snapshot().domains[0];
    assert!(domain.wraps > 0 && !domain.gap.is_zero(), "{domain:?}");
    // Thousands of numbers: nobody wants to read them.
    assert!(accounts(&monitor) == first, "the accounts differ");
}
