//! A powercap tree in a folder, as the kernel shows it, with a driver that moves its counters.

use std::{
    fs, io,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The range of many servers and laptops, in microjoules: 97 minutes at 45 W.
pub const USUAL_RANGE_UJ: u64 = 262_143_328_850;

/// One zone to make: a folder such as `intel-rapl:0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowercapZone {
    folder: String,
    name: String,
    energy_uj: u64,
    range_uj: Option<u64>,
    range_text: Option<String>,
    enabled: bool,
    newline: bool,
}

impl PowercapZone {
    /// A zone in `folder`, below the root, that calls itself `name`; its counter is at 1 J and has the usual range.
    pub fn new(folder: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            folder: folder.into(),
            name: name.into(),
            energy_uj: 1_000_000,
            range_uj: Some(USUAL_RANGE_UJ),
            range_text: None,
            enabled: true,
            newline: true,
        }
    }

    /// Where the counter begins, in microjoules.
    pub fn energy_uj(self, energy_uj: u64) -> Self {
        Self { energy_uj, ..self }
    }

    /// The largest value of the counter, in microjoules; `None` is no range file, and no wrap before 64 bits.
    pub fn range_uj(self, range_uj: Option<u64>) -> Self {
        Self { range_uj, ..self }
    }

    /// What the range file says, whatever it is.
    pub fn range_text(self, text: impl Into<String>) -> Self {
        Self { range_text: Some(text.into()), ..self }
    }

    /// What `enabled` says: whether a limit of power is set, which has no effect on the counter.
    pub fn enabled(self, enabled: bool) -> Self {
        Self { enabled, ..self }
    }

    /// Whether the files end with a new line, as those of the kernel do.
    pub fn newline(self, newline: bool) -> Self {
        Self { newline, ..self }
    }
}

#[derive(Debug)]
struct Zone {
    made: PowercapZone,
    energy_uj: u64,
    /// Microjoules below one that the driver has not written yet.
    rest_uj: f64,
    there: bool,
}

/// The tree. Clones share it; the folder is the caller's to remove.
#[derive(Debug, Clone)]
pub struct PowercapTree {
    root: PathBuf,
    zones: Arc<Mutex<Vec<Zone>>>,
}

