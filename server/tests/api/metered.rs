//! What requests cost on a machine whose sensors are files that a test writes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use engine::{
    EngineSettings,
    energy::{Attribution, Basis, EnergyMonitor, EnergySettings, Mode, Source},
    testing::{PowercapDriver, PowercapTree},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::support::{Options, Server, listen};

const TEXT: &str = "/v1/completions";
const PACKAGE: &str = "intel-rapl:0";
const DRAM: &str = "intel-rapl:0:0";
const WATTS: f64 = 25.0;

/// A machine with a package of 20 W and memory of 5 W.
struct Machine {
    tree: PowercapTree,
    driver: Option<PowercapDriver>,
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tree = PowercapTree::new(folder.path().join("powercap")).unwrap();
        tree.package(0).unwrap();
        tree.part(0, 0, "dram").unwrap();
        let driver = tree.drive(&[(PACKAGE, 20.0), (DRAM, 5.0)]).unwrap();
        Self { tree, driver: Some(driver), folder }
    }

    fn settings(&self) -> EnergySettings {
        EnergySettings {
            mode: Mode::Require,
            basis: Some(Basis::Cpu),
            sources: Some(vec![Source::Rapl]),
            interval: Duration::from_millis(20),
            idle_window: None,
            attribution: Attribution::Tokens,
            powercap_root: self.tree.root().to_owned(),
            hwmon_root: self.folder.path().join("hwmon"),
            power_supply_root: self.folder.path().join("power_supply"),
            ..EnergySettings::default()
        }
    }

    fn stop(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.stop().unwrap();
        }
    }
}

async fn serve(energy: EnergySettings) -> Server {
    let energy = EnergyMonitor::start(&energy).unwrap();
    let engine = EngineSettings { max_concurrent: 16, max_queue: 64, threads: Some(1), ..EngineSettings::default() };
    Server::start(Options { pass_time: Duration::from_millis(5), engine, energy, ..Options::default() }).await
}

fn text(max_tokens: usize) -> Value {
    json!({"prompt": "abcdef", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true, "energy": true,
        "decoding": {"strategy": "ar"}})
}

fn uj(joules: &Value) -> u64 {
    (joules.as_f64().unwrap_or_else(|| panic!("no joules: {joules}")) * 1e6).round() as u64
}

fn near(left: f64, right: f64, share: f64) -> bool {
    (left - right).abs() <= share * right.abs()
}

/// Repeats until what is told is as it must be once all sensors are read.
async fn until<T>(what: &str, mut is: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = is().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "never {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The final report on a call.
async fn report(server: &Server, id: &str) -> Value {
    until("final", async || {
        let report = server.get(&format!("/v1/energy/requests/{id}")).await.json();
        (report["final"] == true).then_some(report)
    })
    .await
}

/// Sums of `GET /v1/energy` by cause, and what was measured, once they agree.
async fn settled(server: &Server) -> (BTreeMap<String, u64>, u64) {
    until("conserved", async || {
        let state = server.get("/v1/energy").await.json();
        let accounts = state["accounts"].as_object().unwrap();
        let accounts: BTreeMap<_, _> = accounts.iter().map(|(k, v)| (k.clone(), v.as_u64().unwrap())).collect();
        let domains = state["domains"].as_array().unwrap().iter();
        let measured = domains.filter(|d| d["exclusive"] == true).map(|d| d["energy_uj"].as_u64().unwrap()).sum();
        (accounts.values().sum::<u64>() == measured).then_some((accounts, measured))
    })
    .await
}

#[tokio::test]
async fn a_request_costs_what_its_rails_used_meanwhile() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    let reply = server.ok(TEXT, text(60)).await;
    let energy = &reply["usage"]["energy"];
    assert_eq!(
        (&energy["status"], &energy["basis"], &energy["final"]),
        (&json!("measured"), &json!("cpu"), &json!(true))
    );
    let active = energy["timing"]["active_seconds"].as_f64().unwrap();
    let (all, window) = (energy["energy_joules"].as_f64().unwrap(), energy["window_joules"].as_f64().unwrap());
    assert!(active > 0.3 && near(window, WATTS * active, 0.1), "{energy}");
    // Between two passes it does not run, so it is charged a little less than all.
    assert!(near(all, window, 0.2), "{energy}");
    assert!(near(energy["power_watts"].as_f64().unwrap(), all / active, 1e-9), "{energy}");
    assert_eq!(uj(&energy["prefill_joules"]) + uj(&energy["decode_joules"]), uj(&energy["energy_joules"]));
    let domains = energy["domains"].as_array().unwrap();
    let ids: Vec<_> = domains.iter().map(|domain| domain["domain"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert_eq!(domains.iter().map(|domain| uj(&domain["joules"])).sum::<u64>(), uj(&energy["energy_joules"]));
    assert_eq!(energy["attribution"]["max_concurrency"], 1);
    assert!(near(energy["joules_per_output_token"].as_f64().unwrap(), all / 60.0, 1e-9), "{energy}");
    assert_eq!(&report(&server, reply["id"].as_str().unwrap()).await, energy);
}

#[tokio::test]
async fn choices_of_one_call_are_added_up() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    let mut body = text(20);
    body["n"] = 3.into();
    let reply = server.ok(TEXT, body).await;
    let energy = &reply["usage"]["energy"];
    assert_eq!(energy["attribution"]["max_concurrency"], 3, "{energy}");
    let (accounts, _) = {
        let mut machine = machine;
        machine.stop();
        settled(&server).await
    };
    assert_eq!(accounts["requests_uj"], uj(&energy["energy_joules"]));
}

#[tokio::test]
async fn half_a_basis_is_no_number() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    server.ok(TEXT, text(5)).await;
    machine.tree.vanish(DRAM).unwrap();
    sleep(Duration::from_millis(100)).await;
    let reply = server.ok(TEXT, text(60)).await;
    let energy = &reply["usage"]["energy"];
    assert_eq!(energy["status"], "unavailable", "{energy}");
    assert!(energy["reason"].is_string() && energy["energy_joules"].is_null() && energy["power_watts"].is_null());
    let domains = energy["domains"].as_array().unwrap();
    let package = domains.iter().find(|domain| domain["domain"] == "rapl:package-0").unwrap();
    assert!(package["joules"].as_f64() > Some(1.0), "{energy}");
    let dram = domains.iter().find(|domain| domain["domain"] != "rapl:package-0").unwrap();
    assert!(dram["reason"].is_string(), "{energy}");
    let state = server.get("/v1/energy").await.json();
    assert_eq!(state["status"], "unavailable", "{state}");
}

