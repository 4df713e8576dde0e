//! What the parts found: rows with goals, sections of the summary, and the raw data behind them.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;
use zoo::tasks::Task;

use super::{
    exam::{Answer, Sitting},
    race::Lane,
};
use crate::stats::Estimate;

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A share, written in percent.
    Percent,
    /// A difference of shares, written in points.
    Points,
    /// A ratio of speeds.
    Times,
    /// As it is.
    Plain,
}

impl Unit {
    fn scale(self) -> f64 {
        match self {
            Self::Percent | Self::Points => 100.0,
            Self::Times | Self::Plain => 1.0,
        }
    }

    /// `value` in this unit's scale.
    fn number(self, value: f64) -> String {
        match self {
            Self::Percent => format!("{value:.1}"),
            // Rounding must not leave a sign on zero.
            Self::Points => format!("{:+.1}", (value * 10.0).round() / 10.0 + 0.0),
            Self::Times | Self::Plain => format!("{value:.2}"),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Percent => " %",
            Self::Points => " points",
            Self::Times => "x",
            Self::Plain => "",
        }
    }

    /// A figure with its interval.
    pub(super) fn write(self, estimate: Estimate) -> String {
        let scaled = estimate.times(self.scale());
        let (low, high) = (self.number(scaled.low), self.number(scaled.high));
        format!("{}{} ({low} to {high})", self.number(scaled.value), self.suffix())
    }

    /// The same for a figure that may be missing.
    pub(super) fn write_or_dash(self, estimate: Option<Estimate>) -> String {
        estimate.map_or("-".into(), |estimate| self.write(estimate))
    }
}

/// What a figure should reach, in the unit's scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Goal {
    pub(super) floor: f64,
    pub(super) aim: f64,
    pub(super) lower_is_better: bool,
}

impl Goal {
    pub(super) fn at_least(floor: f64, aim: f64) -> Self {
        Self { floor, aim, lower_is_better: false }
    }

    pub(super) fn at_most(floor: f64, aim: f64) -> Self {
        Self { floor, aim, lower_is_better: true }
    }

    /// The better bound that the estimate meets, and whether its whole interval does.
    fn judge(self, unit: Unit, estimate: Estimate) -> String {
        let scaled = estimate.times(unit.scale());
        let meets = |value: f64, bound: f64| if self.lower_is_better { value <= bound } else { value >= bound };
        let worst = if self.lower_is_better { scaled.high } else { scaled.low };
        let (word, bound) = match (meets(scaled.value, self.aim), meets(scaled.value, self.floor)) {
            (true, _) => ("aim", self.aim),
            (false, true) => ("floor", self.floor),
            (false, false) => return "**missed**".into(),
        };
        if meets(worst, bound) { word.into() } else { format!("{word}; the interval reaches beyond it") }
    }
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    what: String,
    figure: String,
    floor: String,
    aim: String,
    met: String,
    estimate: Option<Estimate>,
}

/// Everything found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) rows: Vec<Row>,
    /// Markdown below the table.
    pub(super) sections: Vec<String>,
    pub(super) sittings: Vec<Sitting>,
    pub(super) lanes: Vec<Lane>,
}

impl Findings {
    /// Adds a line with a goal.
    pub(super) fn judged(&mut self, what: impl Into<String>, unit: Unit, estimate: Option<Estimate>, goal: Goal) {
        let bound = |value| format!("{}{}", unit.number(value), unit.suffix());
        self.rows.push(Row {
            what: what.into(),
            figure: unit.write_or_dash(estimate),
            floor: bound(goal.floor),
            aim: bound(goal.aim),
            met: estimate.map_or("not measured".into(), |estimate| goal.judge(unit, estimate)),
            estimate,
        });
    }

    /// Adds a line without one.
    pub(super) fn reported(&mut self, what: impl Into<String>, unit: Unit, estimate: Option<Estimate>) {
        let blank = || "-".to_owned();
        let figure = unit.write_or_dash(estimate);
        self.rows.push(Row { what: what.into(), figure, floor: blank(), aim: blank(), met: blank(), estimate });
    }

    /// The table of goals.
    pub(super) fn table(&self) -> String {
        let mut text = "| what | figure (95 % interval; for times, range of rounds) | floor | aim | met |\n\
                        |---|---|---|---|---|\n"
            .to_owned();
        for Row { what, figure, floor, aim, met, .. } in &self.rows {
            text.push_str(&format!("| {what} | {figure} | {floor} | {aim} | {met} |\n"));
        }
        text
    }
}

/// A section with [`task_table`].
pub(super) fn by_task(title: &str, sittings: &[&Sitting], seed: u64) -> String {
    format!("## {title}\n\n{}", task_table(sittings, seed))
}

