//! A line in the terminal that shows how far a run is.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use crate::load::{Live, Plan};

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(200);

/// Drawn on the standard error if that is a terminal, else one line at the start.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    look: JoinHandle<()>,
}

impl Progress {
    /// Needs a runtime.
    pub(super) fn start(what: &str, plan: &Plan, live: Arc<Live>) -> Self {
        let by_time = plan.duration.filter(|_| plan.num_requests.is_none());
        let length = by_time.map_or(plan.num_requests, |duration| Some(duration.as_millis() as u64));
        let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let template = "{prefix} [{bar:30}] {percent:>3} % {elapsed} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_owned());
        if bar.is_hidden() {
            let end = match (plan.num_requests, plan.duration) {
                (Some(count), None) => format!("{count} requests"),
                (None, Some(duration)) => format!("{} s", duration.as_secs_f64()),
                (Some(count), Some(duration)) => format!("{count} requests, at most {} s", duration.as_secs_f64()),
                (None, None) => "all arrivals".to_owned(),
            };
            eprintln!("{what}: {end}");
        }
        let shown = bar.clone();
        let look = tokio::spawn(async move {
            let began = Instant::now();
            loop {
                let finished = live.finished.load(Ordering::Relaxed);
                let failed = live.failed.load(Ordering::Relaxed);
                let tokens = live.tokens.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64().max(0.001);
                shown.set_position(match by_time {
                    Some(length) => (began.elapsed().as_millis() as u64).min(length.as_millis() as u64),
                    None => finished + failed,
                });
                let in_flight = live.in_flight.load(Ordering::Relaxed);
                let failures = if failed > 0 { format!(", {failed} FAILED") } else { String::new() };
                shown.set_message(format!("{finished} done, {in_flight} on their way, {tokens:.0} tok/s{failures}"));
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { bar, look }
    }

    pub(super) fn stop(self) {
        self.look.abort();
        self.bar.finish_and_clear();
    }
}
