//! Accuracy per watt and per joule of the strategies of a running server.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | what is typed, and the arms it means |
//! | [`client`], [`wire`] | the server's HTTP, and what it says of energy |
//! | [`data`], [`grade`], [`sandbox`] | queries, and how answers are judged |
//! | [`session`] | the measurement |
//! | [`measure`], [`outcome`] | figures and intervals, pure; what the answers of an arm add up to |
//! | [`record`], [`files`], [`report`] | what is written |
//! | [`machine`] | facts about the machine |

mod args;
mod client;
mod data;
mod files;
mod grade;
mod machine;
mod measure;
mod outcome;
mod record;
mod report;
mod sandbox;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

pub(crate) use args::{IpwArgs, named_options, slug};
use client::{Client, Evaluation};
use data::{Item, Set};
use files::Frame;
use grade::Grader;
use outcome::Outcome;
use session::{Rest, Session, Shot, judge};
use wire::{EnergyState, Method};

/// Least share of the clients' time that the server should be at work in.
const LEAST_ACTIVE: f64 = 0.8;

pub(crate) fn run(args: &IpwArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(measure_all(args))?;
    println!("{text}");
    Ok(())
}

/// The whole procedure; the report.
async fn measure_all(args: &IpwArgs) -> anyhow::Result<String> {
    let sets = sets(args)?;
    let client = Client::new(&args.url, args.api_key.as_deref(), Duration::from_secs(args.timeout_seconds))?;
    let models = client.models().await?;
    let first = models.iter().find_map(|model| model.get("id").and_then(Value::as_str));
    let model = args.model.as_deref().or(first).context("the server names no model")?;
    let arms = args::arms(&args.strategy, model)?;
    let (state, without) = match client.energy().await {
        Ok(state) => match state.available() {
            Ok(_) => (Some(state), None),
            Err(reason) => (Some(state), Some(reason)),
        },
        Err(reason) => (None, Some(reason)),
    };
    if let Some(reason) = &without {
        ensure!(
            args.allow_no_energy,
            "the server cannot measure energy ({reason}); --allow-no-energy measures accuracy and latency alone"
        );
    }
    let method = if args.concurrency == 1 { Method::Window } else { Method::Attributed };
    let repeats = args.repeats.unwrap_or(args.preset.repeats());
    let session = Session { args, client, arms, metered: without.is_none(), repeats };
    let decoding = session.probe().await?;
    let rest = session.rest().await?;
    let items: Vec<Item> = sets.iter().flat_map(|set| set.items.iter().cloned()).collect();
    let total = items.len() * session.arms.len() * repeats as usize * args.runs as usize;
    let mut done = 0;
    let mut progress = |shot: &Shot| {
        done += 1;
        match &shot.reply {
            Err(error) => eprintln!("{}: request failed: {error}", items[shot.item].id),
            Ok(_) if done % 25 == 0 || done == total => eprintln!("{done} of {total} answers"),
            Ok(_) => {}
        }
    };
    let mut shots = session.ask(&items, &mut progress).await?;
    judge(&mut shots, &items);
    let measured = Measured { session, sets, items, shots, rest, method, state, without, decoding, models };
    let text = measured.write()?;
    measured.post().await?;
    Ok(text)
}

/// The queries.
fn sets(args: &IpwArgs) -> anyhow::Result<Vec<Set>> {
    let mut sets = Vec::new();
    let none = args.dataset.is_empty() && args.dataset_file.is_empty();
    let names = if none { vec!["arith".to_owned()] } else { args.dataset.clone() };
    for name in &names {
        sets.extend(data::built_in(name, args.limit, args.seed)?);
    }
    for path in &args.dataset_file {
        sets.push(data::from_file(path, args.limit, args.seed)?);
    }
    let mut seen = BTreeSet::new();
    for set in &sets {
        ensure!(seen.insert(set.name.clone()), "data set `{}` is there twice", set.name);
    }
    let code = sets.iter().flat_map(|set| &set.items).any(|item| matches!(item.grader, Grader::Code(_)));
    if code && !args.allow_code {
        bail!("HumanEval runs programs that the model writes, on this machine; --allow-code allows it");
    }
    Ok(sets)
}

