//! The program `leapfrog-zoo`: trains the built-in models.

mod args;

use std::{fs, io::Write, path::Path, process};

use anyhow::{Context, ensure};
use args::{Cli, Command, LabArgs, SampleArgs, StreamArgs, TokenizerArgs, TrainArgs};
use clap::Parser;
use serde_json::json;
use zoo::{
    Text,
    export::{CONTEXT_LEN, export},
    lab::{self, LabRun, LabSettings, StreamSettings, Tuned},
    plan::{StageOptions, VOCAB},
    tasks::{Split, Task},
    train::finished,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Problems of each task that the tokenizer is trained on.
const TOKENIZER_PROBLEMS: u64 = 8000;
/// Problems of each task whose lengths are reported.
const MEASURED_PROBLEMS: u64 = 500;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Sample(args) => sample(&args),
        Command::Tokenizer(args) => tokenizer(&args),
        Command::Train(args) => train(&args),
        Command::Lab(args) => lab(&args),
        Command::Stream(args) => stream(&args),
    }
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn sample(args: &SampleArgs) -> anyhow::Result<()> {
    for index in 0..args.count {
        println!("{}", serde_json::to_string(&args.task.problem(args.split.into(), args.seed, index))?);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn tokenizer(args: &TokenizerArgs) -> anyhow::Result<()> {
    let text = Text::train(VOCAB, TOKENIZER_PROBLEMS, 0)?;
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    text.save(&args.out, CONTEXT_LEN)?;
    for task in Task::ALL {
        let (mut prompt, mut answer, mut longest) = (0, 0, 0);
        for index in 0..MEASURED_PROBLEMS {
            let sample = text.problem(&task.problem(Split::Validation, 0, index))?;
            prompt += sample.prompt.len();
            answer += sample.answer.len();
            longest = longest.max(sample.answer.len());
        }
        let mean = |sum: usize| sum as f64 / MEASURED_PROBLEMS as f64;
        println!("{task}: prompt {:.1}, answer {:.1} tokens, longest answer {longest}", mean(prompt), mean(answer));
    }
    println!("{} entries", text.vocab());
    Ok(())
}

fn train(args: &TrainArgs) -> anyhow::Result<()> {
    let folder = args.runs.join("tokenizer");
    let text = if folder.join("tokenizer.json").exists() {
        Text::load(&folder)?
    } else {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let text = Text::train(VOCAB, TOKENIZER_PROBLEMS, 0)?;
        text.save(&folder, CONTEXT_LEN)?;
        text
    };
    let options = StageOptions {
        runs: args.runs.clone(),
        threads: args.threads,
        save_every: args.save_every,
        problems: args.problems,
    };
    let mut net = None;
    for stage in args.model.stages() {
        if let Some(from) = stage.from {
            let is_there = finished(&args.runs.join(from))?;
            ensure!(
                is_there,
                "stage `{}` starts from `{from}`, which is not done in {}",
                stage.name,
                args.runs.display()
            );
        }
        net = Some(stage.run(&text, &options)?);
    }
    let net = net.context("the model has no stage")?;
    let stages = args.model.stages().iter().map(|stage| {
        let settings = stage.settings(&text);
        json!({ "name": stage.name, "kind": stage.kind, "from": stage.from, "settings": settings })
    });
    let origin = json!({
        "model": args.model.name(),
        "command": format!("cargo run --release -p leapfrog-zoo -- train {}", args.model),
        "commit": commit(),
        "machine": machine(),
        "parameters": net.num_params(),
        "stages": stages.collect::<Vec<_>>(),
    });
    export(&net, &text, args.model.family(), &args.out.join(args.model.name()), &origin)?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn lab(args: &LabArgs) -> anyhow::Result<()> {
    let settings = LabSettings {
        steps: args.steps,
        rows: args.rows,
        learning_rate: args.learning_rate,
        sequences: args.sequences,
    };
    let name = || args.out.display().to_string();
    let mut done = Vec::new();
    if args.out.exists() {
        for line in fs::read_to_string(&args.out).with_context(name)?.lines() {
            done.push(serde_json::from_str::<LabRun>(line).with_context(name)?);
        }
    }
    let mut file = fs::OpenOptions::new().create(true).append(true).open(&args.out).with_context(name)?;
    // Seeds first: a table that is cut short has all contenders.
    for seed in 1..=args.seeds {
        for problem in &args.problems {
            for contender in &args.contenders {
                let is_same = |run: &&LabRun| {
                    (run.problem, run.contender, run.seed, run.settings) == (*problem, *contender, seed, settings)
                };
                let run = match done.iter().find(is_same) {
                    Some(run) => run.clone(),
                    None => {
                        let run = lab::run(*problem, *contender, settings, seed)?;
                        writeln!(file, "{}", serde_json::to_string(&run)?).with_context(name)?;
                        run
                    }
                };
                let figures: Vec<_> = run.figures.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
                println!("{problem}, {contender}, seed {seed}, {:.0} s: {}", run.seconds, figures.join(", "));
            }
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn stream(args: &StreamArgs) -> anyhow::Result<()> {
    let settings = StreamSettings {
        dim: args.dim,
        segments: args.segments,
        segment_len: args.segment_len,
        spread: args.spread,
        noise: args.noise,
        validation: args.validation,
        test: args.test,
    };
    let tuned = lab::stream(&settings)?;
    for Tuned { estimator, scale, ridge, errors } in &tuned {
        let count = errors.len() as f64;
        let means: Vec<f64> = errors.iter().map(|errors| errors.iter().sum::<f64>() / errors.len() as f64).collect();
        let mean = means.iter().sum::<f64>() / count;
        let by_segment = (0..args.segments).map(|segment| {
            let spans = args.segment_len / lab::SPAN;
            let part = segment * spans..(segment + 1) * spans;
            let sum: f64 = errors.iter().map(|errors| errors[part.clone()].iter().sum::<f64>()).sum();
            format!("{:.3}", sum / (count * spans as f64))
        });
        let by_segment: Vec<_> = by_segment.collect();
        println!("{estimator}: scale {scale}, ridge {ridge}: error {mean:.4}, by segment {}", by_segment.join(" "));
    }
    let all = json!({ "settings": settings, "estimators": tuned });
    fs::write(&args.out, format!("{all}\n")).with_context(|| args.out.display().to_string())
}

/// The commit of the working tree, if git knows it.
fn commit() -> Option<String> {
    let output = process::Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Name and number of the processors, as far as the system tells.
fn machine() -> Option<String> {
    let info = fs::read_to_string(Path::new("/proc/cpuinfo")).ok()?;
    let models: Vec<_> = info.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": ")).collect();
    Some(format!("{} ({} processors)", models.first()?.1, models.len()))
}
