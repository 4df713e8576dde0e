//! A server that answers by a script and notes when it did what.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::{Value, json};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    Answer(Delays),
    /// A status of 500 with an error.
    Refuse,
    /// Nothing, ever.
    Hang,
    /// Bytes that are no HTTP.
    Noise,
    /// A stream of what is no chunk.
    Garbage,
    /// The connection ends before the head.
    Close,
    /// The connection ends in the middle of the stream.
    CutShort,
    /// The stream ends with an error.
    Fail,
}

/// A streamed answer: its text comes in `num_events` events of `tokens_per_event` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delays {
    /// From the request to the first event, and between events.
    pub(crate) first: Duration,
    pub(crate) gap: Duration,
    pub(crate) num_events: u32,
    pub(crate) tokens_per_event: u32,
}

/// When the server did what for a request that it answered.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) received: Instant,
    /// After each event was handed to the system.
    pub(crate) events: Vec<Instant>,
    pub(crate) end: Instant,
    pub(crate) tokens_per_event: u32,
}

/// What the server does with request number `n`, from 0 on.
pub(crate) type Script = Arc<dyn Fn(u64) -> Conduct + Send + Sync>;

/// A stretch of time in which nothing is answered, after the first request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stall {
    pub(crate) from: Duration,
    pub(crate) length: Duration,
}

struct Shared {
    script: Script,
    stall: Option<Stall>,
    first: OnceLock<Instant>,
    next: Mutex<u64>,
    seen: Mutex<Vec<Seen>>,
}

/// A running server; its threads end with the program.
pub(crate) struct Scripted {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Scripted {
    pub(crate) fn start(stall: Option<Stall>, script: Script) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot open a port on this machine")?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared =
            Arc::new(Shared { script, stall, first: OnceLock::new(), next: Mutex::new(0), seen: Mutex::default() });
        let of_listener = shared.clone();
        thread::Builder::new().name("scripted".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = of_listener.clone();
                // A client that hangs up ends its thread with an error, and that is its business.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        })?;
        Ok(Self { url, shared })
    }

    /// The answers so far, in the order of their ends.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// Answers what comes on a connection until it ends.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let Some((path, _body)) = request(&mut reader)? else { return Ok(()) };
            let received = Instant::now();
            if path != "/v1/chat/completions" {
                plain(&mut stream, &path)?;
                continue;
            }
            let number = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                *next += 1;
                *next - 1
            };
            self.wait_out_stall(received);
            match (self.script)(number) {
                Conduct::Answer(delays) => self.answer(&mut stream, received, delays)?,
                Conduct::Refuse => refuse(&mut stream)?,
                Conduct::Fail => fail(&mut stream)?,
                conduct => return misbehave(&mut stream, conduct),
            }
        }
    }

    fn wait_out_stall(&self, received: Instant) {
        let first = *self.first.get_or_init(|| received);
        if let Some(Stall { from, length }) = self.stall
            && (from..from + length).contains(&received.duration_since(first))
        {
            sleep_until(first + from + length);
        }
    }

    fn answer(&self, stream: &mut TcpStream, received: Instant, delays: Delays) -> std::io::Result<()> {
        let begun = Instant::now();
        head(stream)?;
        let mut events = Vec::new();
        for index in 0..delays.num_events {
            sleep_until(begun + delays.first + delays.gap * index);
            event(stream, &chunk("word ", Value::Null))?;
            events.push(Instant::now());
        }
        event(stream, &chunk("", json!("stop")))?;
        let end = Instant::now();
        let tokens = delays.num_events * delays.tokens_per_event;
        event(stream, &json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}}).to_string())?;
        event(stream, "[DONE]")?;
        let seen = Seen { received, events, end, tokens_per_event: delays.tokens_per_event };
        // Before the last byte, so that who has read the answer finds it here.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        stream.write_all(b"0\r\n\r\n")
    }
}

/// A whole answer that says no.
fn refuse(stream: &mut TcpStream) -> std::io::Result<()> {
    object(stream, "500 Internal Server Error", r#"{"error":{"message":"out of order","type":"server_error"}}"#)
}

/// A stream that says in its middle that there will be no more.
fn fail(stream: &mut TcpStream) -> std::io::Result<()> {
    head(stream)?;
    event(stream, &chunk("word ", Value::Null))?;
    event(stream, r#"{"error":{"message":"out of pages"}}"#)?;
    stream.write_all(b"0\r\n\r\n")
}

/// Everything after which the connection is of no use; it ends with it.
fn misbehave(stream: &mut TcpStream, conduct: Conduct) -> std::io::Result<()> {
    match conduct {
        Conduct::Answer(_) | Conduct::Refuse | Conduct::Fail | Conduct::Close => Ok(()),
        Conduct::Hang => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Conduct::Noise => stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n"),
        Conduct::Garbage => {
            head(stream)?;
            event(stream, "{\"choices\": 7}")
        }
        Conduct::CutShort => {
            head(stream)?;
            event(stream, &chunk("word ", Value::Null))
        }
    }
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

fn chunk(text: &str, finish_reason: Value) -> String {
    let choice = json!({"index": 0, "delta": {"content": text}, "finish_reason": finish_reason});
    json!({"id": "x", "choices": [choice]}).to_string()
}

fn head(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

fn event(stream: &mut TcpStream, data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
}

fn object(stream: &mut TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// The routes beside the one that is measured.
fn plain(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    match path {
        "/v1/models" => object(stream, "200 OK", r#"{"object":"list","data":[{"id":"scripted","object":"model"}]}"#),
        _ => object(stream, "404 Not Found", "{}"),
    }
}

/// Path and body of the next request; `None` at the end of the connection.
fn request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((path, body)))
}
