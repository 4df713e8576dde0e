//! Jacobi against AR on a real model: the same text, in no more passes, alone and in company.

use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{
    DecodingOptions, Engine, EngineSettings, Event, Finish, LoadOptions, ModelSource, Quantize, Request, Sampling,
    Strategy, TokenId,
};

use crate::prompts;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Model folder, GGUF file, Hub id or built-in model that reads from left to right.
    #[arg(long, default_value = "leapfrog-ar")]
    model: String,
    /// Quantise the weights at load.
    #[arg(long)]
    quantize: Option<Quantize>,
    /// Number of prompts.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// File with one prompt a line, instead of the built-in ones.
    #[arg(long)]
    prompt_file: Option<std::path::PathBuf>,
    /// Widths to compare with AR.
    #[arg(long, value_delimiter = ',', default_value = "2,4,8,16,32")]
    widths: Vec<usize>,
    /// Temperatures; 0 is greedy.
    #[arg(long, value_delimiter = ',', default_value = "0,0.8")]
    temperatures: Vec<f32>,
    /// Tokens of each completion.
    #[arg(long, default_value_t = 24)]
    tokens: usize,
    /// Threads; all cores if left out.
    #[arg(long)]
    threads: Option<usize>,
}

/// One finished request.
struct Output {
    tokens: Vec<TokenId>,
    finish: Finish,
}

pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let source: ModelSource = args.model.parse()?;
    let model = engine::load(&source, &LoadOptions { quantize: args.quantize, ..LoadOptions::default() })?;
    let settings = EngineSettings { threads: args.threads, max_concurrent: 8, ..EngineSettings::default() };
    let engine = Engine::start(model, settings)?;
    let prompts = prompt_tokens(&engine, args)?;
    println!("prompts {} of {}, {} tokens each", prompts.len(), prompts::hash(), args.tokens);
    println!(
        "| temperature | width | runs | equal to AR | passes / tokens | tokens per pass |\n|---|---|---|---|---|---|"
    );
    let mut differences = 0;
    for &temperature in &args.temperatures {
        let request = |index: usize, decoding: DecodingOptions| Request {
            max_tokens: Some(args.tokens),
            sampling: Sampling { temperature, seed: index as u64, ..Sampling::default() },
            decoding,
            ..Request::new(prompts[index].clone())
        };
        let ar = DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
        // AR runs alone, everything else in groups of eight: what a sequence says must not depend on its company.
        let expected = (0..prompts.len())
            .map(|index| Ok(complete(&engine, vec![request(index, ar.clone())])?.remove(0)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let crowded = run_groups(&engine, (0..prompts.len()).map(|index| request(index, ar.clone())).collect())?;
        differences += report(temperature, "ar in company", &expected, &crowded)?;
        for &width in &args.widths {
            let jacobi = DecodingOptions {
                strategy: Strategy::Jacobi,
                width: Some(width),
                adaptive: Some(false),
                ..DecodingOptions::default()
            };
            let got = run_groups(&engine, (0..prompts.len()).map(|index| request(index, jacobi.clone())).collect())?;
            differences += report(temperature, &width.to_string(), &expected, &got)?;
        }
    }
    if differences > 0 {
        bail!("{differences} completions differ from AR");
    }
    println!("no completion differs");
    Ok(())
}

fn report(temperature: f32, what: &str, expected: &[Output], got: &[Output]) -> anyhow::Result<usize> {
    let equal = expected.iter().zip(got).filter(|(a, b)| a.tokens == b.tokens).count();
    let passes: usize = got.iter().map(|output| output.finish.stats.forward_passes).sum();
    let tokens: usize = got.iter().map(|output| output.finish.completion_tokens).sum();
    for output in got {
        let finish = &output.finish;
        ensure!(finish.stats.forward_passes <= finish.completion_tokens, "more passes than tokens: {finish:?}");
    }
    let mean = tokens as f64 / passes as f64;
    println!("| {temperature} | {what} | {} | {equal} | {passes} / {tokens} | {mean:.3} |", got.len());
    Ok(expected.len() - equal)
}

fn prompt_tokens(engine: &Engine, args: &VerifyArgs) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let lines: Vec<String> = match &args.prompt_file {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(String::from)
            .collect(),
        None => prompts::chat().map(String::from).collect(),
    };
    ensure!(!lines.is_empty(), "no prompts");
    // Beyond the end of the list prompts are numbered, so that each is new.
    let prompt = |index: usize| {
        let (line, lap) = (&lines[index % lines.len()], index / lines.len());
        if lap == 0 { line.clone() } else { format!("Question {index}. {line}") }
    };
    let info = engine.model();
    (0..args.prompts).map(|index| prompts::tokens(info, &prompt(index))).collect()
}

fn run_groups(engine: &Engine, requests: Vec<Request>) -> anyhow::Result<Vec<Output>> {
    let mut outputs = Vec::with_capacity(requests.len());
    for group in requests.chunks(8) {
        outputs.extend(complete(engine, group.to_vec())?);
    }
    Ok(outputs)
}

fn complete(engine: &Engine, requests: Vec<Request>) -> anyhow::Result<Vec<Output>> {
    let streams = engine.submit(requests)?;
    let read = |mut stream: engine::EventStream| {
        let mut tokens = Vec::new();
        loop {
            match stream.next_blocking().context("the engine stopped")? {
                Event::Prompt(_) | Event::Frame(_) => {}
                Event::Committed(commit) => tokens.extend(commit.tokens.iter().map(|record| record.id)),
                Event::Finished(finish) => return Ok(Output { tokens, finish }),
                Event::Failed(error) => return Err(error.into()),
            }
        }
    };
    streams.into_iter().map(read).collect()
}
