//! The table, the plot, and the files.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;

use super::{
    advice::{Rule, judged},
    race::{Refused, Turn},
    row::Row,
    words::{pass_times, points, recommendation, times, unsteady, warnings},
};
use crate::{
    hardware::Hardware,
    plot::{self, Captions, Point, Scale, Series},
    report,
    stats::{Estimate, Summary},
};

/// Told apart by eye, also in pairs.
const COLOURS: [&str; 8] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2"];

/// Facts of one model.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) family: String,
    pub(super) num_params: usize,
    pub(super) weights_mib: usize,
    pub(super) max_tokens: usize,
    /// The engine's own times: rows, milliseconds. Empty where the engine does not measure them.
    pub(super) pass_millis: Vec<(usize, f64)>,
}

/// What ran, and on what.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    pub(super) command: Vec<String>,
    pub(super) version: &'static str,
    /// `release` or `debug`.
    pub(super) build: &'static str,
    pub(super) hardware: Hardware,
    pub(super) threads: usize,
    pub(super) quantize: String,
    pub(super) prompts: String,
    pub(super) rounds: usize,
    pub(super) seed: u64,
    /// The rails that joules cover, or why there are none.
    pub(super) energy: Result<String, String>,
    pub(super) models: Vec<Model>,
    /// Points of accuracy that may be lost.
    pub(super) margin: f64,
}

/// Everything that was found.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) run: Run,
    /// By model, then batch size, then strategy.
    pub(super) groups: Vec<Vec<Row>>,
    pub(super) refused: Vec<Refused>,
    pub(super) turns: Vec<Turn>,
}

