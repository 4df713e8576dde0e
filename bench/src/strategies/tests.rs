//! What is advised on tables, and whole runs on small models.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::{Value, json};

use super::{
    LEAST_GAIN, StrategiesArgs,
    advice::{Loss, Quality, Rule, advise, is_faster, loss, quality},
    measure, report,
    row::{Outcome, Row},
    run,
    words::{pass_times, recommendation, unsteady, warnings},
};
use crate::stats::Summary;

const RULE: Rule = Rule { margin: 0.02, least_gain: LEAST_GAIN };

fn rounds(ratios: &[f64]) -> Summary {
    Summary::of(ratios).unwrap()
}

/// `num_prompts` prompts, of which nine in ten are right under the baseline, `lost` of these are wrong here, and `gained`
/// of the others are right here.
fn row(strategy: &str, ratios: &[f64], (num_prompts, lost, gained): (usize, usize, usize)) -> Row {
    let is_baseline = strategy == "ar";
    let right_before = num_prompts * 9 / 10;
    let pair = |index: usize| (index >= lost && index < right_before + gained, index < right_before);
    let pairs: Vec<(bool, bool)> = (0..num_prompts).map(pair).collect();
    let same: Vec<(bool, bool)> = (0..num_prompts).map(|index| (index >= lost + gained, true)).collect();
    Row {
        model: "m".into(),
        strategy: strategy.into(),
        decoding: json!({"policy": strategy}),
        batch: 1,
        is_baseline,
        num_prompts,
        tokens_per_second: rounds(ratios),
        speed_up: rounds(ratios),
        tokens_per_forward: 1.0,
        rows_per_pass: 1.0,
        pass_ms: 2.0,
        first_text_ms: None,
        answer_ms: rounds(&[5.0]),
        same: Outcome::of(&same, is_baseline).unwrap(),
        common_prefix: 0.5,
        right: Outcome::of(&pairs, is_baseline),
        num_unstable: 0,
        num_cut: 0,
        cached_tokens: 0.0,
        joules_per_token: None,
        joules_per_right: None,
        is_exact: false,
        exact_cache: None,
    }
}

fn best(rows: &[Row]) -> Option<&str> {
    advise(rows, RULE).best.map(|row| row.strategy.as_str())
}

#[test]
fn a_gain_is_one_if_it_is_beyond_the_spread() {
    let faster = |ratios: &[f64]| is_faster(rounds(ratios), RULE);
    assert!(faster(&[2.0, 2.1, 2.2]));
    assert!(faster(&[1.04, 1.05, 1.06]));
    assert!(faster(&[3.0, 4.0, 8.0]), "wide, and far from 1");
    assert!(!faster(&[0.99, 2.0, 2.1]), "one round was slower");
    assert!(!faster(&[1.01, 1.05, 1.4]), "the range is wider than the gain");
    assert!(!faster(&[1.01, 1.02, 1.02]), "too little to matter");
    assert!(!faster(&[5.0]), "one round has no spread");
}

