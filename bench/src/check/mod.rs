//! `check`: whether the figures of `serve` are right, against a server whose times are known.

pub(crate) mod expect;
pub(crate) mod script;

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{
    expect::{Finding, Noted, mean, rank, under_stall, with_omitted},
    script::{Conduct, Delays, Script, Scripted, Stall},
};
use crate::{
    client::{Client, Connection, FailureKind, Reuse},
    load::{
        self, Ended, Live, Plan, Setting,
        arrivals::{Arrivals, Schedule},
        gauge::{Cost, Gauge},
        prompts::PromptSet,
        record::Phase,
        requests::{Endpoint, Requests, Source},
        summary::Summary,
        tally::{Spread, Tally, Targets},
    },
};

/// Error of every time beside that of the histogram, a thousandth: the way between two threads of one machine that have the
/// processor when they want it, new connections, and clocks that are exact to a millisecond.
const WAY_MS: f64 = 3.0;
/// How late the event loop may be; more is a machine too busy to be checked.
const LAG_MS: f64 = 3.0;
/// What the answers behind a stall, all at once, take themselves.
const BURST_MS: f64 = 10.0;
/// Error of rates.
const RATE: f64 = 0.01;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Requests of the steady load.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(20..=100_000))]
    requests: u64,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut wrong = 0;
    for (title, findings) in [
        ("Steady load, four clients; one answer in four begins late", runtime.block_on(steady(args.requests))?),
        ("Open loop, 100 requests/s for 5 s; the server stalls for 1 s", runtime.block_on(open_stall())?),
        ("Closed loop, one client; the same stall", runtime.block_on(closed_stall())?),
        ("Servers that misbehave: failures of each kind", runtime.block_on(misbehaviour())?),
    ] {
        println!("{title}\n");
        println!("| figure | expected | measured | difference | allowed | |\n|---|---|---|---|---|---|");
        for finding in &findings {
            let is_right = finding.is_right();
            wrong += usize::from(!is_right);
            let measured = finding.measured.map_or("none".into(), |measured| format!("{measured:.3}"));
            let difference = finding.measured.map_or("-".into(), |got| format!("{:+.3}", got - finding.expected));
            println!(
                "| {} | {:.3} | {measured} | {difference} | {:.3} | {} |",
                finding.what,
                finding.expected,
                finding.allowed,
                if is_right { "right" } else { "WRONG" }
            );
        }
        println!();
    }
    ensure!(wrong == 0, "{wrong} figures are wrong by more than is allowed (on a busy machine, try again)");
    println!("All figures are right within what is allowed.");
    Ok(())
}

/// A run against a scripted server.
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    pub(crate) cost: Cost,
    pub(crate) ended: Ended,
}

impl Outcome {
    /// What a time may be wrong by: a thousandth, and what the way and the event loop add.
    fn time(&self, what: &str, expected: f64, measured: Option<f64>) -> Finding {
        self.share(what, expected, measured, 1.0)
    }

    /// The same of a time that is divided among `parts` tokens.
    fn share(&self, what: &str, expected: f64, measured: Option<f64>, parts: f64) -> Finding {
        Finding { what: what.into(), expected, measured, allowed: expected * 0.001 + WAY_MS / parts }
    }

    /// Mean and quantiles of a time that is divided among `parts` tokens.
    fn times(&self, what: &str, expected: &[f64], measured: Option<Spread>, parts: f64) -> Vec<Finding> {
        let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
        let got = |quantile: f64| {
            measured.map(|spread| match quantile {
                0.5 => spread.p50,
                0.9 => spread.p90,
                _ => spread.p99,
            })
        };
        let mut findings = vec![
            self.share(&format!("{what}, mean (ms)"), mean(expected), measured.map(|spread| spread.mean), parts),
            exact(&format!("{what}, number"), expected.len() as f64, measured.map(|spread| spread.count as f64)),
        ];
        findings.extend(
            quantiles.map(|(name, q)| self.share(&format!("{what}, {name} (ms)"), rank(expected, q), got(q), parts)),
        );
        findings
    }
}

fn exact(what: &str, expected: f64, measured: Option<f64>) -> Finding {
    Finding { what: what.into(), expected, measured, allowed: 0.0 }
}

