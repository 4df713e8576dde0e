//! What to use, from the measured rows.

use super::row::{Outcome, Row};
use crate::stats::{Summary, paired_difference};

/// Most prompts that anybody is told to measure.
const MOST_PROMPTS: usize = 1_000_000;

/// When a strategy is worth its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    /// Accuracy that may be lost, as a share.
    pub(super) margin: f64,
    /// Speed that must at least be gained, as a share.
    pub(super) least_gain: f64,
}

/// Whether the answers are as good as the baseline's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quality {
    /// The whole interval of the difference lies above the margin, or the text is the baseline's by design and was so.
    Kept,
    /// The whole interval lies below it.
    Lost,
    /// Neither.
    Untold {
        /// About how many prompts would show that it is kept, if it goes on like this; `None` if it would be lost.
        needed: Option<usize>,
    },
}

/// What is advised for one model at one batch size.
#[derive(Debug)]
pub(super) struct Advice<'a> {
    /// `None`: the baseline.
    pub(super) best: Option<&'a Row>,
    /// Faster than what is advised, and it cannot be told whether the answers are as good.
    pub(super) untold: Vec<(&'a Row, Option<usize>)>,
    /// Faster than what is advised, and the answers are worse.
    pub(super) worse: Vec<&'a Row>,
}

/// Whether the gain is beyond the spread: no round is slower than the baseline, the median gain is larger than half of the
/// range of the rounds, and at least the least that counts. A single round has no spread and shows nothing.
pub(super) fn is_faster(speed_up: Summary, rule: Rule) -> bool {
    let gain = speed_up.median - 1.0;
    speed_up.runs > 1 && speed_up.min > 1.0 && gain > (speed_up.max - speed_up.min) / 2.0 && gain >= rule.least_gain
}

/// Answers that are right where something judges them, else answers that are the baseline's.
pub(super) fn judged(row: &Row) -> &Outcome {
    row.right.as_ref().unwrap_or(&row.same)
}

pub(super) fn quality(row: &Row, rule: Rule) -> Quality {
    let outcome = judged(row);
    let Some(difference) = outcome.difference else { return Quality::Kept };
    let is_copy = row.is_exact && row.same.only_theirs == 0;
    if is_copy || difference.low >= -rule.margin {
        Quality::Kept
    } else if difference.high < -rule.margin {
        Quality::Lost
    } else {
        Quality::Untold { needed: needed(outcome, row.num_prompts, rule.margin) }
    }
}

/// Fewest prompts for which the interval would lie above the margin if the shares stayed as they are; `None` if the
/// difference itself does not, or no reasonable number would do.
fn needed(outcome: &Outcome, num_prompts: usize, margin: f64) -> Option<usize> {
    let scaled = |count: usize, prompts: usize| (count as f64 / num_prompts as f64 * prompts as f64).round() as usize;
    let is_enough = |prompts: usize| {
        let (ours, theirs) = (scaled(outcome.only_ours, prompts), scaled(outcome.only_theirs, prompts));
        let pair = |index| (index < ours, (ours..ours + theirs).contains(&index));
        paired_difference((0..prompts).map(pair)).is_some_and(|difference| difference.low >= -margin)
    };
    if (outcome.only_ours as f64 - outcome.only_theirs as f64) / num_prompts as f64 <= -margin {
        return None;
    }
    let mut enough = num_prompts;
    while !is_enough(enough) {
        enough *= 2;
        if enough > MOST_PROMPTS {
            return None;
        }
    }
    let mut few = enough / 2;
    while enough - few > 1 {
        let middle = (few + enough) / 2;
        if is_enough(middle) { enough = middle } else { few = middle }
    }
    Some(enough)
}

/// The fastest strategy whose answers are as good as the baseline's, if its gain is beyond the spread. `rows` are those of
/// one model at one batch size.
pub(super) fn advise(rows: &[Row], rule: Rule) -> Advice<'_> {
    let mut faster: Vec<&Row> = rows.iter().filter(|row| !row.is_baseline && is_faster(row.speed_up, rule)).collect();
    faster.sort_by(|a, b| b.speed_up.median.total_cmp(&a.speed_up.median));
    let mut advice = Advice { best: None, untold: Vec::new(), worse: Vec::new() };
    for row in faster {
        match quality(row, rule) {
            Quality::Kept => {
                advice.best = Some(row);
                break;
            }
            Quality::Untold { needed } => advice.untold.push((row, needed)),
            Quality::Lost => advice.worse.push(row),
        }
    }
    advice
}

/// Tokens per forward that do not become speed: how many times as many as the baseline's, how many times the speed, and
/// how many times as long a pass takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Loss {
    pub(super) tokens: f64,
    pub(super) speed: f64,
    pub(super) pass: f64,
}

/// `None` where most of the tokens are speed.
pub(super) fn loss(row: &Row, baseline: &Row) -> Option<Loss> {
    let loss = Loss {
        tokens: row.tokens_per_forward / baseline.tokens_per_forward,
        speed: row.speed_up.median,
        pass: row.pass_ms / baseline.pass_ms,
    };
    (loss.tokens >= 1.2 && loss.speed < 0.75 * loss.tokens).then_some(loss)
}
