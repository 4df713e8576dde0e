//! Denoising steps of a diffusion model: time and memory of a step by policy and cache, beside llama.cpp's
//! `llama-diffusion-cli` if its path is given.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{
    Activations, CacheMode, DecodingOptions, DiffusionOptions, EarlyStop, Engine, EngineSettings, Event, LoadOptions,
    ModelSource, Policy, Quantize, Remasking, Request, StopRules, TokenId,
};
use serde::Serialize;

use crate::{
    hardware::Hardware,
    llama_diffusion::{self, Peer, PeerRun},
    report,
    stats::Summary,
};

/// Arguments of `canvas`.
#[derive(Debug, Args)]
pub(crate) struct CanvasArgs {
    /// Model folder, GGUF file or Hub id of a diffusion model.
    #[arg(long)]
    pub(crate) model: String,
    /// Quantise the weights at load.
    #[arg(long)]
    pub(crate) quantize: Option<Quantize>,
    /// Rounding of what goes into quantised layers: int8 or int16.
    #[arg(long, default_value = "int16")]
    pub(crate) activations: Activations,
    /// Threads; all cores if left out.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// What is filled.
    #[command(flatten)]
    pub(crate) shape: Shape,
    /// Leave a run after this many steps; nothing means to the end.
    #[arg(long)]
    pub(crate) max_steps: Option<usize>,
    /// Rounds; in each, everything is measured once, one after the other.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Threshold of LocalLeap instead of the model's.
    #[arg(long)]
    pub(crate) threshold: Option<f32>,
    /// Relaxed threshold of LocalLeap instead of the model's.
    #[arg(long)]
    pub(crate) relaxed_threshold: Option<f32>,
    /// Only these runs: quota, quota_sequential, quota_dual, local_leap, local_leap_prefix, local_leap_dual.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Path of llama.cpp's `llama-diffusion-cli`, to be measured in the same rounds; `--model` must be a GGUF file.
    #[arg(long)]
    pub(crate) llama_diffusion: Option<PathBuf>,
    /// The program carries the patch of `peers/README.md`: its quota ranks by confidence.
    #[arg(long)]
    pub(crate) llama_patched: bool,
    /// Run the program with an f32 cache and plain attention, for comparing tokens.
    #[arg(long)]
    pub(crate) llama_exact: bool,
    /// Folder for `summary.md` and `raw.json`.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

/// A prompt and the canvas behind it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// The prompt, as it is.
    #[arg(long, default_value = "The quick brown fox jumps over")]
    pub(crate) prompt: String,
    /// Slots of the canvas.
    #[arg(long, default_value_t = 256)]
    pub(crate) canvas: usize,
    /// Slots of a block.
    #[arg(long, default_value_t = 32)]
    pub(crate) block: usize,
    /// Steps of the fixed quota over the whole canvas.
    #[arg(long, default_value_t = 256)]
    pub(crate) steps: usize,
}

/// A way to fill the canvas.
struct Contender {
    name: &'static str,
    options: DiffusionOptions,
}

/// One run of one contender.
#[derive(Debug, Clone, Serialize)]
struct Run {
    name: String,
    round: usize,
    steps: usize,
    /// Seconds of steps that computed the whole canvas.
    full_step_seconds: Vec<f64>,
    /// Seconds of steps that computed a part of it.
    partial_step_seconds: Vec<f64>,
    /// From submission to the end, or to the last step.
    seconds: f64,
    /// Tokens that were final by then.
    tokens: Vec<TokenId>,
    finished: bool,
    text: String,
}

/// Everything measured, for `raw.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Raw {
    command: Vec<String>,
    hardware: Hardware,
    model: String,
    weights_mib: usize,
    load_seconds: f64,
    peak_mib_after_load: Option<u64>,
    peak_mib: Option<u64>,
    /// Resident at the end without mapped files: weights, KV cache, and what the allocator holds.
    anonymous_mib: Option<u64>,
    prompt_tokens: usize,
    runs: Vec<Run>,
    peer: Vec<PeerRun>,
}

pub(crate) fn run(args: &CanvasArgs) -> anyhow::Result<()> {
    let (figures, raw) = measured(args)?;
    report::deliver(&figures, &raw, args.out.as_deref())
}