/// How a scripted server is asked.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) arrivals: Arrivals,
    pub(crate) num_requests: u64,
    pub(crate) timeout: Duration,
    pub(crate) targets: Targets,
    pub(crate) give_up_after: u64,
}

impl Load {
    pub(crate) fn new(arrivals: Arrivals, num_requests: u64) -> Self {
        Self {
            arrivals,
            num_requests,
            timeout: Duration::from_secs(30),
            targets: Targets::default(),
            give_up_after: 1000,
        }
    }
}

/// Runs `load` against `server`.
pub(crate) async fn put(server: &Scripted, load: &Load) -> anyhow::Result<Outcome> {
    let client = Client {
        connection: Connection::open(&server.url, None, Reuse::Always)?,
        path: Endpoint::Chat.path(),
        timeout: load.timeout,
        keeps_text: false,
    };
    let fields = json!({"model": "scripted", "stream": true, "stream_options": {"include_usage": true}});
    let fields = fields.as_object().cloned().unwrap_or_default();
    let requests = Requests::new(Source::Set(PromptSet::open("questions")?), Endpoint::Chat, fields, false)?;
    let setting = Setting {
        client: Arc::new(client),
        requests: Arc::new(requests),
        live: Arc::new(Live::default()),
        stop: CancellationToken::new(),
    };
    let plan = Plan {
        phase: Phase::Measured,
        arrivals: load.arrivals.clone(),
        first_index: 0,
        num_requests: Some(load.num_requests),
        duration: None,
        max_in_flight: 4096,
        give_up_after: load.give_up_after,
        give_up_after_timeouts: load.give_up_after,
    };
    let mut tally = Tally::new(load.targets, matches!(load.arrivals, Arrivals::Closed { .. }));
    let gauge = Gauge::start();
    let ended = load::run(&plan, &setting, |record| {
        tally.add(&record);
        Ok(())
    })
    .await?;
    let summary = tally.summary();
    let cost = gauge.stop(summary.events.count);
    Ok(Outcome { summary, cost, ended })
}

fn delays(first_ms: u64, gap_ms: u64, num_events: u32, tokens_per_event: u32) -> Delays {
    let millis = Duration::from_millis;
    Delays { first: millis(first_ms), gap: millis(gap_ms), num_events, tokens_per_event }
}

/// Shape of the steady answers.
const EVENTS: u32 = 6;
const TOKENS_PER_EVENT: u32 = 3;

/// Every figure of a steady load.
async fn steady(num_requests: u64) -> anyhow::Result<Vec<Finding>> {
    // In rounds of four, so that every quantile lies inside a group.
    let script: Script = Arc::new(|number| {
        let first_ms = if number % 4 == 3 { 90 } else { 15 };
        Conduct::Answer(delays(first_ms, 12 + 6 * (number % 3), EVENTS, TOKENS_PER_EVENT))
    });
    let server = Scripted::start(None, script)?;
    let mut load = Load::new(Arrivals::Closed { concurrency: 4 }, num_requests);
    load.targets = Targets { ttft_ms: Some(50.0), ..Targets::default() };
    let outcome = put(&server, &load).await?;
    let noted = Noted::of(&server.seen());
    let summary = &outcome.summary;
    let mut findings = Vec::new();
    findings.extend(outcome.times("TTFT", &noted.ttft, summary.ttft_ms, 1.0));
    findings.extend(outcome.times("TPOT", &noted.tpot, summary.tpot_ms, f64::from(EVENTS * TOKENS_PER_EVENT - 1)));
    findings.extend(outcome.times("between events", &noted.event_gap, summary.event_gap_ms, 1.0));
    findings.extend(outcome.times(
        "between events, each token",
        &noted.token_gap,
        summary.token_gap_ms,
        f64::from(TOKENS_PER_EVENT),
    ));
    findings.extend(outcome.times("end to end", &noted.e2e, summary.e2e_ms, 1.0));
    let rate = |what: &str, count: f64, measured: Option<f64>| {
        let expected = count / noted.window_s;
        Finding { what: what.into(), expected, measured, allowed: expected * RATE }
    };
    findings.push(rate("requests/s", num_requests as f64, summary.rates.requests));
    findings.push(rate("output tokens/s", noted.tokens, summary.rates.output_tokens));
    findings.push(rate("requests on their way", noted.e2e.iter().sum::<f64>() / 1000.0, summary.mean_in_flight));
    findings.push(exact("tokens per event", noted.tokens / noted.events, summary.events.tokens_per_event()));
    findings.push(exact("output tokens", noted.tokens, Some(summary.tokens.completion as f64)));
    let late = (0..num_requests).filter(|number| number % 4 == 3).count() as u64;
    let good = summary.goodput.map(|goodput| goodput.good as f64);
    let lag = outcome.cost.loop_lag_ms.map(|lag| lag.p99);
    findings.push(Finding {
        what: "event loop late by, p99 (ms)".into(),
        expected: 0.0,
        measured: lag,
        allowed: LAG_MS,
    });
    findings.push(exact("good requests (TTFT up to 50 ms)", (num_requests - late) as f64, good));
    Ok(findings)
}

