//! One level of load: warm-up, measurement, and what the server gained meanwhile.

use std::{
    cell::Cell,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    args::{Level, ServeArgs},
    progress::Progress,
    server::{Counters, Gained, Server},
};
use crate::{
    client::{Client, Connection},
    load::{
        self, Ended, Live, Plan, Setting,
        arrivals::Arrivals,
        gauge::{Cost, Gauge},
        record::RawFile,
        requests::Requests,
        summary::Summary,
        tally::{Tally, Targets},
    },
};

/// Quantiles of the plotted curves: dense where the tail is.
const QUANTILES: [f64; 30] = [
    0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9,
    0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999, 1.0,
];

/// What all levels share.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) connection: Connection,
    pub(super) client: Arc<Client>,
    pub(super) requests: Arc<Requests>,
    pub(super) server: Server,
    /// The server was found to close connections behind its answers.
    pub(super) hangs_up: bool,
    pub(super) stop: CancellationToken,
    /// Number of the next request, so that no phase asks what another has asked.
    pub(super) next_index: Cell<u64>,
}

/// A level as it was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    #[serde(serialize_with = "as_text")]
    pub(super) level: Level,
    pub(super) strength: f64,
    #[serde(serialize_with = "as_debug")]
    pub(super) ended: Ended,
    pub(super) warmup_failures: u64,
    /// Requests since the start of the program, those of the warm-up and of other levels too.
    pub(super) asked_so_far: u64,
    pub(super) summary: Summary,
    pub(super) gained: Gained,
    /// What the load generator used.
    pub(super) cost: Cost,
    /// Quantile, time to first text and end-to-end time in milliseconds.
    pub(super) curve: Vec<(f64, f64, f64)>,
}

fn as_text<S: serde::Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(level)
}

fn as_debug<S: serde::Serializer>(ended: &Ended, to: S) -> Result<S::Ok, S::Error> {
    match ended {
        Ended::Done => to.serialize_str("done"),
        Ended::Interrupted => to.serialize_str("interrupted"),
        Ended::GaveUp { failures, last } => to.collect_str(&format_args!("gave up after {failures} failures: {last}")),
    }
}

impl Bench<'_> {
    fn asked(&self, index: u64) {
        self.next_index.set(self.next_index.get().max(index + 1));
    }

    /// Measures `level`; its raw events go into `folder`.
    pub(super) async fn measure(&self, level: Level, folder: Option<&Path>) -> anyhow::Result<Measured> {
        let mut plan = self.args.plan(level)?;
        let live = Arc::new(Live::default());
        let setting = Setting {
            client: self.client.clone(),
            requests: self.requests.clone(),
            live: live.clone(),
            stop: self.stop.clone(),
        };
        let mut raw = match folder {
            None => None,
            Some(folder) => {
                std::fs::create_dir_all(folder)?;
                Some(RawFile::create(&folder.join("raw.jsonl"))?)
            }
        };
        let mut warmup_failures = 0;
        if let Some(warmup) = self.args.warmup(level, &plan) {
            let warmup = Plan { first_index: self.next_index.get(), ..warmup };
            let progress = Progress::start(&format!("{level}, warm-up"), &warmup, live.clone());
            load::run(&warmup, &setting, |record| {
                warmup_failures += u64::from(record.answer.failure.is_some());
                self.asked(record.index);
                live.count(&record);
                raw.as_mut().map_or(Ok(()), |raw| raw.write(&record))
            })
            .await?;
            progress.stop();
        }
        live.reset();
        plan.first_index = self.next_index.get();
        let targets = self.args.goodput.map_or_else(Targets::default, |goal| goal.0);
        let mut tally = Tally::new(targets, matches!(plan.arrivals, Arrivals::Closed { .. }));
        let before = Counters::read(&self.connection, &self.server).await;
        let progress = Progress::start(&level.to_string(), &plan, live.clone());
        let gauge = Gauge::start();
        let ended = load::run(&plan, &setting, |record| {
            tally.add(&record);
            self.asked(record.index);
            live.count(&record);
            raw.as_mut().map_or(Ok(()), |raw| raw.write(&record))
        })
        .await?;
        let cost = gauge.stop(live.events.load(Ordering::Relaxed));
        progress.stop();
        if let Some(raw) = raw {
            raw.close()?;
        }
        let gained = Counters::read(&self.connection, &self.server).await.since(&before);
        Ok(Measured {
            level,
            strength: level.strength(),
            ended,
            warmup_failures,
            asked_so_far: self.next_index.get(),
            summary: tally.summary(),
            gained,
            cost,
            curve: tally.curve(&QUANTILES),
        })
    }
}