#[tokio::test]
async fn what_is_measured_goes_somewhere() {
    let mut machine = Machine::new();
    let server = serve(machine.settings()).await;
    let address = listen(&server).await;
    let client = reqwest::Client::new();
    let url = format!("http://{address}{TEXT}");
    // Every fourth client leaves in the middle.
    let calls: FuturesUnordered<_> = (0..64usize)
        .map(|index| {
            let mut body = text(10 + index % 7 * 5);
            let leaves = index % 4 == 3;
            body["stream"] = (leaves || index % 2 == 0).into();
            body["prompt"] = "a".repeat(1 + index).into();
            let request = client.post(&url).header("content-type", "application/json").body(body.to_string());
            async move {
                let mut response = request.send().await.unwrap();
                if leaves {
                    let _first = response.chunk().await.unwrap();
                    return None;
                }
                let text = response.text().await.unwrap();
                let events = text.split_terminator("\n\n").filter(|event| event.contains("\"energy\""));
                let last = events.last().unwrap_or(&text);
                let value: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or(last)).unwrap();
                Some(value["id"].as_str().unwrap().to_owned())
            }
        })
        .collect();
    let ids: Vec<String> = calls.filter_map(async |id| id).collect().await;
    assert_eq!(ids.len(), 48);
    machine.stop();
    let mut told = 0;
    for id in &ids {
        let report = report(&server, id).await;
        assert_eq!(report["status"], "measured", "{report}");
        told += uj(&report["energy_joules"]);
    }
    let (accounts, measured) = settled(&server).await;
    assert!(told > 0 && told < accounts["requests_uj"], "who left is not told, and pays: {told} of {accounts:?}");
    assert!(measured > 0 && accounts["idle_uj"] > 0, "{accounts:?}");
    let page = server.get("/metrics").await.text;
    let sum = |name: &str| samples(&page).iter().filter(|(key, _)| key.starts_with(name)).map(|(_, v)| v).sum::<f64>();
    let shared = sum("ipw_attributed_energy_joules_total") + sum("ipw_unattributed_energy_joules_total");
    assert!((sum("ipw_energy_joules_total") - shared).abs() < 1e-6, "{page}");
    assert!((sum("ipw_energy_joules_total") - measured as f64 / 1e6).abs() < 1e-6, "{page}");
}

/// Samples of a page by name and labels.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        (key.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    });
    samples.collect()
}

/// Checks what a scraper of OpenMetrics checks: descriptions before samples, one block a name, no sample twice.
fn check_page(page: &str) {
    assert!(page.ends_with("\n# EOF\n"), "{page}");
    let (mut described, mut current, mut seen) = (BTreeMap::new(), String::new(), std::collections::BTreeSet::new());
    for line in page.lines().filter(|line| *line != "# EOF") {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            assert!(described.insert(name.to_owned(), kind.to_owned()).is_none(), "described twice: {name}");
            current = name.to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let suffixes: &[&str] = match described[&current].as_str() {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            let fits = suffixes.iter().any(|suffix| name == format!("{current}{suffix}"));
            assert!(fits, "{name} does not belong to {current}");
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
        }
    }
}

