//! What this machine can do at most, measured in the same run: rates of its memories and of its multipliers.

use std::{fs, hint::black_box, time::Instant};

use anyhow::ensure;
use kernels::peak::{Products, multiply};
use rayon::prelude::*;
use serde::Serialize;

use super::counts::Counts;
use crate::stats::SplitMix;

/// Tries of each rate; the best counts. Many short ones, for other programs interrupt the long ones.
const TRIES: usize = 60;
/// Shortest try.
const SHORTEST_S: f64 = 0.002;
/// The second-level cache of one core where the system does not tell.
const USUAL_L2_BYTES: usize = 512 << 10;
/// Least size of the arrays that stand for memory.
const LEAST_MEMORY_BYTES: usize = 64 << 20;

/// Sizes of the caches in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Caches {
    /// Second level, of one core.
    pub(super) l2_bytes: usize,
    /// Third level, where there is one.
    pub(super) l3_bytes: Option<usize>,
}

impl Caches {
    /// Of the first core.
    pub(super) fn read() -> Self {
        let size = |level: &str| {
            (0..8).find_map(|index| {
                let file = |name| fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}"));
                let is_level = file("level").ok()?.trim() == level;
                if is_level { parse_size(file("size").ok()?.trim()) } else { None }
            })
        };
        Self { l2_bytes: size("2").unwrap_or(USUAL_L2_BYTES), l3_bytes: size("3") }
    }

    /// The largest of them.
    pub(super) fn last_bytes(self) -> usize {
        self.l3_bytes.unwrap_or(self.l2_bytes)
    }

    /// Size of data in copies that come from memory: twice the last cache.
    pub(super) fn cold_bytes(self) -> usize {
        2 * self.last_bytes()
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..split].parse().ok()?;
    match &text[split..] {
        "K" => Some(number << 10),
        "M" => Some(number << 20),
        _ => None,
    }
}

/// Rates of one memory, all threads together.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Level {
    pub(super) name: &'static str,
    /// Largest data that it serves; `None` is without end.
    pub(super) holds_bytes: Option<usize>,
    /// Bytes of the arrays that were read, and copied from and to.
    pub(super) array_bytes: usize,
    pub(super) read_bytes_per_s: f64,
    /// Bytes read and bytes written.
    pub(super) copy_bytes_per_s: f64,
}

impl Level {
    fn bytes_per_s(&self) -> f64 {
        self.read_bytes_per_s.max(self.copy_bytes_per_s)
    }
}

/// All limits.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Limits {
    pub(super) threads: usize,
    pub(super) caches: Caches,
    /// The smallest first; the last is the memory.
    pub(super) levels: Vec<Level>,
    pub(super) f32_per_s: f64,
    pub(super) int8_per_s: f64,
    pub(super) int16_per_s: f64,
}

/// The least time of a call, and what sets it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Bound {
    pub(super) seconds: f64,
    pub(super) by: &'static str,
}

impl Limits {
    /// On the pool of the caller.
    pub(super) fn measure(caches: Caches, seed: u64) -> anyhow::Result<Self> {
        let threads = rayon::current_num_threads();
        let memory_bytes = (2 * caches.cold_bytes()).max(LEAST_MEMORY_BYTES);
        let mut sizes = vec![("L2", Some(threads * caches.l2_bytes / 2), threads * caches.l2_bytes / 2)];
        if let Some(l3_bytes) = caches.l3_bytes.filter(|l3_bytes| *l3_bytes > threads * caches.l2_bytes) {
            sizes.push(("L3", Some(l3_bytes), l3_bytes / 2));
        }
        sizes.push(("memory", None, memory_bytes));
        let level = |(name, holds_bytes, array_bytes): (&'static str, Option<usize>, usize)| {
            let (read_bytes_per_s, copy_bytes_per_s) = memory_rates(array_bytes, seed)?;
            Ok(Level { name, holds_bytes, array_bytes, read_bytes_per_s, copy_bytes_per_s })
        };
        Ok(Self {
            threads,
            caches,
            levels: sizes.into_iter().map(level).collect::<anyhow::Result<_>>()?,
            f32_per_s: operations_per_s(Products::F32)?,
            int8_per_s: operations_per_s(Products::Int8)?,
            int16_per_s: operations_per_s(Products::Int16)?,
        })
    }

    /// The longer of moving `counts.bytes` and of computing `counts.operations`. Warm data come from the smallest cache
    /// that holds them.
    pub(super) fn bound(&self, counts: Counts, products: Products, cold: bool) -> anyhow::Result<Bound> {
        let serves = |level: &&Level| level.holds_bytes.is_none_or(|bytes| !cold && counts.bytes <= bytes);
        let Some(level) = self.levels.iter().find(serves) else { anyhow::bail!("no memory was measured") };
        let (rate, name) = match products {
            Products::F32 => (self.f32_per_s, "f32 products"),
            Products::Int8 => (self.int8_per_s, "int8 products"),
            Products::Int16 => (self.int16_per_s, "int16 products"),
        };
        let (moving, computing) = (counts.bytes as f64 / level.bytes_per_s(), counts.operations as f64 / rate);
        Ok(match moving >= computing {
            true => Bound { seconds: moving, by: level.name },
            false => Bound { seconds: computing, by: name },
        })
    }
}

