//! `serve`: load on a running server, and what came of it.

mod args;
mod level;
mod pictures;
mod progress;
mod report;
pub(crate) mod server;
mod sweep;

use std::{
    cell::Cell,
    fmt::Write,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

pub(crate) use self::args::ServeArgs;
use self::{
    level::{Bench, Measured},
    server::Server,
};
use crate::{
    client::{Client, Connection, FailureKind, Reuse},
    hardware::Hardware,
    load::{
        Ended,
        prompts::PromptSet,
        requests::{Requests, Source},
        synthetic::{Fit, Synthetic, probe},
    },
};

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    args.check()?;
    if let Some(out) = &args.out {
        fs::create_dir_all(out).with_context(|| format!("--out: cannot create {}", out.display()))?;
    }
    // One thread: what it uses is told, and events are stamped in the order in which they come.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            ended = session(args, &stop) => ended,
            () = interrupted_twice(&stop) => bail!("interrupted"),
        }
    })
}

/// The first Ctrl-C ends the run, which then tells what it measured; the second ends everything.
async fn interrupted_twice(stop: &CancellationToken) {
    for _ in 0..2 {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a handler Ctrl-C ends the program, which is right, too.
            std::future::pending::<()>().await;
        }
        stop.cancel();
    }
}

async fn session(args: &ServeArgs, stop: &CancellationToken) -> anyhow::Result<()> {
    // What is wrong with the arguments is said before anything is sent.
    args.fields("")?;
    for level in args.levels() {
        args.plan(level)?;
    }
    let set = if args.prompts == "synthetic" { None } else { Some(PromptSet::open(&args.prompts)?) };
    let open = |reuse| Connection::open(&args.url, args.api_key.as_deref(), reuse);
    let mut connection = open(if args.new_connections { Reuse::Never } else { Reuse::Always })?;
    let server = Server::find(&connection, args.model.as_deref()).await?;
    let mut client = Client {
        connection: connection.clone(),
        path: args.endpoint.path(),
        timeout: Duration::from_secs_f64(args.timeout),
        keeps_text: false,
    };
    let fields = args.fields(&server.model)?;
    let source = match set {
        Some(set) => Source::Set(set),
        None => Source::Synthetic(synthetic(args, &client, &fields).await?),
    };
    let requests = Arc::new(Requests::new(source, args.endpoint, fields.clone(), args.numbered)?);
    first(&client, &requests).await?;
    let hangs_up = !args.new_connections && hangs_up(&client, &requests).await?;
    if hangs_up {
        connection = open(Reuse::Never)?;
        client.connection = connection.clone();
    }
    let bench = Bench {
        args,
        connection,
        client: Arc::new(client),
        hangs_up,
        requests,
        server,
        stop: stop.clone(),
        next_index: Cell::new(1),
    };
    let levels = if args.is_sweep() {
        bench.sweep(args.out.as_deref()).await?
    } else {
        let level = args.levels()[0];
        vec![bench.measure(level, args.out.as_deref()).await?]
    };
    // The levels of a sweep one by one are for the file.
    crate::report::print(&summary(&bench, &levels, !args.is_sweep())?)?;
    if let Some(out) = &args.out {
        save(&bench, &fields, &levels, out)?;
    }
    verdict(&levels)
}

/// Prompts of wanted lengths; without a tokenizer the server says how it counts.
async fn synthetic(args: &ServeArgs, client: &Client, fields: &Map<String, Value>) -> anyhow::Result<Synthetic> {
    let seed = args.seed.unwrap_or(0);
    let fit = match &args.tokenizer {
        Some(path) => Fit::of_file(path)?,
        None => {
            let mut counts = Vec::new();
            for times in [1, 2] {
                let (text, count) = probe(times);
                let mut body = fields.clone();
                body.insert("max_tokens".into(), json!(1));
                body.insert("stream".into(), json!(false));
                body.remove("stream_options");
                match args.endpoint {
                    crate::load::requests::Endpoint::Chat => {
                        body.insert("messages".into(), json!([{"role": "user", "content": text}]))
                    }
                    crate::load::requests::Endpoint::Completions => body.insert("prompt".into(), text.into()),
                };
                let answer = client.ask(serde_json::to_vec(&body)?).await;
                if let Some(failure) = answer.failure {
                    bail!("asking the server how many tokens its prompts have: {failure}");
                }
                let tokens = answer.usage.prompt_tokens;
                counts.push((
                    count,
                    tokens.context("the server does not say how many tokens a prompt has; give --tokenizer")?,
                ));
            }
            Fit::counted(counts[0], counts[1])?
        }
    };
    Ok(Synthetic { input: args.input_tokens, output: args.output_tokens, seed, fit })
}

/// One request before everything else, so that a wrong address, model or field is known at once.
async fn first(client: &Client, requests: &Requests) -> anyhow::Result<()> {
    let answer = client.ask(requests.body(0)?.1).await;
    let Some(failure) = answer.failure else { return Ok(()) };
    let hint = match failure.message.as_str() {
        message if message.contains("stream_options") => " (--no-usage leaves `stream_options` out)",
        message if message.contains("ignore_eos") => " (without --ignore-eos and --output-tokens it is not sent)",
        _ => "",
    };
    bail!("the first request, before the measurement, failed: {failure}{hint}")
}

