//! Sensors that take their time, and a sampler that dies.

use std::{
    thread,
    time::{Duration, Instant},
};

use engine::{
    EngineSettings,
    energy::{
        Basis, Domain, EnergyMonitor, EnergyProvider, EnergySettings, Missing, Rail, Raw, Source, SourceClass,
        Unavailable,
    },
    testing::metered_with,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Options, Server, post};

const TEXT: &str = "/v1/completions";
const PASS: Duration = Duration::from_millis(4);
const WATTS: f64 = 10.0;

/// One rail of ten watts.
struct OneRail {
    start: Instant,
    /// How long a read takes.
    takes: Duration,
    /// Reads until the thread that reads panics.
    left: usize,
}

impl EnergyProvider for OneRail {
    fn discover(&mut self) -> Vec<Result<Domain, Missing>> {
        vec![Ok(Domain {
            id: "rapl:package-0".into(),
            source: Source::Rapl,
            class: SourceClass::Counter { modulus_uj: None },
            bases: &[Basis::Cpu],
            exclusive: true,
            shared: false,
            max_watts: 1000.0,
            update_period: Some(Duration::from_millis(1)),
            busy_period: Duration::from_millis(20),
            rail: Rail::Host,
        })]
    }

    fn read(&mut self, _domain: &str) -> Result<Raw, Unavailable> {
        thread::sleep(self.takes);
        self.left = self.left.checked_sub(1).expect("the test wants this thread to die");
        Ok(Raw::Counter((self.start.elapsed().as_secs_f64() * WATTS * 1e6) as u64))
    }
}

async fn serve(energy: EnergyMonitor) -> Server {
    let engine = EngineSettings { threads: Some(1), ..EngineSettings::default() };
    Server::start(Options { pass_time: PASS, engine, energy, ..Options::default() }).await
}

fn monitor(takes: Duration, left: usize) -> EnergyMonitor {
    let settings = EnergySettings { basis: Some(Basis::Cpu), idle_window: None, ..EnergySettings::default() };
    metered_with(&settings, Box::new(OneRail { start: Instant::now(), takes, left })).unwrap()
}

fn text(stream: bool) -> Value {
    json!({"prompt": "a", "max_tokens": 100, "temperature": 0, "ignore_eos": true, "stream": stream, "energy": true,
        "decoding": {"strategy": "ar"}})
}

/// All events of a stream with the time at which they came.
async fn timed(server: &Server) -> Vec<(Instant, Value)> {
    let response = server.router.clone().oneshot(post(TEXT, text(true).to_string())).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let mut events = Vec::new();
    while let Some(piece) = body.next().await {
        let (now, piece) = (Instant::now(), String::from_utf8(piece.unwrap().to_vec()).unwrap());
        let data = piece.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let parsed = data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap());
        events.extend(parsed.map(|event| (now, event)));
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_does_not_wait_for_slow_sensors() {
    let server = serve(monitor(Duration::from_secs(1), usize::MAX)).await;
    // Whatever else this machine does may hold one stream up; a sensor would hold up all of them.
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let events = timed(&server).await;
        let (last, chunks) = events.split_last().unwrap();
        let gaps = chunks.windows(2).map(|pair| pair[1].0 - pair[0].0);
        least = least.min(gaps.max().unwrap());
        let waited = last.0 - chunks.last().unwrap().0;
        assert!(last.1["usage"]["energy"].is_object(), "{last:?}");
        assert!(waited < Duration::from_millis(900), "the settle time is at most 200 ms, not {waited:?}");
    }
    assert!(least < Duration::from_millis(500), "a chunk waited {least:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_sampler_dies_values_vanish_and_the_server_lives() {
    let server = serve(monitor(Duration::ZERO, 30)).await;
    let first = server.ok(TEXT, text(false)).await;
    assert_eq!(first["usage"]["energy"]["status"], "measured", "{first}");
    let start = Instant::now();
    loop {
        // Passes make it read until it dies.
        server.ok(TEXT, text(false)).await;
        let state = server.get("/v1/energy").await.json();
        if state["reason"] == "stale" {
            assert_eq!(state["status"], "unavailable", "{state}");
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(6), "{state}");
    }
    let page = server.get("/metrics").await.text;
    assert!(!page.contains("ipw_energy_joules_total") && !page.contains("ipw_power_watts"), "{page}");
    assert!(page.contains("ipw_energy_source_up{source=\"rapl\",domain=\"rapl:package-0\"} 0"), "{page}");
    let reply = server.ok(TEXT, text(false)).await;
    let energy = &reply["usage"]["energy"];
    assert_eq!((&energy["status"], &energy["reason"]), (&json!("unavailable"), &json!("stale")), "{energy}");
    assert_eq!(reply["usage"]["completion_tokens"], 100);
}
