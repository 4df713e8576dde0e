//! GPUs of AMD and Intel, through the hwmon files of Linux. No library and no rights are needed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    GPU,
    files::{Files, number_in, reason, text_in},
};
use crate::energy::types::{Basis, Domain, EnergyProvider, Missing, Rail, Raw, Source, SourceClass, Unavailable};

const SOC: &[Basis] = &[Basis::Soc];
const MAX_WATTS: f64 = 1500.0;
const BUSY_PERIOD: Duration = Duration::from_millis(50);

/// Reads the GPUs of one maker below the hwmon folder.
pub(crate) struct Hwmon {
    root: PathBuf,
    files: Arc<dyn Files>,
    maker: Maker,
    basis: Basis,
    devices: BTreeMap<String, Device>,
}

/// Whose GPUs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// Power in microwatts, of the driver `amdgpu`.
    Amd,
    /// Counters of microjoules, of the drivers `i915` and `xe`.
    Intel,
}

struct Device {
    folder: PathBuf,
    sensor: PathBuf,
}

impl Maker {
    fn source(self) -> Source {
        match self {
            Self::Amd => Source::Amdgpu,
            Self::Intel => Source::IntelGpu,
        }
    }

    fn drivers(self) -> &'static [&'static str] {
        match self {
            Self::Amd => &["amdgpu"],
            Self::Intel => &["i915", "xe"],
        }
    }

    fn sensors(self) -> &'static [&'static str] {
        match self {
            Self::Amd => &["power1_average", "power1_input"],
            Self::Intel => &["energy1_input"],
        }
    }

    fn class(self) -> SourceClass {
        match self {
            Self::Amd => SourceClass::InstantPower { averaging: None },
            // The drivers extend the 32 bits of the device to 64.
            Self::Intel => SourceClass::Counter { modulus_uj: None },
        }
    }
}

impl Hwmon {
    /// Reads the GPUs below `root`; `basis` is what will be asked for.
    pub(crate) fn new(maker: Maker, root: PathBuf, files: Arc<dyn Files>, basis: Basis) -> Self {
        Self { root, files, maker, basis, devices: BTreeMap::new() }
    }

    fn there(&self, path: &Path) -> bool {
        !matches!(self.files.open(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
    }

    fn suspended(&self, folder: &Path) -> bool {
        let status = text_in(&*self.files, &folder.join("device/power/runtime_status"));
        status.is_ok_and(|status| status == "suspended")
    }

    /// Graphics inside a processor: its power is that of the whole chip. Only these have the voltage of the north bridge, and
    /// only cards have a power limit.
    fn is_part_of_a_processor(&self, folder: &Path) -> bool {
        self.maker == Maker::Amd && (self.there(&folder.join("in1_label")) || !self.there(&folder.join("power1_cap")))
    }

    fn device(&mut self, name: &str, index: usize) -> Result<Domain, Missing> {
        let folder = self.root.join(name);
        let uevent = text_in(&*self.files, &folder.join("device/uevent")).unwrap_or_default();
        // The address of the device is the same after a restart, the number of the folder may not be.
        let address = uevent.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME=")).unwrap_or(name);
        let source = self.maker.source();
        let id = format!("{source}:{address}");
        let on_chip = self.is_part_of_a_processor(&folder);
        let bases = if on_chip { SOC } else { GPU };
        let missing = |reason| Missing { domain: id.clone(), source, reason, remedy: String::new(), bases };
        let sensor = self.maker.sensors().iter().map(|sensor| folder.join(sensor)).find(|path| self.there(path));
        let sensor = sensor.ok_or_else(|| missing(Unavailable::NotSupported))?;
        if self.suspended(&folder) {
            return Err(missing(Unavailable::DeviceSuspended));
        }
        number_in(&*self.files, &sensor).map_err(missing)?;
        self.devices.insert(id.clone(), Device { folder, sensor });
        Ok(Domain {
            id,
            source,
            class: self.maker.class(),
            bases,
            // The packages of RAPL are in the power of the chip.
            exclusive: !on_chip || self.basis == Basis::Soc,
            shared: false,
            max_watts: MAX_WATTS,
            update_period: None,
            busy_period: BUSY_PERIOD,
            rail: if on_chip { Rail::Host } else { Rail::Accelerator(index) },
        })
    }
}

impl EnergyProvider for Hwmon {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        let nothing = |maker: Maker, reason| {
            let source = maker.source();
            let bases = if self.basis == Basis::Soc { SOC } else { GPU };
            vec![Err(Missing { domain: source.name().into(), source, reason, remedy: String::new(), bases })]
        };
        let names = match self.files.names(&self.root) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return nothing(self.maker, Unavailable::NoSensor),
            Err(error) => return nothing(self.maker, reason(&error)),
        };
        let mine = |name: &String| {
            let driver = text_in(&*self.files, &self.root.join(name).join("name"));
            driver.is_ok_and(|driver| self.maker.drivers().contains(&driver.as_str()))
        };
        let names: Vec<String> = names.into_iter().filter(mine).collect();
        if names.is_empty() {
            return nothing(self.maker, Unavailable::NoSensor);
        }
        names.iter().enumerate().map(|(index, name)| self.device(name, index)).collect()
    }

