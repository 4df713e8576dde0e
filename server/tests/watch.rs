//! The command `energy` against a server that says what a test wants.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// A server that answers its n-th request with `reply(n)`; its address, and the heads of the requests.
fn server(reply: impl Fn(u64) -> (u16, Value) + Send + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = heads.clone();
    thread::spawn(move || {
        for (index, stream) in (0..).zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).unwrap() > 2 {}
            noted.lock().unwrap().push(head);
            let (status, body) = reply(index);
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    (url, heads)
}

/// A reading `seconds` after the start: 10 W on one rail, another that cannot be read.
fn reading(seconds: u64) -> Value {
    let rail = |name: &str, uj: Option<u64>, reason: Option<&str>| {
        json!({"domain": name, "source": "rapl", "class": uj.map(|_| "counter"),
            "status": if reason.is_none() { "ok" } else { "unavailable" }, "reason": reason, "exclusive": true,
            "in_basis": reason.is_none(), "energy_uj": uj, "power_watts": null, "idle_power_watts": null,
            "idle_age_seconds": null, "update_period_seconds": null, "wraps": 0, "resets": 0, "gap_seconds": 0.0})
    };
    let uj = seconds * 10_000_000;
    json!({"version": 1, "monotonic_ns": seconds * 1_000_000_000, "unix_ms": 0, "basis": "cpu", "status": "measured",
        "reason": null,
        "domains": [rail("rapl:package-0", Some(uj), None), rail("rapl:\u{1b}[31m", None, Some("permission_denied"))],
        "accounts": {"requests_uj": uj, "idle_uj": 0, "load_uj": 0, "warmup_uj": 0, "other_uj": 0},
        "models": [{"model": "frog", "prefill_uj": 0, "decode_uj": uj, "requests": seconds, "prompt_tokens": 9,
            "completion_tokens": seconds * 100, "joules_per_output_token": 0.1}],
        "host": {"cpu_share_ratio": 0.5, "foreign_gpu_processes": null, "power_supply": null},
        "notes": ["rapl: let a group read it"]})
}

fn watch(url: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leapfrog"));
    command.args(["energy", "--url", url, "--interval", "100ms"]).args(args).env_clear();
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn one_interval_is_shown_without_a_terminal() {
    let (url, heads) = server(|index| (200, reading(10 + 2 * index)));
    let output = watch(&url, &["--once", "--api-key", "secret"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for word in ["10.0 W", "0.100 J/token", "120 J in all", "permission_denied", "let a group read it", "over 2.0 s"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "what a server says does not steer the terminal: {text:?}");
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 2);
    assert!(
        heads.iter().all(|head| head.starts_with("GET /v1/energy ") && head.contains("Authorization: Bearer secret"))
    );
}

#[test]
fn json_is_an_object_a_line() {
    let (url, _) = server(|index| (200, reading(10 + index)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_leapfrog"));
    command.args(["energy", "--url", &url, "--interval", "100ms", "--json"]).env_clear().stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(3);
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        assert_eq!((&line["seconds"], &line["watts"]), (&json!(1.0), &json!(10.0)));
        assert_eq!(line["models"][0]["joules"], 10.0);
        assert_eq!((&line["domains"][1]["watts"], &line["idle_watts"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn what_is_no_answer_is_one_line() {
    let refused = |_| (401, json!({"error": {"message": "an API key is needed"}}));
    let strange = |_| (200, json!({"hello": 1}));
    let (locked, _) = server(refused);
    let (other, _) = server(strange);
    for (url, word) in [(&locked, "an API key is needed"), (&other, "is no server of this version")] {
        let output = watch(url, &["--once"]);
        let mut stderr = String::new();
        output.stderr.as_slice().read_to_string(&mut stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word) && stderr.lines().count() == 1, "{stderr}");
    }
}
