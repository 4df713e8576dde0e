use std::{io::ErrorKind, thread, time::Instant};

use super::*;
use crate::{
    energy::providers::files::{SystemFiles, fake::FailingFiles},
    testing::{PowercapTree, PowercapZone, USUAL_RANGE_UJ},
};

struct Fixture {
    tree: PowercapTree,
    files: FailingFiles,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new(tree: impl FnOnce(PathBuf) -> io::Result<PowercapTree>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(folder.path().join("powercap")).unwrap();
        Self { tree, files: FailingFiles::default(), _folder: folder }
    }

    fn two_sockets() -> Self {
        Self::new(PowercapTree::two_sockets)
    }

    fn provider(&self, machine: Machine, basis: Basis) -> Powercap {
        Powercap::new(self.tree.root().into(), Arc::new(self.files.clone()), machine, basis)
    }

    /// What is found on a plain machine.
    fn discover(&self) -> (Powercap, Vec<Result<Domain, Missing>>) {
        let mut provider = self.provider(Machine::Physical, Basis::Cpu);
        let found = provider.discover();
        (provider, found)
    }

    fn energy(&self, folder: &str) -> PathBuf {
        self.tree.root().join(folder).join("energy_uj")
    }
}

fn ids(found: &[Result<Domain, Missing>], basis: Basis) -> Vec<&str> {
    found.iter().flatten().filter(|domain| domain.bases.contains(&basis)).map(|domain| domain.id.as_str()).collect()
}

fn missing_of(found: &[Result<Domain, Missing>]) -> Vec<(&str, Unavailable)> {
    found.iter().filter_map(|found| found.as_ref().err()).map(|lost| (lost.domain.as_str(), lost.reason)).collect()
}

#[test]
fn packages_and_memory_are_summed_and_nothing_counts_twice() {
    let fixture = Fixture::two_sockets();
    let (_, found) = fixture.discover();
    let cpu = ["rapl:package-0", "rapl:dram-0", "rapl:package-1", "rapl:dram-1"];
    assert_eq!(ids(&found, Basis::Cpu), cpu);
    assert_eq!(ids(&found, Basis::GpuCpu), cpu);
    assert_eq!(ids(&found, Basis::Platform), ["rapl:psys"]);
    assert_eq!(found.len(), 5, "no core, no uncore, no twin: {found:?}");
    for domain in found.iter().flatten() {
        assert_eq!(domain.exclusive, domain.id != "rapl:psys");
        assert_eq!(domain.class, SourceClass::Counter { modulus_uj: Some(USUAL_RANGE_UJ) });
        assert_eq!((domain.source, &domain.rail, domain.max_watts), (Source::Rapl, &Rail::Host, 1000.0));
    }
    assert_eq!(fixture.files.opened_in(fixture.tree.root().join("intel-rapl-mmio:0")), 0);
}

#[test]
fn every_die_of_a_package_is_a_domain() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        for die in 0..2 {
            tree.zone(PowercapZone::new(format!("intel-rapl:{die}"), format!("package-0-die-{die}")))?;
            tree.part(die, 0, "dram")?;
        }
        Ok(tree)
    });
    let (_, found) = fixture.discover();
    let expected = ["rapl:package-0-die-0", "rapl:dram-0-die-0", "rapl:package-0-die-1", "rapl:dram-0-die-1"];
    assert_eq!(ids(&found, Basis::Cpu), expected);
}

#[test]
fn zones_inside_one_another_are_found_as_well() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.zone(PowercapZone::new("intel-rapl/intel-rapl:0", "package-0"))?;
        tree.zone(PowercapZone::new("intel-rapl/intel-rapl:0/intel-rapl:0:0", "dram"))?;
        Ok(tree)
    });
    let (mut provider, found) = fixture.discover();
    assert_eq!(ids(&found, Basis::Cpu), ["rapl:package-0", "rapl:dram-0"]);
    assert_eq!(provider.read("rapl:dram-0"), Ok(Raw::Counter(1_000_000)));
}