    fn read(&mut self, domain: &str) -> Result<Raw, Unavailable> {
        let device = self.devices.get(domain).ok_or(Unavailable::NoSensor)?;
        if self.suspended(&device.folder) {
            return Err(Unavailable::DeviceSuspended);
        }
        let value = number_in(&*self.files, &device.sensor)?;
        Ok(match self.maker {
            Maker::Amd => Raw::Watts(value as f64 / 1e6),
            Maker::Intel => Raw::Counter(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::energy::providers::files::fake::FailingFiles;

    struct Fixture {
        folder: tempfile::TempDir,
        files: FailingFiles,
    }

    impl Fixture {
        fn new(files: &[(&str, &str)]) -> Self {
            let fixture = Self { folder: tempfile::tempdir().unwrap(), files: FailingFiles::default() };
            for (path, text) in files {
                fixture.write(path, text);
            }
            fixture
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        fn provider(&self, maker: Maker, basis: Basis) -> Hwmon {
            Hwmon::new(maker, self.folder.path().into(), Arc::new(self.files.clone()), basis)
        }
    }

    const CARD: &[(&str, &str)] = &[
        ("hwmon0/name", "nvme"),
        ("hwmon3/name", "amdgpu"),
        ("hwmon3/power1_average", "23000000"),
        ("hwmon3/power1_input", "1"),
        ("hwmon3/power1_cap", "300000000"),
        ("hwmon3/device/uevent", "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:03:00.0\nMODALIAS=x"),
        ("hwmon3/device/power/runtime_status", "active"),
    ];

    #[test]
    fn a_card_of_amd_is_a_gpu() {
        let fixture = Fixture::new(CARD);
        let mut provider = fixture.provider(Maker::Amd, Basis::Gpu);
        let found = provider.discover();
        let domain = found[0].as_ref().unwrap();
        assert_eq!((found.len(), domain.id.as_str()), (1, "amdgpu:0000:03:00.0"));
        assert_eq!((domain.bases, domain.exclusive, &domain.rail), (GPU, true, &Rail::Accelerator(0)));
        assert_eq!(provider.read("amdgpu:0000:03:00.0"), Ok(Raw::Watts(23.0)));
        fixture.write("hwmon3/power1_average", "-1");
        assert_eq!(provider.read("amdgpu:0000:03:00.0"), Err(Unavailable::ReadFailed));
    }

    #[test]
    fn graphics_in_a_processor_are_the_chip() {
        let fixture = Fixture::new(CARD);
        fs::remove_file(fixture.folder.path().join("hwmon3/power1_average")).unwrap();
        fixture.write("hwmon3/in1_label", "vddnb");
        fixture.write("hwmon3/power1_input", "15500000");
        for (basis, exclusive) in [(Basis::Soc, true), (Basis::GpuCpu, false)] {
            let mut provider = fixture.provider(Maker::Amd, basis);
            let found = provider.discover();
            let domain = found[0].as_ref().unwrap();
            assert_eq!((domain.bases, domain.exclusive, &domain.rail), (SOC, exclusive, &Rail::Host));
            assert_eq!(provider.read(&domain.id), Ok(Raw::Watts(15.5)));
        }
    }

    #[test]
    fn a_sleeping_card_is_left_alone() {
        let fixture = Fixture::new(CARD);
        let mut provider = fixture.provider(Maker::Amd, Basis::Gpu);
        let id = provider.discover().remove(0).unwrap().id;
        fixture.write("hwmon3/device/power/runtime_status", "suspended");
        let sensor = fixture.folder.path().join("hwmon3/power1_average");
        let opened = fixture.files.opened(&sensor);
        assert_eq!(provider.read(&id), Err(Unavailable::DeviceSuspended));
        assert_eq!(fixture.files.opened(&sensor), opened);
        fixture.write("hwmon3/device/power/runtime_status", "active");
        assert_eq!(provider.read(&id), Ok(Raw::Watts(23.0)));
    }

    #[test]
    fn cards_of_intel_have_counters() {
        let fixture =
            Fixture::new(&[("hwmon1/name", "xe"), ("hwmon1/energy1_input", "4000000"), ("hwmon2/name", "acpi")]);
        let mut provider = fixture.provider(Maker::Intel, Basis::Gpu);
        let found = provider.discover();
        let domain = found[0].as_ref().unwrap();
        assert_eq!((domain.id.as_str(), domain.source), ("intel_gpu:hwmon1", Source::IntelGpu));
        assert_eq!(domain.class, SourceClass::Counter { modulus_uj: None });
        assert_eq!(provider.read("intel_gpu:hwmon1"), Ok(Raw::Counter(4_000_000)));
    }

    #[test]
    fn what_is_not_there_is_no_sensor_and_what_does_not_answer_is_not_supported() {
        let reason = |fixture: &Fixture| {
            let found = fixture.provider(Maker::Amd, Basis::Gpu).discover();
            let missing = found.into_iter().next().unwrap().unwrap_err();
            (missing.domain, missing.reason)
        };
        assert_eq!(reason(&Fixture::new(&[("hwmon0/name", "nvme")])), ("amdgpu".into(), Unavailable::NoSensor));
        let silent = Fixture::new(&[("hwmon0/name", "amdgpu"), ("hwmon0/power1_cap", "1")]);
        assert_eq!(reason(&silent), ("amdgpu:hwmon0".into(), Unavailable::NotSupported));
        let denied = Fixture::new(CARD);
        denied.files.fail(denied.folder.path().join("hwmon3/power1_average"), io::ErrorKind::PermissionDenied);
        assert_eq!(reason(&denied), ("amdgpu:0000:03:00.0".into(), Unavailable::PermissionDenied));
    }
}
