//! Tables for people, JSON for programs.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::Context;
use serde::Serialize;

use crate::stats::Summary;

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Program and strategy.
    pub(crate) what: String,
    /// `prefill` or `decode`.
    pub(crate) phase: &'static str,
    pub(crate) tokens_per_second: Summary,
    /// Completion tokens per scoring pass; not for prefill, nor for other programs.
    pub(crate) tokens_per_forward: Option<f64>,
    /// Ratio to the reference row of the same phase, pair by pair.
    pub(crate) ratio: Option<Summary>,
}

/// The command line of this run, as code.
pub(crate) fn command() -> String {
    let words = command_words().into_iter().map(|word| {
        let is_plain = !word.is_empty() && !word.contains([' ', '"', '\'', '{', '$', '*']);
        if is_plain { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}

/// The words of the command line, without keys.
pub(crate) fn command_words() -> Vec<String> {
    ["leapfrog".to_owned(), "bench".to_owned()].into_iter().chain(redacted(std::env::args().skip(1))).collect()
}

fn redacted(words: impl Iterator<Item = String>) -> Vec<String> {
    const KEY: &str = "--api-key";
    let mut is_key = false;
    let shown = |word: String| match (is_key, word.split_once('=')) {
        (true, _) => {
            is_key = false;
            "...".to_owned()
        }
        (false, Some((KEY, _))) => format!("{KEY}=..."),
        (false, _) => {
            is_key = word == KEY;
            word
        }
    };
    words.map(shown).collect()
}

/// Prints the figures of a run under its command, and saves them if there is a folder for it.
pub(crate) fn deliver(figures: &str, raw: &impl Serialize, out: Option<&Path>) -> anyhow::Result<()> {
    let summary = format!("{}\n\n{figures}", command());
    print(&summary)?;
    out.map_or(Ok(()), |folder| save(folder, &summary, raw))
}

/// The rows as a Markdown table; `reference` names what the ratios refer to.
pub(crate) fn table(rows: &[Row], reference: &str) -> String {
    let mut text = format!(
        "| what | phase | tok/s (median) | min | max | runs | tok/forward | x {reference} |\n|---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        let speed = row.tokens_per_second;
        let forward = row.tokens_per_forward.map_or("-".into(), |mean| format!("{mean:.2}"));
        let ratio = row.ratio.map_or("-".into(), |r| format!("{:.2} ({:.2}-{:.2})", r.median, r.min, r.max));
        text.push_str(&format!(
            "| {} | {} | {:.1} | {:.1} | {:.1} | {} | {forward} | {ratio} |\n",
            row.what, row.phase, speed.median, speed.min, speed.max, speed.runs
        ));
    }
    text
}

/// Prints a report. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let written = io::stdout().lock().write_all(format!("{text}\n").as_bytes());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot print the report"),
    }
}

/// Writes `summary.md` and `raw.json` into `folder`, which is created.
pub(crate) fn save(folder: &Path, summary: &str, raw: &impl Serialize) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(folder.join("summary.md"), summary)?;
    fs::write(folder.join("raw.json"), serde_json::to_string_pretty(raw)? + "\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_without_keys() {
        let shown = |line: &[&str]| redacted(line.iter().map(|&word| word.to_owned())).join(" ");
        assert_eq!(shown(&["serve", "--api-key", "sk-1", "--url", "u"]), "serve --api-key ... --url u");
        assert_eq!(shown(&["serve", "--api-key=sk-1", "--out=o"]), "serve --api-key=... --out=o");
        assert_eq!(shown(&["--api-key", "--api-key", "x"]), "--api-key ... x", "a key may look like anything");
    }
}
