//! Local linear attention against its dense form, its f64 reference and softmax attention: time, memory, steps, error.
//!
//! | module | holds |
//! |---|---|
//! | [`inputs`] | random data, the f64 reference and the measure of error |
//! | [`contenders`] | the ways to compute a call |
//! | [`meter`] | time, resident memory, and what the machine can do at most |
//! | [`peers`] | the same in PyTorch |
//! | [`table`] | floors, growth of memory, what is written |

mod contenders;
mod inputs;
mod meter;
mod peers;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{hardware::Hardware, report};
use contenders::{Contender, dense_bytes};
use meter::{Limits, MemoryTask, Run, time};
use peers::Peer;

pub(crate) use contenders::cpu;
pub(crate) use inputs::{Inputs, Oracle, Shape};

/// Arguments of `lla`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct LlaArgs {
    /// Lengths: rows of a prefill, context of decoding.
    #[arg(long, value_delimiter = ',', default_value = "128,256,512,1024,2048,4096,8192,16384")]
    sizes: Vec<usize>,
    /// Values per query, key and value vector.
    #[arg(long, value_delimiter = ',', default_value = "64,128")]
    dims: Vec<usize>,
    /// Ridges, against keys of unit variance.
    #[arg(long, value_delimiter = ',', default_value = "10,1,0.1")]
    ridges: Vec<f32>,
    /// Query heads of a prefill.
    #[arg(long, default_value_t = 1)]
    heads: usize,
    /// Key-value heads of a prefill; divides `--heads`.
    #[arg(long, default_value_t = 1)]
    kv_heads: usize,
    /// New rows of the decode measurements; none with `--decode-rows 0`.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    decode_rows: Vec<usize>,
    /// Query heads of decoding.
    #[arg(long, default_value_t = 8)]
    decode_heads: usize,
    /// Key-value heads of decoding; divides `--decode-heads`.
    #[arg(long, default_value_t = 2)]
    decode_kv_heads: usize,
    /// Timed rounds of a cell; in each, every contender runs once, one after the other.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// A cell whose contenders together need more seconds for a round has one timed round.
    #[arg(long, default_value_t = 8.0)]
    long_s: f64,
    /// No new cell is begun after so many seconds; what is left out is listed.
    #[arg(long, default_value_t = 1800.0)]
    budget_s: f64,
    /// Most memory for the dense form, in GiB; longer prompts go without it.
    #[arg(long, default_value_t = 6.0)]
    dense_gib: f64,
    /// Seed of the inputs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What computes.
    #[arg(long, value_enum, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Python with PyTorch, to run `bench/peers/lla_torch.py` on the prefill cells.
    #[arg(long)]
    torch: Option<PathBuf>,
    /// That script, if this does not run in the root of the source tree.
    #[arg(long, default_value = "bench/peers/lla_torch.py")]
    torch_script: PathBuf,
    /// Device for PyTorch: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    torch_device: String,
    /// Longest prompt for PyTorch.
    #[arg(long, default_value_t = 2048)]
    torch_size: usize,
    /// Folder for `summary.md`, `raw.json` and the plots.
    #[arg(long)]
    out: Option<PathBuf>,
    /// One memory measurement, as JSON; what the program calls itself with.
    #[arg(long, hide = true)]
    #[serde(skip)]
    memory_task: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum DeviceChoice {
    Cpu,
    Cuda,
}

/// One shape and ridge, and what came of it.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    shape: Shape,
    ridge: f32,
    /// Rows of the f64 reference, of those of the call.
    reference_rows: usize,
    solver: Solver,
    /// Multiplications and additions of the kernel, each one.
    operations: f64,
    /// Queries, keys and values read once and outputs written once.
    bytes: f64,
    results: Vec<Measured>,
    peers: Vec<Peer>,
}

impl Cell {
    fn of(&self, contender: Contender) -> Option<&Measured> {
        self.results.iter().find(|measured| measured.contender == contender)
    }

    fn is_prefill(&self) -> bool {
        self.shape.rows == self.shape.context
    }
}