/// The figures, as a text for people and for programs.
pub(crate) fn measured(args: &CanvasArgs) -> anyhow::Result<(String, Raw)> {
    let source: ModelSource = args.model.parse()?;
    let peer = match (&args.llama_diffusion, &source) {
        (None, _) => None,
        (Some(program), ModelSource::Gguf(path)) => Some(Peer {
            program: program.clone(),
            model: path.clone(),
            prompt: args.shape.prompt.clone(),
            canvas: args.shape.canvas,
            block: args.shape.block,
            steps: args.shape.steps,
            patched: args.llama_patched,
            exact: args.llama_exact,
        }),
        (Some(_), _) => bail!("--llama-diffusion needs a GGUF file as --model"),
    };
    let began = Instant::now();
    let model = engine::load(
        &source,
        &LoadOptions { quantize: args.quantize, activations: args.activations, ..LoadOptions::default() },
    )?;
    ensure!(model.backbone.spec().mask_id.is_some(), "{} is not a diffusion model", args.model);
    let settings = EngineSettings { threads: args.threads, max_concurrent: 1, ..EngineSettings::default() };
    let engine = Engine::start(model, settings)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let peak_mib_after_load = peak_mib();
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let prompt = engine.model().tokenizer.encode(&args.shape.prompt, true)?;
    let contenders = contenders(args);
    ensure!(!contenders.is_empty(), "--only names no known run");
    if let Some(peer) = &peer {
        llama_diffusion::steps_to_ask(peer, prompt.len())?;
    }
    let mut runs = Vec::new();
    let mut peer_runs = Vec::new();
    for round in 0..args.rounds {
        for contender in &contenders {
            runs.push(fill(&engine, &prompt, contender, args, round)?);
            // A run that was left early still has its last step; the next one must not wait for it on the clock.
            while engine.load().running > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            eprintln!("round {} of {}: {} done", round + 1, args.rounds, contender.name);
        }
        if let Some(peer) = &peer {
            peer_runs.push(llama_diffusion::run(peer, prompt.len(), threads)?);
            eprintln!("round {} of {}: llama.cpp done", round + 1, args.rounds);
        }
    }
    let raw = Raw {
        command: report::command_words(),
        hardware: Hardware::read(),
        model: engine.model().id.clone(),
        weights_mib: engine.model().weight_bytes >> 20,
        load_seconds,
        peak_mib_after_load,
        peak_mib: peak_mib(),
        anonymous_mib: status_mib("RssAnon:"),
        prompt_tokens: prompt.len(),
        runs,
        peer: peer_runs,
    };
    Ok((summary(args, &raw, &contenders), raw))
}

fn contenders(args: &CanvasArgs) -> Vec<Contender> {
    let base = || DiffusionOptions {
        gen_length: Some(args.shape.canvas),
        block_length: Some(args.shape.block),
        early_stop: Some(EarlyStop::None),
        ..DiffusionOptions::default()
    };
    let quota = |cache, remasking| DiffusionOptions {
        policy: Some(Policy::Quota),
        remasking: Some(remasking),
        steps: Some(args.shape.steps),
        cache: Some(cache),
        ..base()
    };
    let local_leap = |cache| DiffusionOptions {
        policy: Some(Policy::LocalLeap),
        threshold: args.threshold,
        relaxed_threshold: args.relaxed_threshold,
        cache: Some(cache),
        ..base()
    };
    let all = [
        Contender { name: "quota", options: quota(CacheMode::None, Remasking::LowConfidence) },
        Contender { name: "quota_sequential", options: quota(CacheMode::None, Remasking::Sequential) },
        Contender { name: "quota_dual", options: quota(CacheMode::Dual, Remasking::LowConfidence) },
        Contender { name: "local_leap", options: local_leap(CacheMode::None) },
        Contender { name: "local_leap_prefix", options: local_leap(CacheMode::Prefix) },
        Contender { name: "local_leap_dual", options: local_leap(CacheMode::Dual) },
    ];
    let is_wanted = |contender: &Contender| args.only.is_empty() || args.only.iter().any(|n| n == contender.name);
    all.into_iter().filter(is_wanted).collect()
}

