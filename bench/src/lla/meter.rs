//! What the system says about time and memory, and what this machine can do at most.

use std::{env, fs, process::Command, time::Instant};

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    contenders::Contender,
    inputs::{Inputs, Shape},
};
use crate::stats::SplitMix;

/// One run, in seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Run {
    /// On the clock.
    pub(super) wall: f64,
    /// Of the processor, all threads together; other programs disturb it less.
    pub(super) processor: f64,
}

/// Runs `body` and says how long it took.
pub(super) fn time<R>(body: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<(Run, R)> {
    let (processor, start) = (processor_seconds()?, Instant::now());
    let result = body()?;
    let wall = start.elapsed().as_secs_f64();
    Ok((Run { wall, processor: processor_seconds()? - processor }, result))
}

/// Time that the threads of this process have run; none of those that work end before it does.
fn processor_seconds() -> anyhow::Result<f64> {
    let mut nanos = 0.0;
    for task in fs::read_dir("/proc/self/task").context("no list of threads")?.flatten() {
        // A thread may end while this runs.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().context("schedstat is empty")?.parse::<f64>()?;
    }
    Ok(nanos / 1e9)
}

/// A field of `/proc/self/status`, in bytes.
fn status(name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.with_context(|| format!("no {name}"))?.trim().trim_end_matches("kB").trim();
    Ok(kib.parse::<u64>()? << 10)
}

/// What a child process measures the memory of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct MemoryTask {
    pub(super) contender: Contender,
    pub(super) shape: Shape,
    pub(super) ridge: f32,
    pub(super) seed: u64,
}

impl MemoryTask {
    /// Bytes by which the resident memory of a fresh process grows at most during one run, its output included and its
    /// inputs not.
    pub(super) fn in_child(&self) -> anyhow::Result<u64> {
        // Without them the allocator takes pages of 2 MiB and keeps what was freed, which hides what a run takes.
        let exact = [("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "0")];
        let task = serde_json::to_string(self)?;
        let output = Command::new(env::current_exe()?).args(["lla", "--memory-task", &task]).envs(exact).output()?;
        ensure!(output.status.success(), "the memory run failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }

    /// [`Self::in_child`] in this process, which must be fresh.
    pub(super) fn run(&self) -> anyhow::Result<u64> {
        let Self { contender, shape, ridge, seed } = *self;
        let inputs = Inputs::new(shape, seed)?;
        // Starts threads and loads code.
        let small = Inputs::new(Shape { rows: 32, context: 64, ..shape }, seed)?;
        contender.run(&small, ridge)?;
        fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of the resident memory")?;
        let before = status("VmRSS")?;
        let output = contender.run(&inputs, ridge)?;
        let peak = status("VmHWM")?;
        drop(output);
        Ok(peak.saturating_sub(before))
    }
}

/// What this machine reached in the same run: products of matrices, and copies of memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Limits {
    /// Operations per second on the clock, all threads.
    pub(super) flops: f64,
    /// Operations per second of processor time.
    pub(super) flops_per_processor: f64,
    /// Bytes read and written per second on the clock, all threads.
    pub(super) bytes: f64,
    /// Bytes read and written per second of processor time.
    pub(super) bytes_per_processor: f64,
}

impl Limits {
    /// The best of several products of square matrices and of several copies of 64 MiB for each thread.
    pub(super) fn measure(seed: u64) -> anyhow::Result<Self> {
        const SIZES: [usize; 3] = [512, 1024, 2048];
        const COPIED: usize = 16 << 20;
        const TRIES: usize = 8;
        let mut random = SplitMix(seed);
        let mut matrix = |size: usize| {
            let numbers = (0..size * size).map(|_| random.normal()).collect::<Vec<_>>();
            Tensor::from_vec(numbers, (size, size), &Device::Cpu)
        };
        let mut limits = Self { flops: 0.0, flops_per_processor: 0.0, bytes: 0.0, bytes_per_processor: 0.0 };
        for size in SIZES {
            let (a, b) = (matrix(size)?, matrix(size)?);
            for _ in 0..TRIES {
                let (run, product) = time(|| Ok(a.matmul(&b)?))?;
                ensure!(product.sum_all()?.to_scalar::<f32>()?.is_finite(), "a product is not finite");
                let flops = 2.0 * (size * size * size) as f64;
                limits.flops = limits.flops.max(flops / run.wall);
                limits.flops_per_processor = limits.flops_per_processor.max(flops / run.processor);
            }
        }
        let threads = rayon::current_num_threads();
        let from = vec![1.0f32; COPIED * threads];
        let mut to = vec![0.0f32; COPIED * threads];
        for _ in 0..TRIES {
            let parts = to.par_chunks_exact_mut(COPIED).zip(from.par_chunks_exact(COPIED)).with_max_len(1);
            let (run, ()) = time(|| {
                parts.for_each(|(to, from)| to.copy_from_slice(from));
                Ok(())
            })?;
            let bytes = (2 * size_of::<f32>() * COPIED * threads) as f64;
            limits.bytes = limits.bytes.max(bytes / run.wall);
            limits.bytes_per_processor = limits.bytes_per_processor.max(bytes / run.processor);
        }
        ensure!(to == from, "a copy differs");
        Ok(limits)
    }
}
