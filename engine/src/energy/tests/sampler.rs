//! When sensors are read, and what is said when they are silent.

use std::{thread, time::Duration};

use super::*;
use crate::{
    energy::{
        Basis, EnergyError, Mode, Rail, SourceClass, Status, SystemCause, Unavailable,
        core::{Arithmetic, Positions},
        meter::EngineMeter,
        report::Ticket,
    },
    testing::{metered_live, system_clock},
};

const WHOLE: SourceClass = SourceClass::Counter { modulus_uj: None };

fn engine_of(monitor: &EnergyMonitor) -> EngineMeter {
    EngineMeter::new(monitor, "m", Arithmetic { params: 10, attention: 1 }, None)
}

fn positions(ticket: Ticket, len: usize, prefill: usize) -> Positions {
    Positions { ticket, start: 0, len, prefill, sees_all: false }
}

#[test]
fn readings_are_rare_without_work_and_frequent_with_it() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    let mut reads = |clock: &ManualClock, span: Duration| {
        let before = bench.meter.num_reads("rapl:package-0");
        let mut passed = Duration::ZERO;
        while passed < span {
            sampler.tick();
            clock.advance(10 * MS);
            passed += 10 * MS;
        }
        bench.meter.num_reads("rapl:package-0") - before
    };
    assert_eq!(reads(&bench.clock, 10_000 * MS), 10);
    let work = monitor.begin(SystemCause::Load);
    let busy = reads(&bench.clock, 1000 * MS);
    assert!((48..=51).contains(&busy), "{busy}");
    drop(work);
    let lingering = reads(&bench.clock, 2000 * MS);
    assert!((98..=101).contains(&lingering), "{lingering}");
    reads(&bench.clock, 1000 * MS);
    let quiet = reads(&bench.clock, 10_000 * MS);
    assert!((9..=11).contains(&quiet), "{quiet}");
    check_sums(&monitor);
    let accounts = monitor.snapshot().accounts;
    // 1 s of 10 W; it is cut at its edges and not at readings.
    assert!(accounts.load_uj.abs_diff(10_000_000) <= 10, "{accounts:?}");
}