/// Fills one canvas and times its steps by the frames that the engine sends.
fn fill(
    engine: &Engine,
    prompt: &[TokenId],
    contender: &Contender,
    args: &CanvasArgs,
    round: usize,
) -> anyhow::Result<Run> {
    let request = Request {
        max_tokens: Some(args.shape.canvas),
        stop: StopRules { ignore_eos: true, ..StopRules::default() },
        decoding: DecodingOptions { diffusion: contender.options.clone(), ..DecodingOptions::default() },
        frames: true,
        ..Request::new(prompt.to_vec())
    };
    let began = Instant::now();
    let mut stream = engine.submit(vec![request])?.pop().context("one request, no stream")?;
    let mut run = Run {
        name: contender.name.into(),
        round,
        steps: 0,
        full_step_seconds: Vec::new(),
        partial_step_seconds: Vec::new(),
        seconds: 0.0,
        tokens: Vec::new(),
        finished: false,
        text: String::new(),
    };
    let is_cached = contender.options.cache != Some(CacheMode::None);
    let (mut last, mut last_block) = (began, None);
    loop {
        match stream.next_blocking().context("the engine stopped")? {
            Event::Frame(frame) => {
                let now = Instant::now();
                let seconds = (now - last).as_secs_f64();
                // Approximate caches compute everything in the first step of a block.
                match is_cached && last_block == Some(frame.block) {
                    true => run.partial_step_seconds.push(seconds),
                    false => run.full_step_seconds.push(seconds),
                }
                (last, last_block) = (now, Some(frame.block));
                run.steps = frame.step;
                run.seconds = began.elapsed().as_secs_f64();
                if args.max_steps.is_some_and(|most| run.steps >= most) {
                    return Ok(run);
                }
            }
            Event::Committed(commit) => {
                run.tokens.extend(commit.tokens.iter().map(|record| record.id));
                run.text.push_str(&commit.text);
            }
            Event::Finished(_) => {
                run.seconds = began.elapsed().as_secs_f64();
                run.finished = true;
                return Ok(run);
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) => {}
        }
    }
}

/// Largest resident size of this process so far, in MiB. Pages of mapped weight files count while they are mapped.
fn peak_mib() -> Option<u64> {
    status_mib("VmHWM:")
}

/// An entry of this process's status, in MiB.
fn status_mib(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

fn summary(args: &CanvasArgs, raw: &Raw, contenders: &[Contender]) -> String {
    let hardware = &raw.hardware;
    let mib = |value: Option<u64>| value.map_or("unknown".into(), |mib| format!("{mib} MiB"));
    let mut text = format!(
        "commit {}, {} ({} cores, {}), model {} ({} MiB of weights, loaded in {:.0} s; \
         peak resident memory with mapped files {} after loading, {} at the end; without them {} at the end), prompt of {} tokens, canvas of {}, blocks of {}\n\n\
         | run | steps | s per full step (min-max) | s per block step (min-max) | tokens | s in all | tokens per step |\n\
         |---|---|---|---|---|---|---|\n",
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" "),
        raw.model,
        raw.weights_mib,
        raw.load_seconds,
        mib(raw.peak_mib_after_load),
        mib(raw.peak_mib),
        mib(raw.anonymous_mib),
        raw.prompt_tokens,
        args.shape.canvas,
        args.shape.block,
    );
    for contender in contenders {
        let runs: Vec<&Run> = raw.runs.iter().filter(|run| run.name == contender.name).collect();
        let steps: Vec<f64> = runs.iter().map(|run| run.steps as f64).collect();
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        let all = |of: fn(&Run) -> &Vec<f64>| -> Vec<f64> { runs.iter().flat_map(|run| of(run)).copied().collect() };
        let finished = runs.iter().all(|run| run.finished);
        let median = |values: &[f64]| Summary::of(values).map_or(0.0, |summary| summary.median);
        let tokens = runs.first().map_or(0, |run| run.tokens.len());
        let rate = if finished { format!("{:.2}", tokens as f64 / median(&steps)) } else { "-".into() };
        text.push_str(&format!(
            "| {} | {:.0} | {} | {} | {} | {:.2} | {rate} |\n",
            contender.name,
            median(&steps),
            spread(&all(|run| &run.full_step_seconds)),
            spread(&all(|run| &run.partial_step_seconds)),
            if finished { tokens.to_string() } else { "left early".into() },
            median(&seconds),
        ));
    }
    // The same rule as the peer's.
    let twin = if args.llama_patched { "quota" } else { "quota_sequential" };
    let twins: Vec<&Run> = raw.runs.iter().filter(|run| run.name == twin).collect();
    let steps = twins.iter().filter_map(|run| Summary::of(&run.full_step_seconds));
    let steps: Vec<f64> = steps.map(|summary| summary.median).collect();
    let twin_text = twins.iter().find(|run| run.finished).map(|run| run.text.as_str());
    text.push_str(&llama_diffusion::summary(&raw.peer, &steps, twin_text, args.llama_patched));
    text
}

fn spread(values: &[f64]) -> String {
    match Summary::of(values) {
        Some(summary) => format!("{:.3} ({:.3}-{:.3})", summary.median, summary.min, summary.max),
        None => "-".into(),
    }
}