/// Whether the server closes connections behind its answers without having said so: then some of a few requests in a row
/// find theirs gone.
async fn hangs_up(client: &Client, requests: &Requests) -> anyhow::Result<bool> {
    const PROBES: usize = 6;
    let mut body: Map<String, Value> = serde_json::from_slice(&requests.body(0)?.1)?;
    body.insert("max_tokens".into(), json!(2));
    for _ in 0..PROBES {
        let answer = client.ask(serde_json::to_vec(&body)?).await;
        if answer.failure.is_some_and(|failure| failure.kind == FailureKind::Connect) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An error if nothing was answered, or the server was given up.
fn verdict(levels: &[Measured]) -> anyhow::Result<()> {
    if let Some(measured) = levels.iter().find(|measured| matches!(measured.ended, Ended::GaveUp { .. })) {
        bail!("{}: given up; {} of {} requests failed", measured.level, measured.summary.failed, measured.summary.sent);
    }
    match levels.iter().find(|measured| measured.summary.ok == 0) {
        Some(measured) => bail!("{}: no request was answered", measured.level),
        None => Ok(()),
    }
}

fn prompts_in_words(requests: &Requests) -> String {
    match requests.source() {
        Source::Set(set) => {
            let notes: String = set.notes.iter().map(|note| format!("; {note}")).collect();
            format!("`{}` ({} prompts, SHA-256 {}{notes})", set.name, set.prompts.len(), &set.sha256[..16])
        }
        Source::Synthetic(Synthetic { input, output, seed, fit }) => {
            let output =
                output.map_or(String::new(), |output| format!(", answers of {} +- {}", output.mean, output.spread));
            let how = match fit {
                Fit::Tokenizer(_) => "by the tokenizer",
                Fit::Counted { .. } => "by what the server counted in two prompts; the real mean is in the table",
            };
            format!("synthetic, {} +- {} tokens{output}, seed {seed}, lengths {how}", input.mean, input.spread)
        }
    }
}

fn num_prompts(requests: &Requests) -> Option<usize> {
    match requests.source() {
        Source::Set(set) => Some(set.prompts.len()),
        Source::Synthetic(_) => None,
    }
}

fn summary(bench: &Bench<'_>, levels: &[Measured], has_details: bool) -> anyhow::Result<String> {
    let hardware = Hardware::read();
    let mut text = format!("# Load on `{}`\n\n{}\n\n", bench.server.model, crate::report::command());
    let place = if bench.server.is_local { "on the same machine" } else { "not at a loopback address" };
    writeln!(
        text,
        "leapfrog-bench {} (commit {}), {} ({} cores, {}); the server{} is {place}\n",
        env!("CARGO_PKG_VERSION"),
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" "),
        bench.server.version.as_deref().map_or(String::new(), |version| format!(" (version {version})")),
    )?;
    if bench.hangs_up {
        writeln!(text, "The server closes connections behind its answers, so each request has a new one.\n")?;
    }
    writeln!(text, "Prompts: {}. Route {}.\n", prompts_in_words(&bench.requests), bench.requests.endpoint().path())?;
    if bench.args.is_sweep() {
        text.push_str(&report::sweep(levels)?);
    }
    for measured in levels.iter().filter(|_| has_details) {
        writeln!(text, "\n## {}\n", measured.level)?;
        text.push_str(&report::level(measured, num_prompts(&bench.requests))?);
    }
    Ok(text)
}

fn save(bench: &Bench<'_>, fields: &Map<String, Value>, levels: &[Measured], out: &Path) -> anyhow::Result<()> {
    let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let set = match bench.requests.source() {
        Source::Set(set) => {
            json!({"name": set.name, "count": set.prompts.len(), "sha256": set.sha256, "notes": set.notes})
        }
        Source::Synthetic(synthetic) => {
            json!({"name": "synthetic", "input_tokens": [synthetic.input.mean, synthetic.input.spread],
            "output_tokens": synthetic.output.map(|output| [output.mean, output.spread]), "seed": synthetic.seed})
        }
    };
    let raw = json!({
        "format": 1,
        "command": crate::report::command_words(),
        "tool": {"name": "leapfrog-bench", "version": env!("CARGO_PKG_VERSION")},
        "unix_s": unix_s,
        "hardware": Hardware::read(),
        "url": bench.connection.base,
        "server": bench.server,
        "settings": {
            "requests": bench.args.requests, "duration_s": bench.args.duration, "warmup": bench.args.warmup,
            "timeout_s": bench.args.timeout, "max_in_flight": bench.args.max_in_flight,
            "give_up_after": bench.args.give_up_after, "numbered": bench.args.numbered, "new_connections": bench.args.new_connections || bench.hangs_up, "seed": bench.args.seed,
        },
        "endpoint": bench.requests.endpoint(),
        "fields": fields,
        "prompts": set,
        "levels": levels,
    });
    let write = |name: &str, content: &str| {
        let path = out.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    write("summary.md", &summary(bench, levels, true)?)?;
    write("summary.json", &(serde_json::to_string_pretty(&raw)? + "\n"))?;
    if !bench.args.is_sweep() {
        return levels.iter().try_for_each(|measured| pictures::of_level(out, measured));
    }
    pictures::of_sweep(out, levels)?;
    levels.iter().try_for_each(|measured| pictures::of_level(&out.join(measured.level.folder()), measured))
}
