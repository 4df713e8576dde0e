//! The program `leapfrog-zoo`: trains the built-in models.

mod args;

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use args::{Cli, Command, ExportArgs, RecipeName, SampleArgs, TokenizerArgs, TrainArgs};
use candle_core::{Device, safetensors};
use clap::Parser;
use zoo::{
    Net, Shape, Text,
    export::export,
    tasks::Split,
    train::{self, Ar, Consistency, Masked, RunOptions, TrainSettings},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Sample(args) => sample(&args),
        Command::Tokenizer(args) => tokenizer(&args),
        Command::Train(args) => train(&args),
        Command::Export(args) => export_run(&args),
    }
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn sample(args: &SampleArgs) -> anyhow::Result<()> {
    for index in 0..args.count {
        let problem = args.task.problem(Split::Train, args.seed, index);
        println!("{}", serde_json::to_string(&problem)?);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn tokenizer(args: &TokenizerArgs) -> anyhow::Result<()> {
    let text = Text::train(args.vocab, args.problems, args.seed)?;
    std::fs::create_dir_all(&args.out)?;
    text.save(&args.out, zoo::export::CONTEXT_LEN)?;
    for task in zoo::tasks::Task::ALL {
        let (mut prompt, mut answer, mut longest) = (0, 0, 0);
        const COUNT: u64 = 500;
        for index in 0..COUNT {
            let sample = text.problem(&task.problem(Split::Validation, args.seed, index))?;
            prompt += sample.prompt.len();
            answer += sample.answer.len();
            longest = longest.max(sample.answer.len());
        }
        let mean = |sum: usize| sum as f64 / COUNT as f64;
        println!("{task}: prompt {:.1}, answer {:.1} tokens, longest answer {longest}", mean(prompt), mean(answer));
    }
    println!("{} entries", text.vocab());
    Ok(())
}

/// The weights of a model folder or a run, by name.
fn weights(folder: &Path) -> anyhow::Result<BTreeMap<String, candle_core::Tensor>> {
    let run = folder.join("state.safetensors");
    let (path, prefix) = if run.exists() { (run, "weight.") } else { (folder.join("model.safetensors"), "") };
    let tensors = safetensors::load(&path, &Device::Cpu).with_context(|| path.display().to_string())?;
    let named = tensors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
    Ok(named.collect())
}

fn train(args: &TrainArgs) -> anyhow::Result<()> {
    let text = Text::load(&args.tokenizer).with_context(|| args.tokenizer.display().to_string())?;
    let settings = TrainSettings {
        steps: args.steps,
        warm_up: args.warm_up,
        learning_rate: args.learning_rate,
        rows: args.rows,
        micro_batches: args.micro_batches,
        seed: args.seed,
        shape: Shape {
            vocab: text.vocab().next_multiple_of(32),
            hidden: args.hidden,
            layers: args.layers,
            heads: args.heads,
            kv_heads: args.kv_heads,
            head_dim: args.head_dim,
            ffn: args.ffn,
            qkv_bias: matches!(args.recipe, RecipeName::Blocks | RecipeName::Full),
        },
    };
    let options = RunOptions { folder: args.run.clone(), threads: args.threads, save_every: args.save_every };
    let start = || -> Result<Net, zoo::ZooError> {
        match &args.from {
            None => Net::new(settings.shape.clone(), settings.seed),
            Some(folder) => {
                let weights = weights(folder).map_err(|error| zoo::ZooError::Settings(format!("{error:#}")))?;
                Net::from_weights(settings.shape.clone(), &weights)
            }
        }
    };
    let (seed, rows, problems) = (args.seed, args.rows, args.eval_problems);
    match args.recipe {
        RecipeName::Ar => train::train(&Ar::new(text, seed, rows, problems)?, &settings, &options, start)?,
        RecipeName::Consistency => {
            train::train(&Consistency::new(text, seed, rows, problems, args.width)?, &settings, &options, start)?
        }
        RecipeName::Blocks => {
            train::train(&Masked::blocks(text, seed, rows, problems, args.width)?, &settings, &options, start)?
        }
        RecipeName::Full => {
            train::train(&Masked::full(text, seed, rows, problems, args.width)?, &settings, &options, start)?
        }
    };
    Ok(())
}

fn export_run(args: &ExportArgs) -> anyhow::Result<()> {
    let text = Text::load(&args.tokenizer).with_context(|| args.tokenizer.display().to_string())?;
    let path = args.run.join("run.json");
    let run: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let settings: TrainSettings = serde_json::from_value(run["settings"].clone())?;
    let net = Net::from_weights(settings.shape.clone(), &weights(&args.run)?)?;
    let origin = serde_json::json!({
        "recipe": run["recipe"], "step": run["step"], "settings": run["settings"],
        "command": args.command, "commit": args.commit, "machine": args.machine,
    });
    export(&net, &text, args.family, &args.out, &origin)?;
    Ok(())
}
