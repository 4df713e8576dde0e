use std::{
    collections::VecDeque,
    fs,
    sync::{Mutex, MutexGuard},
};

use super::*;
use crate::energy::providers::files::SystemFiles;

const STEP: Duration = Duration::from_millis(1);

/// A device that follows a script.
struct Scripted {
    uuid: String,
    /// Watts at a time in seconds.
    load: fn(f64) -> f64,
    update: Duration,
    rate: f64,
    has_energy: bool,
    has_instant: bool,
    has_power: bool,
    limit_mw: u32,
    divided: bool,
    lost: bool,
    processes: Vec<u32>,
    calls: Vec<&'static str>,
    millijoules: f64,
    shown_mj: u64,
    shown_at: Duration,
    history: VecDeque<f64>,
}

impl Scripted {
    fn new(uuid: &str) -> Self {
        Self {
            uuid: uuid.into(),
            load: |_| 100.0,
            update: Duration::from_millis(20),
            rate: 1.0,
            has_energy: true,
            has_instant: true,
            has_power: true,
            limit_mw: 700_000,
            divided: false,
            lost: false,
            processes: Vec::new(),
            calls: Vec::new(),
            millijoules: 5e6,
            shown_mj: 5_000_000,
            shown_at: Duration::ZERO,
            history: VecDeque::new(),
        }
    }

    fn step(&mut self, now: Duration) {
        let watts = (self.load)(now.as_secs_f64());
        self.millijoules += watts * self.rate * STEP.as_secs_f64() * 1000.0;
        self.history.push_back(watts);
        if self.history.len() > 1000 {
            self.history.pop_front();
        }
        if now - self.shown_at >= self.update {
            self.shown_at = now;
            self.shown_mj = self.millijoules as u64;
        }
    }

    fn count(&self, call: &str) -> usize {
        self.calls.iter().filter(|made| **made == call).count()
    }
}

#[derive(Default)]
struct World {
    now: Duration,
    devices: Vec<(Address, Scripted)>,
    loaded: usize,
    library_missing: bool,
}

/// The scripted machine: library, clock and PCI folder.
#[derive(Clone)]
struct Machine {
    world: Arc<Mutex<World>>,
    pci: Arc<tempfile::TempDir>,
}

impl Machine {
    fn new(devices: Vec<Scripted>) -> Self {
        let machine = Self { world: Arc::default(), pci: Arc::new(tempfile::tempdir().unwrap()) };
        for (index, device) in devices.into_iter().enumerate() {
            let address = format!("0000:{:02x}:00.0", index + 1);
            for (file, text) in [("vendor", "0x10de"), ("class", "0x030200"), ("power/runtime_status", "active")] {
                machine.write(&address, file, text);
            }
            machine.world().devices.push((Address::Pci(address), device));
        }
        machine.write("0000:00:1f.0", "vendor", "0x8086");
        machine.write("0000:00:1f.0", "class", "0x030000");
        machine.write("0000:01:00.1", "vendor", "0x10de");
        machine.write("0000:01:00.1", "class", "0x040300");
        machine
    }

    fn write(&self, address: &str, file: &str, text: &str) {
        let path = self.pci.path().join(address).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn provider(&self, visible: Option<&str>) -> NvmlGpus {
        let machine = self.clone();
        let load = move || {
            machine.world().loaded += 1;
            if machine.world().library_missing {
                return Err(Fault::DriverMissing("no such library".into()));
            }
            Ok(Box::new(machine.clone()) as Box<dyn NvmlApi>)
        };
        let surroundings = Surroundings {
            files: Arc::new(SystemFiles),
            pci_root: self.pci.path().into(),
            visible: visible.map(String::from),
            clock: Arc::new(self.clone()),
            process: 7,
        };
        NvmlGpus::new(Box::new(load), surroundings)
    }

    fn pass(&self, time: Duration) {
        let mut world = self.world();
        let end = world.now + time;
        while world.now < end {
            world.now += STEP;
            let now = world.now;
            for (_, device) in &mut world.devices {
                device.step(now);
            }
        }
    }

    fn device<T>(&self, index: usize, change: impl FnOnce(&mut Scripted) -> T) -> T {
        change(&mut self.world().devices[index].1)
    }

    fn call<T>(
        &self,
        address: &Address,
        name: &'static str,
        has: fn(&Scripted) -> bool,
        value: impl FnOnce(&Scripted) -> T,
    ) -> Result<T, Fault> {
        let mut world = self.world();
        let device = world
            .devices
            .iter_mut()
            .enumerate()
            .find(|(index, (at, _))| at == address || *address == Address::Index(u32::try_from(*index).unwrap()));
        let (_, (_, device)) = device.ok_or(Fault::NotFound)?;
        device.calls.push(name);
        if device.lost {
            return Err(Fault::Failed("the GPU is lost".into()));
        }
        if has(device) { Ok(value(device)) } else { Err(Fault::NotSupported) }
    }
}

impl Clock for Machine {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.world().now.as_nanos()).unwrap())
    }

    fn suspended(&self) -> Duration {
        Duration::ZERO
    }
}