#[test]
fn sensors_of_the_same_name_stay_apart() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.package(0)?;
        tree.psys(1)?;
        tree.psys(2)?;
        Ok(tree)
    });
    let (_, found) = fixture.discover();
    assert_eq!(ids(&found, Basis::Platform), ["rapl:psys", "rapl:psys@2"]);
    // Those that may not be read as well: a name stands for one series.
    for zone in ["intel-rapl:1", "intel-rapl:2"] {
        fixture.files.fail(fixture.energy(zone), ErrorKind::PermissionDenied);
    }
    let missing: Vec<_> = missing_of(&fixture.discover().1).into_iter().map(|(id, _)| id.to_owned()).collect();
    assert_eq!(missing, ["rapl:psys", "rapl:psys@2"]);
}

#[test]
fn counters_are_read_from_files_that_stay_open() {
    let fixture = Fixture::two_sockets();
    let (mut provider, _) = fixture.discover();
    for step in 1..=10 {
        fixture.tree.advance("intel-rapl:1", 10.0, Duration::from_millis(20)).unwrap();
        assert_eq!(provider.read("rapl:package-1"), Ok(Raw::Counter(1_000_000 + step * 200_000)));
    }
    assert_eq!(fixture.files.opened(fixture.energy("intel-rapl:1")), 1);
    assert_eq!(provider.read("rapl:core-0"), Err(Unavailable::NoSensor));
}

#[test]
fn a_counter_shows_its_wrap_as_it_is() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.zone(PowercapZone::new("intel-rapl:0", "package-0").range_uj(Some(1_000_000)).energy_uj(999_000))?;
        Ok(tree)
    });
    let (mut provider, found) = fixture.discover();
    assert_eq!(found[0].as_ref().unwrap().class, SourceClass::Counter { modulus_uj: Some(1_000_000) });
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(999_000)));
    fixture.tree.advance("intel-rapl:0", 1.0, Duration::from_micros(1501)).unwrap();
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(500)));
}

#[test]
fn a_range_that_is_no_number_means_no_correction_of_wraps() {
    for text in ["", "\n", "-1\n", "0\n", "18446744073709551616\n", "many\n"] {
        let fixture = Fixture::new(|root| {
            let tree = PowercapTree::new(root)?;
            tree.zone(PowercapZone::new("intel-rapl:0", "package-0").range_text(text))?;
            Ok(tree)
        });
        let (_, found) = fixture.discover();
        assert_eq!(found[0].as_ref().unwrap().class, SourceClass::Counter { modulus_uj: None }, "{text:?}");
    }
    let fixture = Fixture::two_sockets();
    fixture.files.fail(fixture.tree.root().join("intel-rapl:0/max_energy_range_uj"), ErrorKind::PermissionDenied);
    let (_, found) = fixture.discover();
    assert_eq!(found[0].as_ref().unwrap().class, SourceClass::Counter { modulus_uj: None });
    assert_eq!(found[2].as_ref().unwrap().class, SourceClass::Counter { modulus_uj: Some(USUAL_RANGE_UJ) });
}

#[test]
fn the_end_of_a_line_and_the_switch_of_the_power_limit_do_not_matter() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.zone(PowercapZone::new("intel-rapl:0", "package-0").newline(false))?;
        tree.zone(PowercapZone::new("intel-rapl:0:0", "dram").enabled(false))?;
        Ok(tree)
    });
    let (mut provider, found) = fixture.discover();
    assert_eq!(ids(&found, Basis::Cpu), ["rapl:package-0", "rapl:dram-0"]);
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(1_000_000)));
    assert_eq!(provider.read("rapl:dram-0"), Ok(Raw::Counter(1_000_000)));
}

#[test]
fn what_is_not_a_number_is_a_failed_read() {
    let fixture = Fixture::two_sockets();
    let (mut provider, _) = fixture.discover();
    let huge = "1".repeat(1 << 20);
    for text in ["", "\n", "-5\n", "+5\n", "18446744073709551616\n", "1.5\n", "N/A\n", "\u{0}\u{0}", huge.as_str()] {
        fixture.tree.garble("intel-rapl:0", text).unwrap();
        assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::ReadFailed), "{:?}", text.get(..20));
        assert_eq!(provider.read("rapl:package-1"), Ok(Raw::Counter(1_000_000)));
    }
    fixture.tree.set("intel-rapl:0", 7).unwrap();
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(7)));

    fixture.tree.garble("intel-rapl:1", "N/A\n").unwrap();
    let (_, found) = fixture.discover();
    assert_eq!(missing_of(&found), [("rapl:package-1", Unavailable::ReadFailed)]);
}

