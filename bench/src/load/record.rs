//! What is kept of every request: the raw events, from which everything else follows.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use serde::Serialize;

use crate::client::Answer;

/// Whether a request counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Warmup,
    Measured,
}

/// One request. Its times are nanoseconds after the start of its phase.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// In the order of sending.
    pub(crate) index: u64,
    /// Place of its prompt in the set.
    pub(crate) prompt: usize,
    pub(crate) phase: Phase,
    /// When it was to be sent; of open loops.
    #[serde(skip)]
    pub(crate) due_ns: Option<u64>,
    #[serde(skip)]
    pub(crate) sent_ns: u64,
    #[serde(flatten)]
    pub(crate) answer: Answer,
}

impl Record {
    /// The moment from which a user waits: when the request was due, if the clock decided, else when it was sent.
    pub(crate) fn wanted_ns(&self) -> u64 {
        self.due_ns.unwrap_or(self.sent_ns)
    }

    /// From when it was due until it was sent, in nanoseconds; 0 in a closed loop.
    pub(crate) fn late_ns(&self) -> u64 {
        self.sent_ns.saturating_sub(self.wanted_ns())
    }

    /// End of the answer after the start of the phase; of a failure, when it was known.
    pub(crate) fn ended_ns(&self) -> u64 {
        let answer = &self.answer;
        self.sent_ns + answer.end_ns.filter(|_| answer.failure.is_none()).unwrap_or(answer.closed_ns)
    }
}

/// Raw events as they are written: one object a line.
#[derive(Debug)]
pub(crate) struct RawFile {
    file: BufWriter<File>,
}

#[derive(Serialize)]
struct Line<'a> {
    due_s: Option<f64>,
    sent_s: f64,
    #[serde(flatten)]
    record: &'a Record,
}

impl RawFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file: BufWriter::new(file) })
    }

    pub(crate) fn write(&mut self, record: &Record) -> anyhow::Result<()> {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let line = Line { due_s: record.due_ns.map(seconds), sent_s: seconds(record.sent_ns), record };
        serde_json::to_writer(&mut self.file, &line).context("cannot write the raw events")?;
        self.file.write_all(b"\n").context("cannot write the raw events")
    }

    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        self.file.flush().context("cannot write the raw events")
    }
}
