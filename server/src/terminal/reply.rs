//! One reply, from its events to its last line.

use std::{
    io::{self, IsTerminal, StdoutLock, Write},
    time::{Duration, Instant},
};

use engine::{
    Event, EventStream, Finish, ModelInfo, RequestError,
    energy::{EnergyMonitor, RequestEnergy},
};
use serde::Serialize;

use super::{
    TerminalError,
    canvas::{Canvas, printable},
    has_colors, is_dumb,
    screen::{Screen, Size},
};
use crate::{energy::usage::joules, shutdown::Signals};

/// Time between two drawings: about 30 a second.
const DRAW_INTERVAL: Duration = Duration::from_millis(33);

/// How a reply is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// For programs: the text as it is, and nothing else.
    Raw,
    /// For people: the text as it becomes final.
    Text,
    /// The canvas while it is filled, then the text.
    Frames,
}

impl View {
    /// What fits the standard output and the model.
    pub(super) fn choose(info: &ModelInfo, no_frames: bool) -> Self {
        if !io::stdout().is_terminal() {
            Self::Raw
        } else if info.mask_id.is_none() || no_frames || is_dumb() {
            Self::Text
        } else {
            Self::Frames
        }
    }
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Finished,
    /// By the signal of this name.
    Interrupted(&'static str),
}

/// Shows a reply until its end or a signal; how it ended, and its text.
pub(super) async fn show(
    mut events: EventStream,
    view: View,
    (info, energy): (&ModelInfo, &EnergyMonitor),
    signals: &mut Signals,
) -> Result<(Ended, String), TerminalError> {
    let mut show = Show::new(view);
    loop {
        let due = show.due.map(tokio::time::Instant::from_std);
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                show.draw()?;
                continue;
            }
            signal = signals.next() => {
                show.end("stopped")?;
                return Ok((Ended::Interrupted(signal), show.text));
            }
        };
        match event.unwrap_or(Event::Failed(RequestError::ShuttingDown)) {
            Event::Prompt(_) => {}
            Event::Committed(commit) => show.push(&commit.text)?,
            Event::Frame(frame) => {
                show.canvas.apply(&frame, &info.tokenizer);
                show.due = show.due.or(Some(show.next_draw));
            }
            Event::Finished(finish) => {
                let energy = match finish.ticket {
                    Some(ticket) => energy.settled(&[ticket]).await,
                    None => None,
                };
                show.end(&statistics(&finish, energy.as_ref()))?;
                return Ok((Ended::Finished, show.text));
            }
            Event::Failed(error) => {
                show.clear()?;
                return Err(error.into());
            }
        }
    }
}

struct Show {
    view: View,
    text: String,
    canvas: Canvas,
    screen: Screen<io::Stdout>,
    /// When the canvas is drawn; `None` if it has not changed.
    due: Option<Instant>,
    /// Before this time it is not drawn again.
    next_draw: Instant,
}

impl Show {
    fn new(view: View) -> Self {
        Self {
            view,
            text: String::new(),
            canvas: Canvas::default(),
            screen: Screen::new(io::stdout(), has_colors()),
            due: None,
            next_draw: Instant::now(),
        }
    }

    /// Adds final text.
    fn push(&mut self, text: &str) -> io::Result<()> {
        self.text.push_str(text);
        match self.view {
            View::Raw | View::Text => self.write(text),
            View::Frames => Ok(()),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut out: StdoutLock<'_> = io::stdout().lock();
        match self.view {
            View::Raw => out.write_all(text.as_bytes())?,
            View::Text | View::Frames => {
                let shown: String = text.chars().filter_map(printable).collect();
                out.write_all(shown.as_bytes())?;
            }
        }
        out.flush()
    }

    fn draw(&mut self) -> io::Result<()> {
        self.due = None;
        self.screen.draw(&self.canvas.cells(), Size::of_terminal())?;
        self.canvas.settle();
        self.next_draw = Instant::now() + DRAW_INTERVAL;
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.screen.clear(Size::of_terminal().columns)
    }

    /// Leaves the final text, and `remark` for people.
    fn end(&mut self, remark: &str) -> io::Result<()> {
        if self.view == View::Frames {
            self.clear()?;
            self.write(&self.text)?;
        }
        self.write("\n")?;
        let mut out = io::stderr().lock();
        if out.is_terminal() && has_colors() {
            writeln!(out, "\x1b[2m{remark}\x1b[0m")
        } else {
            writeln!(out, "{remark}")
        }
    }
}

/// A finished reply in numbers, in one line.
fn statistics(finish: &Finish, energy: Option<&RequestEnergy>) -> String {
    let stats = &finish.stats;
    let mut parts = vec![format!("{} tokens", finish.completion_tokens)];
    match &stats.diffusion {
        Some(diffusion) => parts.push(format!("{} steps", diffusion.denoising_steps)),
        None => parts.push(format!("{} passes", stats.forward_passes)),
    }
    parts.extend(stats.tokens_per_forward().map(|mean| format!("{mean:.2} tokens/forward")));
    let seconds = (stats.prefill + stats.decode).as_secs_f64();
    if seconds > 0.0 {
        parts.push(format!("{:.1} tokens/s", finish.completion_tokens as f64 / seconds));
    }
    match &stats.diffusion {
        Some(diffusion) => {
            parts.push(format!("policy {}", word(&diffusion.policy)));
            let exact = if diffusion.cache.is_exact() { "exact" } else { "approximate" };
            parts.push(format!("cache {} ({exact})", word(&diffusion.cache)));
        }
        None => parts.push(stats.strategy.to_owned()),
    }
    if let Some((energy, uj)) = energy.and_then(|energy| Some((energy, energy.energy_uj?))) {
        parts.push(format!("{:.3} J ({})", joules(uj), energy.basis));
    }
    parts.join(", ")
}

/// A name as the HTTP API spells it.
fn word(name: &impl Serialize) -> String {
    match serde_json::to_value(name) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use engine::{CacheMode, CommitCounts, DecodeStats, DiffusionStats, FinishReason, Policy};

    use super::*;

    fn finish(diffusion: Option<DiffusionStats>) -> Finish {
        Finish {
            reason: FinishReason::Stop,
            stop_string: None,
            prompt_tokens: 5,
            completion_tokens: 24,
            stats: DecodeStats {
                strategy: if diffusion.is_some() { "diffusion" } else { "jacobi" },
                forward_passes: 12,
                scored_rows: 12,
                acceptance_histogram: vec![0, 12],
                cached_tokens: 0,
                diffusion,
                queue: Duration::ZERO,
                prefill: Duration::from_millis(500),
                decode: Duration::from_millis(1500),
            },
            ticket: None,
        }
    }

    #[test]
    fn a_reply_is_summed_up_in_a_line() {
        let line = statistics(&finish(None), None);
        assert_eq!(line, "24 tokens, 12 passes, 2.00 tokens/forward, 12.0 tokens/s, jacobi");
        let diffusion = DiffusionStats {
            denoising_steps: 11,
            blocks: 1,
            commits: CommitCounts::default(),
            edits: 0,
            policy: Policy::LocalLeap,
            cache: CacheMode::Dual,
        };
        let line = statistics(&finish(Some(diffusion)), None);
        let expected =
            "24 tokens, 11 steps, 2.00 tokens/forward, 12.0 tokens/s, policy local_leap, cache dual (approximate)";
        assert_eq!(line, expected);
    }
}
