//! A server that answers by a script and notes when it did what.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A chunk with a word.
const WORD: &str = r#"{"id":"x","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}"#;

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
    /// When a stall was over, if there was one.
    pub(crate) begun: Instant,
    /// Just before each event was written.
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

/// A running server; its thread ends with the program.
pub(crate) struct Scripted {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Scripted {
    pub(crate) fn start(stall: Option<Stall>, script: Script) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("cannot open a port on this machine")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared =
            Arc::new(Shared { script, stall, first: OnceLock::new(), next: Mutex::new(0), seen: Mutex::default() });
        // A thread of its own, so that it does not wait for the load generator, and one for all connections: the first
        // allocations of a thread take milliseconds.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let of_listener = shared.clone();
        thread::Builder::new().name("scripted".into()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = of_listener.clone();
                    // A client that hangs up ends its task with an error, and that is its business.
                    tokio::spawn(async move { drop(shared.serve(stream).await) });
                }
            });
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
    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (reader, mut stream) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let Some((path, _body)) = request(&mut reader).await? else { return Ok(()) };
            let received = Instant::now();
            if path != "/v1/chat/completions" {
                plain(&mut stream, &path).await?;
                continue;
            }
            let number = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                *next += 1;
                *next - 1
            };
            self.wait_out_stall(received).await;
            match (self.script)(number) {
                Conduct::Answer(delays) => self.answer(&mut stream, received, delays).await?,
                Conduct::Refuse => refuse(&mut stream).await?,
                Conduct::Fail => fail(&mut stream).await?,
                conduct => return misbehave(&mut stream, conduct).await,
            }
        }
    }

    async fn wait_out_stall(&self, received: Instant) {
        let first = *self.first.get_or_init(|| received);
        if let Some(Stall { from, length }) = self.stall
            && (from..from + length).contains(&received.duration_since(first))
        {
            sleep_until(first + from + length).await;
        }
    }

    async fn answer(&self, stream: &mut OwnedWriteHalf, received: Instant, delays: Delays) -> io::Result<()> {
        let begun = Instant::now();
        head(stream).await?;
        let mut events = Vec::new();
        for index in 0..delays.num_events {
            sleep_until(begun + delays.first + delays.gap * index).await;
            // Before it is written: whoever reads it does so later.
            events.push(Instant::now());
            event(stream, WORD).await?;
        }
        let end = Instant::now();
        event(stream, r#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#).await?;
        let tokens = delays.num_events * delays.tokens_per_event;
        let usage = format!(r#"{{"choices":[],"usage":{{"prompt_tokens":7,"completion_tokens":{tokens}}}}}"#);
        event(stream, &usage).await?;
        event(stream, "[DONE]").await?;
        let seen = Seen { received, begun, events, end, tokens_per_event: delays.tokens_per_event };
        // Before the last byte, so that who has read the answer finds it here.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        stream.write_all(b"0\r\n\r\n").await
    }
}

/// A whole answer that says no.
async fn refuse(stream: &mut OwnedWriteHalf) -> io::Result<()> {
    object(stream, "500 Internal Server Error", r#"{"error":{"message":"out of order","type":"server_error"}}"#).await
}

/// A stream that says in its middle that there will be no more.
async fn fail(stream: &mut OwnedWriteHalf) -> io::Result<()> {
    head(stream).await?;
    event(stream, WORD).await?;
    event(stream, r#"{"error":{"message":"out of pages"}}"#).await?;
    stream.write_all(b"0\r\n\r\n").await
}

/// Everything after which the connection is of no use; it ends with it.
async fn misbehave(stream: &mut OwnedWriteHalf, conduct: Conduct) -> io::Result<()> {
    match conduct {
        Conduct::Answer(_) | Conduct::Refuse | Conduct::Fail | Conduct::Close => Ok(()),
        Conduct::Hang => std::future::pending().await,
        Conduct::Noise => stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await,
        Conduct::Garbage => {
            head(stream).await?;
            event(stream, "{\"choices\": 7}").await
        }
        Conduct::CutShort => {
            head(stream).await?;
            event(stream, WORD).await
        }
    }
}

async fn sleep_until(moment: Instant) {
    tokio::time::sleep_until(moment.into()).await;
}

async fn head(stream: &mut OwnedWriteHalf) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await
}

async fn event(stream: &mut OwnedWriteHalf, data: &str) -> io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

async fn object(stream: &mut OwnedWriteHalf, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

/// The routes beside the one that is measured.
async fn plain(stream: &mut OwnedWriteHalf, path: &str) -> io::Result<()> {
    match path {
        "/v1/models" => {
            object(stream, "200 OK", r#"{"object":"list","data":[{"id":"scripted","object":"model"}]}"#).await
        }
        _ => object(stream, "404 Not Found", "{}").await,
    }
}

/// Path and body of the next request; `None` at the end of the connection.
async fn request(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).await?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(Some((path, body)))
}
