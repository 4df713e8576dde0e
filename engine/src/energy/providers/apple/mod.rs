//! The rails of Apple's chips. The system gives the mean power of an interval and blocks for as long, so a thread of its
//! own asks for one interval after the other and adds them up: to the sampler each rail is a counter.

#[cfg(target_os = "macos")]
mod system;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

#[cfg(target_os = "macos")]
pub(crate) use self::system::open;
use crate::energy::types::{Basis, Domain, EnergyProvider, Missing, Rail, Raw, Source, SourceClass, Unavailable};

const INTERVAL: Duration = Duration::from_millis(100);
/// How long the first interval may take; the library looks for all sensors of the machine before it.
const FIRST: Duration = Duration::from_secs(5);
/// Without a new interval for this long, the thread is dead or hangs.
const STALE: Duration = Duration::from_secs(2);
/// No rail of any chip so far uses half of it.
const MAX_WATTS: f64 = 500.0;

const RAILS: [(&str, &[Basis]); 5] = [
    ("apple:cpu", &[Basis::Soc]),
    ("apple:gpu", &[Basis::Soc, Basis::Gpu]),
    ("apple:ane", &[Basis::Soc]),
    // Not part of the chip's basis, so that its numbers compare with those that are published.
    ("apple:dram", &[]),
    ("apple:system", &[Basis::Platform]),
];
const SYSTEM: usize = 4;

/// Mean power over an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    /// Its length, as measured.
    pub(crate) time: Duration,
    /// Watts in the order CPU, GPU, neural engine, memory, whole machine; `None` where the machine does not say.
    pub(crate) watts: [Option<f64>; 5],
}

impl Interval {
    /// From what the library gives, which says 0 for what it does not know. A CPU that runs this uses something, so a 0
    /// there means that nothing of the chip is known; memory and the whole machine never use nothing.
    pub(crate) fn from_watts(time: Duration, [cpu, gpu, ane, dram, system]: [f64; 5]) -> Self {
        let above_zero = |watts: f64| (watts.is_finite() && watts > 0.0).then_some(watts);
        let if_known = |watts: f64| above_zero(cpu).and((watts.is_finite() && watts >= 0.0).then_some(watts));
        Self { time, watts: [above_zero(cpu), if_known(gpu), if_known(ane), above_zero(dram), above_zero(system)] }
    }
}

/// What gives intervals: the system, or a script.
pub(crate) trait Meter {
    /// Waits for about `interval` and returns the power of the time since the last return.
    fn next(&mut self, interval: Duration) -> Result<Interval, String>;
}

/// Makes a meter in the thread that will use it.
pub(crate) type OpenMeter = Box<dyn FnOnce() -> Result<Box<dyn Meter>, String> + Send>;

/// Reads the rails of an Apple chip.
pub(crate) struct Apple {
    open: Option<OpenMeter>,
    shared: Arc<Shared>,
}

struct Shared {
    totals: Mutex<Totals>,
    stop: AtomicBool,
}

struct Totals {
    microjoules: [f64; 5],
    /// Why energy is missing from a total since it was last read: nothing must be skipped in silence.
    lost: [Option<Unavailable>; 5],
    updated: Instant,
}

impl Shared {
    fn totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    fn add(&mut self, interval: Interval) {
        for ((total, lost), watts) in self.microjoules.iter_mut().zip(&mut self.lost).zip(interval.watts) {
            match watts {
                Some(watts) if watts <= MAX_WATTS => *total += watts * interval.time.as_secs_f64() * 1e6,
                _ => *lost = Some(lost.unwrap_or(Unavailable::Implausible)),
            }
        }
        self.updated = Instant::now();
    }

    fn fail(&mut self) {
        self.lost = [Some(Unavailable::ReadFailed); 5];
        self.updated = Instant::now();
    }
}

impl Apple {
    /// Asks nothing yet.
    pub(crate) fn new(open: OpenMeter) -> Self {
        let totals = Totals { microjoules: [0.0; 5], lost: [None; 5], updated: Instant::now() };
        Self { open: Some(open), shared: Arc::new(Shared { totals: Mutex::new(totals), stop: AtomicBool::new(false) }) }
    }

