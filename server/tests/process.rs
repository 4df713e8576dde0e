//! The program itself: exit codes, signals, one clear line on errors. Runs with built-in models.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn leapfrog(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leapfrog"));
    command.current_dir(folder).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end, without configuration around.
fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    finish(leapfrog(folder.path()).args(args).envs(env.iter().copied()))
}

/// Waits for a program that must end by itself.
fn finish(command: &mut Command) -> Output {
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\x00\x00\x00 and nothing that makes sense").unwrap();
    let broken = broken.to_str().unwrap();
    for (args, word) in [
        (vec!["serve", "--port", "0", "--model", "/no/such/folder"], "/no/such/folder"),
        (vec!["serve", "--port", "0", "--model", broken], "broken.gguf"),
        (vec!["--port", &port], "cannot listen"),
        (vec!["serve", "--device", "cuda"], "no CUDA"),
        (vec!["serve", "--config", "/no/such.toml"], "/no/such.toml"),
        (vec!["serve", "--port", "0", "--width", "1000"], "width"),
        (vec!["serve", "--energy-interval", "50"], "write a number and its unit"),
        (vec!["serve", "--energy-interval", "1ms"], "--energy-interval: 1ms is not between 5ms and 1s"),
        (vec!["serve", "--energy-sources", "rapl,sun"], "`sun` is not a source; there are rapl, nvml"),
        (vec!["serve", "--energy-usage", "on", "--api-key", "a,b"], "--energy-usage: with 2 API keys"),
        (vec!["serve", "--port", "0", "--energy", "require", "--powercap-root", "/no/such/tree"], "no_sensor"),
        (vec!["run", "x", "--energy", "require", "--powercap-root", "/no/such/tree"], "no_sensor"),
        (vec!["energy", "--interval", "1ms"], "--interval: 1ms is not between 100ms and 1h"),
        (vec!["energy", "--once", "--url", "http://127.0.0.1:1"], "no answer from http://127.0.0.1:1: "),
        (vec!["--prot", "1"], "unexpected argument '--prot'"),
        (vec!["serve", "--port", "many"], "invalid value 'many' for '--port"),
        (vec!["run", "x", "--decoding", "slow"], "`quality`, `balanced`, `fast`"),
        (vec!["run", "x", "--decoding", "{"], "--decoding: not valid JSON"),
        (vec!["run", "x", "--temperature", "200"], "`temperature`"),
        (vec!["run", "x", "--port", "1"], "unexpected argument '--port'"),
        (vec!["serve", "--device", "tpu"], "supported: cpu, cuda, cuda:N"),
        (vec!["serve", "--model", "leapfrog-xyz"], "a built-in model: leapfrog-"),
        (vec!["serve", "--model", "leapfrog-ar,leapfrog-ar"], "each is called `leapfrog-ar`"),
        (vec!["serve", "--port", "0", "--model", "leapfrog-ar", "--model", broken], "the model `broken`: "),
        (vec!["run", "x", "--model", "leapfrog-ar", "--model", broken], "`run` takes one model"),
    ] {
        let output = run(&args, &[("LEAPFROG_LOG_LEVEL", "off")]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_environment_wins_over_the_file_and_loses_to_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("leapfrog.toml"), "model = \"/from/file\"\nport = 0\nlog_level = \"off\"\n")
        .unwrap();
    let stderr = |args: &[&str], env: &[(&str, &str)]| {
        let output = finish(leapfrog(folder.path()).args(args).envs(env.iter().copied()));
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(stderr(&[], &[]).contains("/from/file"));
    let env = [("LEAPFROG_MODEL", "/from/env")];
    assert!(stderr(&["serve"], &env).contains("/from/env"));
    assert!(stderr(&["serve", "--model", "/from/flag"], &env).contains("/from/flag"));
}

#[test]
fn a_bad_variable_is_called_by_its_name() {
    for (variable, value) in [("LEAPFROG_PORT", "abc"), ("LEAPFROG_STRICT", "maybe"), ("LEAPFROG_LOG_FORMAT", "xml")] {
        let output = run(&["serve"], &[(variable, value)]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with(&format!("error: {variable}: invalid value '{value}'")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let output = run(&["serve", "--port", "many"], &[("LEAPFROG_PORT", "1")]);
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: invalid value 'many'"));
}

/// A Hub that refuses connections: one line, soon, without the client's own complaints.
#[test]
fn a_hub_that_is_not_there_is_one_line() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = tempfile::tempdir().unwrap();
    let endpoint = format!("http://{free}");
    let env = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", home.path().to_str().unwrap())];
    let output = run(&["serve", "--port", "0", "--model", "org/name"], &env);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let lines: Vec<_> = stderr.lines().filter(|line| !line.contains(" INFO ")).collect();
    let [line] = lines[..] else { panic!("{stderr}") };
    assert!(line.starts_with("error: cannot get org/name from the Hugging Face Hub: no answer from"), "{line}");
    assert!(line.contains("refused"), "{line}");
}

#[test]
fn help_shows_every_option_with_its_variable() {
    for args in [&["--help"][..], &["serve", "--help"]] {
        let output = run(args, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        for word in ["--model", "LEAPFROG_MODEL", "127.0.0.1", "Examples:", "leapfrog.toml", "LEAPFROG_DRAIN_TIMEOUT"] {
            assert!(text.contains(word), "{word}\n{text}");
        }
    }
}

#[test]
fn run_answers_on_stdout_and_counts_on_stderr() {
    let output = run(
        &["run", "2+2=", "--model", "leapfrog-ar", "--max-tokens", "4", "--decoding", r#"{"strategy": "ar"}"#],
        &[],
    );
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.len() > 1 && stdout.ends_with('\n') && !stdout.contains('\x1b'), "{stdout:?}");
    assert!(
        stderr.starts_with("4 tokens, 4 passes, 1.00 tokens/forward, ") && stderr.ends_with(", ar\n"),
        "{stderr:?}"
    );
}

#[test]
fn run_takes_a_line_a_turn() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    std::fs::write(&lines, "hello\n\n/clear\nhello\n/exit\nnever\n").unwrap();
    let lines = std::fs::File::open(lines).unwrap();
    let output =
        finish(leapfrog(folder.path()).args(["run", "--model", "leapfrog-ar", "--max-tokens", "3"]).stdin(lines));
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    let replies: Vec<_> = stdout.lines().collect();
    assert!(replies.len() == 2 && replies[0] == replies[1], "a cleared chat starts anew: {stdout:?}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

#[test]
fn health_fails_without_a_server() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let output = run(&["health"], &[("LEAPFROG_PORT", &free)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&free));
}

/// A server process that is killed with the test.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Server {
    /// Starts a server and waits until it takes requests.
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = leapfrog(folder.path()).args(["serve", "--port", "0"]).args(args).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        while log.last().is_none_or(|line: &String| !line.contains("ready: ")) {
            log.push(lines.next().expect("the server says when it is ready").unwrap());
        }
        let ready = log.last().unwrap();
        let address = ready.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        let log = Arc::new(Mutex::new(log));
        let sink = log.clone();
        // The pipe must not fill up.
        thread::spawn(move || lines.for_each(|line| sink.lock().unwrap().push(line.unwrap())));
        Self { child, address, log }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn request(&self, body: &str) -> TcpStream {
        self.send("POST /v1/completions", body)
    }

    fn send(&self, line: &str, body: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        write!(socket, "{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        socket
    }

    /// The whole reply.
    fn reply(&self, line: &str, body: &str) -> String {
        let mut reply = String::new();
        self.send(line, body).read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        reply
    }

    fn exit_code(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
#[cfg(unix)]
fn a_signal_lets_running_requests_finish() {
    let mut server = Server::start(&["--model", "leapfrog-ar"]);
    let health = run(&["health", "--ready", "--url", &server.url()], &[]);
    assert!(health.status.success(), "{health:?}");
    let body = r#"{"prompt": "1+1", "max_tokens": 100, "ignore_eos": true, "stream": true, "temperature": 0}"#;
    let mut socket = server.request(body);
    let mut start = [0; 16];
    socket.read_exact(&mut start).unwrap();
    server.signal("TERM");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.exit_code(), Some(0));
    let log = server.log.lock().unwrap().join("\n");
    let line = log.lines().find(|line| line.contains("/v1/completions")).unwrap_or_else(|| panic!("{log}"));
    for word in ["status=200", "end=\"complete\"", "completion_tokens=100", "duration_ms="] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[test]
#[cfg(unix)]
fn a_request_that_takes_too_long_does_not_hold_the_server() {
    let mut server = Server::start(&["--model", "leapfrog-ar", "--drain-timeout", "0"]);
    let body = r#"{"prompt": "1+1", "max_tokens": 100000, "ignore_eos": true, "stream": true}"#;
    let mut socket = server.request(body);
    socket.read_exact(&mut [0; 16]).unwrap();
    server.signal("INT");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: {\"error\":") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
#[cfg(unix)]
fn without_arguments_a_small_model_introduces_itself() {
    let mut server = Server::start(&[]);
    let log = server.log.lock().unwrap().join("\n");
    let ours = log.lines().filter(|line| line.contains("server::run"));
    let said: Vec<_> = ours.filter(|line| !line.contains("listening") && !line.contains("ready: ")).collect();
    let [what, can, real] = said[..] else { panic!("{log}") };
    assert!(what.contains("leapfrog-") && what.contains("million parameters"), "{what}");
    assert!(can.contains("word problems") && can.contains("JSON") && can.contains("SQL"), "{can}");
    assert!(real.contains("leapfrog serve --model "), "{real}");
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
#[cfg(unix)]
fn two_models_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin/leapfrog-ar");
    for file in std::fs::read_dir(files).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let mut server = Server::start(&["--model", copy.to_str().unwrap(), "--model", "leapfrog-ar"]);
    let list = server.reply("GET /v1/models", "");
    assert!(list.contains(r#""id":"copy""#) && list.contains(r#""id":"leapfrog-ar""#), "{list}");
    for (field, name) in [("", "copy"), (r#""model": "copy","#, "copy"), (r#""model": "leapfrog-ar","#, "leapfrog-ar")]
    {
        let reply = server.reply(
            "POST /v1/completions",
            &format!(r#"{{{field} "prompt": "1+1", "max_tokens": 2, "ignore_eos": true}}"#),
        );
        assert!(reply.contains(&format!(r#""model":"{name}""#)), "{reply}");
    }
    let metrics = server.reply("GET /metrics", "");
    for line in [
        r#"leapfrog_tokens_total{model="copy",kind="completion"} 4"#,
        r#"leapfrog_tokens_total{model="leapfrog-ar",kind="completion"} 2"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    let log = server.log.lock().unwrap().join("\n");
    assert!(log.contains("ready: copy, leapfrog-ar on ") && log.contains("model=\"leapfrog-ar\""), "{log}");
}

/// A `tokenizer.json` whose token `b` is the byte `b`, for the first 128 bytes.
fn ascii_tokenizer() -> serde_json::Value {
    let printable = |byte: u32| matches!(byte, 33..=126);
    // The byte-level alphabet writes unprintable bytes as the code points from 256 on, in their order.
    let spelled = |byte: u32| match byte {
        _ if printable(byte) => byte,
        127 => 256 + 33,
        _ => 256 + byte,
    };
    let vocab: serde_json::Map<_, _> =
        (0..128).map(|byte| (char::from_u32(spelled(byte)).unwrap().to_string(), byte.into())).collect();
    serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The JSON of a reply, whose body comes in one piece.
fn body(reply: &str) -> serde_json::Value {
    let body = reply.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

/// The text of a stream of a chat.
fn streamed(reply: &str) -> String {
    assert!(reply.contains("data: [DONE]"), "{reply}");
    let chunks = reply.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| data.starts_with('{'));
    let chunks = chunks.map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

#[test]
#[cfg(unix)]
fn a_model_with_local_linear_attention_is_served_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = folder.path().join("tiny-lla");
    std::fs::create_dir(&tiny).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden/lla/tied");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), tiny.join(file)).unwrap();
    }
    std::fs::write(tiny.join("tokenizer.json"), ascii_tokenizer().to_string()).unwrap();
    let template = folder.path().join("chat.jinja");
    std::fs::write(&template, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}").unwrap();
    let (tiny, template) = (tiny.to_str().unwrap(), template.to_str().unwrap());
    let mut server = Server::start(&["--model", tiny, "--model", "leapfrog-ar", "--chat-template", template]);
    let chat = |more: &str| {
        let common = r#""messages": [{"role": "user", "content": "leap"}], "max_tokens": 20, "ignore_eos": true"#;
        server.reply("POST /v1/chat/completions", &format!("{{{common}, {more}}}"))
    };

    let text = |more: &str| body(&chat(more))["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let ar = text(r#""temperature": 0.8, "seed": 3, "decoding": {"strategy": "ar"}"#);
    let jacobi = r#""temperature": 0.8, "seed": 3, "decoding": {"strategy": "jacobi", "width": 8, "adaptive": false}"#;
    assert_eq!(text(jacobi), ar);
    assert_eq!(streamed(&chat(&format!(r#"{jacobi}, "stream": true"#))), ar);
    let reply = body(&chat(r#""temperature": 1, "seed": 5, "n": 3, "logprobs": true, "top_logprobs": 2"#));
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    for choice in choices {
        let entries = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((entries.len(), entries[0]["top_logprobs"].as_array().unwrap().len()), (20, 2));
        assert!(entries.iter().all(|entry| entry["logprob"].as_f64().unwrap() < 0.0), "{choice}");
    }
    let other = r#"{"model": "leapfrog-ar", "prompt": "1+1", "max_tokens": 2, "ignore_eos": true}"#;
    server.reply("POST /v1/completions", other);
    let completion = r#"{"prompt": "leap", "max_tokens": 4, "ignore_eos": true, "echo": true, "logprobs": 1}"#;
    let completion = body(&server.reply("POST /v1/completions", completion));
    assert_eq!(completion["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 8, "{completion}");

    let page = server.reply("GET /metrics", "");
    let value = |name: &str| -> f64 {
        let start = format!("leapfrog_{name}{{model=\"tiny-lla\"}} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("{name}\n{page}")).parse().unwrap()
    };
    // Two layers of four heads.
    let queries = value("forward_rows_total") * 8.0;
    assert!(queries > 1000.0);
    for name in ["lla_queries_total", "lla_iterations_count"] {
        assert_eq!(value(name), queries, "{name}");
    }
    assert!(value("lla_iterations_sum") > queries && value("lla_largest_eta") > 1.0);
    assert_eq!(value("lla_change_count"), value("forward_passes_total") * 2.0);
    for name in ["lla_capped_total", "lla_frozen_total", "lla_fallbacks_total", "lla_weak_ridges_total"] {
        assert!(value(name) < queries / 100.0, "{name}");
    }
    let other = |line: &str| line.starts_with("leapfrog_lla") && line.contains("leapfrog-ar");
    assert!(!page.lines().any(other), "{page}");
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
}
