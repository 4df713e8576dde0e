//! The command `energy`: what a running server uses, in watts and joules, drawn in place where there is a terminal.
//!
//! | module | holds |
//! |---|---|
//! | `reading` | what the server says, and the difference between two readings |
//! | `view` | that difference as lines for people |

mod reading;
mod view;

use std::{
    io::{self, IsTerminal, Write},
    ops::RangeInclusive,
    process::ExitCode,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use self::reading::{Interval, Reading};
use super::{
    INTERRUPTED,
    canvas::{Cell, Style},
    has_colors, is_dumb,
    screen::{Screen, Size},
};
use crate::{args::WatchArgs, health, shutdown::Signals};

const ROUTE: &str = "/v1/energy";
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Why the command ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The time between two readings is out of range.
    #[error("--interval: {0:?} is not between 100ms and 1h")]
    Interval(Duration),
    /// The server does not answer.
    #[error("no answer from {url}: {source}")]
    NoAnswer {
        /// Its address.
        url: String,
        /// The cause.
        source: io::Error,
    },
    /// The server answers something else.
    #[error("{url} answers with status {status}: {body}")]
    Refused {
        /// Its address.
        url: String,
        /// The status of its reply.
        status: u16,
        /// The beginning of its reply.
        body: String,
    },
    /// The answer is not what this command knows how to read.
    #[error("{url} is no server of this version: {source}")]
    Unreadable {
        /// Its address.
        url: String,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
    /// The system refused the signal handlers.
    #[error("cannot handle signals: {0}")]
    Signals(io::Error),
    /// The terminal is gone.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Shows one interval after the other until a signal, or one with `--once`.
pub async fn watch(args: WatchArgs) -> Result<ExitCode, WatchError> {
    let period = args.interval.0;
    if !INTERVALS.contains(&period) {
        return Err(WatchError::Interval(period));
    }
    let mut signals = Signals::listen().map_err(WatchError::Signals)?;
    let server = Server { url: health::base_url(args.url.as_deref()), key: args.api_key.clone() };
    let mut before = server.read().await?;
    let mut due = Instant::now() + period;
    let mut output = Output::choose(&args);
    loop {
        tokio::select! {
            () = sleep_until(due) => {}
            _ = signals.next() => {
                output.end()?;
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
        // A late reading moves the next one; the interval is measured, not assumed.
        due = (due + period).max(Instant::now());
        match server.read().await {
            Ok(now) => {
                let interval = Interval::between(&before, &now);
                output.show(&server.url, &interval)?;
                before = now;
            }
            // A server that starts again is worth the wait, for whoever looks.
            Err(error) if output.is_live() => output.lament(&error)?,
            Err(error) => return Err(error),
        }
        if args.once {
            output.end()?;
            return Ok(ExitCode::SUCCESS);
        }
    }
}

struct Server {
    url: String,
    key: Option<String>,
}

impl Server {
    async fn read(&self) -> Result<Reading, WatchError> {
        let (url, key) = (self.url.clone(), self.key.clone());
        let asked = tokio::task::spawn_blocking(move || health::ask(&url, ROUTE, key.as_deref())).await;
        let url = || self.url.clone();
        let (status, body) =
            asked.map_err(io::Error::other).flatten().map_err(|source| WatchError::NoAnswer { url: url(), source })?;
        if status != 200 {
            return Err(WatchError::Refused { url: url(), status, body: body.chars().take(300).collect() });
        }
        serde_json::from_str(&body).map_err(|source| WatchError::Unreadable { url: url(), source })
    }
}

/// Where the lines go.
enum Output {
    /// A JSON object a line.
    Json,
    /// Lines below each other.
    Lines,
    /// Lines over each other.
    Live(Screen<io::Stdout>),
}

impl Output {
    fn choose(args: &WatchArgs) -> Self {
        if args.json {
            Self::Json
        } else if args.once || !io::stdout().is_terminal() || is_dumb() {
            Self::Lines
        } else {
            Self::Live(Screen::new(io::stdout(), has_colors()))
        }
    }

    fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    fn show(&mut self, url: &str, interval: &Interval) -> io::Result<()> {
        if let Self::Json = self {
            let line = serde_json::to_string(interval)?;
            return writeln!(io::stdout(), "{line}");
        }
        self.write(&view::lines(url, interval))
    }

    fn lament(&mut self, error: &WatchError) -> io::Result<()> {
        self.write(&[error.to_string(), "trying again ...".to_owned()])
    }

    fn write(&mut self, lines: &[String]) -> io::Result<()> {
        // Names come from the server, which may be anybody's.
        let harmless = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
        let lines: Vec<String> = lines.iter().map(|line| line.chars().map(harmless).collect()).collect();
        match self {
            Self::Live(screen) => {
                let text = lines.join("\n");
                let cells: Vec<Cell> = text.chars().map(|char| Cell { char, style: Style::Plain }).collect();
                screen.draw(&cells, Size::of_terminal())
            }
            Self::Json | Self::Lines => {
                let mut out = io::stdout().lock();
                for line in lines {
                    writeln!(out, "{line}")?;
                }
                writeln!(out)?;
                out.flush()
            }
        }
    }

    /// Leaves the last drawing where it is.
    fn end(self) -> io::Result<()> {
        match self {
            Self::Live(screen) => {
                drop(screen);
                Ok(())
            }
            Self::Json | Self::Lines => io::stdout().flush(),
        }
    }
}