    fn first(&mut self) -> Result<Interval, String> {
        let open = self.open.take().ok_or("it was asked twice")?;
        let (sender, receiver) = sync_channel(1);
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("energy-apple".into()).spawn(move || run(open, &sender, &shared));
        thread.map_err(|error| error.to_string())?;
        receiver.recv_timeout(FIRST).map_err(|error| error.to_string())?
    }
}

/// Adds up intervals until nobody asks for them.
fn run(open: OpenMeter, first: &SyncSender<Result<Interval, String>>, shared: &Shared) {
    let start = open().and_then(|mut meter| meter.next(INTERVAL).map(|interval| (meter, interval)));
    let (mut meter, interval) = match start {
        Ok(start) => start,
        Err(error) => {
            let _ = first.send(Err(error));
            return;
        }
    };
    let _ = first.send(Ok(interval));
    while !shared.stop.load(Ordering::Relaxed) {
        match meter.next(INTERVAL) {
            Ok(interval) => shared.totals().add(interval),
            Err(error) => {
                tracing::debug!(%error, "the rails of the chip were not read");
                shared.totals().fail();
                // A meter that fails at once must not keep a core busy.
                thread::sleep(INTERVAL);
            }
        }
    }
}

impl EnergyProvider for Apple {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let missing = |domain: &str, reason, remedy: &str, bases| Missing {
            domain: domain.into(),
            source: Source::Apple,
            reason,
            remedy: remedy.into(),
            bases,
        };
        let first = match self.first() {
            Ok(first) => first,
            Err(error) => {
                let bases = &[Basis::Soc, Basis::Gpu, Basis::Platform];
                return vec![Err(missing("apple", Unavailable::ReadFailed, &error, bases))];
            }
        };
        self.shared.totals().updated = Instant::now();
        let rails = RAILS.into_iter().zip(first.watts).enumerate();
        let domains = rails.map(|(index, ((id, bases), watts))| match watts {
            None => Err(missing(id, Unavailable::NotSupported, "the chip does not tell this power", bases)),
            Some(_) => Ok(Domain {
                id: id.into(),
                source: Source::Apple,
                class: SourceClass::Counter { modulus_uj: None },
                bases,
                exclusive: index != SYSTEM,
                shared: false,
                max_watts: MAX_WATTS,
                update_period: Some(INTERVAL),
                busy_period: INTERVAL,
                rail: if id == "apple:gpu" { Rail::Accelerator(0) } else { Rail::Host },
            }),
        });
        domains.collect()
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let rail = RAILS.iter().position(|(id, _)| *id == domain).ok_or(Unavailable::NoSensor)?;
        let mut totals = self.shared.totals();
        if totals.updated.elapsed() > STALE {
            return Err(Unavailable::Stale);
        }
        match totals.lost[rail].take() {
            Some(reason) => Err(reason),
            None => Ok(Raw::Counter(totals.microjoules[rail] as u64)),
        }
    }
}

