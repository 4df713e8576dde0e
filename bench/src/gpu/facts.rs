//! What the device is, and what it can do at most.

use std::sync::Arc;

use kernels::device::{Array, Device, ElementType};
use serde::Serialize;

use super::{
    Part, Setup,
    log::{Cell, Log, figure},
};
use crate::stats::{SplitMix, Summary};

/// Dense bf16 rates of datasheets, in multiplications and additions a second, f32 sums. Names are matched by their start,
/// in this order.
const RATES: [(&str, f64, &str); 11] = [
    ("NVIDIA H200 NVL", 835.5e12, "NVIDIA H200 datasheet: 1,671 TFLOPS with sparsity, half of it dense"),
    ("NVIDIA H200", 989.5e12, "NVIDIA H200 datasheet: 1,979 TFLOPS with sparsity, half of it dense"),
    ("NVIDIA H100 PCIe", 756e12, "NVIDIA H100 PCIe product brief: 756 TFLOPS dense"),
    ("NVIDIA H100 NVL", 835.5e12, "NVIDIA H100 datasheet: 1,671 TFLOPS with sparsity, half of it dense"),
    ("NVIDIA H100", 989.5e12, "NVIDIA H100 datasheet: 1,979 TFLOPS with sparsity, half of it dense"),
    ("NVIDIA A100", 312e12, "NVIDIA A100 datasheet: 312 TFLOPS"),
    ("NVIDIA L40S", 362.05e12, "NVIDIA L40S datasheet: 362.05 TFLOPS"),
    ("NVIDIA GeForce RTX 4090", 165.2e12, "NVIDIA Ada architecture paper, table 2: 165.2 TFLOPS with f32 sums"),
    ("NVIDIA GeForce RTX 3090 Ti", 80e12, "NVIDIA GA102 architecture paper: 80 TFLOPS with f32 sums"),
    ("NVIDIA GeForce RTX 3090", 71e12, "NVIDIA GA102 architecture paper, table 2: 71 TFLOPS with f32 sums"),
    ("NVIDIA L4", 121e12, "NVIDIA L4 datasheet: 242 TFLOPS with sparsity, half of it dense"),
];

/// Copies that are timed together.
const COPIES: usize = 8;

/// The device and its limits.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) capability: (u32, u32),
    pub(super) memory_gib: f64,
    pub(super) num_multiprocessors: u32,
    /// Bytes read and written a second of a large copy, over the rounds.
    pub(super) copy: Summary,
    copied_bytes: usize,
    /// Rate of the matrix units, with its source; `None` for a device that the table does not have.
    pub(super) matrix: Option<(f64, &'static str)>,
}

