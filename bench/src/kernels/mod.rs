//! `kernels`: every op of the CPU on the shapes of real models, against the limits of this machine, with candle's own op
//! beside it. `bench/docs/kernels.md` says what is counted and how to read it.

mod attention;
mod case;
mod counts;
mod data;
mod limits;
mod linear;
mod lla;
mod rows;
mod shapes;
mod suite;
mod table;
mod vocab;

use std::{env, fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use self::{
    case::Cell,
    data::Format,
    limits::{Caches, Limits},
    shapes::Shape,
    suite::{Results, Suite},
};
use crate::{hardware::Hardware, report};

/// What rayon and candle take their number of threads from; each is read once, when its pool starts.
const THREAD_VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];
/// Longest context: scores of all its rows and heads are a tensor of candle's.
const MOST_CONTEXT: usize = 8192;

/// Arguments of `kernels`.
#[derive(Debug, Clone, Args)]
pub(crate) struct KernelsArgs {
    /// Ops to measure; all if left out.
    #[arg(long = "op", value_enum, value_delimiter = ',')]
    ops: Vec<Op>,
    /// Models whose sizes to take.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "smollm2-135m,llama-1b")]
    shapes: Vec<Shape>,
    /// Formats of weights.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32,q8_0,q4_k")]
    formats: Vec<Format>,
    /// Rows of a call: tokens that pass together.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,128")]
    rows: Vec<usize>,
    /// Positions that attention looks at.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Weights, keys and values from memory, as in a model that is larger than the caches, or from the caches.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cold,warm")]
    data: Vec<Temperature>,
    /// Rounds; in each, ours and candle's op are timed once, one after the other.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Shortest time of one sample, in milliseconds; short calls are repeated.
    #[arg(long, default_value_t = 20)]
    sample_ms: u64,
    /// Threads of ours and of candle's; all cores if left out.
    #[arg(long)]
    threads: Option<usize>,
    /// Seed of all data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for `summary.md`, `raw.json` and `share.svg`.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// An op of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Op {
    /// Matrix products of a layer and of the head
    Linear,
    /// Softmax attention over pages: decoding, causal prefill, full, block-causal
    Attention,
    /// RMS norm
    RmsNorm,
    /// Rotary position embedding
    Rope,
    /// The gate of the feed-forward layer
    Swiglu,
    /// Rows of the embedding
    Embedding,
    /// The likeliest token
    Argmax,
    /// The likeliest token with its probability
    Confidence,
    /// Local linear attention
    Lla,
}

/// Where data come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Temperature {
    /// From memory: so many copies that no cache holds them
    Cold,
    /// From the caches, as far as they hold them
    Warm,
}

/// Everything measured, for `raw.json`.
#[derive(Debug, Serialize)]
struct Raw<'a> {
    command: Vec<String>,
    hardware: Hardware,
    level: String,
    seed: u64,
    limits: &'a Limits,
    cells: &'a [Cell],
    left_out: &'a [String],
}

impl KernelsArgs {
    fn sample(&self) -> Duration {
        Duration::from_millis(self.sample_ms)
    }

    fn ops(&self) -> &[Op] {
        if self.ops.is_empty() { Op::value_variants() } else { &self.ops }
    }

    /// What cannot be measured is refused before anything is.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.rounds > 0, "--rounds 0 measures nothing: give at least 1");
        ensure!(!self.rows.contains(&0), "--rows 0 computes nothing: give at least 1");
        ensure!(self.sample_ms > 0, "--sample-ms 0 is no time: give at least 1");
        ensure!(self.threads != Some(0), "--threads 0 runs nothing: give at least 1, or leave it out for all cores");
        ensure!(
            (1..=MOST_CONTEXT).contains(&self.context),
            "--context {} is outside 1 to {MOST_CONTEXT}",
            self.context
        );
        if let Some(out) = &self.out {
            fs::create_dir_all(out).with_context(|| format!("--out: cannot create {}", out.display()))?;
        }
        Ok(())
    }
}

/// Measures, prints and saves, in a process whose pools have the wanted number of threads.
pub(crate) fn run(args: &KernelsArgs) -> anyhow::Result<()> {
    args.check()?;
    let threads = args.threads.map_or_else(|| thread::available_parallelism().map(usize::from), Ok)?;
    let wanted = threads.to_string();
    if THREAD_VARIABLES.iter().any(|name| env::var(name).ok().as_deref() != Some(&wanted)) {
        return in_child(&wanted);
    }
    let (text, results) = measure(args)?;
    println!("{text}");
    ensure!(!results.cells.is_empty(), "nothing was measured: {}", results.notes.join(" "));
    Ok(())
}

