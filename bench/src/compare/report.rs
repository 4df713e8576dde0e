//! What a run says: tables, warnings, plots.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Serialize;

use super::{
    figures::{self, Latency, Row},
    in_process::InProcess,
    measure::Measured,
    settings::Settings,
};
use crate::{
    hardware::Hardware,
    load::prompts::PromptSet,
    plot::{self, Captions, Point, Scale, Series},
    report,
    stats::{Estimate, Summary},
};

/// Lengths of answers that differ by less than this share are called the same.
const SAME_LENGTH: f64 = 0.005;
/// Pairs of texts that are kept where a contender and the reference differ.
const EXAMPLES: usize = 3;
const COLOURS: [&str; 8] = ["#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#7b5ea7", "#3b3b3b", "#00a6a6", "#a05c2c"];

/// Everything, for `raw.json`.
#[derive(Debug, Serialize)]
struct Raw<'a> {
    command: Vec<String>,
    hardware: &'a Hardware,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<RawHttp<'a>>,
    in_process: &'a InProcess,
}

#[derive(Debug, Serialize)]
struct RawHttp<'a> {
    /// Name of the file, not its folder: results are read on other machines.
    model: String,
    /// `None` for a folder.
    model_bytes: Option<u64>,
    reference: &'a str,
    threads: usize,
    concurrency: &'a [usize],
    rounds: usize,
    requests: usize,
    max_tokens: usize,
    prompts: &'a str,
    prompts_sha256: &'a str,
    rows: &'a [Row],
    differences: Vec<Difference<'a>>,
    #[serde(flatten)]
    measured: &'a Measured,
}

/// Two answers to one prompt.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    contender: &'a str,
    prompt: u64,
    text: &'a str,
    reference_text: &'a str,
}

/// A run over HTTP, as far as it has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Http<'a> {
    pub(super) settings: &'a Settings,
    pub(super) prompts: &'a PromptSet,
    pub(super) measured: &'a Measured,
}

/// Writes all files; the summary.
pub(super) fn save(
    out: &Path,
    hardware: &Hardware,
    http: Option<Http<'_>>,
    in_process: &InProcess,
) -> anyhow::Result<String> {
    let rows = http.map(|http| http.rows()).unwrap_or_default();
    let mut text = format!(
        "{}\n\ncommit {}, {} ({} cores, {})\n",
        report::command(),
        hardware.commit.as_deref().unwrap_or("unknown"),
        hardware.cpu,
        hardware.cores,
        hardware.features.join(" ")
    );
    if let Some(http) = http {
        text.push_str(&http.text(&rows));
        http.plots(out, &rows)?;
    }
    text.push_str(&in_process.text);
    let raw = Raw {
        command: report::command_words(),
        hardware,
        http: http.map(|http| http.raw(&rows)).transpose()?,
        in_process,
    };
    report::save(out, &text, &raw)?;
    Ok(text)
}

impl<'a> Http<'a> {
    /// Contenders in their order within each concurrency.
    fn rows(&self) -> Vec<Row> {
        let Settings { concurrency, reference, contenders, .. } = self.settings;
        let row = |concurrency, contender| figures::row(&self.measured.turns, contender, concurrency, *reference);
        concurrency.iter().flat_map(|&c| (0..contenders.len()).map(move |contender| row(c, contender))).collect()
    }