impl PowercapTree {
    /// An empty tree in `root`, which is made if it is not there.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        Ok(Self { root, zones: Arc::default() })
    }

    /// Where it is: what `powercap_root` should be.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Adds a zone.
    pub fn zone(&self, zone: PowercapZone) -> io::Result<()> {
        let folder = self.root.join(&zone.folder);
        fs::create_dir_all(&folder)?;
        let end = if zone.newline { "\n" } else { "" };
        fs::write(folder.join("name"), format!("{}{end}", zone.name))?;
        fs::write(folder.join("enabled"), format!("{}{end}", u8::from(zone.enabled)))?;
        match (&zone.range_text, zone.range_uj) {
            (Some(text), _) => fs::write(folder.join("max_energy_range_uj"), text)?,
            (None, Some(range)) => fs::write(folder.join("max_energy_range_uj"), format!("{range}{end}"))?,
            (None, None) => {}
        }
        let zone = Zone { energy_uj: zone.energy_uj, made: zone, rest_uj: 0.0, there: true };
        fs::write(self.energy_path(&zone.made.folder), counter_text(&zone))?;
        self.zones().push(zone);
        Ok(())
    }

    /// Adds `package-N` as `intel-rapl:N`.
    pub fn package(&self, package: usize) -> io::Result<()> {
        self.zone(PowercapZone::new(format!("intel-rapl:{package}"), format!("package-{package}")))
    }

    /// Adds a zone inside package N, as `intel-rapl:N:M`: `core`, `uncore` or `dram`.
    pub fn part(&self, package: usize, index: usize, name: &str) -> io::Result<()> {
        self.zone(PowercapZone::new(format!("intel-rapl:{package}:{index}"), name))
    }

    /// Adds the sensor of the whole machine as `intel-rapl:N`.
    pub fn psys(&self, index: usize) -> io::Result<()> {
        self.zone(PowercapZone::new(format!("intel-rapl:{index}"), "psys"))
    }

    /// Adds the second way to package N, `intel-rapl-mmio:N`, which counts the same energy.
    pub fn mmio_twin(&self, package: usize) -> io::Result<()> {
        self.zone(PowercapZone::new(format!("intel-rapl-mmio:{package}"), format!("package-{package}")))
    }

    /// Two packages with core, uncore and dram each, psys, and the twin of package 0.
    pub fn two_sockets(root: impl Into<PathBuf>) -> io::Result<Self> {
        let tree = Self::new(root)?;
        for package in 0..2 {
            tree.package(package)?;
            for (index, name) in ["core", "uncore", "dram"].into_iter().enumerate() {
                tree.part(package, index, name)?;
            }
        }
        tree.psys(2)?;
        tree.mmio_twin(0)?;
        Ok(tree)
    }

    /// Adds a link whose target is hidden, as in a container.
    #[cfg(unix)]
    pub fn masked(&self, folder: &str) -> io::Result<()> {
        std::os::unix::fs::symlink("hidden/from/this/container", self.root.join(folder))
    }

    /// The counter of a zone, in microjoules, as last written by the driver.
    pub fn energy_uj(&self, folder: &str) -> io::Result<u64> {
        let zones = self.zones();
        find(&zones, folder).map(|zone| zone.energy_uj)
    }

    /// Moves a counter by `watts` over `time`, starting again at its range; fractions of a microjoule are kept.
    pub fn advance(&self, folder: &str, watts: f64, time: Duration) -> io::Result<()> {
        let mut zones = self.zones();
        let zone = find_mut(&mut zones, folder)?;
        let exact = watts.mul_add(time.as_secs_f64() * 1e6, zone.rest_uj);
        let whole = exact.floor().max(0.0);
        zone.rest_uj = exact - whole;
        let moved = u128::from(zone.energy_uj) + whole as u128;
        let modulus = zone.made.range_uj.map_or(1 << 64, |range| u128::from(range) + 1);
        zone.energy_uj = u64::try_from(moved % modulus).unwrap_or_default();
        if zone.there { self.write(zone) } else { Ok(()) }
    }

    /// Puts a counter to `energy_uj` microjoules: a reset.
    pub fn set(&self, folder: &str, energy_uj: u64) -> io::Result<()> {
        let mut zones = self.zones();
        let zone = find_mut(&mut zones, folder)?;
        zone.energy_uj = energy_uj;
        if zone.there { self.write(zone) } else { Ok(()) }
    }

    /// Makes the counter's file say `text`, whatever it is, until the next write.
    pub fn garble(&self, folder: &str, text: &str) -> io::Result<()> {
        fs::write(self.energy_path(folder), text)
    }

    /// Takes the counter's file away; who holds it open reads nothing from it any more. The counter itself goes on.
    pub fn vanish(&self, folder: &str) -> io::Result<()> {
        let mut zones = self.zones();
        find_mut(&mut zones, folder)?.there = false;
        let path = self.energy_path(folder);
        fs::OpenOptions::new().write(true).open(&path)?.set_len(0)?;
        fs::remove_file(path)
    }

    /// Brings it back.
    pub fn come_back(&self, folder: &str) -> io::Result<()> {
        let mut zones = self.zones();
        let zone = find_mut(&mut zones, folder)?;
        zone.there = true;
        fs::write(self.energy_path(folder), counter_text(zone))
    }

    /// Moves counters in real time, each by its watts, until the result is dropped.
    pub fn drive(&self, watts: &[(&str, f64)]) -> io::Result<PowercapDriver> {
        let stop = Arc::new(AtomicBool::new(false));
        let (tree, stopped) = (self.clone(), Arc::clone(&stop));
        let watts: Vec<(String, f64)> = watts.iter().map(|&(folder, watts)| (folder.to_owned(), watts)).collect();
        let thread = thread::Builder::new().name("powercap-driver".into()).spawn(move || {
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                let now = Instant::now();
                for (folder, watts) in &watts {
                    tree.advance(folder, *watts, now - last)?;
                }
                last = now;
            }
            Ok(())
        })?;
        Ok(PowercapDriver { stop, thread: Some(thread) })
    }

    /// In place and in one write of a fixed length, so that a reader never sees half a number.
    fn write(&self, zone: &Zone) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(self.energy_path(&zone.made.folder))?;
        let text = counter_text(zone);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }

    fn energy_path(&self, folder: &str) -> PathBuf {
        self.root.join(folder).join("energy_uj")
    }

    fn zones(&self) -> MutexGuard<'_, Vec<Zone>> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counter_text(zone: &Zone) -> String {
    format!("{:020}{}", zone.energy_uj, if zone.made.newline { "\n" } else { "" })
}