/// What the solver did in a cell.
#[derive(Debug, Clone, Copy, Serialize)]
struct Solver {
    mean_steps: f64,
    max_steps: usize,
    num_capped: usize,
    num_frozen: usize,
    num_fallbacks: usize,
}

/// A contender in one cell.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    contender: Contender,
    runs: Vec<Run>,
    /// Against the f64 reference; none for softmax attention, which is another function.
    error: Option<f64>,
    /// Growth of the resident memory; measured with one ridge only.
    peak_bytes: Option<u64>,
}

pub(crate) fn run(args: &LlaArgs) -> anyhow::Result<()> {
    if let Some(task) = &args.memory_task {
        println!("{}", serde_json::from_str::<MemoryTask>(task)?.run()?);
        return Ok(());
    }
    check(args)?;
    if let Some(folder) = &args.out {
        // Now rather than when everything is measured.
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let start = Instant::now();
    let limits = Limits::measure(args.seed)?;
    let (mut cells, mut left_out) = (Vec::new(), Vec::new());
    for (shape, ridge) in plan(args) {
        if start.elapsed().as_secs_f64() > args.budget_s {
            left_out.push((shape, ridge));
            continue;
        }
        cells.push(cell(args, shape, ridge)?);
        eprintln!(
            "{:.0} s: {} rows on {}, dim {}, ridge {ridge}",
            start.elapsed().as_secs_f64(),
            shape.rows,
            shape.context,
            shape.dim
        );
    }
    let growths = table::growths(&cells);
    let summary = table::summary(&table::Facts {
        args,
        hardware: &Hardware::read(),
        limits: &limits,
        cells: &cells,
        growths: &growths,
        left_out: &left_out,
        seconds: start.elapsed().as_secs_f64(),
    });
    println!("{summary}");
    if let Some(folder) = &args.out {
        let raw = serde_json::json!({
            "command": crate::report::command_words(),
            "hardware": Hardware::read(),
            "arguments": args,
            "threads": rayon::current_num_threads(),
            "limits": limits,
            "growth": growths,
            "left_out": left_out,
            "cells": cells,
        });
        report::save(folder, &summary, &raw)?;
        table::save_plots(folder, &cells)?;
    }
    if let Some(growth) = growths.iter().find(|growth| !growth.is_linear()) {
        bail!(
            "the memory of the CPU path grows as n^{:.2} at dim {}: more than n^{}",
            growth.exponent,
            growth.dim,
            table::MOST_GROWTH
        );
    }
    Ok(())
}

fn check(args: &LlaArgs) -> anyhow::Result<()> {
    if args.device == DeviceChoice::Cuda {
        bail!("this build has no CUDA; local linear attention on a GPU cannot be measured with it");
    }
    for (heads, kv_heads) in [(args.heads, args.kv_heads), (args.decode_heads, args.decode_kv_heads)] {
        ensure!(kv_heads > 0 && heads % kv_heads == 0 && heads > 0, "{kv_heads} key-value heads do not divide {heads}");
    }
    ensure!(args.dims.iter().chain(&args.sizes).all(|number| *number > 0), "sizes and dims must be above zero");
    ensure!(args.ridges.iter().all(|ridge| ridge.is_finite() && *ridge > 0.0), "ridges must be finite and above zero");
    for (name, limit) in [("long-s", args.long_s), ("budget-s", args.budget_s), ("dense-gib", args.dense_gib)] {
        ensure!(limit.is_finite() && limit >= 0.0, "--{name} is {limit}, it must be finite and at least zero");
    }
    // Twice the same length says nothing about growth, and the same cell twice nothing at all.
    let lists = [("sizes", &args.sizes), ("dims", &args.dims), ("decode-rows", &args.decode_rows)];
    for (name, numbers) in lists {
        ensure!(BTreeSet::from_iter(numbers).len() == numbers.len(), "--{name} has a number twice");
    }
    let ridges = BTreeSet::from_iter(args.ridges.iter().map(|ridge| ridge.to_bits()));
    ensure!(ridges.len() == args.ridges.len(), "--ridges has a number twice");
    if let Some((shape, _)) = plan(args).into_iter().find(|(shape, _)| !shape.fits()) {
        let Shape { heads, dim, rows, context, .. } = shape;
        bail!("{rows} rows on {context}, {heads} heads of {dim}: the inputs alone would be too large");
    }
    if args.torch.is_some() {
        let script = args.torch_script.display();
        ensure!(args.torch_script.is_file(), "{script} is no file; --torch-script says where it is");
        let is_known = ["cpu", "cuda"].contains(&args.torch_device.as_str());
        ensure!(is_known, "--torch-device is `{}`, not one of cpu, cuda", args.torch_device);
    }
    ensure!(!(args.sizes.is_empty() || args.dims.is_empty() || args.ridges.is_empty()), "nothing to measure");
    Ok(())
}

/// All cells, short ones first.
fn plan(args: &LlaArgs) -> Vec<(Shape, f32)> {
    let mut cells = Vec::new();
    for &context in &args.sizes {
        for &dim in &args.dims {
            for &ridge in &args.ridges {
                let LlaArgs { heads, kv_heads, .. } = *args;
                cells.push((Shape { heads, kv_heads, dim, rows: context, context }, ridge));
                let (heads, kv_heads) = (args.decode_heads, args.decode_kv_heads);
                // More rows than positions cannot be new; as many would be a prefill.
                let rows = args.decode_rows.iter().filter(|rows| (1..context).contains(*rows));
                cells.extend(rows.map(|&rows| (Shape { heads, kv_heads, dim, rows, context }, ridge)));
            }
        }
    }
    cells
}

fn cell(args: &LlaArgs, shape: Shape, ridge: f32) -> anyhow::Result<Cell> {
    let seed = args.seed;
    let inputs = Inputs::new(shape, seed)?;
    let oracle = Oracle::new(&inputs, ridge)?;
    // Warms up, and says what the solver does.
    let (first, found) = time(|| cpu(&inputs, ridge, true))?;
    let mut contenders = vec![Contender::Cpu, Contender::Softmax];
    if dense_bytes(shape) as f64 <= args.dense_gib * f64::from(1 << 30) && shape.rows == shape.context {
        contenders.push(Contender::Dense);
    }
    let mut errors = BTreeMap::from([(Contender::Cpu, oracle.error(&numbers(&found.output)?))]);
    let mut round_s = first.wall;
    for contender in contenders.iter().copied().filter(|contender| *contender != Contender::Cpu) {
        let (run, output) = time(|| contender.run(&inputs, ridge))?;
        round_s += run.wall;
        if contender == Contender::Dense {
            errors.insert(contender, oracle.error(&numbers(&output)?));
        }
    }
    let rounds = if round_s > args.long_s { 1 } else { args.rounds };
    let mut runs: BTreeMap<Contender, Vec<Run>> = BTreeMap::new();
    for _ in 0..rounds {
        for &contender in &contenders {
            let (run, output) = time(|| contender.run(&inputs, ridge))?;
            ensure!(output.sum_all()?.to_scalar::<f32>()?.is_finite(), "{} is not finite", contender.name());
            runs.entry(contender).or_default().push(run);
        }
    }
    // Memory hardly depends on the ridge: the middle one stands for all.
    let weighs = ridge == args.ridges[args.ridges.len() / 2] && shape.rows == shape.context;
    let mut results = Vec::new();
    for contender in contenders {
        let task = MemoryTask { contender, shape, ridge, seed };
        let peak_bytes = if weighs { Some(task.in_child()?) } else { None };
        let runs = runs.remove(&contender).unwrap_or_default();
        results.push(Measured { contender, runs, error: errors.get(&contender).copied(), peak_bytes });
    }
    let peers = match &args.torch {
        Some(python) if shape.rows == shape.context && shape.context <= args.torch_size => {
            peers::measure(args, python, &inputs, &oracle, ridge)?
        }
        _ => Vec::new(),
    };
    let report = &found.report;
    let steps = found.details.map(|details| details.iterations).unwrap_or_default();
    let rows = (2 * shape.rows * shape.heads + 2 * shape.context * shape.kv_heads) as f64;
    Ok(Cell {
        shape,
        ridge,
        reference_rows: oracle.rows.len(),
        solver: Solver {
            mean_steps: steps.iter().sum::<usize>() as f64 / steps.len() as f64,
            max_steps: steps.iter().copied().max().unwrap_or(0),
            num_capped: report.num_capped,
            num_frozen: report.num_frozen,
            num_fallbacks: report.num_fallbacks,
        },
        operations: operations(shape, &steps),
        bytes: rows * shape.dim as f64 * 4.0,
        results,
        peers,
    })
}

/// Operations of one call whose queries took `steps` steps, `[rows, heads]`.
pub(crate) fn operations(shape: Shape, steps: &[usize]) -> f64 {
    let seen = (0..shape.rows).flat_map(|row| std::iter::repeat_n(shape.visible_end(row), shape.heads));
    // Scores, weighted keys and values; two products for each step; two of the last pass.
    let products = seen.zip(steps).map(|(seen, steps)| (seen * (5 + 2 * steps)) as f64).sum::<f64>();
    2.0 * shape.dim as f64 * products
}

fn numbers(output: &candle_core::Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(output.flatten_all()?.to_vec1::<f32>()?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: LlaArgs,
    }

    fn args(line: &[&str]) -> LlaArgs {
        Line::parse_from(std::iter::once("lla").chain(line.iter().copied())).args
    }

    #[test]
    fn cells_decode_only_where_rows_have_a_context() {
        let args = args(&["--sizes", "8,64", "--dims", "32", "--ridges", "1", "--decode-rows", "1,8,64,0"]);
        let cells: Vec<_> = plan(&args).iter().map(|(shape, _)| (shape.rows, shape.context, shape.heads)).collect();
        assert_eq!(cells, [(8, 8, 1), (1, 8, 8), (64, 64, 1), (1, 64, 8), (8, 64, 8)]);
    }

    #[test]
    fn a_gpu_and_heads_that_do_not_fit_are_refused() {
        let refused = |line: &[&str]| check(&args(line)).unwrap_err().to_string();
        assert!(refused(&["--device", "cuda"]).contains("no CUDA"));
        assert!(refused(&["--heads", "3", "--kv-heads", "2"]).contains("do not divide"));
        assert!(refused(&["--ridges", "0"]).contains("above zero"));
        assert!(refused(&["--budget-s", "NaN"]).contains("--budget-s is NaN"));
        assert!(refused(&["--dense-gib=-1"]).contains("at least zero"));
        assert!(refused(&["--sizes", "1024,2048,1024"]).contains("--sizes has a number twice"));
        assert!(refused(&["--ridges", "1,1.0"]).contains("--ridges has a number twice"));
        assert!(refused(&["--sizes", &usize::MAX.to_string()]).contains("too large"));
        assert!(refused(&["--dims", "1000000000000"]).contains("too large"));
        assert!(refused(&["--torch", "python", "--torch-script", "none.py"]).contains("none.py is no file"));
        assert!(check(&args(&[])).is_ok());
    }

    #[test]
    fn a_cell_measures_every_contender() {
        let args = args(&["--rounds", "2"]);
        let shape = Shape { heads: 2, kv_heads: 1, dim: 16, rows: 40, context: 40 };
        // Another ridge than the middle one, so that no child is started.
        let cell = cell(&args, shape, 10.0).unwrap();
        let names: Vec<_> = cell.results.iter().map(|measured| (measured.contender, measured.runs.len())).collect();
        assert_eq!(names, [(Contender::Cpu, 2), (Contender::Softmax, 2), (Contender::Dense, 2)]);
        assert!(cell.of(Contender::Cpu).unwrap().error.unwrap() < 1e-4);
        assert_eq!((cell.reference_rows, cell.solver.num_fallbacks), (40, 0));
        assert!(cell.solver.max_steps as f64 >= cell.solver.mean_steps && cell.solver.mean_steps > 1.0);
        // Five products at least for 820 visible positions of each head.
        assert!(cell.operations > 2.0 * 16.0 * 5.0 * 2.0 * 820.0);
    }
}
