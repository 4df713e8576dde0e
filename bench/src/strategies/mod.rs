//! Which way to decode wins on this machine: the same prompts under every strategy that a model runs, in turns.
//!
//! | module | holds |
//! |---|---|
//! | [`args`], [`catalogue`], [`decoding`], [`input`] | what is asked of whom, and how |
//! | [`race`], [`energy`] | the measurement |
//! | [`row`] | figures |
//! | [`advice`], [`words`] | what follows from them |
//! | [`report`] | what is written |

mod advice;
mod args;
mod catalogue;
mod decoding;
mod energy;
mod input;
mod race;
mod report;
mod row;
#[cfg(test)]
mod tests;
mod words;

use anyhow::ensure;
use engine::{LoadOptions, ModelSource};

use crate::hardware::Hardware;
use advice::Rule;
pub(crate) use args::StrategiesArgs;
use energy::Meter;
use input::Prompts;
use race::{Setup, Subject};
use report::{Findings, Model, Run};

/// Speed that a strategy must gain at least before it is advised.
const LEAST_GAIN: f64 = 0.03;

pub(crate) fn run(args: &StrategiesArgs) -> anyhow::Result<()> {
    let rule = Rule { margin: args.margin / 100.0, least_gain: LEAST_GAIN };
    let findings = measure(args)?;
    let summary = findings.summary(rule);
    crate::report::print(&summary)?;
    match &args.out {
        Some(folder) => findings.save(folder, &summary),
        None => Ok(()),
    }
}

fn measure(args: &StrategiesArgs) -> anyhow::Result<Findings> {
    let plan = args.resolve()?;
    let settings = args.energy.settings()?;
    let all_built_in = plan.sources.iter().all(|(_, source)| matches!(source, ModelSource::BuiltIn(_)));
    let what = args.prompts.as_deref().unwrap_or(if all_built_in { "zoo" } else { "questions" });
    let prompts = Prompts::read(what, args.problems, args.seed)?;
    let most = plan.batches.iter().copied().max().unwrap_or(1);
    ensure!(
        most <= prompts.list.len(),
        "--batch {most}: there are only {} prompts, so no more can run at a time; raise --problems",
        prompts.list.len()
    );
    let meter = Meter::start(&settings)?;
    meter.lines().iter().for_each(|line| eprintln!("{line}"));
    let setup = Setup {
        load: LoadOptions { quantize: args.quantize, activations: args.activations, ..LoadOptions::default() },
        threads: args.threads,
        most,
        max_tokens: args.max_tokens.map(|tokens| tokens as usize),
        seed: args.seed,
    };
    let (mut subjects, mut refused) = (Vec::new(), Vec::new());
    for source in &plan.sources {
        let mut subject = Subject::load(source, &setup, &prompts, &meter)?;
        let attention = subject.engine.model().attention;
        let is_new = subjects.iter().all(|other: &Subject| other.name != subject.name);
        ensure!(is_new, "--model names two models that are called `{}`; measure them one by one", subject.name);
        refused.extend(subject.admit(catalogue::contenders(attention, &args.only, &plan.own)?)?);
        eprintln!("{}: {} strategies", subject.name, subject.contenders.len());
        subjects.push(subject);
    }
    let turns = race::race(&subjects, &prompts, &plan.batches, args.rounds as usize, &meter)?;
    let mut groups = Vec::new();
    for subject in &subjects {
        for batch in &plan.batches {
            groups.push(row::rows(&turns, &subject.name, *batch, &subject.contenders)?);
        }
    }
    Ok(Findings { run: facts(args, &subjects, &prompts, &meter), groups, refused, turns })
}

/// What a reader of the figures must know.
fn facts(args: &StrategiesArgs, subjects: &[Subject], prompts: &Prompts, meter: &Meter) -> Run {
    let hardware = Hardware::read();
    let model = |subject: &Subject| {
        let info = subject.engine.model();
        Model {
            name: subject.name.clone(),
            family: info.family.clone(),
            num_params: info.num_params,
            weights_mib: info.weight_bytes >> 20,
            max_tokens: subject.max_tokens,
            pass_millis: info.pass_millis.clone(),
        }
    };
    Run {
        command: crate::report::command_words(),
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        threads: args.threads.unwrap_or(hardware.cores),
        hardware,
        quantize: args.quantize.map_or("as they are".into(), |quantize| format!("{quantize:?}")),
        prompts: prompts.title.clone(),
        rounds: args.rounds as usize,
        seed: args.seed,
        energy: meter.basis().map(String::from),
        models: subjects.iter().map(model).collect(),
        margin: args.margin,
    }
}
