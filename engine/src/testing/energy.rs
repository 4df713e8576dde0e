//! Sensors and time that a test sets.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::energy::{
    Basis, Clock, Domain, EnergyError, EnergyMonitor, EnergyProvider, EnergySettings, Missing, Nanos, Rail, Raw,
    Sampler, Source, SourceClass, SystemClock, Unavailable,
};

/// A clock that stands until it is moved. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<Mutex<(Nanos, Duration)>>);

impl ManualClock {
    /// At zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves it.
    pub fn advance(&self, by: Duration) {
        self.lock().0.0 += u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    }

    /// The machine sleeps for so long: this clock stands still, and so do those who ask it.
    pub fn suspend(&self, by: Duration) {
        self.lock().1 += by;
    }

    fn lock(&self) -> MutexGuard<'_, (Nanos, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        self.lock().0
    }

    fn suspended(&self) -> Duration {
        self.lock().1
    }
}

/// Time as it passes.
pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Sensors that say what a test wants. Clones are handles to the same sensors; give one of them to the monitor.
#[derive(Clone)]
pub struct ScriptedMeter {
    clock: Arc<dyn Clock>,
    rails: Arc<Mutex<Rails>>,
}

#[derive(Debug, Default)]
struct Rails {
    found: Vec<Result<Domain, Missing>>,
    rails: BTreeMap<String, ScriptedRail>,
    read_time: Duration,
}

#[derive(Debug)]
struct ScriptedRail {
    class: SourceClass,
    watts: f64,
    /// Microjoules up to `since`, fractions included.
    used_uj: f64,
    since: Nanos,
    failure: Option<Unavailable>,
    panics: bool,
    num_reads: usize,
    foreign_processes: Option<usize>,
}

impl ScriptedRail {
    fn settle(&mut self, now: Nanos) {
        self.used_uj += self.watts * now.since(self.since).as_nanos() as f64 / 1e3;
        self.since = now;
    }
}

impl std::fmt::Debug for ScriptedMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedMeter").field("rails", &self.rails).finish_non_exhaustive()
    }
}