impl NvmlApi for Machine {
    fn count(&mut self) -> Result<u32, Fault> {
        Ok(u32::try_from(self.world().devices.len()).unwrap())
    }

    fn uuid(&mut self, device: &Address) -> Result<String, Fault> {
        self.call(device, "uuid", |_| true, |device| device.uuid.clone())
    }

    fn is_divided(&mut self, device: &Address) -> Result<bool, Fault> {
        self.call(device, "is_divided", |_| true, |device| device.divided)
    }

    fn energy_mj(&mut self, device: &Address) -> Result<u64, Fault> {
        self.call(device, "energy", |device| device.has_energy, |device| device.shown_mj)
    }

    fn instant_power_mw(&mut self, device: &Address) -> Result<f64, Fault> {
        let now = |device: &Scripted| device.history.back().copied().unwrap_or(0.0) * 1000.0;
        self.call(device, "instant", |device| device.has_instant, now)
    }

    fn power_mw(&mut self, device: &Address) -> Result<f64, Fault> {
        let mean = |device: &Scripted| device.history.iter().sum::<f64>() / device.history.len().max(1) as f64 * 1000.0;
        self.call(device, "power", |device| device.has_power, mean)
    }

    fn limit_mw(&mut self, device: &Address) -> Result<u32, Fault> {
        self.call(device, "limit", |device| device.limit_mw > 0, |device| device.limit_mw)
    }

    fn processes(&mut self, device: &Address) -> Result<Vec<u32>, Fault> {
        self.call(device, "processes", |_| true, |device| device.processes.clone())
    }

    fn wait(&mut self, time: Duration) {
        self.pass(time);
    }
}

fn one(found: Vec<Result<Domain, Missing>>) -> Domain {
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap().unwrap()
}

fn lost(found: Vec<Result<Domain, Missing>>) -> (String, Unavailable) {
    assert_eq!(found.len(), 1, "{found:?}");
    let missing = found.into_iter().next().unwrap().unwrap_err();
    assert_eq!(missing.bases, GPU);
    (missing.domain, missing.reason)
}

/// Joules by the counter and by the trapezoid of power, from reads `period` apart.
fn measure(machine: &Machine, provider: &mut NvmlGpus, id: &str, period: Duration, time: Duration) -> (f64, f64) {
    let (mut counted, mut integral) = (0.0, 0.0);
    let (mut energy, mut power) = (None, None);
    for _ in 0..=time.as_millis() / period.as_millis() {
        match provider.read(id) {
            Ok(Raw::Counter(now)) => counted += energy.replace(now).map_or(0.0, |last| (now - last) as f64 / 1e6),
            Ok(Raw::Watts(now)) => {
                integral += power.replace(now).map_or(0.0, |last: f64| (last + now) / 2.0 * period.as_secs_f64());
            }
            Err(reason) => assert_eq!(reason, Unavailable::Implausible),
        }
        machine.pass(period);
    }
    (counted, integral)
}