#[test]
fn a_counter_that_may_not_be_read_says_how_to_allow_it() {
    let fixture = Fixture::two_sockets();
    fixture.files.fail(fixture.energy("intel-rapl:0"), ErrorKind::PermissionDenied);
    let (mut provider, found) = fixture.discover();
    assert_eq!(missing_of(&found), [("rapl:package-0", Unavailable::PermissionDenied)]);
    assert_eq!(ids(&found, Basis::Cpu), ["rapl:dram-0", "rapl:package-1", "rapl:dram-1"]);
    let missing = found.iter().find_map(|found| found.as_ref().err()).unwrap();
    assert_eq!(missing.bases, CPU);
    for part in ["groupadd", "usermod -aG energy", "SUBSYSTEM==\"powercap\"", "chgrp energy /sys%p/energy_uj"] {
        assert!(missing.remedy.contains(part), "{part} in {}", missing.remedy);
    }
    assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::NoSensor));

    let fixture = Fixture::two_sockets();
    fixture.files.fail(fixture.tree.root(), ErrorKind::PermissionDenied);
    assert_eq!(missing_of(&fixture.discover().1), [("rapl", Unavailable::PermissionDenied)]);
}

#[test]
fn a_counter_that_fails_later_comes_back_and_the_others_go_on() {
    let fixture = Fixture::two_sockets();
    let (mut provider, _) = fixture.discover();
    for _ in 0..10 {
        assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(1_000_000)));
    }
    fixture.files.fail(fixture.energy("intel-rapl:0"), ErrorKind::PermissionDenied);
    assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::PermissionDenied));
    assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::PermissionDenied));
    assert_eq!(provider.read("rapl:package-1"), Ok(Raw::Counter(1_000_000)));
    fixture.files.heal(fixture.energy("intel-rapl:0"));
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(1_000_000)));
}

#[test]
fn a_file_that_vanishes_is_opened_again_when_it_is_back() {
    let fixture = Fixture::two_sockets();
    let (mut provider, _) = fixture.discover();
    fixture.tree.vanish("intel-rapl:0").unwrap();
    assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::ReadFailed));
    assert_eq!(provider.read("rapl:package-0"), Err(Unavailable::ReadFailed));
    fixture.tree.advance("intel-rapl:0", 1.0, Duration::from_secs(1)).unwrap();
    fixture.tree.come_back("intel-rapl:0").unwrap();
    assert_eq!(provider.read("rapl:package-0"), Ok(Raw::Counter(2_000_000)));
    assert_eq!(provider.read("rapl:package-1"), Ok(Raw::Counter(1_000_000)));
}

#[test]
fn an_empty_tree_is_masked_on_a_machine_and_no_sensor_in_a_virtual_one() {
    let fixture = Fixture::new(PowercapTree::new);
    for (machine, reason) in [
        (Machine::Physical, Unavailable::Masked),
        (Machine::Virtual, Unavailable::NoSensor),
        (Machine::Unknown, Unavailable::NoSensor),
    ] {
        let found = fixture.provider(machine, Basis::Cpu).discover();
        assert_eq!(missing_of(&found), [("rapl", reason)], "{machine:?}");
        assert!(found[0].as_ref().unwrap_err().bases.contains(&Basis::Cpu));
    }
    let mut nowhere =
        Powercap::new("/nowhere/powercap".into(), Arc::new(FailingFiles::default()), Machine::Physical, Basis::Cpu);
    assert_eq!(missing_of(&nowhere.discover()), [("rapl", Unavailable::NoSensor)]);

    let other = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.zone(PowercapZone::new("dtpm:0", "soc"))?;
        Ok(tree)
    });
    assert_eq!(missing_of(&other.discover().1), [("rapl", Unavailable::NoSensor)]);
}