impl ScriptedMeter {
    /// Without any rail; counters move with `clock`, which should be the monitor's.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, rails: Arc::default() }
    }

    /// A rail of the host in the basis `cpu`, read every 20 ms while passes run and believed up to 1000 W. Change what
    /// should differ and hand it to [`ScriptedMeter::add`].
    pub fn host(id: &str, class: SourceClass) -> Domain {
        Domain {
            id: id.to_owned(),
            source: Source::Rapl,
            class,
            bases: &[Basis::Cpu, Basis::GpuCpu],
            exclusive: true,
            shared: false,
            max_watts: 1000.0,
            update_period: Some(Duration::from_millis(1)),
            busy_period: Duration::from_millis(20),
            rail: Rail::Host,
        }
    }

    /// A rail that draws `watts`, before the monitor starts.
    pub fn add(&self, domain: Domain, watts: f64) -> &Self {
        let since = self.clock.now();
        let rail = ScriptedRail {
            class: domain.class,
            watts,
            used_uj: 0.0,
            since,
            failure: None,
            panics: false,
            num_reads: 0,
            foreign_processes: None,
        };
        let mut rails = self.lock();
        rails.rails.insert(domain.id.clone(), rail);
        rails.found.push(Ok(domain));
        drop(rails);
        self
    }

    /// A host rail with a counter that does not wrap and draws `watts`.
    pub fn counter(&self, id: &str, watts: f64) -> &Self {
        self.add(Self::host(id, SourceClass::Counter { modulus_uj: None }), watts)
    }

    /// A sensor of the bases `cpu` and `gpu+cpu` that cannot be read, before the monitor starts.
    pub fn missing(&self, id: &str, reason: Unavailable) -> &Self {
        self.lock().found.push(Err(Missing {
            domain: id.to_owned(),
            source: Source::Rapl,
            reason,
            remedy: "ask who wrote the test".into(),
            bases: &[Basis::Cpu, Basis::GpuCpu],
        }));
        self
    }

    /// The rail draws `watts` from now on; a sensor of power says them as they are.
    pub fn set_watts(&self, id: &str, watts: f64) {
        let now = self.clock.now();
        self.rail(id, |rail| {
            rail.settle(now);
            rail.watts = watts;
        });
    }

    /// The counter stands at so many microjoules now.
    pub fn set_counter(&self, id: &str, energy_uj: u64) {
        let now = self.clock.now();
        self.rail(id, |rail| (rail.used_uj, rail.since) = (energy_uj as f64, now));
    }

    /// Reads fail from now on, or, with `None`, succeed again. What is used meanwhile is used.
    pub fn fail(&self, id: &str, reason: Option<Unavailable>) {
        self.rail(id, |rail| rail.failure = reason);
    }

    /// The next read ends in a bug: the thread that reads dies.
    pub fn panic(&self, id: &str) {
        self.rail(id, |rail| rail.panics = true);
    }

    /// So many processes of others use the device.
    pub fn set_foreign_processes(&self, id: &str, count: Option<usize>) {
        self.rail(id, |rail| rail.foreign_processes = count);
    }

    /// Each read takes so long by the clock of the system.
    pub fn set_read_time(&self, time: Duration) {
        self.lock().read_time = time;
    }

    /// How often the rail has been read.
    pub fn num_reads(&self, id: &str) -> usize {
        self.lock().rails.get(id).map_or(0, |rail| rail.num_reads)
    }

    /// All that the rail has used by now, in microjoules, fractions cut off.
    pub fn used_uj(&self, id: &str) -> u64 {
        let now = self.clock.now();
        self.rail(id, |rail| {
            rail.settle(now);
            rail.used_uj as u64
        })
        .unwrap_or(0)
    }

    /// For the monitor.
    pub fn provider(&self) -> Box<dyn EnergyProvider> {
        Box::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Rails> {
        self.rails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rail<T>(&self, id: &str, change: impl FnOnce(&mut ScriptedRail) -> T) -> Option<T> {
        self.lock().rails.get_mut(id).map(change)
    }
}

impl EnergyProvider for ScriptedMeter {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        self.lock().found.clone()
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let read_time = self.lock().read_time;
        if !read_time.is_zero() {
            thread::sleep(read_time);
        }
        let now = self.clock.now();
        let reading = self.rail(domain, |rail| {
            rail.num_reads += 1;
            if let Some(reason) = rail.failure {
                return Some(Err(reason));
            }
            rail.settle(now);
            match rail.class {
                _ if rail.panics => None,
                SourceClass::Counter { modulus_uj: None } => Some(Ok(Raw::Counter(rail.used_uj as u64))),
                SourceClass::Counter { modulus_uj: Some(largest) } => {
                    Some(Ok(Raw::Counter(rail.used_uj as u64 % largest.saturating_add(1).max(1))))
                }
                SourceClass::IntervalMean | SourceClass::InstantPower { .. } => Some(Ok(Raw::Watts(rail.watts))),
            }
        });
        match reading {
            Some(Some(reading)) => reading,
            #[expect(clippy::panic, reason = "the bug that the test asks for")]
            Some(None) => panic!("a scripted bug"),
            None => Err(Unavailable::NoSensor),
        }
    }

    fn foreign_processes(&mut self, domain: &str) -> Option<usize> {
        self.rail(domain, |rail| rail.foreign_processes).flatten()
    }
}

/// A monitor of `meter`, with a thread that reads it.
///
/// # Errors
/// As [`EnergyMonitor::start`].
pub fn metered_live(settings: &EnergySettings, meter: &ScriptedMeter) -> Result<EnergyMonitor, EnergyError> {
    EnergyMonitor::start_with(settings, vec![meter.provider()], meter.clock.clone())
}

/// A sampler without a thread.
#[derive(Debug)]
pub struct HandSampler(Sampler);

impl HandSampler {
    /// Reads what is due; how long nothing more will be, and `None` when the monitor is gone.
    pub fn tick(&mut self) -> Option<Duration> {
        self.0.tick(false)
    }

    /// Reads everything, as at the end of a request.
    pub fn hurry(&mut self) -> Option<Duration> {
        self.0.tick(true)
    }
}

/// A monitor of `meter` whose sampler the test drives.
pub fn metered_by_hand(settings: &EnergySettings, meter: &ScriptedMeter) -> (EnergyMonitor, HandSampler) {
    let (monitor, sampler) = EnergyMonitor::new(settings, vec![meter.provider()], meter.clock.clone());
    (monitor, HandSampler(sampler))
}
