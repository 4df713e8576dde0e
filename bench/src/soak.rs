//! Many clients that come, stream, hang up and come again; afterwards nothing may be left behind.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{prompts, sse};

/// Arguments of `soak`.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// Address of the server.
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: String,
    /// Clients at the same time.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// How long.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Seconds of the same load before the memory is first read: buffers grow to their working size once.
    #[arg(long, default_value_t = 20)]
    warmup_seconds: u64,
    /// Process of the server, whose resident memory is watched.
    #[arg(long)]
    pid: Option<u32>,
    /// Most that resident memory may have grown by, in MiB.
    #[arg(long, default_value_t = 48)]
    max_growth_mib: u64,
    /// Seed of the clients' choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How requests ended.
#[derive(Debug, Default, Clone)]
struct Tally {
    finished: usize,
    hung_up: usize,
    refused: usize,
    failed: Vec<String>,
}

enum Outcome {
    Finished,
    HungUp,
    Refused,
}

pub(crate) fn run(args: &SoakArgs) -> anyhow::Result<()> {
    let warm = load(args, args.warmup_seconds, args.seed ^ 0xa5a5)?;
    println!("warm-up: {} finished, {} hung up, {} refused", warm.finished, warm.hung_up, warm.refused);
    quiesce(args)?;
    let before = Snapshot::take(args)?;
    let tally = load(args, args.seconds, args.seed)?;
    println!(
        "{} clients, {} s: {} finished, {} hung up, {} refused with 429, {} failed",
        args.clients,
        args.seconds,
        tally.finished,
        tally.hung_up,
        tally.refused,
        tally.failed.len()
    );
    quiesce(args)?;
    let after = Snapshot::take(args)?;
    println!("before: {before:?}\nafter:  {after:?}");
    for failure in warm.failed.iter().chain(&tally.failed).take(10) {
        eprintln!("failed: {failure}");
    }
    ensure!(warm.failed.is_empty() && tally.failed.is_empty(), "some requests did not end as they should");
    ensure!(tally.finished > 0 && tally.hung_up > 0, "the load did not exercise both ways to end");
    ensure!(after.pages == before.pages, "KV pages leaked: {} before, {} after", before.pages, after.pages);
    if let (Some(before), Some(after)) = (before.resident_mib, after.resident_mib) {
        let grown = after.saturating_sub(before);
        ensure!(grown <= args.max_growth_mib, "resident memory grew by {grown} MiB");
    }
    println!("nothing leaked, nothing stuck");
    Ok(())
}

fn load(args: &SoakArgs, seconds: u64, seed: u64) -> anyhow::Result<Tally> {
    let stop = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let clients: Vec<_> = (0..args.clients)
        .map(|client| {
            let (stop, tally, address) = (stop.clone(), tally.clone(), args.address.clone());
            let mut random = Random(seed.wrapping_mul(1_000_003) + client as u64);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let outcome = one_request(&address, &mut random);
                    if matches!(outcome, Ok(Outcome::Refused)) {
                        thread::sleep(Duration::from_millis(200));
                    }
                    let Ok(mut tally) = tally.lock() else { return };
                    match outcome {
                        Ok(Outcome::Finished) => tally.finished += 1,
                        Ok(Outcome::HungUp) => tally.hung_up += 1,
                        Ok(Outcome::Refused) => tally.refused += 1,
                        Err(error) => tally.failed.push(format!("{error:#}")),
                    }
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_secs(seconds));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    }
    let tally = tally.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    Ok(tally.clone())
}

/// A random request: streaming or not, any strategy, ended by the server or by hanging up.
fn one_request(address: &str, random: &mut Random) -> anyhow::Result<Outcome> {
    let prompt = prompts::chat().nth(random.below(prompts::chat().count())).context("no prompts")?;
    let stream = random.below(3) > 0;
    let strategy = ["auto", "ar", "jacobi"][random.below(3)];
    let body = json!({
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1 + random.below(48),
        "stream": stream,
        "temperature": if random.below(2) == 0 { 0.0 } else { 0.9 },
        "seed": random.below(1000),
        "decoding": {"strategy": strategy},
    });
    let hang_up_after = (random.below(3) == 0).then(|| random.below(12));
    if let (false, Some(_)) = (stream, hang_up_after) {
        // Without streaming the client leaves while it waits for the answer.
        use std::io::Write;
        let mut socket = std::net::TcpStream::connect(address)?;
        let body = body.to_string();
        write!(
            socket,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        thread::sleep(Duration::from_millis(random.below(400) as u64));
        return Ok(Outcome::HungUp);
    }
    let mut response = sse::send(address, "POST", "/v1/chat/completions", Some(&body.to_string()))?;
    match response.status {
        200 => {}
        429 => return Ok(Outcome::Refused),
        status => anyhow::bail!("status {status}: {}", response.text()?),
    }
    if !stream {
        let answer: Value = serde_json::from_str(&response.text()?)?;
        ensure!(answer["choices"][0]["finish_reason"].is_string(), "no finish reason: {answer}");
        return Ok(Outcome::Finished);
    }
    let mut text = String::new();
    let mut pieces = 0;
    while let Some(piece) = response.piece()? {
        text.push_str(&String::from_utf8_lossy(&piece));
        pieces += 1;
        if hang_up_after.is_some_and(|limit| pieces > limit) {
            return Ok(Outcome::HungUp);
        }
    }
    ensure!(text.trim_end().ends_with("data: [DONE]"), "a stream ended without [DONE]: {text:?}");
    ensure!(!text.contains("\"error\""), "an error in a stream: {text:?}");
    Ok(Outcome::Finished)
}

/// What must be the same before and after.
#[derive(Debug)]
struct Snapshot {
    pages: u64,
    resident_mib: Option<u64>,
}

impl Snapshot {
    fn take(args: &SoakArgs) -> anyhow::Result<Self> {
        let resident_mib = args.pid.map(resident_mib).transpose()?;
        Ok(Self { pages: metric(&args.address, "leapfrog_kv_pages_used")?, resident_mib })
    }
}

fn resident_mib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? >> 10)
}

/// Waits until the server is idle; an error if it does not get there.
fn quiesce(args: &SoakArgs) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let busy =
            metric(&args.address, "leapfrog_requests_running")? + metric(&args.address, "leapfrog_requests_waiting")?;
        if busy == 0 {
            println!("idle {:.1} s after the last client", began.elapsed().as_secs_f64());
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "{busy} requests are stuck");
        thread::sleep(Duration::from_millis(100));
    }
}

/// A gauge of `/metrics`, of all models together.
fn metric(address: &str, name: &str) -> anyhow::Result<u64> {
    let text = sse::send(address, "GET", "/metrics", None)?.text()?;
    let lines = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()).map(str::parse::<f64>);
    let values = values.collect::<Result<Vec<_>, _>>()?;
    ensure!(!values.is_empty(), "no metric {name}");
    Ok(values.iter().sum::<f64>() as u64)
}

/// A small generator, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}
