//! Whether the server runs and takes requests: two routes, and the command that asks them.

use std::{
    env,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    args::HealthArgs,
    error::{DRAIN_RETRY, LOADING_RETRY},
    state::{AppState, Phase},
};

/// How long `leapfrog health` waits for each step of the exchange.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a reply that are read.
const MAX_REPLY: u64 = 1 << 20;

fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Loading => "loading",
        Phase::Ready => "ready",
        Phase::Draining => "draining",
    }
}

/// `GET /health`: the process is alive. Always 200, so that nobody restarts a server that is loading.
pub(crate) async fn health(State(state): State<AppState>) -> Response {
    Json(json!({"status": "ok", "phase": word(state.phase())})).into_response()
}

/// `GET /ready`: 200 if requests are taken now.
pub(crate) async fn ready(State(state): State<AppState>) -> Response {
    let phase = state.phase();
    let body = Json(json!({"status": word(phase)}));
    let wait = match phase {
        Phase::Ready => return body.into_response(),
        Phase::Loading => LOADING_RETRY,
        Phase::Draining => DRAIN_RETRY,
    };
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, wait.as_secs().to_string())], body).into_response()
}

/// `GET /version`: which program this is, in the words of vLLM.
pub(crate) async fn version() -> impl IntoResponse {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The command `health`: prints what the server says; exit code 0 if it is well.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the output of a command")]
pub fn probe(args: &HealthArgs) -> ExitCode {
    let url = base_url(args.url.as_deref());
    match ask(&url, if args.ready { "/ready" } else { "/health" }, None) {
        Ok((200, body)) => {
            println!("{body}");
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            eprintln!("{url}: status {status}: {body}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{url}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The server that a command means: the one given, or the one on this machine.
pub(crate) fn base_url(given: Option<&str>) -> String {
    if let Some(url) = given.filter(|url| !url.is_empty()) {
        return url.to_owned();
    }
    let port = env::var("LEAPFROG_PORT").ok().filter(|port| !port.is_empty());
    format!("http://127.0.0.1:{}", port.as_deref().unwrap_or("8080"))
}

/// One HTTP/1.1 exchange; status and body. Blocks for up to five seconds a step.
pub(crate) fn ask(url: &str, route: &str, key: Option<&str>) -> io::Result<(u16, String)> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidInput, message.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(|| invalid("the address must begin with http://"))?;
    let (authority, prefix) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let path = format!("{}{route}", if prefix.is_empty() { String::new() } else { format!("/{prefix}") });
    let path = path.replace("//", "/");
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let address = target.to_socket_addrs()?.next().ok_or_else(|| invalid("the host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    // Port and path come from the caller's own command line; `Host: localhost` passes the guard of any address.
    let key = match key {
        Some(key) if key.chars().any(char::is_control) => return Err(invalid("the key cannot stand in a header")),
        Some(key) => format!("Authorization: Bearer {key}\r\n"),
        None => String::new(),
    };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{key}Connection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.take(MAX_REPLY).read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the reply is not HTTP"))?;
    Ok((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead, net::TcpListener, thread};

    use super::*;

    /// Answers one request with `reply` and returns its first line.
    fn once(reply: &'static str) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = io::BufReader::new(stream.try_clone().unwrap());
            let mut first = String::new();
            reader.read_line(&mut first).unwrap();
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            stream.write_all(reply.as_bytes()).unwrap();
            first
        });
        (url, server)
    }

    #[test]
    fn a_reply_is_read() {
        let (url, server) = once("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}");
        assert_eq!(ask(&format!("{url}/base/"), "/ready", None).unwrap(), (503, "{}".to_owned()));
        assert_eq!(server.join().unwrap(), "GET /base/ready HTTP/1.1\r\n");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let (url, server) = once("hello");
        assert!(ask(&url, "/health", None).is_err());
        server.join().unwrap();
        assert!(ask("https://localhost", "/health", None).is_err());
        assert!(ask("http://127.0.0.1:1", "/health", None).is_err());
    }
}
