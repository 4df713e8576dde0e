//! The commands `run`, a model in this terminal without a server, and `energy`, what a running server uses.
//!
//! | module | holds |
//! |---|---|
//! | `conversation` | turns to engine requests |
//! | `canvas` | what a diffusion model has decided so far |
//! | `screen` | that as rows of a terminal, drawn in place |
//! | `reply` | one reply, from its events to its last line |
//! | `energy` | a running server's watts and joules |

mod canvas;
mod conversation;
mod energy;
mod reply;
mod screen;

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    slice, thread,
};

use engine::{Engine, RequestError, energy::EnergyMonitor};
use tokio::sync::mpsc;

pub use self::energy::{WatchError, watch};
use self::{
    conversation::Conversation,
    reply::{Ended, View},
};
use crate::{
    args::RunArgs,
    error::ApiError,
    run::{RunError, load, start_energy},
    settings::Settings,
    shutdown::Signals,
    welcome,
};

/// Exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Why the command ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TerminalError {
    /// The model could not be started.
    #[error(transparent)]
    Start(#[from] RunError),
    /// An option that cannot be.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The request is not one that the engine takes.
    #[error("{0}")]
    Refused(ApiError),
    /// The reply failed.
    #[error(transparent)]
    Failed(#[from] RequestError),
    /// The terminal is gone.
    #[error("cannot write the reply: {0}")]
    Output(#[from] io::Error),
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// Neither a name nor JSON.
    #[error("--decoding: not valid JSON: {0}")]
    Decoding(serde_json::Error),
    /// A system message for a model that cannot chat.
    #[error("--system: this model has no chat template, so it only continues texts; see --chat-template")]
    NoTemplate,
}

/// Loads the model, then answers the prompt of `args`, or each line of the standard input.
pub async fn run(settings: Settings, args: RunArgs) -> Result<ExitCode, TerminalError> {
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let sources = settings.models.clone();
    let (engine, energy) = tokio::select! {
        loaded = load_with_notice(settings) => loaded?,
        _ = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let view = View::choose(engine.model(), args.no_frames);
    let conversation = Conversation::new(&args, &engine, view == View::Frames)?;
    let introduction = welcome::lines(&sources, slice::from_ref(&engine), "run");
    let mut session = Session { engine, energy, view, conversation, signals, introduction };
    match &args.prompt {
        Some(prompt) => session.turn(prompt).await.map(|ended| match ended {
            Ended::Finished => ExitCode::SUCCESS,
            Ended::Interrupted(_) => ExitCode::from(INTERRUPTED),
        }),
        None => session.chat().await,
    }
}

async fn load_with_notice(settings: Settings) -> Result<(Engine, EnergyMonitor), TerminalError> {
    let notice = io::stderr().is_terminal() && !is_dumb();
    if notice {
        write!(io::stderr(), "loading the model ...")?;
    }
    let energy = start_energy(settings.energy.clone()).await?;
    let metered = energy.clone();
    let load = move || load(&settings.models[0], &settings, &metered);
    let engine = tokio::task::spawn_blocking(load).await.map_err(RunError::Load)?;
    if notice {
        write!(io::stderr(), "\r\x1b[K")?;
    }
    Ok((engine?, energy))
}

/// A terminal that shows text and nothing else.
fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|kind| kind == "dumb")
}

/// Whether people want colours; see no-color.org.
fn has_colors() -> bool {
    !is_dumb() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

struct Session {
    engine: Engine,
    energy: EnergyMonitor,
    view: View,
    conversation: Conversation,
    signals: Signals,
    /// What a person should know of the model before the first turn.
    introduction: Vec<String>,
}

impl Session {
    /// One turn for each line, until the lines or the patience of the user end.
    async fn chat(&mut self) -> Result<ExitCode, TerminalError> {
        let invites = io::stdin().is_terminal() && io::stderr().is_terminal();
        if invites {
            for line in &self.introduction {
                writeln!(io::stderr(), "{line}")?;
            }
            let chats = if self.conversation.can_chat() { "/clear forgets the chat, " } else { "" };
            writeln!(io::stderr(), "{}: {chats}/exit or Ctrl-D ends", self.engine.model().id)?;
        }
        let mut lines = lines_of_stdin();
        loop {
            if invites {
                write!(io::stderr(), "> ")?;
                io::stderr().flush()?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                signal = self.signals.next() => {
                    tracing::debug!(signal, "stopped while waiting for a line");
                    if invites {
                        writeln!(io::stderr())?;
                    }
                    return Ok(ExitCode::from(INTERRUPTED));
                }
            };
            match line.transpose()?.as_deref().map(str::trim) {
                None | Some("/exit") => return Ok(ExitCode::SUCCESS),
                Some("") => {}
                Some("/clear") => self.conversation.clear(),
                Some(text) => match self.turn(text).await {
                    Ok(Ended::Interrupted("SIGTERM")) => return Ok(ExitCode::from(INTERRUPTED)),
                    Ok(_) => {}
                    // A chat goes on; a program that feeds lines must know.
                    Err(error @ TerminalError::Refused(_)) if invites => writeln!(io::stderr(), "error: {error}")?,
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Answers `text` and remembers both, unless the reply was stopped.
    async fn turn(&mut self, text: &str) -> Result<Ended, TerminalError> {
        let info = self.engine.model();
        let request = self.conversation.request(text, info).map_err(TerminalError::Refused)?;
        let streams = self.engine.submit(vec![request]).map_err(|error| TerminalError::Refused(error.into()))?;
        let Some(events) = streams.into_iter().next() else { return Err(RequestError::ShuttingDown.into()) };
        let (ended, reply) = reply::show(events, self.view, (info, &self.energy), &mut self.signals).await?;
        if matches!(ended, Ended::Finished) {
            self.conversation.remember(text, reply);
        }
        Ok(ended)
    }
}

/// Lines as they are typed. The thread that reads them cannot be stopped; it ends with the program.
fn lines_of_stdin() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lines() {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
