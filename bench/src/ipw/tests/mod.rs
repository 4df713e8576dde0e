//! The whole command against a scripted server.

mod script;

use std::{fs, path::Path};

use clap::Parser;
use serde_json::Value;

use super::{IpwArgs, measure_all};
use script::{Script, Turn, joules, start};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: IpwArgs,
}

/// The report of a run, or its error.
fn run(url: &str, output: &Path, more: &[&str]) -> Result<String, String> {
    let fixed = ["ipw", "--url", url, "--idle-seconds", "0", "--warmup-seconds", "0", "--output"];
    let line = fixed.iter().copied().chain([output.to_str().unwrap()]).chain(more.iter().copied());
    let args = Line::parse_from(line).args;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure_all(&args)).map_err(|error| format!("{error:#}"))
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn rows(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("records.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn metrics(row: &Value) -> &Value {
    &row["model_metrics"]["scripted-1.5b"]
}

/// Every path of keys in `value`.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| paths(value, &format!("{at}/{key}"), found)),
        _ => found.push(at.to_owned()),
    }
}

fn close(got: &Value, expected: f64) {
    let got = got.as_f64().unwrap();
    assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
}

#[test]
fn the_figures_follow_from_the_records() {
    let (url, seen) =
        start(Script { turns: vec![Turn::Right, Turn::Wrong, Turn::Mute, Turn::Late, Turn::Right], meter: true });
    let output = tempfile::tempdir().unwrap();
    let text = run(&url, output.path(), &["--limit", "5"]).unwrap();
    let folder = output.path().join("default");
    let rows = rows(&folder);
    assert_eq!(rows.len(), 5);
    // As the harness computes: accuracy over mean energy, and over the mean of energy over latency.
    let (mut energy, mut power, mut right) = (0.0, 0.0, 0.0);
    for (index, row) in rows.iter().enumerate() {
        let metrics = metrics(row);
        let (e, t) = (&metrics["energy_metrics"], &metrics["latency_metrics"]["total_query_seconds"]);
        close(&e["soc_per_query_joules"], joules(index));
        close(&e["cpu_per_query_joules"], joules(index));
        assert_eq!((&e["basis"], &e["per_query_joules"]), (&Value::from("soc"), &Value::Null), "no GPU, so no figure");
        energy += joules(index) / 5.0;
        power += joules(index) / t.as_f64().unwrap() / 5.0;
        close(&metrics["power_metrics"]["soc"]["per_query_watts"]["avg"], joules(index) / t.as_f64().unwrap());
        right += f64::from(u8::from(metrics["evaluation"]["is_correct"] == true)) / 5.0;
        let metadata = metrics["evaluation"]["metadata"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(metadata).unwrap()["unextracted"], index == 2);
    }
    close(&Value::from(right), 0.6);
    let summary = read(&folder.join("summary.json"));
    close(&summary["accuracy"]["value"], 0.6);
    assert_eq!(summary["accuracy"]["unextracted"], 1);
    assert_eq!((&summary["energy"]["basis"], &summary["energy"]["method"]), (&"cpu".into(), &"window".into()));
    close(&summary["energy"]["mean_joules"], energy);
    close(&summary["energy"]["total_joules"], 5.0 * energy);
    close(&summary["energy"]["net_mean_joules"], energy - 0.5);
    close(&summary["energy"]["mean_watts"], power);
    close(&summary["efficiency"]["intelligence_per_watt"], right / power);
    close(&summary["efficiency"]["intelligence_per_joule"], right / energy);
    let accuracy = read(&folder.join("analysis/accuracy.json"));
    assert_eq!(accuracy["summary"]["intelligence_per_watt"], summary["efficiency"]["intelligence_per_watt"]);
    assert_eq!(accuracy["summary"]["energy_basis"], "soc");
    assert!(text.contains("the server was at work in 0 %"), "{text}");
    let lines = &read(&folder.join("analysis/regression.json"))["data"]["regressions"];
    // 1 + i/4 joules at 4 + i tokens.
    close(&lines["output_tokens_vs_energy"]["slope"], 0.25);
    close(&lines["output_tokens_vs_energy"]["r2"], 1.0);
    assert!(text.contains("Basis: **cpu**") && text.contains("| default | scripted-1.5b | cpu |"), "{text}");
    for plot in ["accuracy.svg", "ipw.svg", "ipj.svg", "energy.svg"] {
        assert!(output.path().join(plot).is_file() && text.contains(plot), "{plot}");
    }
    let seen = seen.lock().unwrap();
    assert!(
        seen.asked
            .iter()
            .all(|body| body["energy"] == true && body["temperature"] == 0.0 && body["max_tokens"] == 1024)
    );
    let items = seen.posted[0]["items"].as_array().unwrap();
    let scores: Vec<f64> = items.iter().map(|item| item["score"].as_f64().unwrap()).collect();
    assert_eq!(scores, [1.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!((&items[0]["request_id"], &items[0]["dataset"]), (&"q-0".into(), &"arith".into()));
}

#[test]
fn what_fails_is_missing_and_never_zero() {
    let turns = vec![Turn::Right, Turn::HangUp, Turn::Status500, Turn::NoEnergy, Turn::Never, Turn::Right];
    let (url, _) = start(Script { turns, meter: true });
    let output = tempfile::tempdir().unwrap();
    let text = run(&url, output.path(), &["--limit", "6"]).unwrap();
    let folder = output.path().join("default");
    let rows = rows(&folder);
    let ext = |index: usize| &metrics(&rows[index])["ipw_ext"];
    let reason = |index: usize| ext(index)["reason"].as_str().unwrap().to_owned();
    assert!(reason(1).contains("request failed"), "{}", reason(1));
    assert!(reason(2).contains("500") && reason(2).contains("out of luck"), "{}", reason(2));
    assert_eq!(reason(3), "the reply has no `usage.energy`");
    assert!(reason(4).contains("partial"), "{}", reason(4));
    for row in &rows[1..5] {
        assert_eq!(metrics(row)["ipw_ext"]["energy_joules"], Value::Null);
        assert_eq!(metrics(row)["energy_metrics"]["soc_per_query_joules"], Value::Null);
    }
    assert_eq!(metrics(&rows[1])["evaluation"]["is_correct"], Value::Null);
    assert_eq!(metrics(&rows[3])["evaluation"]["is_correct"], true);
    let summary = read(&folder.join("summary.json"));
    assert_eq!(summary["incomplete"], true);
    assert_eq!(summary["accuracy"]["request_failed"], 2);
    assert_eq!((&summary["accuracy"]["n"], &summary["energy"]["status"]), (&4.into(), &"partial".into()));
    for key in ["intelligence_per_watt", "ipw_ci95", "intelligence_per_joule"] {
        assert_eq!(summary["efficiency"][key], Value::Null, "{key}");
    }
    assert_eq!(summary["efficiency"]["reason"], "2 of 6 requests failed");
    assert_eq!(summary["efficiency"]["subset_with_energy"]["n"], 2);
    assert!(text.contains("No IPW of default: 2 of 6 requests failed"), "{text}");
    // Every row has every key.
    let keys = |row: &Value| {
        let mut found = Vec::new();
        paths(row, "", &mut found);
        found.retain(|path| !path.contains("/server_timing") && !path.contains("/domains"));
        found
    };
    assert!(rows.iter().all(|row| keys(row) == keys(&rows[0])));
}

#[test]
fn a_missing_energy_makes_ipw_null() {
    let (url, _) = start(Script { turns: vec![Turn::Right, Turn::NoEnergy, Turn::Right], meter: true });
    let output = tempfile::tempdir().unwrap();
    run(&url, output.path(), &["--limit", "3", "--no-post"]).unwrap();
    let summary = read(&output.path().join("default/summary.json"));
    assert_eq!(summary["efficiency"]["intelligence_per_watt"], Value::Null);
    assert_eq!((&summary["energy"]["missing"], &summary["incomplete"]), (&1.into(), &false.into()));
    assert_eq!(summary["efficiency"]["subset_with_energy"]["n"], 2);
}

#[test]
fn without_a_meter_it_stops_unless_told() {
    let (url, seen) = start(Script { turns: vec![Turn::Right], meter: false });
    let output = tempfile::tempdir().unwrap();
    let error = run(&url, output.path(), &["--limit", "2"]).unwrap_err();
    assert!(error.contains("no_sensor") && error.contains("--allow-no-energy"), "{error}");
    let text = run(&url, output.path(), &["--limit", "2", "--allow-no-energy"]).unwrap();
    assert!(text.contains("energy was not measured") && !text.contains(".svg"), "{text}");
    let summary = read(&output.path().join("default/summary.json"));
    close(&summary["accuracy"]["value"], 1.0);
    assert_eq!(summary["energy"]["status"], "unavailable");
    assert_eq!(summary["energy"]["mean_watts"], Value::Null);
    assert!(summary["efficiency"]["reason"].as_str().unwrap().contains("no_sensor"), "{summary}");
    let seen = seen.lock().unwrap();
    assert!(seen.posted.is_empty() && seen.asked.iter().all(|body| body.get("energy").is_none()));
}

#[test]
fn arms_take_turns_and_are_compared_on_the_same_queries() {
    let (url, seen) = start(Script { turns: vec![Turn::Right], meter: true });
    let output = tempfile::tempdir().unwrap();
    let more = [
        "--limit",
        "4",
        "--strategy",
        "AR",
        "--strategy",
        "Jacobi=strategy=jacobi,width=8",
        "--repeats",
        "2",
        "--runs",
        "2",
    ];
    let text = run(&url, output.path(), &more).unwrap();
    assert!(text.contains("## Against AR"), "{text}");
    let summary = read(&output.path().join("jacobi/summary.json"));
    assert_eq!(summary["by_run"]["accuracy"]["values"].as_array().unwrap().len(), 2);
    assert_eq!((rows(&output.path().join("ar")).len(), &summary["accuracy"]["n"]), (16, &4.into()));
    let seen = seen.lock().unwrap();
    let strategies: Vec<&str> = seen.asked.iter().map(|body| body["decoding"]["strategy"].as_str().unwrap()).collect();
    assert_eq!(strategies[..8], ["ar", "jacobi", "jacobi", "ar", "jacobi", "ar", "ar", "jacobi"], "who begins changes");
    assert_eq!(seen.asked[0]["messages"], seen.asked[1]["messages"]);
    let pair = &read(&output.path().join("comparison.json"))["strategies"][0]["difference"];
    assert_eq!((&pair["n"], &pair["accuracy_difference"]["value"]), (&4.into(), &0.0.into()));
    assert!(pair["joules_difference"]["low"].is_number());
}

#[test]
fn company_changes_the_method() {
    let (url, _) = start(Script { turns: vec![Turn::Right], meter: true });
    let output = tempfile::tempdir().unwrap();
    run(&url, output.path(), &["--limit", "6", "--concurrency", "3"]).unwrap();
    let summary = read(&output.path().join("default/summary.json"));
    assert_eq!(summary["energy"]["method"], "attributed");
    let sum: f64 = (0..6).map(|index| joules(index) * 0.5).sum();
    close(&summary["energy"]["total_joules"], sum);
}

#[test]
fn different_bases_are_refused_with_the_records_kept() {
    let (url, _) = start(Script { turns: vec![Turn::Right, Turn::OtherBasis], meter: true });
    let output = tempfile::tempdir().unwrap();
    let error = run(&url, output.path(), &["--limit", "2"]).unwrap_err();
    assert!(error.contains("different bases (cpu, gpu)"), "{error}");
    assert_eq!(rows(&output.path().join("default")).len(), 2);
    assert!(!output.path().join("report.md").exists());
}

#[test]
fn code_is_not_run_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("code.jsonl");
    let row = serde_json::json!({"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": ""});
    fs::write(&file, row.to_string()).unwrap();
    let error = run("http://127.0.0.1:9", folder.path(), &["--dataset-file", file.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("--allow-code"), "{error}");
}