#[cfg(unix)]
#[test]
fn links_into_nothing_are_masked() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        for link in ["intel-rapl", "intel-rapl:0", "intel-rapl:0:0"] {
            tree.masked(link)?;
        }
        Ok(tree)
    });
    let (_, found) = fixture.discover();
    assert_eq!(missing_of(&found), [("rapl", Unavailable::Masked)]);
    assert!(found[0].as_ref().unwrap_err().remedy.contains("--powercap-root"));
}

#[test]
fn a_tree_that_is_there_is_read_in_a_virtual_machine_too() {
    let fixture = Fixture::two_sockets();
    let found = fixture.provider(Machine::Virtual, Basis::Cpu).discover();
    assert_eq!(ids(&found, Basis::Cpu).len(), 4);
}

#[test]
fn a_missing_sensor_of_the_whole_machine_is_named_if_it_is_asked_for() {
    let fixture = Fixture::new(|root| {
        let tree = PowercapTree::new(root)?;
        tree.package(0)?;
        Ok(tree)
    });
    assert_eq!(missing_of(&fixture.discover().1), []);
    let found = fixture.provider(Machine::Physical, Basis::Platform).discover();
    assert_eq!(missing_of(&found), [("rapl:psys", Unavailable::NoSensor)]);
    assert_eq!(found[1].as_ref().unwrap_err().bases, PLATFORM);
}

#[test]
fn the_hypervisor_is_a_flag_of_the_processor() {
    let guest = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme hypervisor lahf_lm\nvmx flags\t: x\n";
    assert_eq!(Machine::from_cpuinfo(guest), Machine::Virtual);
    assert_eq!(Machine::from_cpuinfo(&guest.replace("hypervisor ", "")), Machine::Physical);
    assert_eq!(Machine::from_cpuinfo("processor\t: 0\nFeatures\t: fp asimd\n"), Machine::Unknown);
    assert_eq!(Machine::from_cpuinfo(""), Machine::Unknown);
}

#[test]
fn this_machine_gives_counters_or_reasons() {
    let machine = Machine::read(&SystemFiles);
    let mut provider = Powercap::new("/sys/class/powercap".into(), Arc::new(SystemFiles), machine, Basis::Cpu);
    let found = provider.discover();
    assert!(!found.is_empty());
    for found in found {
        match found {
            Ok(domain) => assert!(matches!(provider.read(&domain.id), Ok(Raw::Counter(_))), "{domain:?}"),
            Err(missing) => assert!(!missing.remedy.is_empty(), "{missing:?}"),
        }
    }
}

#[test]
#[ignore = "needs a machine whose powercap tree can be read, and 10 quiet seconds"]
fn work_on_all_cores_of_a_real_machine_costs_more_than_rest() {
    let mut provider =
        Powercap::new("/sys/class/powercap".into(), Arc::new(SystemFiles), Machine::Physical, Basis::Cpu);
    let found = provider.discover();
    assert_eq!(missing_of(&found), []);
    let packages: Vec<String> = ids(&found, Basis::Cpu).into_iter().map(String::from).collect();
    let mut watts = |what: &str| {
        let mut read = || -> u64 {
            let values = packages.iter().map(|id| provider.read(id).unwrap());
            values.map(|value| if let Raw::Counter(microjoules) = value { microjoules } else { 0 }).sum()
        };
        let (start, before) = (Instant::now(), read());
        thread::sleep(Duration::from_secs(5));
        let watts = (read() - before) as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("{what}: {watts} W");
        watts
    };
    let rest = watts("at rest");
    let until = Instant::now() + Duration::from_secs(7);
    let work = move || {
        let mut value = 1.0f64;
        while Instant::now() < until {
            (0..10_000).for_each(|_| value = std::hint::black_box(value.sin() + 1.0));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads: Vec<_> = (0..cores).map(|_| thread::spawn(work)).collect();
    thread::sleep(Duration::from_secs(1));
    let busy = watts("at work");
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(busy > 1.3 * rest, "{busy} W at work, {rest} W at rest");
}
