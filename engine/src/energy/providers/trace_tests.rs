//! Traces: what is written is read again, and what is not a trace is named by file and line.

use std::{
    collections::VecDeque,
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    CPU, GPU,
    files::{Files, fake::FailingFiles},
    open, open_with,
    record::Recorder,
    replay::{Replay, TraceClock},
};
use crate::{
    energy::{
        monitor::EnergyError,
        settings::{EnergySettings, Mode},
        types::{Basis, Clock, Domain, EnergyProvider, Missing, Nanos, Rail, Raw, Source, SourceClass, Unavailable},
    },
    testing::PowercapTree,
};

#[derive(Default)]
struct HandClock {
    now: AtomicU64,
    asleep: AtomicU64,
}

impl HandClock {
    fn set(&self, now: u64) {
        self.now.store(now, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::SeqCst))
    }

    fn suspended(&self) -> Duration {
        Duration::from_nanos(self.asleep.load(Ordering::SeqCst))
    }
}

type Readings = VecDeque<Result<Raw, Unavailable>>;

/// Gives what it was told to.
struct Told {
    found: Vec<Result<Domain, Missing>>,
    readings: Arc<Mutex<Readings>>,
}

impl EnergyProvider for Told {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        self.found.clone()
    }

    fn read(&mut self, _domain: &str) -> Result<Raw, Unavailable> {
        self.readings.lock().unwrap().pop_front().unwrap_or(Err(Unavailable::Stale))
    }

    fn foreign_processes(&mut self, _domain: &str) -> Option<usize> {
        Some(3)
    }
}

fn domain(id: &str, class: SourceClass, rail: Rail) -> Domain {
    Domain {
        id: id.into(),
        source: Source::Rapl,
        class,
        bases: if rail == Rail::Host { CPU } else { GPU },
        exclusive: rail == Rail::Host,
        shared: rail != Rail::Host,
        max_watts: 1000.5,
        update_period: (rail == Rail::Host).then_some(Duration::from_millis(1)),
        busy_period: Duration::from_millis(20),
        rail,
    }
}

fn described() -> Vec<Result<Domain, Missing>> {
    let averaging = Some(Duration::from_secs(1));
    vec![
        Ok(domain("rapl:package-0", SourceClass::Counter { modulus_uj: Some(262_143_328_850) }, Rail::Host)),
        Ok(domain("rapl:dram-0", SourceClass::Counter { modulus_uj: None }, Rail::Host)),
        Ok(domain("nvml:GPU-1", SourceClass::InstantPower { averaging }, Rail::Accelerator(1))),
        Ok(domain("amdgpu:0000:03:00.0", SourceClass::InstantPower { averaging: None }, Rail::Accelerator(2))),
        Ok(Domain { bases: &[], ..domain("apple:gpu", SourceClass::IntervalMean, Rail::Host) }),
        Err(Missing {
            domain: "rapl:psys".into(),
            source: Source::Rapl,
            reason: Unavailable::NoSensor,
            remedy: "use `a b=c, d`".into(),
            bases: &[Basis::Platform],
        }),
    ]
}

fn told(readings: Vec<Result<Raw, Unavailable>>) -> Box<dyn EnergyProvider> {
    Box::new(Told { found: described(), readings: Arc::new(Mutex::new(readings.into())) })
}

#[test]
fn what_is_recorded_is_replayed_at_the_same_times() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let readings = [
        (10, "rapl:package-0", Ok(Raw::Counter(0))),
        (10, "nvml:GPU-1", Ok(Raw::Watts(0.1 + 0.2))),
        (30, "rapl:package-0", Err(Unavailable::ReadFailed)),
        (50, "rapl:package-0", Ok(Raw::Counter(u64::MAX))),
        (50, "apple:gpu", Ok(Raw::Watts(1e-7))),
        (60, "nvml:GPU-1", Ok(Raw::Watts(-1.0))),
        (60, "rapl:dram-0", Err(Unavailable::DeviceSuspended)),
        (70, "nvml:GPU-1", Ok(Raw::Watts(f64::NAN))),
    ];
    let clock = Arc::new(HandClock::default());
    let provider = told(readings.iter().map(|(_, _, reading)| *reading).collect());
    let mut recorder = Recorder::create(&path, vec![provider], clock.clone()).unwrap();
    assert_eq!(recorder.discover(), described());
    for (at, id, reading) in readings {
        clock.set(at);
        clock.asleep.store(at / 50 * 1000, Ordering::SeqCst);
        let read = recorder.read(id);
        assert!(read == reading || at == 70, "{read:?}");
    }
    assert_eq!(recorder.foreign_processes("nvml:GPU-1"), Some(3));
    assert_eq!(recorder.read("rapl:core-0"), Err(Unavailable::NoSensor));
    drop(recorder);

    let clock = Arc::new(TraceClock::open(&path).unwrap());
    let mut replay = Replay::open(&path, clock.clone()).unwrap();
    let expected: Vec<_> =
        described().into_iter().map(|found| found.map(|domain| Domain { source: Source::Replay, ..domain })).collect();
    assert_eq!(replay.discover(), expected);
    let mut times = Vec::new();
    loop {
        let now = clock.now();
        times.push((now.0, clock.suspended()));
        for (_, id, reading) in readings.iter().filter(|(at, ..)| *at == now.0) {
            match (replay.read(id), reading) {
                (Ok(Raw::Watts(read)), Ok(Raw::Watts(written))) => assert_eq!(read.to_bits(), written.to_bits()),
                (read, written) => assert_eq!(read, *written),
            }
        }
        if !clock.step() {
            break;
        }
    }
    let asleep = Duration::from_nanos(1000);
    let awake = Duration::ZERO;
    assert_eq!(times, [(10, awake), (30, awake), (50, asleep), (60, asleep), (70, asleep)]);
}

