//! Prefill and decode speed in this process.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    DecodeStats, DecodingOptions, Engine, EngineSettings, Event, LoadOptions, ModelSource, Quantize, Request,
    StopRules, Strategy, TokenId,
};
use serde::Serialize;

use crate::{
    hardware::Hardware,
    llama::{self, LlamaRun},
    prompts, report,
    report::Row,
    stats::Summary,
};

/// Arguments of `speed`.
#[derive(Debug, Args)]
pub(crate) struct SpeedArgs {
    /// Model folder, GGUF file, Hub id or built-in model that reads from left to right.
    #[arg(long, default_value = "leapfrog-ar")]
    pub(crate) model: String,
    /// Quantise the weights at load.
    #[arg(long)]
    pub(crate) quantize: Option<Quantize>,
    /// Threads; all cores if left out.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Tokens of the prefill measurement.
    #[arg(long, default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens of each decode measurement.
    #[arg(long, default_value_t = 128)]
    pub(crate) gen_tokens: usize,
    /// Rounds; in each, everything is measured once, one after the other.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Jacobi widths to measure at fixed width, beside the adaptive default.
    #[arg(long, value_delimiter = ',', default_value = "8")]
    pub(crate) widths: Vec<usize>,
    /// Path of llama.cpp's `llama-bench`, to be measured in the same rounds.
    #[arg(long)]
    pub(crate) llama_bench: Option<PathBuf>,
    /// GGUF file for llama-bench; the same model, if `--model` is one.
    #[arg(long)]
    pub(crate) llama_model: Option<PathBuf>,
    /// Folder for `summary.md` and `raw.json`.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

/// Everything measured, for `raw.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Raw {
    command: Vec<String>,
    hardware: Hardware,
    model: String,
    weights_mib: usize,
    pass_millis: Vec<(usize, f64)>,
    prompts_fnv1a: String,
    llama_build: Option<String>,
    /// Tokens per second of each round, by row.
    rounds: Vec<Vec<(String, f64)>>,
    rows: Vec<Row>,
}

/// A decoder to measure.
struct Contender {
    name: String,
    options: DecodingOptions,
}

/// Tokens per second, and tokens per forward pass where it means something.
struct Sample {
    row: usize,
    speed: f64,
    tokens_per_forward: Option<f64>,
}

pub(crate) fn run(args: &SpeedArgs) -> anyhow::Result<()> {
    let (figures, raw) = measured(args)?;
    report::deliver(&figures, &raw, args.out.as_deref())
}