#[test]
fn a_request_is_charged_for_its_steps_and_no_more() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0).counter("rapl:dram-0", 2.0);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    bench.clock.advance(100 * MS);
    let (first, second) = (engine.open(), engine.open());
    let step = engine.begin([positions(first, 90, 90), positions(second, 10, 0)].into_iter());
    bench.clock.advance(400 * MS);
    drop(step);
    assert_eq!(monitor.request(&[first]).unwrap().energy_uj, None, "nothing has been read since");
    let step = engine.begin([positions(first, 1, 0), positions(second, 1, 0)].into_iter());
    bench.clock.advance(600 * MS);
    drop(step);
    engine.close(first, 90, 1);
    engine.close(second, 0, 1);
    sampler.hurry();
    let energy = monitor.request(&[first]).unwrap();
    assert_eq!((energy.status, energy.is_final, energy.basis), (Status::Measured, true, Basis::Cpu));
    // 12 W: 4.8 J by 90 and 10, then 7.2 J by halves.
    assert_eq!((energy.prefill_uj, energy.decode_uj), (Some(4_320_000), Some(3_600_000)));
    assert_eq!(energy.energy_uj, Some(7_920_000));
    assert_eq!(
        energy.domains.iter().map(|domain| domain.energy_uj).collect::<Vec<_>>(),
        [Some(6_600_000), Some(1_320_000)]
    );
    assert_eq!(energy.window_joules.map(|joules| (joules * 1e6).round()), Some(12e6));
    assert_eq!((energy.net_joules, energy.idle_watts), (None, None), "no baseline");
    assert_eq!((energy.mean_concurrency, energy.max_concurrency), (Some(2.0), 2));
    assert_eq!((energy.coverage, energy.resolution_limited, energy.active), (Some(1.0), false, 1000 * MS));
    let both = monitor.request(&[first, second]).unwrap();
    assert_eq!(both.energy_uj, Some(12_000_000));
    assert_eq!(monitor.request(&[first, Ticket(99)]).unwrap().status, Status::Unavailable(Unavailable::Stale));
    assert_eq!(monitor.request(&[Ticket(99)]), None);
    check_sums(&monitor);
    let page = page(&monitor);
    let given = r#"ipw_attributed_energy_joules_total{model_name="m",domain="rapl:package-0",phase="#;
    assert_eq!(sample(&page, &format!("{given}\"prefill\"}}")), Some(3.6));
    assert_eq!(sample(&page, &format!("{given}\"decode\"}}")), Some(6.4));
    assert_eq!(sample(&page, r#"ipw_requests_total{model_name="m",energy_status="measured"}"#), Some(2.0));
    assert_eq!(sample(&page, r#"ipw_request_energy_joules_count{model_name="m",basis="cpu"}"#), Some(2.0));
    assert_eq!(sample(&page, r#"leapfrog_request_energy_joules_sum{model_name="m",basis="cpu"}"#), Some(12.0));
    assert_eq!(sample(&page, r#"ipw_basis_info{basis="cpu",domains="rapl:package-0,rapl:dram-0"}"#), Some(1.0));
}

#[test]
fn idle_power_is_measured_in_quiet_times_and_taken_off() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 8.0);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    drop(monitor.begin(SystemCause::Warmup));
    let mut run = |millis: u32| {
        for _ in 0..millis / 10 {
            sampler.tick();
            bench.clock.advance(10 * MS);
        }
        sampler.hurry();
    };
    run(16_000);
    let idle = monitor.snapshot().domains[0].idle_watts.unwrap();
    assert!((idle - 8.0).abs() < 1e-6, "{idle}");
    let ticket = engine.open();
    bench.meter.set_watts("rapl:package-0", 20.0);
    let step = engine.begin([positions(ticket, 1, 0)].into_iter());
    run(1000);
    drop(step);
    engine.close(ticket, 1, 1);
    run(1000);
    let energy = monitor.request(&[ticket]).unwrap();
    assert_eq!(energy.energy_uj.map(|uj| (uj + 50_000) / 100_000), Some(200));
    assert!((energy.net_joules.unwrap() - 12.0).abs() < 0.05, "{energy:?}");
    assert_eq!(energy.idle_watts, Some(idle));
    check_sums(&monitor);
}

#[test]
fn counters_wrap_in_the_middle_of_a_request() {
    let bench = Bench::new();
    let largest = 70_000_000;
    let wrapping = SourceClass::Counter { modulus_uj: Some(largest) };
    for id in ["rapl:package-0", "rapl:package-1"] {
        let domain = crate::energy::Domain { max_watts: 100.0, ..ScriptedMeter::host(id, wrapping) };
        bench.meter.add(domain, 50.0);
        // Both will wrap in the same tick.
        bench.meter.set_counter(id, largest - 20_000_000);
    }
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    let ticket = engine.open();
    let step = engine.begin([positions(ticket, 1, 0)].into_iter());
    for _ in 0..50 {
        bench.clock.advance(20 * MS);
        sampler.tick();
    }
    drop(step);
    engine.close(ticket, 1, 1);
    sampler.hurry();
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.domains.iter().map(|d| (d.wraps, d.resets)).collect::<Vec<_>>(), [(1, 0), (1, 0)]);
    // 50 J on each rail, and a microjoule of each wrap that nobody can see.
    let measured = check_sums(&monitor);
    assert!(measured.iter().all(|uj| uj.abs_diff(50_000_000) <= 1), "{measured:?}");
    assert_eq!(monitor.request(&[ticket]).unwrap().energy_uj, Some(measured.iter().sum()));
}

#[test]
fn a_reset_and_a_sleeping_machine_leave_gaps_and_no_energy() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    bench.meter.set_counter("rapl:package-0", 10_000_000);
    let (monitor, mut sampler) = bench.start();
    drop(monitor.begin(SystemCause::Other));
    sampler.tick();
    let mut step = |before: &dyn Fn()| {
        before();
        bench.clock.advance(50 * MS);
        sampler.tick();
        check_sums(&monitor)[0]
    };
    assert_eq!(step(&|| {}), 500_000);
    assert_eq!(step(&|| bench.meter.set_counter("rapl:package-0", 100)), 500_000);
    assert_eq!(step(&|| {}), 1_000_000);
    // An hour, after which the counter says anything.
    let sleep = || {
        bench.clock.suspend(Duration::from_secs(3600));
        bench.meter.set_counter("rapl:package-0", 900_000_000);
    };
    assert_eq!(step(&sleep), 1_000_000);
    assert_eq!(step(&|| {}), 1_500_000);
    let domain = &monitor.snapshot().domains[0];
    assert_eq!((domain.gap, domain.resets), (100 * MS, 1));
}

#[test]
fn a_sensor_that_fails_takes_its_values_along_and_no_others() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0).counter("rapl:package-1", 20.0);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    let mut request = |fail: Option<Unavailable>, back_after: u32| {
        let ticket = engine.open();
        let step = engine.begin([positions(ticket, 1, 0)].into_iter());
        bench.meter.fail("rapl:package-1", fail);
        for tick in 0..50 {
            if tick == back_after {
                bench.meter.fail("rapl:package-1", None);
            }
            bench.clock.advance(20 * MS);
            sampler.tick();
        }
        drop(step);
        engine.close(ticket, 1, 1);
        sampler.hurry();
        check_sums(&monitor);
        monitor.request(&[ticket]).unwrap()
    };
    assert_eq!(request(None, 0).status, Status::Measured);
    let partial = request(Some(Unavailable::ReadFailed), 10);
    assert_eq!(partial.status, Status::Partial);
    assert!((partial.coverage.unwrap() - 0.78).abs() < 0.021, "{:?}", partial.coverage);
    let lost = request(Some(Unavailable::PermissionDenied), 50);
    assert_eq!(lost.status, Status::Unavailable(Unavailable::PermissionDenied));
    assert_eq!((lost.energy_uj, lost.net_joules, lost.window_joules), (None, None, None));
    assert_eq!(lost.domains[0].energy_uj.map(|uj| uj / 1_000_000), Some(10), "the other rail is known");
    assert_eq!((lost.domains[1].energy_uj, lost.domains[1].reason), (None, Some(Unavailable::PermissionDenied)));
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.status, Err(Unavailable::PermissionDenied));
    let text = page(&monitor);
    assert_eq!(sample(&text, r#"ipw_energy_source_up{source="rapl",domain="rapl:package-1"}"#), Some(0.0));
    assert_eq!(sample(&text, r#"ipw_energy_joules_total{source="rapl",domain="rapl:package-1"}"#), None);
    assert!(sample(&text, r#"ipw_energy_joules_total{source="rapl",domain="rapl:package-0"}"#).is_some());
    let status = r#"ipw_energy_source_status{source="rapl",domain="rapl:package-1",status="permission_denied"}"#;
    assert_eq!(sample(&text, status), Some(1.0));
    let errors = r#"ipw_energy_read_errors_total{source="rapl",domain="rapl:package-1",reason="permission_denied"}"#;
    assert!(sample(&text, errors).unwrap() > 40.0);
    bench.meter.fail("rapl:package-1", None);
    assert_eq!(request(None, 0).status, Status::Measured);
}

#[test]
fn without_all_rails_of_the_basis_there_is_no_number() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0).missing("rapl:package-1", Unavailable::PermissionDenied);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    let ticket = engine.open();
    let step = engine.begin([positions(ticket, 1, 0)].into_iter());
    bench.clock.advance(100 * MS);
    drop(step);
    engine.close(ticket, 1, 1);
    sampler.hurry();
    let energy = monitor.request(&[ticket]).unwrap();
    assert_eq!((energy.status, energy.energy_uj), (Status::Unavailable(Unavailable::PermissionDenied), None));
    assert_eq!(energy.domains[0].energy_uj, Some(1_000_000));
    assert!(monitor.lines().iter().any(|line| line.contains("permission_denied") && line.contains("ask who wrote")));
    assert_eq!(monitor.snapshot().models[0].decode_uj, None);
    let required = EnergySettings { mode: Mode::Require, ..settings() };
    let refused = metered_live(&required, &bench.meter).unwrap_err();
    assert!(matches!(refused, EnergyError::Required { reason: Unavailable::PermissionDenied, .. }), "{refused}");
    assert!(refused.to_string().contains("ask who wrote the test"), "{refused}");
}

#[test]
fn a_reading_that_came_too_soon_is_made_up_for() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    let ticket = engine.open();
    let step = engine.begin([positions(ticket, 1, 0)].into_iter());
    bench.clock.advance(MS);
    drop(step);
    engine.close(ticket, 1, 1);
    let wait = sampler.hurry().unwrap();
    assert!(wait <= 2 * MS && !monitor.request(&[ticket]).unwrap().is_final, "{wait:?}");
    bench.clock.advance(wait);
    sampler.tick();
    let energy = monitor.request(&[ticket]).unwrap();
    assert_eq!((energy.energy_uj, energy.is_final, energy.resolution_limited), (Some(10_000), true, true));
}

#[test]
fn off_says_nothing_of_joules() {
    let monitor = EnergyMonitor::off();
    let engine = engine_of(&monitor);
    let ticket = engine.open();
    assert!(engine.begin([positions(ticket, 1, 0)].into_iter()).is_none());
    engine.close(ticket, 1, 1);
    let energy = monitor.request(&[ticket]).unwrap();
    assert_eq!((energy.status, energy.is_final), (Status::Unavailable(Unavailable::Disabled), true));
    let page = page(&monitor);
    assert!(!page.contains("joules"), "{page}");
    assert_eq!(monitor.lines(), ["energy: off"]);
    assert_eq!(sample(&page, r#"ipw_requests_total{model_name="m",energy_status="unavailable"}"#), Some(1.0));
}

#[test]
fn steps_on_an_accelerator_are_not_those_of_the_host() {
    let bench = Bench::new();
    let gpu = crate::energy::Domain {
        rail: Rail::Accelerator(0),
        bases: &[Basis::Gpu],
        ..ScriptedMeter::host("nvml:a", WHOLE)
    };
    bench.meter.counter("rapl:package-0", 10.0).add(gpu, 30.0);
    bench.meter.set_foreign_processes("nvml:a", Some(2));
    let (monitor, mut sampler) = bench.start();
    sampler.tick();
    let work = monitor.begin(SystemCause::Other);
    bench.clock.advance(100 * MS);
    drop(work);
    sampler.hurry();
    check_sums(&monitor);
    let accounts = monitor.snapshot().accounts;
    assert_eq!((accounts.other_uj, accounts.idle_uj), (1_000_000, 3_000_000));
    assert_eq!(monitor.snapshot().foreign_gpu_processes, Some(2));
    assert_eq!(sample(&page(&monitor), r#"ipw_gpu_foreign_processes{domain="nvml:a"}"#), Some(2.0));
}

#[test]
fn of_an_accelerator_that_no_pass_uses_nothing_is_said() {
    for basis in [Basis::Gpu, Basis::GpuCpu] {
        let bench = Bench::new();
        let gpu = crate::energy::Domain {
            rail: Rail::Accelerator(0),
            bases: &[Basis::Gpu, Basis::GpuCpu],
            ..ScriptedMeter::host("nvml:a", WHOLE)
        };
        bench.meter.counter("rapl:package-0", 10.0).add(gpu, 30.0);
        let (monitor, mut sampler) =
            metered_by_hand(&EnergySettings { basis: Some(basis), ..settings() }, &bench.meter);
        let engine = engine_of(&monitor);
        sampler.tick();
        let ticket = engine.open();
        let step = engine.begin([positions(ticket, 1, 0)].into_iter());
        bench.clock.advance(100 * MS);
        drop(step);
        engine.close(ticket, 1, 1);
        sampler.hurry();
        assert_eq!(monitor.snapshot().status, Err(Unavailable::NotSupported));
        let energy = monitor.request(&[ticket]).unwrap();
        assert_eq!(energy.status, Status::Unavailable(Unavailable::NotSupported), "{basis}");
        assert_eq!((energy.energy_uj, energy.window_joules), (None, None), "not zero");
        assert!(!page(&monitor).contains("ipw_request_energy_joules"));
    }
}

#[test]
fn whoever_waits_for_a_sampler_that_is_gone_gets_nothing() {
    let bench = Bench::new();
    bench.meter.counter("rapl:package-0", 10.0);
    let (monitor, mut sampler) = bench.start();
    let engine = engine_of(&monitor);
    sampler.tick();
    let run = || {
        let ticket = engine.open();
        let step = engine.begin([positions(ticket, 1, 0)].into_iter());
        bench.clock.advance(100 * MS);
        (ticket, step)
    };
    let (first, step) = run();
    sampler.hurry();
    // It ends after the last reading, and nobody comes again.
    bench.clock.advance(100 * MS);
    drop(step);
    engine.close(first, 1, 1);
    bench.clock.advance(3000 * MS);
    let (second, step) = run();
    drop(step);
    engine.close(second, 1, 1);
    for ticket in [first, second] {
        let energy = monitor.request(&[ticket]).unwrap();
        assert_eq!((energy.status, energy.is_final), (Status::Unavailable(Unavailable::Stale), true));
    }
}

#[test]
fn a_dead_sampler_is_noticed_and_the_rest_lives_on() {
    let meter = ScriptedMeter::new(system_clock());
    meter.counter("rapl:package-0", 10.0);
    let monitor = metered_live(&settings(), &meter).unwrap();
    let engine = engine_of(&monitor);
    let ticket = engine.open();
    let step = engine.begin([positions(ticket, 1, 0)].into_iter());
    thread::sleep(100 * MS);
    assert_eq!(monitor.snapshot().status, Ok(()));
    assert!(page(&monitor).contains("ipw_energy_joules_total"));
    meter.panic("rapl:package-0");
    thread::sleep(2300 * MS);
    assert_eq!(monitor.snapshot().status, Err(Unavailable::Stale));
    assert!(!page(&monitor).contains("ipw_energy_joules_total"));
    drop(step);
    engine.close(ticket, 1, 1);
    let energy = monitor.request(&[ticket]).unwrap();
    assert_eq!((energy.status, energy.is_final), (Status::Unavailable(Unavailable::Stale), true));
}

#[tokio::test]
async fn the_end_waits_for_a_reading_and_not_for_ever() {
    let meter = ScriptedMeter::new(system_clock());
    meter.counter("rapl:package-0", 10.0);
    let limit = EnergySettings { settle: Some(100 * MS), ..settings() };
    let monitor = metered_live(&limit, &meter).unwrap();
    let engine = engine_of(&monitor);
    let request = || {
        let ticket = engine.open();
        let step = engine.begin([positions(ticket, 1, 0)].into_iter());
        thread::sleep(60 * MS);
        drop(step);
        engine.close(ticket, 1, 1);
        ticket
    };
    let energy = monitor.settled(&[request()]).await.unwrap();
    assert_eq!((energy.status, energy.is_final), (Status::Measured, true));
    let joules = energy.energy_uj.unwrap() as f64 * 1e-6;
    let expected = 10.0 * energy.active.as_secs_f64();
    assert!((joules - expected).abs() < 0.01 * expected + 0.01, "{joules} J, not {expected}");
    meter.set_read_time(1000 * MS);
    thread::sleep(30 * MS);
    let ticket = request();
    let began = std::time::Instant::now();
    let energy = monitor.settled(&[ticket]).await.unwrap();
    assert!(!energy.is_final);
    assert!((90 * MS..900 * MS).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[test]
fn what_sampling_costs_is_counted() {
    let meter = ScriptedMeter::new(system_clock());
    meter.counter("rapl:package-0", 10.0).counter("rapl:dram-0", 2.0);
    let monitor = metered_live(&settings(), &meter).unwrap();
    let work = monitor.begin(SystemCause::Other);
    thread::sleep(300 * MS);
    drop(work);
    let cpu = sample(&page(&monitor), "ipw_energy_sampler_cpu_seconds_total").unwrap();
    assert!(cpu > 0.0, "{cpu}");
}