#[test]
fn the_counter_is_preferred_and_its_period_is_found() {
    for (update_ms, expected_ms, busy_ms) in [(0, 1, 20), (20, 20, 20), (100, 100, 50)] {
        let mut device = Scripted::new("GPU-a");
        device.update = Duration::from_millis(update_ms);
        let machine = Machine::new(vec![device]);
        let mut provider = machine.provider(None);
        let start = machine.world().now;
        let domain = one(provider.discover());
        assert!(machine.world().now - start <= PROBE + PROBE_STEP);
        assert_eq!((domain.id.as_str(), domain.source), ("nvml:GPU-a", Source::Nvml));
        assert_eq!(domain.class, SourceClass::Counter { modulus_uj: None });
        assert_eq!(domain.update_period, Some(Duration::from_millis(expected_ms)));
        assert_eq!(domain.busy_period, Duration::from_millis(busy_ms));
        assert_eq!((domain.bases, &domain.rail, domain.max_watts), (GPU, &Rail::Accelerator(0), 1500.0));
        assert!(domain.exclusive && !domain.shared);
        let (counted, _) = measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(10));
        assert!((counted - 1000.0).abs() < 20.0, "{counted} J");
    }
}

#[test]
fn without_a_counter_power_is_integrated() {
    let mut device = Scripted::new("GPU-a");
    device.has_energy = false;
    device.load = |time| if time.rem_euclid(1.0) < 0.5 { 300.0 } else { 60.0 };
    let machine = Machine::new(vec![device]);
    machine.pass(Duration::from_secs(1));
    let mut provider = machine.provider(None);
    let domain = one(provider.discover());
    assert_eq!(domain.class, SourceClass::InstantPower { averaging: None });
    let (counted, joules) = measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(10));
    assert_eq!(counted, 0.0);
    assert!((joules / 1800.0 - 1.0).abs() < 0.02, "{joules} J");
    // What is not supported is not asked again.
    assert_eq!(machine.device(0, |device| (device.count("energy"), device.count("power"))), (1, 0));
}

#[test]
fn a_mean_of_a_second_is_right_in_the_long_run() {
    let mut device = Scripted::new("GPU-a");
    device.has_energy = false;
    device.has_instant = false;
    device.load = |time| if time.rem_euclid(1.0) < 0.5 { 300.0 } else { 60.0 };
    let machine = Machine::new(vec![device]);
    machine.pass(Duration::from_secs(2));
    let mut provider = machine.provider(None);
    let domain = one(provider.discover());
    assert_eq!(domain.class, SourceClass::InstantPower { averaging: Some(Duration::from_secs(1)) });
    let (_, joules) = measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(10));
    assert!((joules / 1800.0 - 1.0).abs() < 0.02, "{joules} J");
    assert_eq!(machine.device(0, |device| device.count("instant")), 1);
}

#[test]
fn a_counter_of_the_wrong_rate_is_not_used() {
    for rate in [0.25, 4.0] {
        let mut device = Scripted::new("GPU-a");
        device.rate = rate;
        let machine = Machine::new(vec![device]);
        machine.pass(Duration::from_secs(1));
        let domain = one(machine.provider(None).discover());
        assert_eq!(domain.class, SourceClass::InstantPower { averaging: None }, "{rate}");
        assert_eq!(domain.update_period, None);
    }
}

#[test]
fn a_counter_that_goes_wrong_under_load_is_given_up() {
    for (rate, has_instant) in [(0.25, true), (4.0, true), (0.25, false), (4.0, false)] {
        let mut device = Scripted::new("GPU-a");
        device.has_instant = has_instant;
        device.load = |time| if time < 4.0 { 50.0 } else { 300.0 };
        let machine = Machine::new(vec![device]);
        let mut provider = machine.provider(None);
        let domain = one(provider.discover());
        assert_eq!(domain.class.name(), "counter");
        measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(4));
        machine.device(0, |device| device.rate = rate);
        let (_, joules) = measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(12));
        assert!(joules > 0.0, "rate {rate}, instant {has_instant}");
        assert!(matches!(provider.read(&domain.id), Ok(Raw::Watts(watts)) if (watts - 300.0).abs() < 1.0));
    }
}

#[test]
fn a_right_counter_is_compared_once_and_kept() {
    for has_instant in [true, false] {
        let mut device = Scripted::new("GPU-a");
        device.has_instant = has_instant;
        device.load = |time| if time < 3.0 { 50.0 } else { 300.0 + 100.0 * (time * 3.0).sin() };
        let machine = Machine::new(vec![device]);
        let mut provider = machine.provider(None);
        let domain = one(provider.discover());
        let (counted, joules) = measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(20));
        assert!(counted > 0.0 && joules == 0.0);
        let calls = |machine: &Machine| machine.device(0, |device| device.count("instant") + device.count("power"));
        let before = calls(&machine);
        measure(&machine, &mut provider, &domain.id, BUSY_PERIOD, Duration::from_secs(5));
        assert_eq!(calls(&machine), before, "power is read no more");
    }
}