/// The figures, as a text for people and for programs.
pub(crate) fn measured(args: &SpeedArgs) -> anyhow::Result<(String, Raw)> {
    let source: ModelSource = args.model.parse()?;
    let options = LoadOptions { quantize: args.quantize, ..LoadOptions::default() };
    let model = engine::load(&source, &options)?;
    let settings = EngineSettings { threads: args.threads, max_concurrent: 1, ..EngineSettings::default() };
    let engine = Engine::start(model, settings)?;
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let llama_model = match (&args.llama_bench, &args.llama_model, &source) {
        (None, _, _) => None,
        (Some(_), Some(path), _) | (Some(_), None, ModelSource::Gguf(path)) => Some(path.clone()),
        (Some(_), None, _) => bail!("--llama-bench needs --llama-model unless --model is a GGUF file"),
    };
    let contenders = contenders(&args.widths);
    let mut names: Vec<(String, &'static str)> = vec![("leapfrog".into(), "prefill")];
    names.extend(contenders.iter().map(|contender| (contender.name.clone(), "decode")));
    if llama_model.is_some() {
        names.extend([("llama.cpp".into(), "prefill"), ("llama.cpp".into(), "decode")]);
    }
    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut forwards: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut llama_build = None;
    for round in 0..=args.rounds {
        let mut samples = measure(&engine, args, &contenders, round)?;
        if let (Some(program), Some(path)) = (&args.llama_bench, &llama_model) {
            let LlamaRun { prefill, decode, build } =
                llama::run(program, path, threads, args.prompt_tokens, args.gen_tokens)?;
            llama_build = Some(build);
            let first = names.len() - 2;
            let sample = |row, speed| Sample { row, speed, tokens_per_forward: None };
            samples.extend([sample(first, prefill), sample(first + 1, decode)]);
        }
        // Round 0 warms up.
        for sample in samples.into_iter().filter(|_| round > 0) {
            speeds[sample.row].push(sample.speed);
            forwards[sample.row].extend(sample.tokens_per_forward);
        }
        eprintln!("round {round} of {} done", args.rounds);
    }
    let with_llama = llama_model.is_some();
    let reference = if with_llama { "llama.cpp" } else { "AR" };
    let rows = rows(&names, &speeds, &forwards, with_llama)?;
    let figures = summary(&engine, args, &rows, reference);
    let rounds = (0..args.rounds).map(|round| {
        names.iter().zip(&speeds).map(|((what, phase), speeds)| (format!("{what} {phase}"), speeds[round])).collect()
    });
    let raw = Raw {
        command: report::command_words(),
        hardware: Hardware::read(),
        model: engine.model().id.clone(),
        weights_mib: engine.model().weight_bytes >> 20,
        pass_millis: engine.model().pass_millis.clone(),
        prompts_fnv1a: prompts::hash(),
        llama_build,
        rounds: rounds.collect(),
        rows,
    };
    Ok((figures, raw))
}

fn contenders(widths: &[usize]) -> Vec<Contender> {
    let jacobi = |width: Option<usize>| DecodingOptions {
        strategy: Strategy::Jacobi,
        width,
        adaptive: Some(width.is_none()),
        ..DecodingOptions::default()
    };
    let ar = DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
    let mut all = vec![
        Contender { name: "leapfrog ar".into(), options: ar },
        Contender { name: "leapfrog jacobi adaptive".into(), options: jacobi(None) },
    ];
    all.extend(
        widths
            .iter()
            .map(|&width| Contender { name: format!("leapfrog jacobi width {width}"), options: jacobi(Some(width)) }),
    );
    all
}

/// One round of our own figures. Every round has its own prompt, the same for all contenders.
fn measure(engine: &Engine, args: &SpeedArgs, contenders: &[Contender], round: usize) -> anyhow::Result<Vec<Sample>> {
    let info = engine.model();
    let room = info.context_len - 1;
    let mut long = Vec::new();
    while long.len() < args.prompt_tokens.min(room) {
        long.extend(info.tokenizer.encode(prompts::FILLER, false)?);
    }
    long.truncate(args.prompt_tokens.min(room));
    // A first token of its own, so that no round could reuse what another computed.
    long[0] = TokenId((round % info.vocab_size) as u32);
    let prefill = complete(engine, Request { max_tokens: Some(1), ..Request::new(long.clone()) })?;
    let mut samples =
        vec![Sample { row: 0, speed: long.len() as f64 / prefill.prefill.as_secs_f64(), tokens_per_forward: None }];

    let prompt = prompts::chat().nth(round % prompts::chat().count()).context("no prompts")?;
    let prompt = prompts::tokens(info, prompt)?;
    for (row, contender) in (1..).zip(contenders) {
        let request = Request {
            max_tokens: Some(args.gen_tokens),
            stop: StopRules { ignore_eos: true, ..StopRules::default() },
            decoding: contender.options.clone(),
            ..Request::new(prompt.clone())
        };
        let stats = complete(engine, request)?;
        let tokens: u64 = stats.acceptance_histogram.iter().zip(1..).map(|(count, accepted)| count * accepted).sum();
        // The first token belongs to the prefill.
        let speed = (tokens.saturating_sub(1)) as f64 / stats.decode.as_secs_f64();
        samples.push(Sample { row, speed, tokens_per_forward: stats.tokens_per_forward() });
    }
    Ok(samples)
}

fn complete(engine: &Engine, request: Request) -> anyhow::Result<DecodeStats> {
    let mut stream = engine.submit(vec![request])?.pop().context("one request, no stream")?;
    loop {
        match stream.next_blocking().context("the engine stopped")? {
            Event::Finished(finish) => return Ok(finish.stats),
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) | Event::Committed(_) | Event::Frame(_) => {}
        }
    }
}

fn rows(
    names: &[(String, &'static str)],
    speeds: &[Vec<f64>],
    forwards: &[Vec<f64>],
    with_llama: bool,
) -> anyhow::Result<Vec<Row>> {
    let reference_of = |phase: &str| match (with_llama, phase) {
        (true, "prefill") => Some(names.len() - 2),
        (true, _) => Some(names.len() - 1),
        (false, "prefill") => None,
        (false, _) => Some(1),
    };
    let one = |(row, (what, phase)): (usize, &(String, &'static str))| {
        let ratio = reference_of(phase).filter(|reference| *reference != row).and_then(|reference| {
            let pairs: Vec<f64> =
                speeds[row].iter().zip(&speeds[reference]).map(|(ours, theirs)| ours / theirs).collect();
            Summary::of(&pairs)
        });
        Ok(Row {
            what: what.clone(),
            phase,
            tokens_per_second: Summary::of(&speeds[row]).context("--rounds must be at least 1")?,
            tokens_per_forward: Summary::of(&forwards[row]).map(|summary| summary.median),
            ratio,
        })
    };
    names.iter().enumerate().map(one).collect()
}

fn summary(engine: &Engine, args: &SpeedArgs, rows: &[Row], reference: &str) -> String {
    let hardware = Hardware::read();
    let info = engine.model();
    let passes: Vec<String> = info.pass_millis.iter().map(|(rows, millis)| format!("{rows}: {millis:.2}")).collect();
    format!(
        "commit {}, {} ({} cores, {}), model {} ({} MiB of weights), prefill of {} tokens, \
         decoding of {} tokens, prompts {}\n\n{}\nmilliseconds of a pass by rows: {}\n",
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" "),
        info.id,
        info.weight_bytes >> 20,
        args.prompt_tokens,
        args.gen_tokens,
        prompts::hash(),
        report::table(rows, reference),
        passes.join(", "),
    )
}