impl Drop for Apple {
    fn drop(&mut self) {
        // The thread ends after its interval; to wait for it would hold up the end of the server.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    /// Gives the intervals that are sent to it.
    struct Scripted(Receiver<Result<Interval, String>>);

    impl Meter for Scripted {
        fn next(&mut self, _interval: Duration) -> Result<Interval, String> {
            self.0.recv().unwrap_or_else(|_| Err("the script is over".into()))
        }
    }

    fn apple() -> (Apple, SyncSender<Result<Interval, String>>) {
        let (sender, receiver) = sync_channel(8);
        (Apple::new(Box::new(move || Ok(Box::new(Scripted(receiver)) as Box<dyn Meter>))), sender)
    }

    fn interval(watts: [f64; 5]) -> Result<Interval, String> {
        Ok(Interval::from_watts(Duration::from_millis(500), watts))
    }

    /// Reads until the answer is the expected one: the thread takes its time.
    fn becomes(apple: &mut Apple, domain: &str, expected: Result<Raw, Unavailable>) {
        let start = Instant::now();
        let mut read = apple.read(domain);
        while read != expected {
            assert!(start.elapsed() < Duration::from_secs(20), "{domain}: {read:?}, not {expected:?}");
            thread::sleep(Duration::from_millis(1));
            read = apple.read(domain);
        }
    }

    #[test]
    fn rails_are_added_up() {
        let (mut apple, meter) = apple();
        meter.send(interval([9.0, 9.0, 0.0, 1.0, 30.0])).unwrap();
        let found = apple.discover();
        let told: Vec<_> = found
            .iter()
            .map(|found| found.as_ref().unwrap())
            .map(|domain| (domain.id.as_str(), domain.bases.contains(&Basis::Soc), domain.exclusive))
            .collect();
        let expected = [
            ("apple:cpu", true, true),
            ("apple:gpu", true, true),
            ("apple:ane", true, true),
            ("apple:dram", false, true),
            ("apple:system", false, false),
        ];
        assert_eq!(told, expected);
        for step in 1..=3 {
            meter.send(interval([10.0, 4.0, 0.0, 1.0, 40.0])).unwrap();
            becomes(&mut apple, "apple:system", Ok(Raw::Counter(step * 20_000_000)));
            assert_eq!(apple.read("apple:cpu"), Ok(Raw::Counter(step * 5_000_000)));
            assert_eq!(apple.read("apple:gpu"), Ok(Raw::Counter(step * 2_000_000)));
            assert_eq!(apple.read("apple:ane"), Ok(Raw::Counter(0)), "it works and was not used");
        }
        assert_eq!(apple.read("apple:fan"), Err(Unavailable::NoSensor));
    }

    #[test]
    fn what_is_lost_between_two_reads_is_told_once() {
        let (mut apple, meter) = apple();
        meter.send(interval([9.0, 9.0, 9.0, 1.0, 30.0])).unwrap();
        apple.discover();
        meter.send(interval([10.0; 5])).unwrap();
        becomes(&mut apple, "apple:cpu", Ok(Raw::Counter(5_000_000)));
        meter.send(Err("busy".into())).unwrap();
        meter.send(interval([10.0; 5])).unwrap();
        becomes(&mut apple, "apple:cpu", Err(Unavailable::ReadFailed));
        becomes(&mut apple, "apple:cpu", Ok(Raw::Counter(10_000_000)));
        assert_eq!(apple.read("apple:gpu"), Err(Unavailable::ReadFailed));
        assert_eq!(apple.read("apple:gpu"), Ok(Raw::Counter(10_000_000)));
        // Nothing is known of a chip whose CPU used nothing.
        meter.send(interval([0.0, 5.0, 5.0, 5.0, 5.0])).unwrap();
        becomes(&mut apple, "apple:gpu", Err(Unavailable::Implausible));
        assert_eq!(apple.read("apple:gpu"), Ok(Raw::Counter(10_000_000)));
        assert_eq!(apple.read("apple:dram"), Err(Unavailable::ReadFailed));
        assert_eq!(apple.read("apple:dram"), Ok(Raw::Counter(12_500_000)));
    }

    #[test]
    fn a_chip_that_says_nothing_is_not_zero() {
        let (mut apple, meter) = apple();
        meter.send(interval([0.0; 5])).unwrap();
        let reasons: Vec<_> = apple.discover().into_iter().map(|found| found.unwrap_err().reason).collect();
        assert_eq!(reasons, [Unavailable::NotSupported; 5]);
        let broken = Interval::from_watts(INTERVAL, [1.0, f64::NAN, -1.0, f64::INFINITY, 0.0]);
        assert_eq!(broken.watts, [Some(1.0), None, None, None, None]);
    }

    #[test]
    fn a_meter_that_cannot_be_made_is_missing() {
        let mut apple = Apple::new(Box::new(|| Err("no such chip".into())));
        let found = apple.discover();
        let missing = found[0].as_ref().unwrap_err();
        assert_eq!((missing.domain.as_str(), missing.reason), ("apple", Unavailable::ReadFailed));
        assert_eq!(missing.remedy, "no such chip");
    }

    #[test]
    fn a_thread_that_hangs_makes_the_rails_stale() {
        let (mut apple, meter) = apple();
        meter.send(interval([9.0; 5])).unwrap();
        apple.discover();
        apple.shared.totals().updated -= STALE + Duration::from_millis(1);
        assert_eq!(apple.read("apple:cpu"), Err(Unavailable::Stale));
    }
}