    fn name(&self, contender: usize) -> &'a str {
        &self.settings.contenders[contender].name
    }

    fn raw(&self, rows: &'a [Row]) -> anyhow::Result<RawHttp<'a>> {
        let settings = self.settings;
        let model = settings.model.file_name().context("the model has no name")?.to_string_lossy().into_owned();
        Ok(RawHttp {
            model,
            model_bytes: Some(fs::metadata(&settings.model)?).filter(fs::Metadata::is_file).map(|file| file.len()),
            reference: self.name(settings.reference),
            threads: settings.threads,
            concurrency: &settings.concurrency,
            rounds: settings.rounds,
            requests: settings.requests,
            max_tokens: settings.max_tokens,
            prompts: &self.prompts.name,
            prompts_sha256: &self.prompts.sha256,
            rows,
            differences: self.differences(),
            measured: self.measured,
        })
    }

    fn differences(&self) -> Vec<Difference<'a>> {
        let turns = &self.measured.turns;
        let mut found = Vec::new();
        for contender in (0..self.settings.contenders.len()).filter(|one| *one != self.settings.reference) {
            let own = turns.iter().filter(|turn| turn.contender == contender);
            let pairs = own.flat_map(|turn| {
                let is_twin = |twin: &&figures::Turn| {
                    twin.contender == self.settings.reference
                        && (twin.round, twin.concurrency) == (turn.round, turn.concurrency)
                };
                let twins = turns.iter().find(is_twin).map_or(&[][..], |twin| &twin.shots);
                let twin_of = move |shot: &&figures::Shot| {
                    let prompt = shot.prompt;
                    twins.iter().find(move |twin| twin.prompt == prompt && twin.error.is_none())
                };
                turn.shots
                    .iter()
                    .filter(|shot| shot.error.is_none())
                    .filter_map(move |shot| Some((shot, twin_of(&shot)?)))
            });
            let different = pairs.filter(|(shot, twin)| shot.text != twin.text).take(EXAMPLES);
            found.extend(different.map(|(shot, twin)| Difference {
                contender: self.name(contender),
                prompt: shot.prompt,
                text: &shot.text,
                reference_text: &twin.text,
            }));
        }
        found
    }

    fn text(&self, rows: &[Row]) -> String {
        let Settings { model, threads, rounds, requests, max_tokens, reference, .. } = self.settings;
        let mut text = format!(
            "\n## Over HTTP\n\n{}, {threads} threads for each server; {} of {rounds} rounds, in each {requests} requests for each \
             contender and concurrency; answers of {max_tokens} tokens{}, temperature 0; prompts {} ({}), none twice{}.\n\n",
            model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            self.measured.rounds_done,
            if self.measured.ignores_end { "" } else { " at most" },
            self.prompts.name,
            &self.prompts.sha256[..self.prompts.sha256.len().min(12)],
            if self.prompts.prompts.len() < self.settings.num_prompts() { " until they were used up" } else { "" },
        );
        text.push_str("| contender | version | command or model |\n|---|---|---|\n");
        for told in &self.measured.contenders {
            text.push_str(&format!(
                "| {} | {} | {} |\n",
                told.name,
                told.version.as_deref().unwrap_or("unknown"),
                told.command.as_ref().map_or_else(|| told.model.clone(), |command| format!("`{}`", command.join(" ")))
            ));
        }
        text.push_str(&format!(
            "\nMedian (least-most) of the rounds; the ratio is to {} in the same round. Latencies of all answers, in \
             milliseconds: p50 / p99.\n\n\
             | at a time | contender | tokens/s | ratio | requests/s | TTFT | TPOT | end to end | tokens an answer | cached \
             prompt | equal texts |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.name(*reference)
        ));
        for row in rows {
            text.push_str(&self.line(row));
        }
        for warning in self.warnings(rows) {
            text.push_str(&format!("\n- {warning}"));
        }
        text.push('\n');
        text
    }

    fn line(&self, row: &Row) -> String {
        let dash = || "-".to_owned();
        let spread = |summary: Option<Summary>, digits: usize| {
            summary.map_or_else(dash, |s| format!("{:.digits$} ({:.digits$}-{:.digits$})", s.median, s.min, s.max))
        };
        let latency =
            |latency: Option<Latency>| latency.map_or_else(dash, |l| format!("{:.1} / {:.1}", l.p50_ms, l.p99_ms));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.concurrency,
            self.name(row.contender),
            spread(row.tokens_per_s, 1),
            spread(row.ratio, 2),
            spread(row.requests_per_s, 2),
            latency(row.ttft),
            latency(row.tpot),
            latency(row.e2e),
            row.tokens_per_answer.map_or_else(dash, |mean| format!("{mean:.1}")),
            row.cached_share.map_or_else(dash, |share| format!("{:.0} %", 100.0 * share)),
            row.agreement.map_or_else(dash, |found| format!(
                "{} of {}; same beginning {:.0} %",
                found.equal,
                found.of,
                100.0 * found.same_beginning
            )),
        )
    }

    /// What a reader must know before believing the table.
    fn warnings(&self, rows: &[Row]) -> Vec<String> {
        let mut warnings = self.measured.warnings.clone();
        for row in rows {
            let who = format!("{} at {} at a time", self.name(row.contender), row.concurrency);
            if row.failed > 0 || row.skipped > 0 {
                let reason = row.first_error.as_deref().unwrap_or("unknown");
                let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
                warnings.push(format!(
                    "{who}: {} of {} requests failed and {} turns were left out; such turns have no speed and no ratio. First \
                     reason: {reason}",
                    row.failed, row.requests, row.skipped
                ));
            }
            if row.uncounted > 0 {
                warnings.push(format!("{who}: {} answers came without a count of their tokens", row.uncounted));
            }
        }
        let lengths: Vec<f64> = rows.iter().filter_map(|row| row.tokens_per_answer).collect();
        if let Some(Summary { min, max, .. }) = Summary::of(&lengths)
            && max - min > SAME_LENGTH * max
        {
            warnings.push(format!(
                "ANSWERS DIFFER IN LENGTH: {min:.1} to {max:.1} tokens by the servers' own counts. Compare tokens/s, not \
                 requests/s or end-to-end times"
            ));
        }
        warnings
    }

    fn plots(&self, out: &Path, rows: &[Row]) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let colour = |contender: usize| COLOURS[contender % COLOURS.len()];
        let figure = |row: &Row| {
            let Summary { median, min, max, .. } = row.tokens_per_s?;
            Some(Estimate { value: median, low: min, high: max })
        };
        for &concurrency in &self.settings.concurrency {
            let at = rows.iter().filter(|row| row.concurrency == concurrency);
            let bars: Vec<_> =
                at.filter_map(|row| Some((self.name(row.contender), colour(row.contender), figure(row)?))).collect();
            let title = format!("Output tokens per second, {concurrency} at a time: median and range of rounds");
            fs::write(out.join(format!("tokens-{concurrency}.svg")), plot::bars(&title, "tokens/s", &bars)?)?;
        }
        let series = |contender: usize| {
            let own = rows.iter().filter(|row| row.contender == contender);
            let point = |row: &Row| {
                let Estimate { value, low, high } = figure(row)?;
                let label = format!("{}: {value:.1} ({low:.1}-{high:.1})", self.name(contender));
                Some(Point { x: row.concurrency as f64, y: value, low, high, label })
            };
            Series {
                name: self.name(contender).to_owned(),
                colour: colour(contender),
                joined: true,
                points: own.filter_map(point).collect(),
            }
        };
        let all: Vec<Series> = (0..self.settings.contenders.len()).map(series).collect();
        let captions = Captions {
            title: "Throughput by concurrency: median and range of rounds",
            x: ("requests at a time", Scale::Powers(2.0)),
            y: ("output tokens/s", Scale::Linear),
        };
        fs::write(out.join("throughput.svg"), plot::scatter(&captions, &all)?)?;
        Ok(())
    }
}