/// The same command with the variables set: a process cannot change its own safely.
fn in_child(threads: &str) -> anyhow::Result<()> {
    let variables = THREAD_VARIABLES.map(|name| (name, threads));
    let status = Command::new(env::current_exe()?).args(env::args_os().skip(1)).envs(variables).status()?;
    if !status.success() {
        bail!("the measuring process ended with {status}; its message is above");
    }
    Ok(())
}

fn measure(args: &KernelsArgs) -> anyhow::Result<(String, Results)> {
    eprintln!("limits of this machine");
    let limits = Limits::measure(Caches::read(), args.seed)?;
    let mut results = Results::default();
    for &shape in &args.shapes {
        for &op in args.ops() {
            Suite { args, limits: &limits, shape, results: &mut results }.run(op)?;
        }
    }
    let text = table::summary(&results, &limits)?;
    if let Some(out) = &args.out {
        let raw = Raw {
            command: report::command_words(),
            hardware: Hardware::read(),
            level: kernels::arch::CpuLevel::current().to_string(),
            seed: args.seed,
            limits: &limits,
            cells: &results.cells,
            left_out: &results.notes,
        };
        report::save(out, &text, &raw)?;
        fs::write(out.join("share.svg"), table::picture(&results)?)?;
    }
    Ok((text, results))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: KernelsArgs,
    }

    fn parse(args: &[&str]) -> Result<KernelsArgs, String> {
        let parsed = Wrapper::try_parse_from([&["kernels"], args].concat());
        parsed.map(|wrapper| wrapper.args).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for (args, known) in [
            (["--op", "sort"], "rms-norm"),
            (["--shapes", "gpt-5"], "smollm2-135m"),
            (["--formats", "q3_k"], "q4_k"),
            (["--data", "hot"], "cold"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(args[1]) && error.contains(known), "{error}");
        }
        for args in [
            ["--rounds", "0"],
            ["--rows", "8,0"],
            ["--sample-ms", "0"],
            ["--threads", "0"],
            ["--context", "0"],
            ["--context", "100000"],
        ] {
            let error = run(&parse(&args).unwrap()).unwrap_err().to_string();
            assert!(error.contains(args[0]), "{error}");
        }
        assert!(parse(&[]).unwrap().check().is_ok());
    }

    /// Every op on a shape of nobody, one round: all outputs agree, and everything is written.
    #[test]
    fn all_ops_are_measured_and_agree() {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("new");
        let args = [
            "--shapes",
            "tiny",
            "--rounds",
            "1",
            "--rows",
            "1,5",
            "--context",
            "70",
            "--sample-ms",
            "1",
            "--data",
            "warm",
            "--out",
        ];
        let args = parse(&[&args[..], &[folder.to_str().unwrap()]].concat()).unwrap();
        let (text, results) = measure(&args).unwrap();
        for op in ["linear", "attention", "rms_norm", "rope", "swiglu", "embedding", "argmax", "confidence", "lla"] {
            let cells: Vec<_> = results.cells.iter().filter(|cell| cell.label.op == op).collect();
            assert!(!cells.is_empty(), "{op}");
            for cell in cells {
                assert_eq!(cell.candle.is_none(), op == "lla", "{}", cell.label);
                assert!(cell.ours_s.len() == 1 && cell.bound_s > 0.0, "{}", cell.label);
            }
        }
        // Hidden size 64 is no whole block of 256.
        assert!(results.notes.iter().any(|note| note.contains("q4_k")), "{:?}", results.notes);
        assert_eq!(fs::read_to_string(folder.join("summary.md")).unwrap(), text);
        let raw: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(folder.join("raw.json")).unwrap()).unwrap();
        assert_eq!(raw["cells"].as_array().unwrap().len(), results.cells.len());
        assert!(raw["cells"][0]["ours_s"][0].as_f64().unwrap() > 0.0 && raw["hardware"]["cpu"].is_string());
        assert!(fs::read_to_string(folder.join("share.svg")).unwrap().ends_with("</svg>\n"));
    }
}