fn find<'a>(zones: &'a [Zone], folder: &str) -> io::Result<&'a Zone> {
    zones.iter().find(|zone| zone.made.folder == folder).ok_or_else(|| unknown(folder))
}

fn find_mut<'a>(zones: &'a mut [Zone], folder: &str) -> io::Result<&'a mut Zone> {
    zones.iter_mut().find(|zone| zone.made.folder == folder).ok_or_else(|| unknown(folder))
}

fn unknown(folder: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no zone `{folder}` was made"))
}

/// Moves the counters of a [`PowercapTree`] while it lives.
#[derive(Debug)]
pub struct PowercapDriver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl PowercapDriver {
    /// Stops, and tells whether all writes went well.
    pub fn stop(mut self) -> io::Result<()> {
        self.end().unwrap_or(Ok(()))
    }

    fn end(&mut self) -> Option<io::Result<()>> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| Err(io::Error::other("the driver of the counters panicked"))))
    }
}

impl Drop for PowercapDriver {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tree: &PowercapTree, folder: &str) -> String {
        fs::read_to_string(tree.root().join(folder).join("energy_uj")).unwrap()
    }

    #[test]
    fn counters_move_by_watts_and_start_again_after_their_range() {
        let folder = tempfile::tempdir().unwrap();
        let tree = PowercapTree::new(folder.path()).unwrap();
        let zone = PowercapZone::new("intel-rapl:0", "package-0").range_uj(Some(1_000_000)).energy_uj(999_000);
        tree.zone(zone.newline(false)).unwrap();
        tree.advance("intel-rapl:0", 0.25, Duration::from_micros(6_002)).unwrap();
        // 1500.5 µJ on a counter of 1 000 001 values.
        assert_eq!(text(&tree, "intel-rapl:0").parse(), Ok(499u64));
        tree.advance("intel-rapl:0", 1.0, Duration::from_nanos(1_500)).unwrap();
        assert_eq!(tree.energy_uj("intel-rapl:0").unwrap(), 501);
        assert!(tree.advance("intel-rapl:7", 1.0, Duration::from_secs(1)).is_err());
    }

    #[test]
    fn who_holds_a_vanished_counter_reads_nothing() {
        use std::io::Read as _;
        let folder = tempfile::tempdir().unwrap();
        let tree = PowercapTree::two_sockets(folder.path()).unwrap();
        let mut held = fs::File::open(tree.root().join("intel-rapl:1/energy_uj")).unwrap();
        tree.vanish("intel-rapl:1").unwrap();
        let mut read = String::new();
        held.read_to_string(&mut read).unwrap();
        assert_eq!(read, "");
        tree.advance("intel-rapl:1", 1.0, Duration::from_secs(1)).unwrap();
        assert!(!tree.root().join("intel-rapl:1/energy_uj").exists());
        tree.come_back("intel-rapl:1").unwrap();
        assert_eq!(text(&tree, "intel-rapl:1").trim().parse(), Ok(2_000_000u64));
    }

    #[test]
    fn a_driver_moves_counters_until_it_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let tree = PowercapTree::two_sockets(folder.path()).unwrap();
        let driver = tree.drive(&[("intel-rapl:0", 100.0)]).unwrap();
        let start = Instant::now();
        while tree.energy_uj("intel-rapl:0").unwrap() < 1_500_000 {
            assert!(start.elapsed() < Duration::from_secs(20), "0.5 J at 100 W");
            thread::sleep(Duration::from_millis(1));
        }
        driver.stop().unwrap();
        assert_eq!(tree.energy_uj("intel-rapl:1").unwrap(), 1_000_000);
    }
}