#[test]
fn the_fastest_that_keeps_the_accuracy_is_advised() {
    let rows = [
        row("ar", &[1.0, 1.0, 1.0], (1000, 0, 0)),
        row("slow", &[1.5, 1.6, 1.7], (1000, 0, 0)),
        row("good", &[2.0, 2.1, 2.2], (1000, 5, 5)),
        row("wrong", &[8.0, 8.1, 8.2], (1000, 300, 0)),
    ];
    let advice = advise(&rows, RULE);
    assert_eq!(advice.best.unwrap().strategy, "good");
    assert_eq!(advice.worse.iter().map(|row| &*row.strategy).collect::<Vec<_>>(), ["wrong"]);
    assert!(advice.untold.is_empty());
    let text = recommendation(&rows, RULE, true);
    for part in [
        "use `good`",
        r#"`"decoding": {"policy":"good"}`"#,
        "2.10 (2.00 to 2.20) times as fast as `ar` over 3 rounds",
        "wording in 10 of 1000 answers",
        "`wrong` is faster still, 8.10",
        "loses too much: -30.0",
        "a person waiting",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn without_a_gain_the_baseline_stays() {
    let mut rows = [
        row("ar", &[1.0, 1.0, 1.0], (1000, 0, 0)),
        row("jacobi", &[0.7, 0.8, 0.9], (1000, 0, 0)),
        row("noisy", &[0.9, 1.3, 1.5], (1000, 0, 0)),
    ];
    assert_eq!(best(&rows), None);
    let text = recommendation(&rows, RULE, true);
    assert!(text.contains("use `ar`") && text.contains("Nothing here is faster beyond the spread."), "{text}");
    assert!(text.contains("The default, `jacobi`, reaches 0.80 (0.70 to 0.90)"), "{text}");
    assert!(text.contains("`noisy` came out highest, 1.30 (0.90 to 1.50)"), "{text}");
    rows[2] = row("wrong", &[3.0, 3.0, 3.0], (1000, 300, 0));
    let text = recommendation(&rows, RULE, true);
    assert!(text.contains("use `ar`") && text.contains("What is faster answers worse."), "{text}");
    let once = [row("ar", &[1.0], (1000, 0, 0)), row("good", &[4.0], (1000, 0, 0))];
    assert_eq!(best(&once), None);
    assert!(recommendation(&once, RULE, true).contains("one round shows no spread"));
}

#[test]
fn few_prompts_are_too_few_and_it_is_said_how_many_would_do() {
    let rows = [row("ar", &[1.0, 1.0], (20, 0, 0)), row("same", &[2.0, 2.0], (20, 0, 0))];
    let advice = advise(&rows, RULE);
    assert!(advice.best.is_none());
    // 1.96 / (n + 2) is at most 0.02 from 96 on.
    assert_eq!(advice.untold.iter().map(|(_, needed)| *needed).collect::<Vec<_>>(), [Some(96)]);
    let text = recommendation(&rows, RULE, true);
    assert!(text.contains("too few problems to tell") && text.contains("about 100 would do"), "{text}");
    assert_eq!(best(&[row("ar", &[1.0, 1.0], (96, 0, 0)), row("same", &[2.0, 2.0], (96, 0, 0))]), Some("same"));
    assert_eq!(best(&[row("ar", &[1.0, 1.0], (95, 0, 0)), row("same", &[2.0, 2.0], (95, 0, 0))]), None);
    let losing = row("losing", &[2.0, 2.0], (20, 1, 0));
    assert_eq!(quality(&losing, RULE), Quality::Untold { needed: None }, "5 points down, and the interval is wide");
}

#[test]
fn what_is_exact_by_design_needs_no_statistics_unless_it_differs() {
    let exact = |lost| Row { is_exact: true, ..row("jacobi", &[2.0, 2.0], (20, lost, 0)) };
    assert_eq!(quality(&exact(0), RULE), Quality::Kept);
    assert_ne!(quality(&exact(1), RULE), Quality::Kept);
    let rows = [row("ar", &[1.0, 1.0], (20, 0, 0)), exact(0)];
    assert!(recommendation(&rows, RULE, true).contains("You give up nothing that shows: all 20 texts"));
}

#[test]
fn without_checkers_texts_are_judged_by_the_baseline() {
    let unjudged = |row: Row| Row { right: None, ..row };
    let baseline = || unjudged(row("ar", &[1.0, 1.0], (200, 0, 0)));
    let other = |lost| unjudged(row("other", &[2.0, 2.0], (200, lost, 0)));
    assert_eq!(best(&[baseline(), other(0)]), Some("other"));
    assert_eq!(best(&[baseline(), other(100)]), None);
    let text = recommendation(&[baseline(), other(100)], RULE, true);
    assert!(text.contains("points of texts that are the baseline's"), "{text}");
    let plot = report::plot(&[vec![baseline(), other(100)]]).unwrap();
    assert!(plot.contains("texts that are the baseline's"));
}

#[test]
fn tokens_that_are_no_speed_are_explained() {
    let baseline = row("ar", &[1.0, 1.0], (100, 0, 0));
    let wide = |pass_ms| Row {
        tokens_per_forward: 3.0,
        rows_per_pass: 16.0,
        pass_ms,
        ..row("jacobi-16", &[1.2, 1.2], (100, 0, 0))
    };
    assert_eq!(loss(&wide(5.0), &baseline), Some(Loss { tokens: 3.0, speed: 1.2, pass: 2.5 }));
    let fine = Row { tokens_per_forward: 3.0, ..row("fine", &[2.8, 2.8], (100, 0, 0)) };
    assert_eq!(loss(&fine, &baseline), None);
    let slow = row("slow", &[0.5, 0.5], (100, 0, 0));
    assert_eq!(loss(&slow, &baseline), None, "no more tokens, so none are lost");
    let text = warnings(&[baseline.clone(), wide(5.0), fine]).join("\n");
    assert!(text.contains("scores 16.0 rows for a request takes 5.00 ms, 2.50 times one that scores 1.0"), "{text}");
    assert!(!text.contains("fine"), "{text}");
    let text = warnings(&[baseline, wide(2.0)]).join("\n");
    assert!(text.contains("the time goes elsewhere"), "{text}");
    assert!(pass_times("m", &[(1, 2.0), (16, 4.9)]).unwrap().contains("1: 2.00, 16: 4.90"));
    assert_eq!(pass_times("m", &[]), None);
}

#[test]
fn an_unsteady_baseline_is_doubted() {
    let speeds = |speeds: &[f64]| Row { tokens_per_second: rounds(speeds), ..row("ar", &[1.0, 1.0], (100, 0, 0)) };
    assert_eq!(unsteady(&[speeds(&[100.0, 120.0])]), None);
    assert!(unsteady(&[speeds(&[100.0, 140.0])]).unwrap().contains("from 100 to 140 tokens per second"));
}

#[test]
fn the_table_has_a_line_for_each_row_and_no_empty_columns() {
    let baseline = row("ar", &[1.0, 1.0], (100, 0, 0));
    let other = Row { joules_per_token: Some(0.25), ..row("other", &[2.0, 2.4], (100, 10, 0)) };
    let table = report::table(&[vec![baseline.clone(), other.clone()]], true);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4);
    let columns = |line: &str| line.matches('|').count();
    assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
    assert!(
        lines[3].starts_with("| m | other | 1 | 2.2 | 2.20 (2.00 to 2.40) | 1.00 | - | 5.0 | 90.0 | 50.0 | 80.0 (")
    );
    assert!(lines[3].ends_with("| 0.2500 | - |"), "a figure that is not known is not zero: {}", lines[3]);
    let unjudged = |row: Row| Row { right: None, ..row };
    let table = report::table(&[vec![unjudged(baseline), unjudged(other)]], false);
    assert!(!table.contains("right") && !table.contains("J/token"), "{table}");
}

/// The command line after `strategies`.
fn args(line: &[&str]) -> StrategiesArgs {
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: StrategiesArgs,
    }
    Line::try_parse_from(std::iter::once("strategies").chain(line.iter().copied())).unwrap().args
}