impl Findings {
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.groups.iter().flatten()
    }

    fn have_checkers(&self) -> bool {
        self.rows().all(|row| row.right.is_some())
    }

    /// The whole text, in Markdown.
    pub(super) fn summary(&self, rule: Rule) -> String {
        let mut sections = vec![head(&self.run), format!("## On this machine\n\n{}", self.advice(rule))];
        let warnings = self.warnings();
        if !warnings.is_empty() {
            sections.push(format!("## Tokens per forward that do not become speed\n\n{}", list(&warnings)));
        }
        sections.push(format!("## Strategies\n\n{}", table(&self.groups, self.has_joules())));
        sections.push(self.energy_line());
        if !self.refused.is_empty() {
            let line = |refused: &Refused| format!("{}, `{}`: {}", refused.model, refused.strategy, refused.reason);
            let lines: Vec<String> = self.refused.iter().map(line).collect();
            sections.push(format!("Refused by the model, so not run:\n\n{}", list(&lines)));
        }
        sections.push(format!("## How it was counted\n\n{}", list(&self.notes(rule))));
        sections.join("\n")
    }

    /// For one request at a time, or the fewest, and for the most.
    fn advice(&self, rule: Rule) -> String {
        let batches = || self.rows().map(|row| row.batch);
        let (fewest, most) = (batches().min(), batches().max());
        let batch = |group: &[Row]| group.first().map(|row| row.batch);
        let wanted = self.groups.iter().filter(|group| [fewest, most].contains(&batch(group)));
        let mut lines: Vec<String> = wanted.map(|group| recommendation(group, rule, batch(group) == most)).collect();
        lines.extend(self.groups.iter().filter_map(|group| unsteady(group)));
        list(&lines)
    }

    fn warnings(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.groups.iter().flat_map(|group| warnings(group)).collect();
        if !lines.is_empty() {
            lines.extend(self.run.models.iter().filter_map(|model| pass_times(&model.name, &model.pass_millis)));
        }
        lines
    }

    fn has_joules(&self) -> bool {
        self.rows().any(|row| row.joules_per_token.is_some())
    }

    fn energy_line(&self) -> String {
        let why = self.turns.iter().flat_map(|turn| &turn.answers).find_map(|answer| answer.no_joules.as_deref());
        match (&self.run.energy, why) {
            (Ok(basis), None) => format!("Joules are those of the basis `{basis}`, attributed to each request.\n"),
            (Ok(basis), Some(why)) => {
                format!(
                    "Joules are those of the basis `{basis}`; where there are none, some request has none: {why}.\n"
                )
            }
            (Err(reason), _) => format!("No joules: {reason}.\n"),
        }
    }

    fn notes(&self, rule: Rule) -> Vec<String> {
        let run = &self.run;
        let unstable = self.rows().map(|row| row.num_unstable).max().unwrap_or(0);
        let cached = self.rows().map(|row| row.cached_tokens).fold(0.0, f64::max);
        let mut notes = vec![
            format!("{}. Greedy, {} rounds after one that warms up. In each, all strategies take a turn at the same prompts, \
                     and who begins changes.", run.prompts, run.rounds),
            "Tokens per second: completion tokens of a turn, end tokens included, over its time by the clock. The ratio to \
             the baseline is taken within a round; shown are median, least and most of the rounds.".into(),
            "Baselines: `ar` of causal models, and `one-a-pass` of diffusion models, the fixed quota with as many steps as \
             slots.".into(),
            "Tokens per forward: completion tokens over passes that scored a slot of the request, the one that ends the \
             prompt among them. A canvas may need passes for slots behind the end of the text, so `one-a-pass` can be below \
             1.".into(),
            "Same text: prompts whose answer is the baseline's, token for token, in the first round. Common prefix: tokens \
             before the first difference over those of the longer answer, the mean of the prompts.".into(),
            "Times to the first text and of an answer: from submission, at the client; medians of all requests.".into(),
            format!("Of the prompts of a strategy, {unstable} at most had another answer in another round."),
            format!("Earlier requests had computed {cached:.1} tokens of a prompt at most, in the mean of a strategy; the \
                     round that warms up gives all strategies the same start."),
        ];
        if self.have_checkers() {
            notes.push(
                "Right: the checker accepts the whole text; Wilson's interval. Points against the baseline: the same \
                        prompts, Wald with half a trial added to each cell."
                    .into(),
            );
        }
        notes.push(format!(
            "Advice: the fastest strategy whose {} lies within {} points of the baseline's with the whole 95 % interval, if \
             no round was slower than the baseline, and its median gain is at least {} % and above half of the range of \
             the rounds.",
            if self.have_checkers() { "accuracy" } else { "share of texts that are the baseline's" },
            rule.margin * 100.0,
            rule.least_gain * 100.0
        ));
        if run.build == "debug" {
            notes.push("This is a debug build: its speeds say nothing of a release build.".into());
        }
        notes
    }

    /// Writes `summary.md`, `raw.json` and `accuracy-speed.svg`.
    pub(super) fn save(&self, folder: &Path, summary: &str) -> anyhow::Result<()> {
        let raw = json!({
            "run": self.run, "rows": self.groups.concat(), "refused": self.refused, "turns": self.turns,
        });
        report::save(folder, summary, &raw)?;
        let path = folder.join("accuracy-speed.svg");
        fs::write(&path, plot(&self.groups)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("- {line}\n")).collect()
}

fn head(run: &Run) -> String {
    let mut text = format!(
        "# Strategies\n\n`{}`\n\nversion {} ({}), commit {}, {} ({} cores, {}), {} threads, weights {}\n\n",
        run.command.join(" "),
        run.version,
        run.build,
        run.hardware.commit.as_deref().unwrap_or("unknown"),
        run.hardware.cpu,
        run.hardware.cores,
        run.hardware.features.join(" "),
        run.threads,
        run.quantize,
    );
    for model in &run.models {
        let Model { name, family, num_params, weights_mib, max_tokens, .. } = model;
        text.push_str(&format!(
            "- {name}: family `{family}`, {num_params} parameters, {weights_mib} MiB of weights, at most {max_tokens} tokens an answer\n"
        ));
    }
    text
}

/// A share in percent with its interval.
fn percent(share: Estimate) -> String {
    let Estimate { value, low, high } = share.times(100.0);
    format!("{value:.1} ({low:.1} to {high:.1})")
}

