//! A server that answers by a script.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// How one streamed question is answered; the last is used again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turn {
    Right,
    Wrong,
    /// Text without a number.
    Mute,
    /// The connection ends in the middle.
    HangUp,
    Status500,
    NoEnergy,
    /// Right, and the energy comes later.
    Late,
    /// Right, and the energy never becomes final.
    Never,
    /// Right, on another basis.
    OtherBasis,
}

/// What a server has seen and does.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) asked: Vec<Value>,
    pub(super) posted: Vec<Value>,
}

#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) turns: Vec<Turn>,
    pub(super) meter: bool,
}

/// Starts it; its address, and what it sees. The thread ends with the test.
pub(super) fn start(script: Script) -> (String, Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (script, seen) = (script.clone(), shared.clone());
            thread::spawn(move || answer(stream.unwrap(), &script, &seen));
        }
    });
    (url, seen)
}

fn answer(stream: TcpStream, script: &Script, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
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
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut stream = stream;
    let path = first.split(' ').nth(1).unwrap_or_default();
    match path {
        "/v1/models" => send(&mut stream, 200, &json!({"data": [{"id": "scripted-1.5b"}]})),
        "/v1/energy" if !script.meter => send(
            &mut stream,
            200,
            &json!({"status": "unavailable", "reason": "no_sensor", "basis": "cpu", "domains": []}),
        ),
        "/v1/energy" => send(
            &mut stream,
            200,
            &json!({"status": "measured", "basis": "cpu", "monotonic_ns": 1,
                "domains": [{"domain": "rapl:package-0", "source": "rapl", "status": "ok", "energy_uj": 5}]}),
        ),
        "/v1/energy/evaluations" => {
            seen.lock().unwrap().posted.push(body);
            send(&mut stream, 200, &json!({}));
        }
        "/v1/chat/completions" if body["stream"] == false => {
            send(&mut stream, 200, &json!({"id": "probe", "leapfrog": {"strategy": "ar"}}));
        }
        "/v1/chat/completions" => chat(&mut stream, script, seen, body),
        path => match path.strip_prefix("/v1/energy/requests/q-") {
            Some(index) => {
                let index: usize = index.parse().unwrap();
                let is_final = turn(script, index) != Turn::Never;
                send(&mut stream, 200, &energy(index, "cpu", is_final));
            }
            None => send(&mut stream, 404, &json!({})),
        },
    }
}

fn turn(script: &Script, index: usize) -> Turn {
    *script.turns.get(index).or(script.turns.last()).unwrap()
}

/// Energy of question `index`, in joules.
pub(super) fn joules(index: usize) -> f64 {
    1.0 + index as f64 / 4.0
}

fn energy(index: usize, basis: &str, is_final: bool) -> Value {
    let joules = is_final.then(|| joules(index));
    json!({"status": if is_final { "measured" } else { "partial" }, "final": is_final, "basis": basis,
        "window_joules": joules, "energy_joules": joules.map(|joules| joules * 0.5), "net_joules": joules.map(|j| j - 0.5),
        "prefill_joules": 0.25, "decode_joules": 0.5, "coverage": 1.0, "resolution_limited": false, "exclusive": true,
        "domains": [{"domain": "rapl:package-0", "source": "rapl", "method": "counter", "joules": joules}],
        "attribution": {"mean_concurrency": 1.0},
        "timing": {"queue_seconds": 0.0, "prefill_seconds": 0.01, "decode_seconds": 0.02, "active_seconds": 1e-9}})
}

fn send(stream: &mut TcpStream, status: u16, body: &Value) {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

/// The result of "What is a + b?".
fn result(body: &Value) -> i64 {
    let text = body["messages"][0]["content"].as_str().unwrap();
    let words: Vec<&str> = text.split([' ', '?']).collect();
    let (a, b): (i64, i64) = (words[2].parse().unwrap(), words[4].parse().unwrap());
    match words[3] {
        "+" => a + b,
        "-" => a - b,
        _ => a * b,
    }
}

fn chat(stream: &mut TcpStream, script: &Script, seen: &Mutex<Seen>, body: Value) {
    let expected = result(&body);
    let index = {
        let mut seen = seen.lock().unwrap();
        seen.asked.push(body);
        seen.asked.len() - 1
    };
    let turn = turn(script, index);
    if turn == Turn::Status500 {
        return send(stream, 500, &json!({"error": {"message": "out of luck"}}));
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n").unwrap();
    let text = match turn {
        Turn::Wrong => format!("#### {}", expected + 1),
        Turn::Mute => "I would rather not.".into(),
        _ => format!("#### {expected}"),
    };
    let mut event = |value: Value| {
        write!(stream, "data: {value}\n\n").unwrap();
        stream.flush().unwrap();
    };
    let id = format!("q-{index}");
    let (left, right) = text.split_at(3);
    event(json!({"id": id, "choices": [{"delta": {"content": left}}]}));
    if turn == Turn::HangUp {
        return;
    }
    event(json!({"id": id, "choices": [{"delta": {"content": right}, "finish_reason": "stop"}]}));
    let mut usage = json!({"prompt_tokens": 20 + index, "completion_tokens": 4 + index});
    let basis = if turn == Turn::OtherBasis { "gpu" } else { "cpu" };
    if script.meter && turn != Turn::NoEnergy {
        usage["energy"] = energy(index, basis, !matches!(turn, Turn::Late | Turn::Never));
    }
    event(json!({"id": id, "choices": [], "usage": usage, "leapfrog": {"forward_passes": 3}}));
    write!(stream, "data: [DONE]\n\n").unwrap();
}
