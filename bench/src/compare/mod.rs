//! Leapfrog and its rivals with the same weights, threads and load, in turns.
//!
//! | module | holds |
//! |---|---|
//! | `args`, `settings` | what is typed, and what it means |
//! | `command`, `child` | command lines with placeholders, and processes that leave no orphans |
//! | `start` | from a command line to a server that answers |
//! | `turns`, `measure` | who is asked when, and the asking |
//! | `figures`, `report` | statistics; tables, plots, JSON |
//! | `in_process` | `llama-bench` and `llama-diffusion-cli` beside our engine |

mod args;
mod child;
mod command;
mod figures;
mod in_process;
mod measure;
mod report;
mod settings;
mod start;
#[cfg(test)]
mod tests;
mod turns;

use std::{collections::HashSet, fs, path::Path};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::args::CompareArgs;
use self::{
    in_process::{InProcess, Wanted},
    measure::Measured,
    report::Http,
    settings::Settings,
};
use crate::{hardware::Hardware, load::prompts::PromptSet};

pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let settings = Settings::of(args)?;
    let wanted = Wanted::of(args)?;
    if settings.is_none() && wanted.is_empty() {
        bail!(
            "nothing to compare with: name a rival by --llama-server, --rival, --rival-url, --llama-bench or \
             --llama-diffusion-cli"
        );
    }
    let prompts = settings.as_ref().map(|settings| prompts(args, settings)).transpose()?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let hardware = Hardware::read();
    let in_process = wanted.measure()?;
    let text = match settings.as_ref().zip(prompts.as_ref()) {
        None => report::save(&args.out, &hardware, None, &in_process)?,
        Some((settings, prompts)) => {
            let run =
                Run { settings, prompts, wants_full_length: !args.natural_end, out: &args.out, hardware: &hardware };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run.until_interrupted(&in_process))?
        }
    };
    crate::report::print(&text)
}

/// The prompts of the whole run.
fn prompts(args: &CompareArgs, settings: &Settings) -> anyhow::Result<PromptSet> {
    let mut set = PromptSet::open(&args.prompts)?;
    let mut seen = HashSet::new();
    set.prompts.retain(|prompt| seen.insert(format!("{:?}", prompt.content)));
    for prompt in &mut set.prompts {
        // All answers have the length that was typed.
        prompt.max_tokens = None;
    }
    let (needed, there) = (settings.num_prompts(), set.prompts.len());
    ensure!(
        args.repeat_prompts || there >= needed,
        "the run needs {needed} different prompts ({} rounds and the warm-up, {} concurrencies, {} requests) and --prompts {} \
         has {there}: take fewer rounds, requests or concurrencies, another set, or --repeat-prompts if answers from the \
         servers' prompt caches are what you want",
        settings.rounds,
        settings.concurrency.len(),
        settings.requests,
        set.name
    );
    Ok(set)
}

/// A run over HTTP.
struct Run<'a> {
    settings: &'a Settings,
    prompts: &'a PromptSet,
    wants_full_length: bool,
    out: &'a Path,
    hardware: &'a Hardware,
}

impl Run<'_> {
    /// The summary. Whatever ends this function, a signal too, ends the servers.
    async fn until_interrupted(&self, in_process: &InProcess) -> anyhow::Result<String> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            text = self.whole(in_process) => text,
            _ = interrupt.recv() => bail!("interrupted; rounds that were done are in {}", self.out.display()),
            _ = terminate.recv() => bail!("terminated; rounds that were done are in {}", self.out.display()),
            _ = hangup.recv() => bail!("the terminal is gone; rounds that were done are in {}", self.out.display()),
        }
    }

    async fn whole(&self, in_process: &InProcess) -> anyhow::Result<String> {
        let mut entrants = start::start_all(self.settings, self.out).await?;
        let mut warnings = Vec::new();
        let ignores_end = start::probe_all(&mut entrants, self.wants_full_length, &mut warnings).await?;
        let mut measured = Measured {
            contenders: entrants.iter().map(|entrant| entrant.told.clone()).collect(),
            ignores_end,
            rounds_done: 0,
            turns: Vec::new(),
            warnings,
        };
        let reference = &measured.contenders[self.settings.reference];
        if let Some(reason) = &reference.refused {
            bail!("{}, which all others are compared with: {reason}", reference.name);
        }
        let mut text = String::new();
        let save = |measured: &Measured| {
            let http = Http { settings: self.settings, prompts: self.prompts, measured };
            text = report::save(self.out, self.hardware, Some(http), in_process)?;
            Ok(())
        };
        measure::rounds(self.settings, self.prompts, &mut entrants, &mut measured, save).await?;
        Ok(text)
    }
}
