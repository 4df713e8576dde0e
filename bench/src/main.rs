//! `leapfrog-bench`: how fast a model decodes.
//!
//! `speed` measures prefill and decoding in process, for AR and Jacobi, and, given its path, llama.cpp's
//! `llama-bench` in the same run. `verify` compares Jacobi with AR on a real model.
//! `canvas` times denoising steps. `compare` starts other servers and puts the same load to all in turns. `zoo` puts held-out problems to the built-in models. `lla` compares local linear attention
//! with its dense form and with softmax attention. `mixers` reports the trainer's experiments on how rows mix. `soak`
//! drives a running server with many clients that come and go. `gpu` measures the CUDA engine. `ipw` asks a running server for accuracy and energy per query.
//! `strategies` puts the same prompts to a model under every strategy that it runs, and says which to use.
//! `kernels` measures every op of the CPU beside candle's.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing results is what this program is for")]

mod canvas;
mod check;
mod client;
mod compare;
mod gpu;
mod hardware;
mod ipw;
mod kernels;
mod lla;
mod llama;
mod llama_diffusion;
mod load;
mod mixers;
mod plot;
mod prompts;
mod report;
mod serve;
mod soak;
mod speed;
mod sse;
mod stats;
mod strategies;
mod verify;
mod zoo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Leapfrog.
#[derive(Debug, Parser)]
#[command(name = "leapfrog-bench", bin_name = "leapfrog bench", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load on any OpenAI-compatible server: throughput, latencies, goodput, failures; sweeps find the knee.
    Serve(Box<serve::ServeArgs>),
    /// Whether the figures of `serve` are right on this machine: a server with known times, stalls and failures.
    Check(check::CheckArgs),
    /// Leapfrog and other servers or programs on this machine: the same weights, threads and load, in turns.
    Compare(Box<compare::CompareArgs>),
    /// Prefill and decode speed of a model in this process; llama.cpp beside it if its path is given.
    Speed(speed::SpeedArgs),
    /// Compares Jacobi with AR on a real model: texts, passes, company; fails on the first kind of difference.
    Verify(verify::VerifyArgs),
    /// Denoising steps of a diffusion model, by policy and cache; llama.cpp beside it if its path is given.
    Canvas(canvas::CanvasArgs),
    /// The built-in models on held-out problems: accuracy, tokens per forward, speed, and how they compare with the goals.
    Zoo(zoo::ZooArgs),
    /// Tables and plots of how linear, softmax and local linear attention compare in training and on streams.
    Mixers(mixers::MixersArgs),
    /// Local linear attention: time, memory, steps and accuracy, beside its dense form and softmax attention.
    Lla(lla::LlaArgs),
    /// The CUDA engine: correctness, passes, steps, strategies and kernels against the limits of the device; PyTorch beside it.
    Gpu(Box<gpu::GpuArgs>),
    /// Many clients with random disconnects against a running server; fails if anything leaks or hangs.
    Soak(soak::SoakArgs),
    /// Accuracy per watt and per joule of each strategy of a running server, as the paper "Intelligence per Watt" defines them.
    Ipw(Box<ipw::IpwArgs>),
    /// The same prompts under every strategy of a model, in this process: speed, agreement, accuracy, joules, and what to use.
    Strategies(Box<strategies::StrategiesArgs>),
    /// Every kernel of the CPU: time, bytes, operations, share of the limit of this machine, and candle's own op beside it.
    Kernels(Box<kernels::KernelsArgs>),
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Speed(args) => speed::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Canvas(args) => canvas::run(&args),
        Command::Zoo(args) => zoo::run(&args),
        Command::Mixers(args) => mixers::run(&args),
        Command::Lla(args) => lla::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Ipw(args) => ipw::run(&args),
        Command::Strategies(args) => strategies::run(&args),
        Command::Kernels(args) => kernels::run(&args),
    }
}