#[test]
fn a_lost_device_fails_alone_and_a_reload_shows_as_it_is() {
    let machine = Machine::new((0..8).map(|index| Scripted::new(&format!("GPU-{index}"))).collect());
    let mut provider = machine.provider(None);
    let found = provider.discover();
    assert_eq!(found.len(), 8);
    for (index, domain) in found.iter().enumerate() {
        assert_eq!(domain.as_ref().unwrap().rail, Rail::Accelerator(index));
    }
    machine.device(3, |device| device.lost = true);
    assert_eq!(provider.read("nvml:GPU-3"), Err(Unavailable::ReadFailed));
    assert!(matches!(provider.read("nvml:GPU-4"), Ok(Raw::Counter(_))));
    machine.device(4, |device| device.shown_mj = 0);
    assert_eq!(provider.read("nvml:GPU-4"), Ok(Raw::Counter(0)));

    let machine = Machine::new(vec![Scripted::new("GPU-a")]);
    machine.device(0, |device| device.lost = true);
    assert_eq!(lost(machine.provider(None).discover()), ("nvml:0000:01:00.0".into(), Unavailable::ReadFailed));
}

#[test]
fn what_a_device_cannot_say_is_not_supported() {
    let mut device = Scripted::new("GPU-a");
    (device.has_energy, device.has_instant, device.has_power) = (false, false, false);
    let machine = Machine::new(vec![device]);
    assert_eq!(lost(machine.provider(None).discover()), ("nvml:GPU-a".into(), Unavailable::NotSupported));
}

#[test]
fn a_missing_library_is_a_missing_driver() {
    for devices in [vec![Scripted::new("GPU-a")], vec![]] {
        let machine = Machine::new(devices);
        machine.world().library_missing = true;
        let mut provider = machine.provider(None);
        assert_eq!(lost(provider.discover()), ("nvml".into(), Unavailable::DriverMissing));
        assert_eq!(provider.read("nvml:GPU-a"), Err(Unavailable::NoSensor));
    }
    assert_eq!(lost(Machine::new(vec![]).provider(None).discover()), ("nvml".into(), Unavailable::NoSensor));
}

#[test]
fn the_order_is_that_of_cuda_and_hidden_devices_are_not_read() {
    let machine = Machine::new((0..3).map(|index| Scripted::new(&format!("GPU-{index}"))).collect());
    let mut provider = machine.provider(Some("GPU-2,0"));
    let found: Vec<Domain> = provider.discover().into_iter().map(Result::unwrap).collect();
    let named: Vec<_> = found.iter().map(|domain| (domain.id.as_str(), domain.rail.clone())).collect();
    assert_eq!(named, [("nvml:GPU-2", Rail::Accelerator(0)), ("nvml:GPU-0", Rail::Accelerator(1))]);
    assert_eq!(machine.device(1, |device| device.calls.clone()), ["uuid"]);
    assert_eq!(provider.read("nvml:GPU-1"), Err(Unavailable::NoSensor));

    assert_eq!(lost(machine.provider(Some("")).discover()), ("nvml".into(), Unavailable::NoSensor));
    assert_eq!(lost(machine.provider(Some("MIG-x,0")).discover()), ("nvml:MIG-x".into(), Unavailable::NoSensor));
    for (spec, bases) in [("0,MIG-x", GPU), ("0,9", &[])] {
        let found = machine.provider(Some(spec)).discover();
        assert_eq!(found[0].as_ref().unwrap().id, "nvml:GPU-0");
        assert_eq!(found[1].as_ref().unwrap_err().bases, bases, "{spec}");
    }
}

