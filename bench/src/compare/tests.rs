//! Whole runs against servers that are scripts: this test program itself, started as a child.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{CompareArgs, run, settings::tests::typed};

/// Where a started server finds its port, its manner and the place for its process id.
const SCRIPT: &str = "COMPARE_TEST_SCRIPT";

/// Not a test by itself: with [`SCRIPT`] set it is a server that answers until it is killed.
#[test]
fn scripted_server() {
    let Ok(script) = env::var(SCRIPT) else { return };
    let mut words = script.split(' ');
    let mut next = || words.next().unwrap();
    let (port, manner, seen): (u16, String, String) = (next().parse().unwrap(), next().into(), next().into());
    fs::write(format!("{seen}.pid"), format!("{}\n", std::process::id())).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for stream in listener.incoming() {
        let (manner, seen) = (manner.clone(), seen.clone());
        std::thread::spawn(move || serve(&stream.unwrap(), &manner, &seen));
    }
}

fn serve(stream: &TcpStream, manner: &str, seen: &str) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = head.split(' ').nth(1).unwrap();
        let is_lost = answer(stream, path, &body, manner, seen).is_err();
        if is_lost || manner == "hangs_up" && path.ends_with("completions") {
            return;
        }
    }
}

fn answer(mut stream: &TcpStream, path: &str, body: &[u8], manner: &str, seen: &str) -> std::io::Result<()> {
    let mut plain = |status: &str, kind: &str, text: &str| {
        let length = text.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{text}").as_bytes())
    };
    let json = "application/json";
    match (path, manner) {
        ("/health", "loads") => return plain("503 Service Unavailable", json, "{\"error\": \"loading\"}"),
        ("/health", _) => return plain("404 Not Found", json, "{}"),
        ("/v1/models", _) => return plain("200 OK", json, "{\"data\": [{\"id\": \"m\"}]}"),
        _ => {}
    }
    let body: Value = serde_json::from_slice(body).unwrap();
    if manner == "strict" && body.get("ignore_eos").is_some() {
        return plain("400 Bad Request", json, "{\"error\": {\"message\": \"unknown field ignore_eos\"}}");
    }
    let prompt = body["messages"].to_string();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(format!("{seen}.asked")).unwrap();
    // One write, so that lines of several connections do not mix.
    let line = format!("{}\n", json!([body["decoding"], body["max_tokens"], body["ignore_eos"], prompt]));
    file.write_all(line.as_bytes()).unwrap();
    let max_tokens = body["max_tokens"].as_u64().unwrap();
    if manner == "breaks" && max_tokens > 4 {
        return plain("500 Internal Server Error", json, "{\"error\": {\"message\": \"out of luck\"}}");
    }
    let text = if manner == "other" { format!("X{prompt}") } else { format!("A{prompt}") };
    let (one, two) = text.split_at(text.char_indices().nth(9).unwrap().0);
    let tokens = if manner == "short" { max_tokens / 2 } else { max_tokens };
    let usage =
        json!({"prompt_tokens": 20, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 5}});
    let events = [
        json!({"choices": [{"index": 0, "delta": {"content": one}}]}),
        json!({"choices": [{"index": 0, "delta": {"content": two}, "finish_reason": "length"}]}),
        json!({"choices": [], "usage": usage}),
    ];
    let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    plain("200 OK", "text/event-stream", &format!("{stream}data: [DONE]\n\n"))
}

