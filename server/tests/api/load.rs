//! Full queues, clients that leave, and the end of a server: over real sockets where a socket matters.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use engine::{Engine, EngineSettings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::support::{Options, Server, listen};

const PASS: Duration = Duration::from_millis(20);

/// One request at a time, one in the queue, `PASS` for every forward pass.
async fn small_server() -> Server {
    let engine = EngineSettings { max_concurrent: 1, max_queue: 1, threads: Some(1), ..EngineSettings::default() };
    Server::start(Options { pass_time: PASS, engine, ..Options::default() }).await
}

/// A request that runs for a minute if nobody stops it.
fn endless(stream: bool) -> Value {
    json!({"prompt": "!", "max_tokens": 2000, "ignore_eos": true, "temperature": 0, "stream": stream,
        "decoding": {"strategy": "ar"}})
}

async fn send(address: std::net::SocketAddr, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    socket
}

/// Waits until the engine is in the state that `is` describes; how long it took.
async fn wait_until(engine: &Engine, what: &str, is: impl Fn(engine::Load) -> bool) -> Duration {
    let start = Instant::now();
    while !is(engine.load()) {
        assert!(start.elapsed() < Duration::from_secs(10), "never {what}: {:?}", engine.load());
        sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

/// Noticing a closed socket and a few passes; a request that goes on would take a hundred times as long.
const SOON: Duration = Duration::from_millis(500);

async fn leaving_frees_the_engine(stream: bool) {
    let server = small_server().await;
    let address = listen(&server).await;
    let mut socket = send(address, &endless(stream)).await;
    if stream {
        let mut start = [0; 200];
        socket.read_exact(&mut start).await.unwrap();
        assert!(start.starts_with(b"HTTP/1.1 200"));
    }
    wait_until(&server.engine, "running", |load| load.running == 1 && load.kv_pages_used > 0).await;
    drop(socket);
    let took = wait_until(&server.engine, "idle", |load| load.running == 0 && load.kv_pages_used == 0).await;
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_frees_the_engine() {
    leaving_frees_the_engine(true).await;
}

#[tokio::test]
async fn a_client_that_leaves_without_a_stream_frees_the_engine() {
    leaving_frees_the_engine(false).await;
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_makes_room() {
    let server = small_server().await;
    let address = listen(&server).await;
    let _running = send(address, &endless(true)).await;
    wait_until(&server.engine, "running", |load| load.running == 1).await;
    let waiting = send(address, &endless(false)).await;
    wait_until(&server.engine, "waiting", |load| load.waiting == 1).await;
    drop(waiting);
    let took = wait_until(&server.engine, "room", |load| load.waiting == 0).await;
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn a_full_queue_answers_429() {
    let server = small_server().await;
    let address = listen(&server).await;
    let _running = send(address, &endless(true)).await;
    let _waiting = send(address, &endless(true)).await;
    wait_until(&server.engine, "full", |load| load.running + load.waiting == 2).await;
    for stream in [false, true] {
        let reply = server.post("/v1/completions", endless(stream)).await;
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(reply.error("code"), "rate_limit_exceeded");
        assert!(reply.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    assert_eq!(server.get("/ready").await.status, StatusCode::OK, "a busy server is ready");
}

#[tokio::test]
async fn a_server_that_stops_finishes_what_runs() {
    let server = small_server().await;
    let body = json!({"prompt": "a", "max_tokens": 10, "temperature": 0, "decoding": {"strategy": "ar"}});
    let running = server.post("/v1/completions", body.clone());
    let drain = async {
        wait_until(&server.engine, "running", |load| load.running == 1).await;
        server.state.begin_drain();
        let refused = server.post("/v1/completions", body.clone()).await;
        assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "5"));
        assert_eq!(server.get("/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(server.get("/health").await.status, StatusCode::OK);
        server.engine.drain().await;
    };
    let (reply, ()) = tokio::join!(running, drain);
    assert_eq!(reply.json()["choices"][0]["text"], "bcdefghijk");
}
