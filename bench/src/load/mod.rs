//! Requests sent by clients or by the clock, and a record of each.

pub(crate) mod arrivals;
pub(crate) mod gauge;
pub(crate) mod prompts;
pub(crate) mod record;
pub(crate) mod requests;
pub(crate) mod summary;
pub(crate) mod synthetic;
pub(crate) mod tally;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    arrivals::{Arrivals, Schedule},
    record::{Phase, Record},
    requests::Requests,
};
use crate::client::{Answer, Client, FailureKind};

/// Records on their way to who counts them.
const WAITING_RECORDS: usize = 1024;
/// Longest sleep of the clock between two looks at whether it is still wanted.
const NAP: Duration = Duration::from_millis(50);

/// When a run sends, and when it ends.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) phase: Phase,
    pub(crate) arrivals: Arrivals,
    /// Number of the first request, by which its prompt is chosen: what was asked before is not asked again.
    pub(crate) first_index: u64,
    /// Requests to send at most.
    pub(crate) num_requests: Option<u64>,
    /// After this no more are sent; those that are on their way are waited for.
    pub(crate) duration: Option<Duration>,
    /// Most requests on their way in an open loop; others wait, and their time counts from when they were due.
    pub(crate) max_in_flight: usize,
    /// So many failures without an answer between them end the run.
    pub(crate) give_up_after: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All was sent that was to be sent.
    Done,
    /// Its user ended it.
    Interrupted,
    /// The server failed too often.
    GaveUp { failures: u64, last: String },
}

/// Counters that somebody may look at while the run goes on.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) in_flight: AtomicU64,
    /// Whole answers, failures, events with text, and completion tokens, as far as [`Live::count`] was told.
    pub(crate) finished: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) tokens: AtomicU64,
}

impl Live {
    pub(crate) fn count(&self, record: &Record) {
        let answer = &record.answer;
        let counter = if answer.failure.is_none() { &self.finished } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(answer.events.len() as u64, Ordering::Relaxed);
        self.tokens.fetch_add(answer.usage.completion_tokens.unwrap_or(0), Ordering::Relaxed);
    }

    /// Back to nothing; what is on its way stays.
    pub(crate) fn reset(&self) {
        for counter in [&self.finished, &self.failed, &self.events, &self.tokens] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// Everything a run needs besides its plan.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) client: Arc<Client>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) live: Arc<Live>,
    /// Ends the run, with what is on its way.
    pub(crate) stop: CancellationToken,
}

/// A run as its tasks share it.
#[derive(Debug)]
struct Run {
    setting: Setting,
    phase: Phase,
    origin: Instant,
    next: AtomicU64,
    /// Behind the number of the last request.
    end_index: u64,
    duration: Option<Duration>,
    /// Ends this run alone.
    stop: CancellationToken,
}

/// Sends the requests of `plan` and gives every record to `sink`, in the order in which they end.
pub(crate) async fn run(
    plan: &Plan,
    setting: &Setting,
    mut sink: impl FnMut(Record) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let shared = Arc::new(Run {
        setting: setting.clone(),
        phase: plan.phase,
        origin: Instant::now(),
        next: AtomicU64::new(plan.first_index),
        end_index: plan.num_requests.map_or(u64::MAX, |count| plan.first_index.saturating_add(count)),
        duration: plan.duration,
        stop: setting.stop.child_token(),
    });
    let (sender, mut records) = mpsc::channel(WAITING_RECORDS);
    let mut tasks = JoinSet::new();
    match &plan.arrivals {
        Arrivals::Closed { concurrency } => {
            for _ in 0..*concurrency {
                tasks.spawn(shared.clone().client(sender.clone()));
            }
        }
        Arrivals::Open(schedule) => {
            let due = shared.clock(schedule)?;
            tasks.spawn(shared.clone().dispatch(due, plan.max_in_flight, sender.clone()));
        }
    }
    drop(sender);
    let mut failures = 0;
    let mut gave_up = None;
    while let Some(record) = records.recv().await {
        let record = record?;
        match &record.answer.failure {
            None => failures = 0,
            Some(failure) if failure.kind == FailureKind::Interrupted => {}
            Some(failure) => {
                failures += 1;
                if failures >= plan.give_up_after && gave_up.is_none() {
                    gave_up = Some(Ended::GaveUp { failures, last: failure.to_string() });
                    shared.stop.cancel();
                }
            }
        }
        sink(record)?;
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client of the load generator failed")?;
    }
    let interrupted = setting.stop.is_cancelled().then_some(Ended::Interrupted);
    Ok(gave_up.or(interrupted).unwrap_or(Ended::Done))
}

impl Run {
    /// Number of the next request; `None` if there is none to send.
    fn next(&self) -> Option<u64> {
        let is_late = self.duration.is_some_and(|duration| self.origin.elapsed() >= duration);
        if self.stop.is_cancelled() || is_late {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.end_index).then_some(index)
    }

