//! How much memory is free, so that a model that cannot fit is refused before the system starts to swap or kill.

use std::{fs, path::Path};

use crate::ModelError;

const MIB: u64 = 1 << 20;

/// Memory that this process may still use, in bytes: the least of what the system and its control groups leave.
/// `None` where neither says.
pub fn available_bytes() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    system.into_iter().chain(cgroup_available()).min()
}

/// Refuses `needed` bytes if `available` bytes cannot hold them.
pub(crate) fn check(needed: u64, available: u64) -> Result<(), ModelError> {
    if needed > available {
        return Err(ModelError::NotEnoughMemory { needed_mib: needed.div_ceil(MIB), available_mib: available / MIB });
    }
    Ok(())
}

/// Refuses a KV cache that the machine cannot hold. Silent where the system does not say how much is free.
pub(crate) fn check_cache(needed: usize) -> Result<(), ModelError> {
    match available_bytes() {
        Some(available) if needed as u64 > available => {
            Err(ModelError::CacheMemory { needed_mib: (needed as u64).div_ceil(MIB), available_mib: available / MIB })
        }
        _ => Ok(()),
    }
}

/// `MemAvailable` of `/proc/meminfo`.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least that this process's control group (version 2) and its ancestors leave.
fn cgroup_available() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let leaf = Path::new("/sys/fs/cgroup").join(group);
    leaf.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup")).filter_map(group_available).min()
}

/// What one control group leaves; `None` if it sets no limit.
fn group_available(group: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // Cached file pages count as used but are given back on demand.
    let cached = read("memory.stat")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_meminfo_is_in_kib() {
        let meminfo = "MemTotal:       16000000 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(mem_available(meminfo), Some(2 * MIB));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_refusal_names_both_sizes() {
        let error = check(5 * MIB, 3 * MIB + 1).expect_err("5 MiB do not fit in 3");
        assert_eq!(error.to_string(), "not enough memory: the weights need 5 MiB and 3 MiB are available");
        check(5 * MIB, 5 * MIB).expect("5 MiB fit in 5");
    }
}