impl Facts {
    /// Reads and measures. What is copied are random numbers, and the copy is compared.
    pub(super) fn measure(device: &Arc<dyn Device>, rounds: usize, most_bytes: usize) -> anyhow::Result<Self> {
        let facts = device.facts();
        let bytes = most_bytes.min(device.free_bytes()? / 4).next_multiple_of(4096) / 4;
        let (from, to) = (Array::new(device, ElementType::U32, bytes)?, Array::new(device, ElementType::U32, bytes)?);
        let mut random = SplitMix(1);
        let numbers: Vec<u32> = (0..4096).map(|_| random.below(1 << 31) as u32).collect();
        for start in (0..bytes).step_by(numbers.len()) {
            from.write(start, &numbers[..numbers.len().min(bytes - start)])?;
        }
        from.copy_to(&to)?;
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let millis = device.millis(&mut || (0..COPIES).try_for_each(|_| from.copy_to(&to)))?;
            rates.push((2 * from.bytes() * COPIES) as f64 / (f64::from(millis) / 1e3));
        }
        let tail = to.len().saturating_sub(numbers.len())..to.len();
        let (expected, got) = (from.slice(tail.clone())?.read::<u32>()?, to.slice(tail)?.read::<u32>()?);
        anyhow::ensure!(expected == got, "a copy on {} differs from what was copied", facts.name);
        Ok(Self {
            name: facts.name.clone(),
            capability: facts.capability,
            memory_gib: facts.total_bytes as f64 / f64::from(1 << 30),
            num_multiprocessors: facts.num_multiprocessors,
            copy: Summary::of(&rates).ok_or_else(|| anyhow::anyhow!("no rounds"))?,
            copied_bytes: from.bytes(),
            matrix: matrix_rate(&facts.name),
        })
    }

    /// Share of the time that the memory would need for so many bytes.
    pub(super) fn memory_share(&self, bytes: f64, millis: f64) -> f64 {
        bytes / self.copy.median / (millis / 1e3)
    }

    /// Share of the rate of the matrix units; `None` if it is not known.
    pub(super) fn matrix_share(&self, operations: f64, millis: f64) -> Option<f64> {
        self.matrix.map(|(rate, _)| operations / rate / (millis / 1e3))
    }

    pub(super) fn summary(&self) -> String {
        let matrix = match self.matrix {
            Some((rate, source)) => format!("{:.1} TFLOPS dense bf16 ({source})", rate / 1e12),
            None => "unknown: its datasheet is not in this program, so shares of it are left out".into(),
        };
        format!(
            "- Device: {}, compute capability {}.{}, {} multiprocessors, {:.1} GiB\n\
             - Copy bandwidth: {:.1} GB/s ({:.1}-{:.1}) read and written, {} copies of {} MiB a round, {} rounds\n\
             - Matrix rate: {matrix}\n",
            self.name,
            self.capability.0,
            self.capability.1,
            self.num_multiprocessors,
            self.memory_gib,
            self.copy.median / 1e9,
            self.copy.min / 1e9,
            self.copy.max / 1e9,
            COPIES,
            self.copied_bytes >> 20,
            self.copy.runs,
        )
    }
}

fn matrix_rate(name: &str) -> Option<(f64, &'static str)> {
    // Behind the name of a server's part comes its memory or socket; behind that of a desktop's another part's name. A slice
    // of a device has a share of its rate that the name does not tell.
    let is_it = |start: &str| match name.strip_prefix(start) {
        Some(rest) => rest.is_empty() || (!start.contains("GeForce") && rest.starts_with([' ', '-'])),
        None => false,
    };
    let found = RATES.into_iter().find(|(start, ..)| is_it(start)).filter(|_| !name.contains("MIG"));
    found.map(|(_, rate, source)| (rate, source))
}

/// Adds the copy bandwidth as a cell.
pub(super) fn run(setup: &Setup, log: &mut Log) -> anyhow::Result<()> {
    let facts = &setup.facts;
    println!("{}", facts.summary());
    log.add(Cell::new(Part::Facts, "", "copy on the device").with(figure::COPIED, facts.copy.median / 1e9))
}

#[cfg(test)]
mod tests {
    use super::matrix_rate;

    #[test]
    fn names_are_not_taken_for_others() {
        assert_eq!(matrix_rate("NVIDIA H200").map(|found| found.0), Some(989.5e12));
        assert_eq!(matrix_rate("NVIDIA H100 PCIe").map(|found| found.0), Some(756e12));
        assert_eq!(matrix_rate("NVIDIA L40S").map(|found| found.0), Some(362.05e12));
        assert_eq!(matrix_rate("NVIDIA L4").map(|found| found.0), Some(121e12));
        assert_eq!(matrix_rate("NVIDIA GeForce RTX 3090").map(|found| found.0), Some(71e12));
        assert_eq!(matrix_rate("NVIDIA A100-SXM4-80GB").map(|found| found.0), Some(312e12));
        assert_eq!(matrix_rate("NVIDIA H100 80GB HBM3").map(|found| found.0), Some(989.5e12));
        for unknown in ["NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"] {
            assert_eq!(matrix_rate(unknown), None, "{unknown}");
        }
        assert_eq!(matrix_rate("host"), None);
    }
}