/// Everything that was found out.
#[derive(Debug)]
struct Measured<'a> {
    session: Session<'a>,
    sets: Vec<Set>,
    items: Vec<Item>,
    shots: Vec<Shot>,
    rest: Rest,
    method: Method,
    state: Option<EnergyState>,
    /// Why there is no energy.
    without: Option<String>,
    decoding: Vec<Option<Value>>,
    models: Vec<Value>,
}

impl Measured<'_> {
    /// Writes all files; the report.
    ///
    /// # Errors
    /// If a file cannot be written, and, with the records already written, if answers have different bases.
    fn write(&self) -> anyhow::Result<String> {
        let arms = &self.session.arms;
        let output = &self.session.args.output;
        let gpu_info = machine::gpu(self.state.as_ref());
        let system_info = machine::system(self.session.client.is_local());
        for (index, arm) in arms.iter().enumerate() {
            let context = record::Context {
                arm,
                method: self.method,
                system_info: system_info.clone(),
                gpu_info: gpu_info.clone(),
            };
            let shots = self.shots.iter().filter(|shot| shot.arm == index);
            let mut lines = String::new();
            for shot in shots {
                lines.push_str(&record::row(&context, &self.items[shot.item], shot).to_string());
                lines.push('\n');
            }
            write(&output.join(&arm.slug).join("records.jsonl"), &lines)?;
        }
        let bases: BTreeSet<&str> = self.shots.iter().filter_map(|shot| self.basis_of(shot)).collect();
        ensure!(
            bases.len() < 2,
            "not compared: the answers have different bases ({}); the records are in {}",
            bases.into_iter().collect::<Vec<_>>().join(", "),
            output.display()
        );
        let seed = self.session.args.seed;
        let of = |index: usize| self.shots.iter().filter(|shot| shot.arm == index).collect();
        let outcomes: Vec<Outcome<'_>> = (0..arms.len()).map(|index| self.outcome(of(index), seed)).collect();
        let warnings = self.warnings(&outcomes);
        let frame = Frame {
            session: &self.session,
            sets: &self.sets,
            rest: &self.rest,
            method: self.method,
            basis: bases.first().map(|basis| (*basis).to_owned()),
            label: machine::label(&gpu_info, &system_info),
            system_info,
            gpu_info,
            environment: self.environment(),
            warnings: &warnings,
        };
        for (index, (arm, outcome)) in arms.iter().zip(&outcomes).enumerate() {
            let folder = output.join(&arm.slug);
            let mut summary = frame.summary(index, outcome);
            summary["environment"]["decoding_by_server"] = json!(self.decoding[index]);
            write_json(&folder.join("summary.json"), &summary)?;
            write_json(&folder.join("analysis/accuracy.json"), &frame.accuracy(index, outcome))?;
            write_json(&folder.join("analysis/regression.json"), &frame.regression(index, outcome))?;
        }
        let plots = report::plots(&frame, &outcomes)?;
        for (name, svg) in &plots {
            write(&output.join(name), svg)?;
        }
        let names: Vec<&str> = plots.iter().map(|(name, _)| *name).collect();
        let text = report::markdown(&frame, &outcomes, &names)?;
        write(&output.join("report.md"), &text)?;
        write_json(&output.join("comparison.json"), &report::comparison(&frame, &outcomes))?;
        Ok(text)
    }

    fn outcome<'s>(&'s self, shots: Vec<&'s Shot>, seed: u64) -> Outcome<'s> {
        let outcome = Outcome::new(shots, self.items.len(), self.method, seed);
        match &self.without {
            Some(reason) => Outcome { reason: Some(format!("energy was not measured: {reason}")), ..outcome },
            None => outcome,
        }
    }

    /// Basis of a measured energy.
    fn basis_of<'s>(&self, shot: &'s Shot) -> Option<&'s str> {
        shot.joules(self.method).ok()?;
        shot.energy()?.basis.as_deref()
    }

    fn environment(&self) -> Value {
        json!({
            "server_models": self.models,
            "energy_at_start": self.state.as_ref().map(|state| &state.raw),
            "energy_unavailable": self.without,
            "client_is_on_the_server's_machine": self.session.client.is_local(),
            "machine": machine::facts(self.session.client.is_local()),
            "bench_version": env!("CARGO_PKG_VERSION"),
        })
    }

    fn warnings(&self, outcomes: &[Outcome<'_>]) -> Vec<String> {
        let mut warnings: Vec<String> = self.sets.iter().flat_map(|set| set.warnings.iter().cloned()).collect();
        warnings.extend(self.rest.warnings.iter().cloned());
        if let Some(reason) = &self.without {
            warnings.push(format!("energy was not measured: {reason}"));
        }
        if let Some(processes) = self.state.as_ref().and_then(|state| state.host.foreign_gpu_processes)
            && processes > 0
        {
            warnings.push(format!("{processes} processes of others on the GPU"));
        }
        if self.sets.iter().flat_map(|set| &set.items).any(|item| matches!(item.grader, Grader::Code(_)))
            && !sandbox::has_unshare()
        {
            warnings.push("programs of the model could reach the network".into());
        }
        let cached = |shot: &&Shot| shot.reply.as_ref().ok().and_then(|reply| reply.cached_tokens).unwrap_or(0);
        for (arm, outcome) in self.session.arms.iter().zip(outcomes) {
            if let Some(share) = outcome.active_share().filter(|share| *share < LEAST_ACTIVE) {
                warnings.push(format!(
                    "{}: the server was at work in {:.0} % of the time that clients waited, and mean W is over all of it, so IPW \
                     is too high by as much: ask for longer answers, or look for what delays them",
                    arm.name,
                    100.0 * share
                ));
            }
            let counts = outcome.counts;
            let mut warn = |count: usize, what: &str| {
                if count > 0 {
                    warnings.push(format!("{}: {count} {what}", arm.name));
                }
            };
            warn(counts.request_failed, "requests failed; the run is incomplete");
            warn(counts.grader_failed, "answers could not be graded; the run is incomplete");
            warn(counts.resolution_limited, "answers were shorter than their sensor can tell apart");
            warn(counts.cut, "answers were cut by the token budget");
            let shared: u64 = outcome.shots.iter().map(&cached).sum();
            warn(shared as usize, "prompt tokens came from the cache of earlier requests and cost nothing");
            let shared_meter =
                outcome.shots.iter().filter(|shot| shot.energy().and_then(|e| e.exclusive) == Some(false));
            warn(shared_meter.count(), "answers had company on the sensor's rails");
        }
        warnings
    }

    /// Tells the server the scores.
    async fn post(&self) -> anyhow::Result<()> {
        if self.session.args.no_post || !self.session.metered {
            return Ok(());
        }
        let evaluation = |shot: &Shot| {
            Some(Evaluation {
                request_id: shot.reply.as_ref().ok()?.id.clone(),
                dataset: self.items[shot.item].dataset.clone(),
                score: shot.grade.as_ref()?.score(),
            })
        };
        let evaluations: Vec<Evaluation> = self.shots.iter().filter_map(evaluation).collect();
        let told = self.session.client.post(&evaluations).await.context(
            "the report is written, but the server did not take the scores: it remembers calls for its \
                      --energy-retention; --no-post leaves this out",
        )?;
        eprintln!("{told} scores posted");
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_json(path: &Path, value: &Value) -> anyhow::Result<()> {
    write(path, &(serde_json::to_string_pretty(value)? + "\n"))
}