#[tokio::test]
async fn scrapes_under_load_are_whole_and_never_go_back() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    let load: FuturesUnordered<_> = (0..8).map(|_| server.ok(TEXT, text(100))).collect();
    let load = load.collect::<Vec<_>>();
    let scrapes = async {
        let mut before: BTreeMap<String, f64> = BTreeMap::new();
        for _ in 0..200 {
            let page = server.get("/metrics").await.text;
            check_page(&page);
            let now = samples(&page);
            let is_counter = |key: &str| {
                let name = key.split('{').next().unwrap_or_default();
                ["_total", "_bucket", "_count", "_sum"].iter().any(|suffix| name.ends_with(suffix))
            };
            for (key, value) in before.iter().filter(|(key, _)| is_counter(key)) {
                assert!(now.get(key).is_some_and(|now| now >= value), "{key}: {value} before, {:?} now", now.get(key));
            }
            before = now;
            sleep(Duration::from_millis(2)).await;
        }
        before
    };
    let (last, _) = tokio::join!(scrapes, load);
    assert!(last.keys().any(|key| key.starts_with("ipw_energy_joules_total")), "{last:?}");
}

#[tokio::test]
async fn judged_answers_become_intelligence_per_watt() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    let (mut items, mut watts, mut joules) = (Vec::new(), 0.0, 0.0);
    for (tokens, score) in [(40, json!(1)), (60, json!(0)), (80, json!(1.0))] {
        let reply = server.ok(TEXT, text(tokens)).await;
        let report = report(&server, reply["id"].as_str().unwrap()).await;
        watts += report["power_watts"].as_f64().unwrap() / 3.0;
        joules += report["energy_joules"].as_f64().unwrap() / 3.0;
        items.push(json!({"request_id": reply["id"], "dataset": "sums", "score": score}));
    }
    let unscored = server.ok(TEXT, text(5)).await;
    items.push(json!({"request_id": unscored["id"], "dataset": "sums", "score": null}));
    let page = server.get("/metrics").await.text;
    assert!(!page.contains("ipw_intelligence_per_watt{"), "nothing is judged yet");
    let mut first = None;
    // The second time changes nothing.
    for _ in 0..2 {
        let reply = server.ok("/v1/energy/evaluations", json!({"items": items})).await;
        assert_eq!(reply["accepted"], 4);
        let page = server.get("/metrics").await.text;
        let samples = samples(&page);
        let value = |name: &str, label: &str| {
            let mut found = samples.iter().filter(|(key, _)| key.starts_with(name) && key.contains(label));
            let (_, value) = found.next().unwrap_or_else(|| panic!("no {name} {label}: {page}"));
            assert!(found.next().is_none(), "one {name} {label}");
            *value
        };
        assert!(near(value("ipw_intelligence_per_watt{", "sums"), 2.0 / 3.0 / watts, 1e-9), "{watts} {page}");
        assert!(near(value("ipw_intelligence_per_joule{", "sums"), 2.0 / 3.0 / joules, 1e-9), "{joules} {page}");
        assert!(near(value("ipw_accuracy_ratio{", "sums"), 2.0 / 3.0, 1e-9), "{page}");
        for (outcome, count) in [("\"correct\"", 2.0), ("\"incorrect\"", 1.0), ("\"unscored\"", 1.0)] {
            assert_eq!(value("ipw_evaluations_total{", outcome), count, "{outcome}");
        }
        let judged: Vec<_> = samples.into_iter().filter(|(key, _)| key.starts_with("ipw_eval")).collect();
        assert_eq!(first.get_or_insert(judged.clone()), &judged);
    }
}

#[tokio::test]
async fn the_number_of_data_sets_is_bounded() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    let id = server.ok(TEXT, text(2)).await["id"].clone();
    let mut ids = vec![id];
    for _ in 0..40 {
        ids.push(server.ok(TEXT, text(2)).await["id"].clone());
    }
    let item = |(index, id): (usize, &Value)| json!({"request_id": id, "dataset": format!("set {index}"), "score": 1});
    let items: Vec<Value> = ids.iter().enumerate().map(item).collect();
    let reply = server.post("/v1/energy/evaluations", json!({"items": items})).await;
    assert_eq!((reply.status.as_u16(), reply.error("code")), (400, json!("too_many_datasets")));
    assert_eq!(reply.error("param"), "items[32].dataset");
}

#[tokio::test]
async fn both_text_formats_say_the_same() {
    let machine = Machine::new();
    let server = serve(machine.settings()).await;
    server.ok(TEXT, text(30)).await;
    let classic = Request::get("/metrics").header("accept", "text/plain").body(Body::empty()).unwrap();
    let classic = server.send(classic).await.text;
    let open = server.get("/metrics").await.text;
    let keys = |page: &str| samples(page).into_keys().filter(|key| key.starts_with("ipw_")).collect::<Vec<_>>();
    assert_eq!(keys(&classic), keys(&open));
    assert!(classic.contains("# TYPE ipw_energy_joules_total counter"), "{classic}");
}