#[test]
fn between_two_readings_the_last_one_holds_and_outside_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    fs::write(&path, trace("10,rapl:package-0,5\n30,rapl:package-0,9\n90,nvml:GPU-1,4.5\n")).unwrap();
    let clock = Arc::new(HandClock::default());
    let mut replay = Replay::open(&path, clock.clone()).unwrap();
    for (now, expected) in [
        (9, Err(Unavailable::Stale)),
        (10, Ok(Raw::Counter(5))),
        (29, Ok(Raw::Counter(5))),
        (30, Ok(Raw::Counter(9))),
        (31, Err(Unavailable::Stale)),
    ] {
        clock.set(now);
        assert_eq!(replay.read("rapl:package-0"), expected, "{now}");
    }
    assert_eq!(replay.read("rapl:package-1"), Err(Unavailable::NoSensor));
}

const HEAD: &str = "\
# leapfrog energy trace 1
# domain rapl:package-0 source=rapl class=counter modulus_uj=1000 bases=cpu,gpu+cpu exclusive=true shared=false max_watts=1000 update_ns=1000000 busy_ns=20000000 rail=host
# domain nvml:GPU-1 source=nvml class=power averaging_ns=none bases=gpu,gpu+cpu exclusive=true shared=false max_watts=1500 update_ns=none busy_ns=20000000 rail=accelerator:0
# any other remark
# t_ns,domain,raw
";

fn trace(readings: &str) -> String {
    format!("{HEAD}{readings}")
}

#[test]
fn the_power_of_a_wrong_counter_stays_power() {
    let class = SourceClass::Counter { modulus_uj: None };
    for reading in [Ok(Raw::Watts(61.0)), Ok(Raw::Watts(61.5)), Ok(Raw::Counter(61)), Err(Unavailable::Implausible)] {
        let text = super::trace::reading_text(reading, class);
        assert_eq!(super::trace::parse_reading(&text, class), Ok(reading), "{text}");
    }
}