/// All rows. Columns that no row has are left out.
pub(super) fn table(groups: &[Vec<Row>], has_joules: bool) -> String {
    let rows = || groups.iter().flatten();
    let has_checkers = rows().any(|row| row.right.is_some());
    let mut names = vec![
        "model",
        "strategy",
        "at a time",
        "tok/s",
        "x baseline",
        "tok/forward",
        "first text, ms",
        "answer, ms",
        "same text, %",
        "common prefix, %",
    ];
    if has_checkers {
        names.extend(["right, %", "against the baseline, points"]);
    }
    if has_joules {
        names.extend(["J/token", "J/right answer"]);
    }
    let mut text = format!("| {} |\n|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for row in rows() {
        let mut cells = cells(row);
        if has_checkers {
            let right = row.right;
            cells.push(right.map_or("-".into(), |right| percent(right.share)));
            cells.push(right.and_then(|right| right.difference).map_or("-".into(), points));
        }
        if has_joules {
            let joules = |value: Option<f64>| value.map_or("-".into(), |joules| format!("{joules:.4}"));
            cells.extend([joules(row.joules_per_token), joules(row.joules_per_right)]);
        }
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let millis = |summary: Summary| format!("{:.1}", summary.median);
    vec![
        row.model.clone(),
        row.strategy.clone(),
        row.batch.to_string(),
        format!("{:.1}", row.tokens_per_second.median),
        if row.is_baseline { "1".into() } else { times(row.speed_up) },
        format!("{:.2}", row.tokens_per_forward),
        row.first_text_ms.map_or("-".into(), millis),
        millis(row.answer_ms),
        if row.is_baseline { "-".into() } else { format!("{:.1}", row.same.share.value * 100.0) },
        if row.is_baseline { "-".into() } else { format!("{:.1}", row.common_prefix * 100.0) },
    ]
}

/// Accuracy against speed: a colour for each model and batch size, the best of all joined. Without checkers, texts that
/// are the baseline's against speed.
pub(super) fn plot(groups: &[Vec<Row>]) -> anyhow::Result<String> {
    let point = |row: &Row| {
        let share = judged(row).share.times(100.0);
        let label = format!("{}: {} times, {} %", row.strategy, times(row.speed_up), percent(judged(row).share));
        Point { x: row.speed_up.median, y: share.value, low: share.low, high: share.high, label }
    };
    let series = |(index, rows): (usize, &Vec<Row>)| {
        let first = rows.first()?;
        let name = format!("{}, {} at a time", first.model, first.batch);
        let points = rows.iter().map(point).collect();
        Some(Series { name, colour: COLOURS[index % COLOURS.len()], joined: false, points })
    };
    let mut series: Vec<Series> = groups.iter().enumerate().filter_map(series).collect();
    let all: Vec<Point> = series.iter().flat_map(|series| series.points.clone()).collect();
    // Behind the points, whose colours must show.
    series.insert(0, Series { name: "best".into(), colour: "#999", joined: true, points: front(&all) });
    let has_checkers = groups.iter().flatten().all(|row| row.right.is_some());
    let y = if has_checkers { "right answers, %" } else { "texts that are the baseline's, %" };
    let captions = Captions {
        title: if has_checkers { "Accuracy against speed" } else { "Agreement against speed" },
        x: ("times as fast as the baseline of the same model", Scale::Linear),
        y: (y, Scale::Linear),
    };
    Ok(plot::named_scatter(&captions, &series)?)
}

/// Points that none other beats in both, from the slowest to the fastest. Their intervals and names are not drawn again.
fn front(points: &[Point]) -> Vec<Point> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| b.x.total_cmp(&a.x).then(b.y.total_cmp(&a.y)));
    let mut best = f64::NEG_INFINITY;
    let mut front: Vec<Point> = Vec::new();
    for point in sorted {
        if point.y > best {
            best = point.y;
            front.push(Point { low: point.y, high: point.y, label: String::new(), ..point.clone() });
        }
    }
    front.reverse();
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let at = |x: f64, y: f64| Point { x, y, low: 0.0, high: 100.0, label: "a".into() };
        let front = front(&[at(1.0, 90.0), at(2.0, 95.0), at(3.0, 80.0), at(2.5, 70.0), at(3.0, 60.0)]);
        assert_eq!(front.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>(), [(2.0, 95.0), (3.0, 80.0)]);
    }
}