/// Accuracy and tokens per forward of sittings, a line for each task.
pub(super) fn task_table(sittings: &[&Sitting], seed: u64) -> String {
    let mut text = "| model | method | task | right | tokens per forward | without the first pass | characters per \
                    forward | passes | tokens | cut |\n|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for sitting in sittings {
        for (name, wanted) in scopes() {
            let tally = sitting.tally(&wanted);
            if tally.problems == 0 {
                continue;
            }
            text.push_str(&format!(
                "| {} | {} | {name} | {} | {} | {} | {:.2} | {} | {} | {} |\n",
                sitting.model,
                sitting.method,
                Unit::Percent.write_or_dash(tally.accuracy()),
                Unit::Plain.write_or_dash(sitting.tokens_per_forward(seed, &wanted)),
                tally.after_first().map_or("-".into(), |rate| format!("{rate:.2}")),
                tally.per_pass(tally.chars),
                tally.passes,
                tally.tokens,
                tally.cut,
            ));
        }
    }
    text
}

type Scope = Box<dyn Fn(Task) -> bool>;

/// Each task, all of them, and all but the serial control.
fn scopes() -> Vec<(&'static str, Scope)> {
    let one = |task: Task| (task.name(), Box::new(move |other| other == task) as Scope);
    let mut scopes: Vec<_> = Task::ALL.into_iter().map(one).collect();
    scopes.push(("all", Box::new(|_| true)));
    scopes.push(("all but chain", Box::new(|task| task != Task::Chain)));
    scopes
}

/// Writes `summary.md` and `raw.json`: `head` with the rows, the timed lanes, and every answer, a sitting's task a line.
pub(super) fn save(
    folder: &Path,
    summary: &str,
    mut head: serde_json::Value,
    findings: &Findings,
) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(folder.join("summary.md"), summary)?;
    head["rows"] = serde_json::to_value(&findings.rows)?;
    head["timed"] = serde_json::to_value(&findings.lanes)?;
    head["columns"] = json!(["index", "correct", "tokens", "first_tokens", "chars", "passes", "seconds"]);
    let head = serde_json::to_string_pretty(&head)?;
    let head = head.trim_end().strip_suffix('}').context("an object ends with a brace")?.trim_end();
    let lines = findings.sittings.iter().flat_map(sitting_lines).collect::<Result<Vec<_>, _>>()?;
    let raw = format!("{head},\n  \"sittings\": [\n    {}\n  ]\n}}\n", lines.join(",\n    "));
    fs::write(folder.join("raw.json"), raw)?;
    Ok(())
}

/// Wrong answers of a task that are kept in full.
const KEPT_MISTAKES: usize = 3;

fn sitting_lines(sitting: &Sitting) -> Vec<serde_json::Result<String>> {
    let line = |task: Task| {
        let answers: Vec<&Answer> = sitting.answers.iter().filter(|answer| answer.task == task).collect();
        let row = |answer: &&Answer| {
            // Microseconds are enough, and short.
            let seconds = (answer.engine.as_secs_f64() * 1e6).round() / 1e6;
            let correct = u8::from(answer.correct());
            let chars = answer.text.chars().count();
            json!([answer.index, correct, answer.num_tokens, answer.first_tokens, chars, answer.passes, seconds])
        };
        let wrong = answers.iter().filter(|answer| !answer.correct()).take(KEPT_MISTAKES);
        serde_json::to_string(&json!({
            "model": sitting.model,
            "strategy": sitting.method,
            "task": task,
            "mistakes": wrong.map(|answer| json!([answer.index, answer.wrong, answer.text])).collect::<Vec<_>>(),
            "answers": answers.iter().map(row).collect::<Vec<_>>(),
        }))
    };
    Task::ALL.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64, low: f64, high: f64) -> Estimate {
        Estimate { value, low, high }
    }

    #[test]
    fn goals_look_at_the_estimate_and_at_its_interval() {
        let goal = Goal::at_least(80.0, 95.0);
        let judge = |value, low, high| goal.judge(Unit::Percent, estimate(value, low, high));
        assert_eq!(judge(0.96, 0.955, 0.97), "aim");
        assert_eq!(judge(0.96, 0.94, 0.97), "aim; the interval reaches beyond it");
        assert_eq!(judge(0.9, 0.85, 0.96), "floor");
        assert_eq!(judge(0.79, 0.7, 0.85), "**missed**");
        let goal = Goal::at_most(25.0, 14.2);
        assert_eq!(goal.judge(Unit::Percent, estimate(0.142, 0.13, 0.142)), "aim");
        assert_eq!(goal.judge(Unit::Percent, estimate(0.2, 0.19, 0.26)), "floor; the interval reaches beyond it");
        assert_eq!(goal.judge(Unit::Percent, estimate(0.3, 0.2, 0.4)), "**missed**");
    }

    #[test]
    fn figures_are_written_in_their_unit() {
        assert_eq!(Unit::Percent.write(estimate(0.5, 0.25, 1.0)), "50.0 % (25.0 to 100.0)");
        assert_eq!(Unit::Points.write(estimate(-0.0001, -0.01, 0.002)), "+0.0 points (-1.0 to +0.2)");
        assert_eq!(Unit::Times.write(estimate(2.0, 1.5, 2.25)), "2.00x (1.50 to 2.25)");
        assert_eq!(Unit::Plain.write_or_dash(None), "-");
    }
}