/// Begins between two arrivals, so that it is certain which of them it delays.
const STALL: Stall = Stall { from: Duration::from_millis(1995), length: Duration::from_millis(1000) };

/// A stall under arrivals that do not wait for it: no omission may hide it.
pub(crate) async fn open_stall() -> anyhow::Result<Vec<Finding>> {
    let (rate, count) = (100.0, 500);
    let server = Scripted::start(Some(STALL), Arc::new(|_| Conduct::Answer(delays(5, 0, 1, 4))))?;
    let outcome = put(&server, &Load::new(Arrivals::Open(Schedule::Constant { rate }), count as u64)).await?;
    let seen = server.seen();
    // By the script alone, which knows when requests are due. All that waited is answered at once when the stall ends, and
    // that takes its time, too.
    let scripted = under_stall(rate, count, STALL, service(&seen));
    let mut findings = outcome.times("end to end, by the script", &scripted, outcome.summary.e2e_ms, 1.0);
    // By what the server noted.
    let noted = Noted::of(&seen);
    findings.extend(outcome.times("end to end, by the server", &noted.e2e, outcome.summary.e2e_ms, 1.0));
    findings.extend(outcome.times("TTFT, by the server", &noted.ttft, outcome.summary.ttft_ms, 1.0));
    for finding in findings.iter_mut().filter(|finding| finding.allowed > 0.0) {
        finding.allowed += BURST_MS;
    }
    findings.push(outcome.time("sent late by, p99 (ms)", 0.0, outcome.summary.late_ms.map(|late| late.p99)));
    Ok(findings)
}

/// What an answer takes when nothing stalls, on average.
fn service(seen: &[script::Seen]) -> Duration {
    let sum: Duration = seen.iter().map(|answer| answer.end.duration_since(answer.begun)).sum();
    sum / u32::try_from(seen.len()).unwrap_or(u32::MAX).max(1)
}

/// The same seen by a client that waits: the plain figures miss it, the corrected ones do not.
pub(crate) async fn closed_stall() -> anyhow::Result<Vec<Finding>> {
    let server = Scripted::start(Some(STALL), Arc::new(|_| Conduct::Answer(delays(5, 0, 1, 4))))?;
    let outcome = put(&server, &Load::new(Arrivals::Closed { concurrency: 1 }, 600)).await?;
    let noted = Noted::of(&server.seen());
    let summary = &outcome.summary;
    let corrected = with_omitted(&noted.e2e, rank(&noted.e2e, 0.5));
    let of = |spread: Option<Spread>| spread.map(|spread| spread.p99);
    let mut findings = vec![
        outcome.time("end to end, p99 (ms), hides the stall", rank(&noted.e2e, 0.99), of(summary.e2e_ms)),
        outcome.time("end to end, longest (ms)", rank(&noted.e2e, 1.0), summary.e2e_ms.map(|spread| spread.max)),
    ];
    // The median by which it is corrected has its own error, and as many steps as the stall is long.
    let mut finding =
        outcome.time("end to end, corrected, p99 (ms)", rank(&corrected, 0.99), of(summary.e2e_corrected_ms));
    finding.allowed += 0.02 * finding.expected;
    findings.push(finding);
    Ok(findings)
}