#[test]
fn a_line_that_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    for (text, at, part) in [
        (String::new(), 1, "empty"),
        ("t_ns,domain,raw\n".into(), 1, "begins with"),
        (trace("1,rapl:package-0,2\nnonsense\n"), 7, "t_ns,domain,raw"),
        (trace("1,rapl:package-0,2,3\n"), 6, "t_ns,domain,raw"),
        (trace("x,rapl:package-0,2\n"), 6, "`x` is not a time"),
        (trace("-1,rapl:package-0,2\n"), 6, "`-1` is not a time"),
        (trace("5,rapl:package-0,2\n\n4,rapl:package-0,2\n"), 8, "before 5"),
        (trace("1,rapl:package-0,2.5\n"), 6, "`2.5` is not a whole number of microjoules"),
        (trace("1,rapl:package-0,18446744073709551616\n"), 6, "microjoules"),
        (trace("1,nvml:GPU-1,many\n"), 6, "`many` is not watts"),
        (trace("1,nvml:GPU-1,!tired\n"), 6, "no reason is called `tired`"),
        (trace("1,rapl:package-9,2\n"), 6, "describes the domain `rapl:package-9`"),
        (trace("1,@suspended,long\n"), 6, "nanoseconds"),
        (HEAD.replace("nvml:GPU-1", "rapl:package-0"), 3, "twice"),
        (HEAD.replace("class=power", "class=vibes"), 3, "no class `vibes`"),
        (HEAD.replace("modulus_uj=1000 ", ""), 2, "`modulus_uj` is missing"),
        (HEAD.replace("bases=gpu,gpu+cpu", "bases=gpu,cup"), 3, "no basis is called `cup`"),
        (HEAD.replace("source=nvml", "source=tea"), 3, "no source is called `tea`"),
        (HEAD.replace("max_watts=1500", "max_watts=NaN"), 3, "above 0"),
        (HEAD.replace("max_watts=1500", "max_watts=inf"), 3, "at most 1e6"),
        (trace("1,rapl:package-0,manyW\n"), 6, "`many` is not watts"),
        (HEAD.replace("rail=host", "rail=train"), 2, "a rail is"),
    ] {
        fs::write(&path, &text).unwrap();
        let error = Replay::open(&path, Arc::new(HandClock::default())).map(drop).unwrap_err();
        let EnergyError::TraceLine { path: named, line, reason } = &error else { panic!("{error:?}") };
        assert_eq!((named, *line), (&path, at), "{reason}");
        assert!(reason.contains(part), "{reason:?} says {part:?}");
        assert!(error.to_string().starts_with(&format!("{}, line {at}: ", path.display())));
    }
    let nowhere = Replay::open(Path::new("/nowhere/trace"), Arc::new(HandClock::default())).map(drop).unwrap_err();
    assert!(matches!(nowhere, EnergyError::Trace { path, .. } if path == Path::new("/nowhere/trace")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_recording_and_nothing_else() {
    let clock = Arc::new(HandClock::default());
    let readings = (0..100).map(|value| Ok(Raw::Counter(value))).collect();
    let mut recorder = Recorder::create(Path::new("/dev/full"), vec![told(readings)], clock.clone()).unwrap();
    assert_eq!(recorder.discover().len(), 6);
    for value in 0..100 {
        clock.set(value * 100_000_000);
        assert_eq!(recorder.read("rapl:package-0"), Ok(Raw::Counter(value)));
        assert_eq!(recorder.is_recording(), value < 10, "the first flush, after a second, fails");
    }
}

#[test]
fn a_recording_that_cannot_begin_is_an_error() {
    let clock = Arc::new(HandClock::default());
    let error = Recorder::create(Path::new("/nowhere/trace"), vec![], clock).map(drop).unwrap_err();
    assert!(matches!(error, EnergyError::Trace { source, .. } if source.kind() == io::ErrorKind::NotFound));
}

#[cfg(target_os = "linux")]
#[test]
fn only_the_sensors_that_the_basis_needs_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let tree = PowercapTree::two_sockets(folder.path().join("powercap")).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(HandClock::default());
    for (root, made) in [("hwmon", "hwmon0/name"), ("supply", "BAT0/type")] {
        let path = folder.path().join(root).join(made);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, if root == "hwmon" { "amdgpu\n" } else { "Battery\n" }).unwrap();
    }
    let settings = |basis, sources: Option<&[Source]>| EnergySettings {
        basis: Some(basis),
        sources: sources.map(<[Source]>::to_vec),
        powercap_root: tree.root().into(),
        hwmon_root: folder.path().join("hwmon"),
        power_supply_root: folder.path().join("supply"),
        ..EnergySettings::default()
    };
    let cases: [(EnergySettings, [bool; 3]); 8] = [
        (settings(Basis::Cpu, None), [true, false, false]),
        (settings(Basis::Platform, None), [true, false, false]),
        (settings(Basis::Soc, None), [false, true, false]),
        (settings(Basis::Battery, None), [false, false, true]),
        (settings(Basis::Cpu, Some(&[Source::Rapl, Source::Battery])), [true, false, true]),
        (settings(Basis::Cpu, Some(&[Source::Nvml])), [false, false, false]),
        (settings(Basis::GpuCpu, Some(&[Source::Rapl, Source::Amdgpu])), [true, true, false]),
        (EnergySettings { mode: Mode::Off, ..settings(Basis::Cpu, None) }, [false, false, false]),
    ];
    for (settings, expected) in cases {
        let files = FailingFiles::default();
        let mut providers = open_with(&settings, &clock, &(Arc::new(files.clone()) as Arc<dyn Files>)).unwrap();
        let found: Vec<_> = providers.iter_mut().flat_map(|provider| provider.discover()).collect();
        let opened = ["powercap", "hwmon", "supply"].map(|root| files.opened_in(folder.path().join(root)) > 0);
        assert_eq!(opened, expected, "{settings:?}: {found:?}");
    }
}

#[test]
fn a_trace_takes_the_place_of_all_sensors_and_can_be_recorded_again() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    fs::write(&old, trace("10,rapl:package-0,5\n")).unwrap();
    let clock = Arc::new(HandClock::default());
    let settings = EnergySettings {
        basis: Some(Basis::GpuCpu),
        replay: Some(old),
        record: Some(new.clone()),
        ..EnergySettings::default()
    };
    let mut providers = open(&settings, &(clock.clone() as Arc<dyn Clock>)).unwrap();
    assert_eq!(providers.len(), 1);
    let found: Vec<String> = providers[0].discover().into_iter().map(|found| found.unwrap().id).collect();
    assert_eq!(found, ["rapl:package-0", "nvml:GPU-1"]);
    clock.set(10);
    assert_eq!(providers[0].read("rapl:package-0"), Ok(Raw::Counter(5)));
    drop(providers);
    let text = fs::read_to_string(&new).unwrap();
    let expected = trace("10,rapl:package-0,5\n").replace("# any other remark\n", "");
    assert_eq!(text, expected.replace("source=rapl", "source=replay").replace("source=nvml", "source=replay"));

    let missing = EnergySettings { replay: Some("/nowhere/trace".into()), ..EnergySettings::default() };
    assert!(open(&missing, &(clock as Arc<dyn Clock>)).is_err());
}
