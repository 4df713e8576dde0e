//! Facts about the machine that a number needs to mean anything.

use std::{fs, thread};

use serde::Serialize;

/// What a result was measured on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Hardware {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) features: Vec<&'static str>,
    pub(crate) memory_gib: Option<u64>,
    /// Commit that this program was built from, with `-dirty` if there were changes; `None` if it was built without git.
    pub(crate) commit: Option<String>,
}

const FEATURES: [&str; 7] = ["avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8"];

impl Hardware {
    pub(crate) fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let has = |feature: &&&str| flags.split_whitespace().any(|flag| flag == **feature);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            features: FEATURES.iter().filter(has).copied().collect(),
            memory_gib: kib.map(|kib| (kib + (1 << 19)) >> 20),
            commit: option_env!("LEAPFROG_COMMIT").map(str::to_owned),
        }
    }
}