/// What a server does, and what the run must call it.
pub(crate) const MISBEHAVIOUR: [(Conduct, FailureKind); 7] = [
    (Conduct::Refuse, FailureKind::Status),
    (Conduct::Hang, FailureKind::Timeout),
    (Conduct::Noise, FailureKind::Connect),
    (Conduct::Garbage, FailureKind::Garbage),
    (Conduct::Close, FailureKind::Connect),
    (Conduct::CutShort, FailureKind::CutShort),
    (Conduct::Fail, FailureKind::ServerError),
];

/// One server for each kind, which answers every other request.
pub(crate) async fn misbehaviour() -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (conduct, kind) in MISBEHAVIOUR {
        let script: Script = Arc::new(move |number| match number % 2 {
            0 => Conduct::Answer(delays(1, 0, 1, 1)),
            _ => conduct,
        });
        let server = Scripted::start(None, script)?;
        let mut load = Load::new(Arrivals::Closed { concurrency: 2 }, 10);
        load.timeout = Duration::from_millis(500);
        let summary = put(&server, &load).await?.summary;
        let of_kind = summary.failures.iter().filter(|failure| failure.kind == kind);
        let causes: Vec<&str> = of_kind.clone().map(|failure| failure.message.as_str()).collect();
        let count: u64 = of_kind.map(|failure| failure.count).sum();
        let name = format!("{conduct:?}: failures `{}` ({})", kind.name(), causes.join("; "));
        findings.push(exact(&name, 5.0, Some(count as f64)));
        findings.push(exact(&format!("{conduct:?}: answers"), 5.0, Some(summary.ok as f64)));
    }
    let server = Scripted::start(None, Arc::new(|_| Conduct::Refuse))?;
    let mut load = Load::new(Arrivals::Closed { concurrency: 2 }, 1_000_000);
    load.give_up_after = 50;
    match put(&server, &load).await? {
        Outcome { ended: Ended::GaveUp { failures, .. }, .. } => {
            findings.push(exact("always Refuse: failures until given up", 50.0, Some(failures as f64)));
        }
        outcome => bail!("a server that always fails was not given up: {:?}", outcome.ended),
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block<T>(run: impl Future<Output = anyhow::Result<T>>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run).unwrap()
    }

    #[test]
    fn a_stall_is_not_omitted() {
        let findings = block(open_stall());
        let p99 = findings.iter().find(|finding| finding.what == "end to end, by the script, p99 (ms)").unwrap();
        // 951 by the script, and more on a slow machine; 5 without the stall.
        assert!(p99.measured.unwrap() > 900.0, "{findings:?}");
        for finding in findings.iter().filter(|finding| finding.what.contains("by the server")) {
            assert!(finding.is_not_short(), "{finding:?}");
        }
        for finding in findings.iter().filter(|finding| finding.allowed == 0.0) {
            assert!(finding.is_right(), "{finding:?}");
        }
    }

    #[test]
    fn a_closed_loop_is_corrected() {
        let findings = block(closed_stall());
        let corrected = findings.iter().find(|finding| finding.what.contains("corrected")).unwrap();
        // A stall of a second in a run of a few: far above the 5 ms of an answer, however slow the machine is.
        assert!(corrected.measured.unwrap() > 500.0, "{findings:?}");
    }

    #[test]
    fn servers_that_misbehave_are_accounted_for() {
        for finding in block(misbehaviour()) {
            assert!(finding.is_right(), "{finding:?}");
        }
    }

    #[test]
    fn counts_are_right_and_times_not_short() {
        for finding in block(steady(40)) {
            // A reader that is slow makes these times longer, but may make the gaps between events shorter, the rates
            // lower, and good requests late.
            let is_from_start = finding.what.starts_with("TTFT") || finding.what.starts_with("end to end");
            assert!(!is_from_start || finding.is_not_short(), "{finding:?}");
            let is_count = finding.allowed == 0.0 && !finding.what.contains("good");
            assert!(!is_count || finding.is_right(), "{finding:?}");
        }
    }
}