/// Best rates of reading and of copying, in bytes per second; half of `array_bytes` is copied to the other half.
fn memory_rates(array_bytes: usize, seed: u64) -> anyhow::Result<(f64, f64)> {
    let part_len = (array_bytes / 2 / rayon::current_num_threads() / size_of::<u64>()).max(1);
    let mut random = SplitMix(seed);
    let mut parts: Vec<(Vec<u64>, Vec<u64>)> = (0..rayon::current_num_threads())
        .map(|_| ((0..part_len).map(|_| random.below(1 << 30) as u64).collect(), vec![0; part_len]))
        .collect();
    let half_bytes = (part_len * parts.len() * size_of::<u64>()) as f64;
    let copy = best_rate(2.0 * half_bytes, |calls| {
        parts.par_iter_mut().with_max_len(1).for_each(|(from, to)| {
            for _ in 0..calls {
                to.copy_from_slice(black_box(from));
            }
        });
    });
    ensure!(parts.iter().all(|(from, to)| from == to), "a copy differs");
    let expected: u64 = parts.iter().flat_map(|(from, _)| from).fold(0, |sum, x| sum.wrapping_add(*x));
    let mut sums = Vec::new();
    let read = best_rate(2.0 * half_bytes, |calls| {
        let one = |(from, to): &(Vec<u64>, Vec<u64>)| {
            (0..calls).fold([0; 2], |_, _| [from, to].map(|part| sum(black_box(part))))
        };
        sums = parts.par_iter().with_max_len(1).map(one).collect::<Vec<_>>();
    });
    let all = sums.iter().flatten().fold(0u64, |sum, x| sum.wrapping_add(*x));
    ensure!(all == expected.wrapping_mul(2), "the numbers read do not add up");
    Ok((read, copy))
}

/// In several chains, so that loads set the pace.
fn sum(values: &[u64]) -> u64 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0u64; 16];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, value| sum.wrapping_add(*value))
}

/// Best rate of `body`, which does `unit` for each call asked for.
fn best_rate(unit: f64, mut body: impl FnMut(usize)) -> f64 {
    let mut timed = |calls: usize| {
        let start = Instant::now();
        body(calls);
        start.elapsed().as_secs_f64().max(1e-9)
    };
    timed(1);
    let calls = (SHORTEST_S / timed(1)).ceil().max(1.0) as usize;
    (0..TRIES).map(|_| unit * calls as f64 / timed(calls)).fold(0.0, f64::max)
}

/// Best rate of products of one kind on all threads.
fn operations_per_s(products: Products) -> anyhow::Result<f64> {
    let threads = rayon::current_num_threads();
    let unit = multiply(products, 1);
    let mut sums = vec![0.0; threads];
    let rate = best_rate((unit.operations * threads as u64) as f64, |calls| {
        sums.par_iter_mut().with_max_len(1).for_each(|sum| *sum = multiply(products, calls).sum / calls as f64);
    });
    ensure!(sums.iter().all(|sum| *sum == unit.sum && *sum != 0.0), "the sums of products differ");
    Ok(rate)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// 100 and 10 bytes and operations a second.
    pub(in super::super) fn round_limits() -> Limits {
        let level = |name, holds_bytes, rate| Level {
            name,
            holds_bytes,
            array_bytes: 1,
            read_bytes_per_s: rate,
            copy_bytes_per_s: rate / 2.0,
        };
        Limits {
            threads: 1,
            caches: Caches { l2_bytes: 1000, l3_bytes: None },
            levels: vec![level("L2", Some(500), 100.0), level("memory", None, 10.0)],
            f32_per_s: 10.0,
            int8_per_s: 40.0,
            int16_per_s: 20.0,
        }
    }

    #[test]
    fn the_longer_of_moving_and_computing_binds() {
        let limits = round_limits();
        let bound = |bytes, operations, products, cold| {
            let bound = limits.bound(Counts { bytes, operations }, products, cold).unwrap();
            (bound.seconds, bound.by)
        };
        assert_eq!(bound(200, 10, Products::F32, true), (20.0, "memory"));
        assert_eq!(bound(200, 10, Products::F32, false), (2.0, "L2"));
        assert_eq!(bound(600, 10, Products::F32, false), (60.0, "memory"));
        assert_eq!(bound(200, 400, Products::F32, true), (40.0, "f32 products"));
        assert_eq!(bound(200, 400, Products::Int16, false), (20.0, "int16 products"));
        assert_eq!(bound(200, 400, Products::Int8, true), (20.0, "memory"));
    }

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!([parse_size("32768K"), parse_size("2M"), parse_size("odd")], [Some(32 << 20), Some(2 << 20), None]);
        assert_eq!(Caches { l2_bytes: 5, l3_bytes: Some(7) }.cold_bytes(), 14);
    }
}