#[test]
fn bad_arguments_are_named_before_anything_is_loaded() {
    for (line, named) in [
        (&["--only", "warp"][..], "jacobi-16"),
        (&["--model", "no/such/folder/at/all"], "--model"),
        (&["--decoding", "ar={}"], "taken"),
        (&["--decoding", "mine"], "NAME=JSON"),
        (&["--margin", "0"], "above 0"),
        (&["--energy", "maybe"], "require"),
        (&["--prompts", "no/such/file"], "neither a built-in set"),
    ] {
        let error = format!("{:#}", measure(&args(line)).unwrap_err());
        assert!(error.contains(named), "{line:?}: {error}");
    }
}

#[test]
fn a_causal_model_is_measured_and_what_it_refuses_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let line = ["--model", "leapfrog-ar", "--prompts", "json,chain", "--problems", "1", "--rounds", "2"];
    let line = [&line[..], &["--batch", "2,1,2", "--max-tokens", "12", "--threads", "1", "--energy", "off"]].concat();
    let line =
        [&line[..], &["--only", "jacobi-4,fast", "--decoding", r#"mine={"strategy": "jacobi", "width": 3}"#]].concat();
    let line = [&line[..], &["--out", out.to_str().unwrap()]].concat();
    run(&args(&line)).unwrap();
    let raw: Value = serde_json::from_str(&fs::read_to_string(out.join("raw.json")).unwrap()).unwrap();
    let rows = raw["rows"].as_array().unwrap();
    let names: Vec<(&str, u64)> =
        rows.iter().map(|row| (row["strategy"].as_str().unwrap(), row["batch"].as_u64().unwrap())).collect();
    assert_eq!(names, [("ar", 1), ("jacobi-4", 1), ("mine", 1), ("ar", 2), ("jacobi-4", 2), ("mine", 2)]);
    for row in rows {
        assert_eq!(row["same"]["share"]["value"], 1.0, "greedy Jacobi writes what AR does: {row}");
        assert_eq!(row["common_prefix"], 1.0);
        assert_eq!(row["joules_per_token"], Value::Null, "absent, not zero");
        let per_forward = row["tokens_per_forward"].as_f64().unwrap();
        assert!(if row["is_baseline"] == true { per_forward == 1.0 } else { per_forward >= 1.0 }, "{per_forward}");
    }
    let turns = raw["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2 * 2 * 3, "rounds, batches, strategies; the round that warms up is not among them");
    let order: Vec<&str> = turns.iter().take(3).map(|turn| turn["strategy"].as_str().unwrap()).collect();
    assert_eq!(order, ["jacobi-4", "mine", "ar"], "another one begins in round 1");
    assert_eq!(turns[0]["answers"][1]["prompt"], "chain/0/0");
    assert_eq!(raw["refused"][0]["strategy"], "fast");
    let summary = fs::read_to_string(out.join("summary.md")).unwrap();
    assert!(summary.contains("leapfrog-ar, `fast`: the options of a canvas are for diffusion models"), "{summary}");
    assert!(summary.contains("No joules: disabled."), "{summary}");
    let plot = fs::read_to_string(out.join("accuracy-speed.svg")).unwrap();
    assert!(plot.contains(">jacobi-4</text>") && plot.contains("right answers, %"));
}

#[test]
fn a_block_model_has_its_own_baseline_and_a_file_has_no_checker() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.txt");
    fs::write(&path, "hello\nthank you\n").unwrap();
    let line = ["--model", "leapfrog-block", "--prompts", path.to_str().unwrap(), "--rounds", "1", "--batch", "1"];
    let only = "threshold,local-leap-block,local-leap-dual,ar";
    let line = [&line[..], &["--max-tokens", "16", "--threads", "1", "--energy", "off", "--only", only]].concat();
    let findings = measure(&args(&line)).unwrap();
    let names: Vec<&str> = findings.groups[0].iter().map(|row| &*row.strategy).collect();
    assert_eq!(names, ["one-a-pass", "threshold", "local-leap-block"]);
    assert!(findings.groups[0].iter().all(|row| row.right.is_none() && row.exact_cache == Some(true)));
    let refused: Vec<&str> = findings.refused.iter().map(|refused| &*refused.strategy).collect();
    assert_eq!(refused, ["local-leap-dual", "ar"]);
    let summary = findings.summary(RULE);
    assert!(summary.contains("share of texts that are the baseline's") && !summary.contains("right, %"), "{summary}");
}

/// Power of the counter below, in watts.
const WATTS: f64 = 20.0;

/// A counter in the layout of the kernel that moves until `stop`.
fn drive(root: &Path, stop: &AtomicBool) {
    // In place and of one length, so that nobody reads half a number.
    let mut file = fs::OpenOptions::new().write(true).open(root.join("intel-rapl:0/energy_uj")).unwrap();
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let microjoules = 1_000_000 + (began.elapsed().as_secs_f64() * WATTS * 1e6) as u64;
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(format!("{microjoules:020}\n").as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn joules_are_those_of_the_counters() {
    let folder = tempfile::tempdir().unwrap();
    let zone = folder.path().join("intel-rapl:0");
    fs::create_dir_all(&zone).unwrap();
    for (file, text) in [
        ("name", "package-0\n"),
        ("enabled", "1\n"),
        ("max_energy_range_uj", "262143328850\n"),
        ("energy_uj", "00000000000001000000\n"),
    ] {
        fs::write(zone.join(file), text).unwrap();
    }
    let stop = AtomicBool::new(false);
    let line = ["--model", "leapfrog-ar", "--prompts", "chain", "--problems", "2", "--rounds", "1", "--batch", "1"];
    let root = folder.path().to_str().unwrap();
    let line = [&line[..], &["--max-tokens", "24", "--threads", "1", "--only", "jacobi-2"]].concat();
    let line = [&line[..], &["--energy", "require", "--powercap-root", root]].concat();
    let findings = thread::scope(|scope| {
        scope.spawn(|| drive(folder.path(), &stop));
        let findings = measure(&args(&line));
        stop.store(true, Ordering::Relaxed);
        findings.unwrap()
    });
    assert_eq!(findings.run.energy, Ok("cpu".into()));
    assert!(findings.groups[0].iter().all(|row| row.joules_per_token.is_some_and(|joules| joules > 0.0)));
    let answers = || findings.turns.iter().flat_map(|turn| &turn.answers);
    let joules: f64 = answers().filter_map(|answer| answer.joules).sum();
    let seconds: f64 = answers().map(|answer| answer.seconds).sum();
    // One request at a time: what the counter moved meanwhile. A short request gets its share of an interval, so the sum
    // is near, not equal.
    assert!((0.3..3.0).contains(&(joules / (seconds * WATTS))), "{joules} J in {seconds} s");
    assert!(findings.summary(RULE).contains("J/token"));
}