    async fn ask(&self, index: u64, due: Option<Duration>) -> anyhow::Result<Record> {
        let setting = &self.setting;
        let (prompt, body) = setting.requests.body(index)?;
        setting.live.in_flight.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        let answer = tokio::select! {
            biased;
            answer = setting.client.ask(body) => answer,
            () = self.stop.cancelled() => Answer::interrupted(sent),
        };
        setting.live.in_flight.fetch_sub(1, Ordering::Relaxed);
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Ok(Record {
            index,
            prompt,
            phase: self.phase,
            due_ns: due.map(nanos),
            sent_ns: nanos(answer.sent.duration_since(self.origin)),
            answer,
        })
    }

    /// One client of a closed loop.
    async fn client(self: Arc<Self>, records: mpsc::Sender<anyhow::Result<Record>>) {
        while let Some(index) = self.next() {
            if records.send(self.ask(index, None).await).await.is_err() {
                return;
            }
        }
    }

    /// A thread that tells when requests are due: the timers of the runtime are exact to a millisecond only.
    fn clock(self: &Arc<Self>, schedule: &Schedule) -> anyhow::Result<mpsc::Receiver<Duration>> {
        let (sender, due) = mpsc::channel(WAITING_RECORDS);
        let run = self.clone();
        let moments = schedule.moments();
        let tick = move || {
            for at in moments {
                if run.duration.is_some_and(|duration| at >= duration) {
                    return;
                }
                loop {
                    let left = at.saturating_sub(run.origin.elapsed());
                    if run.stop.is_cancelled() {
                        return;
                    }
                    if left.is_zero() {
                        break;
                    }
                    thread::sleep(left.min(NAP));
                }
                // A receiver that is gone wants no more.
                if sender.blocking_send(at).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("arrivals".into()).spawn(tick).context("cannot start the clock of arrivals")?;
        Ok(due)
    }

    /// Sends what is due.
    async fn dispatch(
        self: Arc<Self>,
        mut due: mpsc::Receiver<Duration>,
        max_in_flight: usize,
        records: mpsc::Sender<anyhow::Result<Record>>,
    ) {
        let slots = Arc::new(Semaphore::new(max_in_flight));
        let mut tasks = JoinSet::new();
        loop {
            let at = tokio::select! {
                at = due.recv() => at,
                () = self.stop.cancelled() => None,
            };
            let Some(at) = at else { break };
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.end_index {
                break;
            }
            let slot = tokio::select! {
                slot = slots.clone().acquire_owned() => slot,
                () = self.stop.cancelled() => break,
            };
            let (run, records) = (self.clone(), records.clone());
            tasks.spawn(async move {
                // Who counts may have ended early, and then nobody wants the record.
                let is_wanted = records.send(run.ask(index, Some(at)).await).await.is_ok();
                drop(slot);
                is_wanted
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }
}