/// A folder with the two servers' traces.
struct Stage {
    folder: PathBuf,
    _owned: Option<tempfile::TempDir>,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder: folder.path().to_owned(), _owned: Some(folder) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program that is a scripted server; the place of the port among its words is for it to find.
    fn program(&self, name: &str, manner: &str) -> PathBuf {
        let path = self.path(name);
        let own = env::current_exe().unwrap();
        let seen = self.path(&format!("seen-{name}"));
        let server = match manner {
            "dies" => "echo cannot load the model >&2; exit 3".to_owned(),
            manner => format!(
                "export {SCRIPT}=\"$2 {manner} {}\"\n\
                 {} --exact compare::tests::scripted_server --nocapture & wait",
                seen.display(),
                own.display()
            ),
        };
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--version*) echo {name} 1.0; exit;; esac\n\
             while [ \"$1\" != --port ]; do shift; done\n{server}\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// Arguments for ours and a rival in these manners.
    fn args(&self, ours: &str, theirs: &str, more: &[&str]) -> CompareArgs {
        let rival = format!("rival={} --port {{port}} {{model}}", self.program("rival", theirs).display());
        let words =
            ["--rival", &rival, "--rounds", "2", "--requests", "4", "--concurrency", "1,2", "--max-tokens", "8"];
        let mut args = typed(&[&words[..], more].concat());
        args.leapfrog = Some(self.program("leapfrog", ours));
        args.out = self.path("out");
        args
    }

    fn raw(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("out/raw.json")).unwrap()).unwrap()
    }

    fn summary(&self) -> String {
        fs::read_to_string(self.path("out/summary.md")).unwrap()
    }

    /// What a server was asked: its decoding, most tokens, whether to ignore the end, prompt.
    fn asked(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(&format!("seen-{name}.asked"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Fails if a server of this stage still runs.
    fn assert_no_orphans(&self) {
        for name in ["leapfrog", "rival"] {
            let Ok(id) = fs::read_to_string(self.path(&format!("seen-{name}.pid"))) else { continue };
            let stat = Path::new("/proc").join(id.trim()).join("stat");
            let began = Instant::now();
            // A process that was killed may wait a moment to be collected by whoever inherited it.
            while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(began.elapsed() < Duration::from_secs(10), "{name} (process {}) outlived the run", id.trim());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn contenders_get_the_same_load_in_turns() {
    let stage = Stage::new();
    run(&stage.args("good", "good", &["--decoding", "AR"])).unwrap();
    stage.assert_no_orphans();
    let raw = &stage.raw()["http"];
    // Round 0, both concurrencies, ours first; round 1 the other way round; round 2 begins with the rotated order.
    let order: Vec<_> =
        raw["turns"].as_array().unwrap().iter().map(|turn| turn["contender"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]);
    let (ours, theirs) = (stage.asked("leapfrog"), stage.asked("rival"));
    // One more than 3 rounds of 2 concurrencies of 4 requests: the first, short answer.
    assert_eq!((ours.len(), theirs.len()), (25, 25));
    assert_eq!(ours[1][0], json!({"strategy": "ar"}));
    assert_eq!(theirs[1][0], Value::Null);
    assert!(ours[1..].iter().chain(&theirs[1..]).all(|asked| asked[1] == 8 && asked[2] == true));
    let prompts = |asked: &[Value]| {
        let mut prompts: Vec<String> = asked[1..].iter().map(|asked| asked[3].to_string()).collect();
        prompts.sort();
        prompts
    };
    assert_eq!(prompts(&ours), prompts(&theirs));
    let mut different = prompts(&ours);
    different.dedup();
    assert_eq!(different.len(), 24, "no prompt twice");
    for row in raw["rows"].as_array().unwrap() {
        assert_eq!((row["requests"].as_u64(), row["failed"].as_u64()), (Some(8), Some(0)), "{row}");
        assert_eq!(row["tokens_per_s"]["runs"], 2);
        assert_eq!(row["tokens_per_answer"], 8.0);
        assert_eq!(row["cached_share"], 0.25);
    }
    assert_eq!(raw["rows"][0]["agreement"], json!({"equal": 8, "of": 8, "same_beginning": 1.0}));
    assert_eq!(raw["contenders"][1]["version"], "rival 1.0");
    assert!(raw["contenders"][1]["command"][2].as_str().unwrap().parse::<u16>().is_ok());
    let summary = stage.summary();
    assert!(summary.contains("| 2 | leapfrog AR | ") && summary.contains("8 of 8; same beginning 100 %"), "{summary}");
    assert!(!summary.contains("DIFFER IN LENGTH"), "{summary}");
    for plot in ["tokens-1.svg", "tokens-2.svg", "throughput.svg"] {
        assert!(fs::read_to_string(stage.path("out").join(plot)).unwrap().contains("rival"), "{plot}");
    }
}

#[test]
fn one_that_fails_is_told_and_spoils_nothing() {
    let stage = Stage::new();
    run(&stage.args("breaks", "good", &["--decoding", "AR"])).unwrap();
    stage.assert_no_orphans();
    let rows = &stage.raw()["http"]["rows"];
    assert_eq!((&rows[0]["tokens_per_s"], &rows[0]["ratio"]), (&Value::Null, &Value::Null));
    assert_eq!(rows[1]["tokens_per_s"]["runs"], 2);
    assert!(stage.summary().contains("out of luck"), "{}", stage.summary());
}

/// llama-server does this.
#[test]
fn one_that_hangs_up_without_a_word_loses_no_request() {
    let stage = Stage::new();
    run(&stage.args("good", "hangs_up", &["--decoding", "AR"])).unwrap();
    for row in stage.raw()["http"]["rows"].as_array().unwrap() {
        assert_eq!(row["failed"], 0, "{row}");
    }
}

#[test]
fn other_texts_and_lengths_are_told() {
    let stage = Stage::new();
    run(&stage.args("short", "other", &["--decoding", "AR"])).unwrap();
    let raw = &stage.raw()["http"];
    assert_eq!(raw["rows"][0]["agreement"]["equal"], 0);
    assert_eq!(raw["differences"].as_array().unwrap().len(), 3);
    assert!(raw["differences"][0]["reference_text"].as_str().unwrap().starts_with('X'));
    let summary = stage.summary();
    assert!(summary.contains("ANSWERS DIFFER IN LENGTH: 4.0 to 8.0 tokens"), "{summary}");
}

#[test]
fn who_does_not_know_ignore_eos_frees_all_from_it() {
    let stage = Stage::new();
    run(&stage.args("good", "strict", &["--decoding", "AR"])).unwrap();
    assert!(stage.asked("leapfrog")[1..].iter().all(|asked| asked[2] == Value::Null));
    assert!(stage.summary().contains("rival does not take `ignore_eos`"), "{}", stage.summary());
}

#[test]
fn a_server_that_dies_is_an_error_with_its_last_words() {
    let stage = Stage::new();
    let error = format!("{:#}", run(&stage.args("good", "dies", &[])).unwrap_err());
    assert!(error.starts_with("rival: it ended") && error.contains("cannot load the model"), "{error}");
    stage.assert_no_orphans();
}

#[test]
fn a_server_that_never_is_ready_is_an_error() {
    let stage = Stage::new();
    let error = format!("{:#}", run(&stage.args("good", "loads", &["--start-timeout-s", "3"])).unwrap_err());
    assert!(error.contains("rival: it was not ready within 3 s (GET /health: 503"), "{error}");
    stage.assert_no_orphans();
}

/// Where [`interrupted_run`] finds its stage.
const STAGE: &str = "COMPARE_TEST_STAGE";

/// Not a test by itself: with [`STAGE`] set it is a run that waits for a server until it is interrupted.
#[test]
fn interrupted_run() {
    let Ok(folder) = env::var(STAGE) else { return };
    let stage = Stage { folder: folder.into(), _owned: None };
    let error = run(&stage.args("good", "loads", &["--decoding", "AR"])).unwrap_err();
    fs::write(stage.path("said"), error.to_string()).unwrap();
}

#[test]
fn a_run_that_is_interrupted_leaves_no_server() {
    for (signal, said) in [(Signal::INT, "interrupted"), (Signal::TERM, "terminated")] {
        let stage = Stage::new();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "compare::tests::interrupted_run"])
            .env(STAGE, &stage.folder)
            .spawn()
            .unwrap();
        // Ours is ready when the rival starts.
        let began = Instant::now();
        while !fs::read_to_string(stage.path("seen-rival.pid")).is_ok_and(|id| id.ends_with('\n')) {
            assert!(began.elapsed() < Duration::from_secs(60), "the rival never started");
            std::thread::sleep(Duration::from_millis(20));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert!(child.wait().unwrap().success());
        let told = fs::read_to_string(stage.path("said")).unwrap();
        assert!(told.starts_with(said), "{told}");
        stage.assert_no_orphans();
    }
}

#[test]
fn too_few_prompts_are_told_before_anything_starts() {
    let stage = Stage::new();
    let args = stage.args("good", "good", &["--prompts", "questions", "--decoding", "AR"]);
    let error = run(&args).unwrap_err().to_string();
    assert!(error.contains("needs 24 different prompts") && error.contains("--repeat-prompts"), "{error}");
    assert!(!stage.path("out").exists());
    run(&CompareArgs { repeat_prompts: true, ..args }).unwrap();
    assert!(stage.summary().contains("until they were used up"));
}

#[test]
fn without_a_rival_there_is_nothing_to_do() {
    let error = run(&typed(&[])).unwrap_err().to_string();
    assert!(error.contains("--llama-server") && error.contains("--llama-bench"), "{error}");
}
