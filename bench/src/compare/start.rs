//! Contenders, from their command lines to servers that have answered once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{
    child::{self, Server},
    command::Values,
    settings::{Contender, Launch, Place, Settings, body_fields},
};
use crate::client::{Answer, Client, Connection, FailureKind, Reuse, shown};

/// Between two looks at whether a server is ready.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait for one such look.
const LOOK: Duration = Duration::from_secs(5);
/// Tokens of the first answer.
const PROBE_TOKENS: usize = 4;

/// What is known of a contender, for the record.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Told {
    pub(super) name: String,
    /// As it was started, but for the folders of files; `None` for a server that ran already.
    pub(super) command: Option<Vec<String>>,
    /// What `--version` of its program says.
    pub(super) version: Option<String>,
    /// Id of the model, as the server calls it.
    pub(super) model: String,
    /// Fields of its requests beside those of all.
    pub(super) fields: Map<String, Value>,
    /// File with what it printed.
    pub(super) log: Option<String>,
    /// Why it is asked nothing.
    pub(super) refused: Option<String>,
}

/// A contender that is ready.
#[derive(Debug)]
pub(super) struct Entrant {
    pub(super) told: Told,
    /// `None` for a server that ran already.
    server: Option<Server>,
    pub(super) client: Arc<Client>,
    /// Its folder, if it has one of its own.
    _folder: Option<TempDir>,
}

impl Entrant {
    /// Why it cannot be asked; `None` if it can.
    pub(super) fn is_out(&mut self) -> anyhow::Result<Option<String>> {
        let ended = match &mut self.server {
            Some(server) => server.ended()?.map(str::to_owned),
            None => None,
        };
        Ok(ended.or_else(|| self.told.refused.clone()))
    }

    /// Fields of its requests.
    pub(super) fn fields(&self, max_tokens: usize, ignores_end: bool) -> Map<String, Value> {
        let mut fields = body_fields(max_tokens, ignores_end);
        fields.insert("model".into(), json!(self.told.model));
        fields.insert("stream".into(), json!(true));
        fields.insert("stream_options".into(), json!({"include_usage": true}));
        fields.extend(self.told.fields.clone());
        fields
    }

    async fn probe(&self, ignores_end: bool) -> anyhow::Result<Answer> {
        let mut fields = self.fields(PROBE_TOKENS, ignores_end);
        fields.insert("messages".into(), json!([{"role": "user", "content": "Hello! Are you there?"}]));
        Ok(self.client.ask(serde_json::to_vec(&fields)?).await)
    }
}

/// Starts all, one after the other. Whatever goes wrong, those that run are ended with the error.
pub(super) async fn start_all(settings: &Settings, logs: &Path) -> anyhow::Result<Vec<Entrant>> {
    let mut entrants = Vec::new();
    for contender in &settings.contenders {
        let entrant = start(settings, contender, logs).await.with_context(|| contender.name.clone())?;
        eprintln!("{} is ready", contender.name);
        entrants.push(entrant);
    }
    Ok(entrants)
}

async fn start(settings: &Settings, contender: &Contender, logs: &Path) -> anyhow::Result<Entrant> {
    let mut started = match &contender.place {
        Place::Running { url } => {
            Started { url: url.clone(), command: None, version: None, log: None, server: None, folder: None }
        }
        Place::Started(launch) => launched(settings, launch, logs.join(format!("{}.log", contender.slug)))?,
    };
    // All contenders pay the few microseconds of a local connection alike.
    let connection = Connection::open(&started.url, None, Reuse::Never)?;
    let model = wait_ready(started.server.as_mut(), &connection, settings.start_timeout).await?;
    let client = Client { connection, path: "/v1/chat/completions", timeout: settings.timeout, keeps_text: true };
    let told = Told {
        name: contender.name.clone(),
        command: started.command,
        version: started.version,
        model,
        fields: contender.fields.clone(),
        log: started.log,
        refused: None,
    };
    Ok(Entrant { told, server: started.server, client: Arc::new(client), _folder: started.folder })
}

/// A server on its way, with what is told of it.
struct Started {
    url: String,
    command: Option<Vec<String>>,
    version: Option<String>,
    log: Option<String>,
    server: Option<Server>,
    folder: Option<TempDir>,
}

fn launched(settings: &Settings, launch: &Launch, log: PathBuf) -> anyhow::Result<Started> {
    let port = child::free_port()?;
    let slots = settings.slots();
    let mut command = launch.template.fill(&Values {
        model: &settings.model,
        port,
        threads: settings.threads,
        slots,
        context: slots * settings.context,
    });
    command[0] = launch.program.display().to_string();
    let folder = launch.is_alone.then(tempfile::tempdir).transpose().context("cannot make a folder")?;
    let here = std::env::current_dir().context("cannot tell the current folder")?;
    let log_name = log.file_name().map(|name| name.to_string_lossy().into_owned());
    let server = Server::start(&command, folder.as_ref().map_or(&here, |folder| folder.path()), log)?;
    Ok(Started {
        url: format!("http://127.0.0.1:{port}"),
        command: Some(command.iter().map(|word| without_folder(word)).collect()),
        version: child::version(&launch.program)?,
        log: log_name,
        server: Some(server),
        folder,
    })
}

/// The name of an absolute path, any other word as it is: results are read on other machines.
fn without_folder(word: &str) -> String {
    let path = Path::new(word);
    match path.file_name().filter(|_| path.is_absolute()) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => word.to_owned(),
    }
}

/// Waits until the server is healthy and lists a model; the id of its first.
async fn wait_ready(
    mut server: Option<&mut Server>,
    connection: &Connection,
    limit: Duration,
) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        if let Some(server) = server.as_mut()
            && let Some(said) = server.ended()?
        {
            bail!("{said}");
        }
        let error = match tokio::time::timeout(LOOK.min(limit), look(connection)).await {
            Ok(Ok(model)) => return Ok(model),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {} s", LOOK.min(limit).as_secs_f64()),
        };
        if began.elapsed() >= limit {
            let said = server.map_or_else(String::new, |server| format!("; its last lines:\n{}", server.last_lines()));
            bail!("it was not ready within {} s ({error}){said}", limit.as_secs_f64());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(connection: &Connection) -> anyhow::Result<String> {
    let (status, body) = connection.get("/health").await?;
    // Not every server has this route; those that have it say no while they load.
    ensure!(status.is_success() || status.as_u16() == 404, "GET /health: {status}: {}", shown(&body));
    let models = connection.models().await?;
    let id = models.first().and_then(|model| model.get("id")).and_then(Value::as_str);
    Ok(id.context("GET /v1/models: the first model has no `id`")?.to_owned())
}

/// Asks everyone once. One that refuses is out; if all that is wrong is `ignore_eos`, nobody is asked with it.
/// Returns whether answers may be asked to ignore their end.
pub(super) async fn probe_all(
    entrants: &mut [Entrant],
    wants_full_length: bool,
    warnings: &mut Vec<String>,
) -> anyhow::Result<bool> {
    let mut ignores_end = wants_full_length;
    for entrant in entrants.iter_mut() {
        let mut answer = entrant.probe(wants_full_length).await?;
        let is_refused = answer.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Status);
        if is_refused && wants_full_length {
            let other = entrant.probe(false).await?;
            if other.failure.is_none() {
                ignores_end = false;
                warnings.push(format!(
                    "{} does not take `ignore_eos`, so nobody is asked with it: answers end where the model ends them",
                    entrant.told.name
                ));
                answer = other;
            }
        }
        entrant.told.refused = answer.failure.map(|failure| format!("its first answer failed: {failure}"));
    }
    Ok(ignores_end)
}