#[test]
fn a_sleeping_device_is_not_touched() {
    let machine = Machine::new(vec![Scripted::new("GPU-0"), Scripted::new("GPU-1")]);
    machine.write("0000:01:00.0", "power/runtime_status", "suspended");
    let mut provider = machine.provider(None);
    let found = provider.discover();
    let missing = found[0].as_ref().unwrap_err();
    assert_eq!((missing.domain.as_str(), missing.reason), ("nvml:0000:01:00.0", Unavailable::DeviceSuspended));
    assert_eq!(found[1].as_ref().unwrap().rail, Rail::Accelerator(1));
    assert_eq!(machine.device(0, |device| device.calls.len()), 0);

    let calls = machine.device(1, |device| device.calls.len());
    machine.write("0000:02:00.0", "power/runtime_status", "suspended");
    assert_eq!(provider.read("nvml:GPU-1"), Err(Unavailable::DeviceSuspended));
    assert_eq!(provider.foreign_processes("nvml:GPU-1"), None);
    assert_eq!(machine.device(1, |device| device.calls.len()), calls);
    machine.write("0000:02:00.0", "power/runtime_status", "active");
    assert!(matches!(provider.read("nvml:GPU-1"), Ok(Raw::Counter(_))));

    let asleep = Machine::new(vec![Scripted::new("GPU-0")]);
    asleep.write("0000:01:00.0", "power/runtime_status", "suspended");
    let found = asleep.provider(None).discover();
    assert_eq!(lost(found), ("nvml:0000:01:00.0".into(), Unavailable::DeviceSuspended));
    assert_eq!(asleep.world().loaded, 0, "to load the library would wake it");
}

#[test]
fn devices_are_found_where_the_system_lists_none() {
    let machine = Machine::new(vec![Scripted::new("GPU-0"), Scripted::new("GPU-1")]);
    let mut provider = machine.provider(None);
    provider.surroundings.pci_root = "/nowhere/pci".into();
    let ids: Vec<String> = provider.discover().into_iter().map(|found| found.unwrap().id).collect();
    assert_eq!(ids, ["nvml:GPU-0", "nvml:GPU-1"]);
    assert!(provider.read("nvml:GPU-1").is_ok());
}

#[test]
fn devices_that_a_container_hides_are_passed_over() {
    let machine = Machine::new(vec![Scripted::new("GPU-0")]);
    machine.write("0000:09:00.0", "vendor", "0x10de");
    machine.write("0000:09:00.0", "class", "0x030000");
    assert_eq!(one(machine.provider(None).discover()).id, "nvml:GPU-0");
}

#[test]
fn processes_of_others_limits_and_divided_devices_are_told() {
    let mut device = Scripted::new("GPU-a");
    device.processes = vec![3, 7, 9];
    device.limit_mw = 1_000_000;
    device.divided = true;
    let machine = Machine::new(vec![device]);
    let mut provider = machine.provider(None);
    let domain = one(provider.discover());
    assert_eq!((domain.max_watts, domain.shared), (2000.0, true));
    assert_eq!(provider.foreign_processes("nvml:GPU-a"), Some(2));
    assert_eq!(provider.foreign_processes("nvml:GPU-b"), None);
}

#[test]
#[ignore = "needs a GPU of NVIDIA"]
fn the_counter_of_a_real_device_matches_its_power() {
    struct Real(std::time::Instant);
    impl Clock for Real {
        fn now(&self) -> Nanos {
            Nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap())
        }
        fn suspended(&self) -> Duration {
            Duration::ZERO
        }
    }
    let clock = Arc::new(Real(std::time::Instant::now()));
    let surroundings = Surroundings::of_this_machine(Arc::new(SystemFiles), clock.clone());
    let mut provider = NvmlGpus::new(Box::new(Library::load), surroundings);
    for domain in provider.discover() {
        let domain = domain.unwrap();
        println!("{domain:?}");
        let device = provider.devices.get(&domain.id).unwrap();
        let (address, power) = (device.address.clone(), device.power.unwrap());
        let api = provider.api.as_mut().unwrap();
        let mut comparison = Comparison::default();
        let start = clock.now();
        while clock.now().since(start) < Duration::from_secs(30) {
            let energy = api.energy_mj(&address).unwrap();
            let watts = power.watts(&mut **api, &address).unwrap();
            comparison.add(clock.now(), energy, Some(watts));
            api.wait(BUSY_PERIOD);
        }
        let ratio = comparison.ratio().unwrap();
        println!("{:?} W over {:?}, ratio {ratio}", comparison.watts(), comparison.span());
        assert!((0.9..=1.1).contains(&ratio), "{ratio}");
    }
}
