//! From the turns to one row for each model, batch size and strategy.

use anyhow::{Context, ensure};
use engine::Strategy;
use serde::Serialize;
use serde_json::Value;

use super::{
    catalogue::Contender,
    race::{Answer, Turn},
};
use crate::stats::{Estimate, Summary, paired_difference, wilson};

/// How one strategy did, beside the baseline of the same model and batch size.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) model: String,
    pub(super) strategy: String,
    /// The field `decoding` of a request.
    pub(super) decoding: Value,
    /// Requests at a time.
    pub(super) batch: usize,
    pub(super) is_baseline: bool,
    pub(super) num_prompts: usize,
    pub(super) tokens_per_second: Summary,
    /// Tokens per second over those of the baseline in the same round.
    pub(super) speed_up: Summary,
    /// Completion tokens over passes that scored a slot, of all rounds.
    pub(super) tokens_per_forward: f64,
    /// Rows that a pass scored for one request: the mean.
    pub(super) rows_per_pass: f64,
    /// Milliseconds in the engine for each scoring pass of a request, reading the prompt included.
    pub(super) pass_ms: f64,
    /// To the first text at the client; `None` if no answer had any.
    pub(super) first_text_ms: Option<Summary>,
    /// From submission to the end.
    pub(super) answer_ms: Summary,
    /// Prompts whose answer is that of the baseline, token for token.
    pub(super) same: Outcome,
    /// Mean share of an answer before its first difference from the baseline's.
    pub(super) common_prefix: f64,
    /// `None` without checkers.
    pub(super) right: Option<Outcome>,
    /// Prompts whose answers differ between rounds.
    pub(super) num_unstable: usize,
    /// Answers of the first round that the budget ended.
    pub(super) num_cut: usize,
    /// Prompt tokens that were not computed because an earlier request had, for each request.
    pub(super) cached_tokens: f64,
    /// `None` unless the energy of every request is known.
    pub(super) joules_per_token: Option<f64>,
    /// `None` as well if no answer is right, or nothing judges them.
    pub(super) joules_per_right: Option<f64>,
    /// Whether its greedy text is that of the baseline by design: Jacobi decoding.
    pub(super) is_exact: bool,
    /// Whether the KV cache is exact; `None` without a canvas.
    pub(super) exact_cache: Option<bool>,
}

/// How often something holds, and how that compares with the baseline on the same prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Outcome {
    pub(super) share: Estimate,
    /// Less that of the baseline; nothing for the baseline itself.
    pub(super) difference: Option<Estimate>,
    /// Prompts where it holds only here, and only for the baseline.
    pub(super) only_ours: usize,
    pub(super) only_theirs: usize,
}

impl Outcome {
    /// Of pairs of ours and the baseline's; `None` without any.
    pub(super) fn of(pairs: &[(bool, bool)], is_baseline: bool) -> Option<Self> {
        let count = |wanted: (bool, bool)| pairs.iter().filter(|pair| **pair == wanted).count();
        Some(Self {
            share: wilson(pairs.iter().filter(|(ours, _)| *ours).count(), pairs.len())?,
            difference: paired_difference(pairs.iter().copied()).filter(|_| !is_baseline),
            only_ours: count((true, false)),
            only_theirs: count((false, true)),
        })
    }
}

/// The rows of one model at one batch size, in the order of `contenders`, whose first is the baseline.
pub(super) fn rows(turns: &[Turn], model: &str, batch: usize, contenders: &[Contender]) -> anyhow::Result<Vec<Row>> {
    let of = |name: &str| -> Vec<&Turn> {
        turns.iter().filter(|turn| turn.model == model && turn.batch == batch && turn.strategy == name).collect()
    };
    let baseline = of(&contenders.first().context("no strategy")?.name);
    contenders.iter().map(|contender| row(&of(&contender.name), &baseline, contender)).collect()
}

fn row(ours: &[&Turn], baseline: &[&Turn], contender: &Contender) -> anyhow::Result<Row> {
    let (first, first_of_baseline) = ours.first().zip(baseline.first()).context("a strategy had no turn")?;
    let rounds = |turns: &[&Turn]| turns.iter().map(|turn| turn.round).collect::<Vec<_>>();
    ensure!(rounds(ours) == rounds(baseline), "`{}` and the baseline had different rounds", first.strategy);
    let speeds: Vec<f64> = ours.iter().map(|turn| turn.tokens_per_second()).collect();
    let ratios: Vec<f64> =
        ours.iter().zip(baseline).map(|(ours, theirs)| ours.tokens_per_second() / theirs.tokens_per_second()).collect();
    let answers = || ours.iter().flat_map(|turn| &turn.answers);
    let sum = |part: fn(&Answer) -> usize| answers().map(part).sum::<usize>() as f64;
    let (passes, tokens) = (sum(|answer| answer.passes), sum(|answer| answer.num_tokens));
    let is_baseline = first.strategy == first_of_baseline.strategy;
    // One round: greedy decoding answers alike in all of them, and repeats are no new evidence.
    let pairs = || first.answers.iter().zip(&first_of_baseline.answers);
    let right: Option<Vec<(bool, bool)>> = pairs().map(|(ours, theirs)| ours.right.zip(theirs.right)).collect();
    let same: Vec<(bool, bool)> = first.answers.iter().map(|answer| (answer.same_as_baseline, true)).collect();
    let joules: Option<f64> = answers().map(|answer| answer.joules).sum();
    let num_right = answers().filter(|answer| answer.right == Some(true)).count();
    let millis = |values: Vec<f64>| Summary::of(&values.iter().map(|seconds| seconds * 1e3).collect::<Vec<_>>());
    let num_answers = answers().count() as f64;
    Ok(Row {
        model: first.model.clone(),
        strategy: first.strategy.clone(),
        decoding: contender.decoding.clone(),
        batch: first.batch,
        is_baseline,
        num_prompts: first.answers.len(),
        tokens_per_second: Summary::of(&speeds).context("no rounds")?,
        speed_up: Summary::of(&ratios).context("no rounds")?,
        tokens_per_forward: tokens / passes,
        rows_per_pass: sum(|answer| answer.scored_rows) / passes,
        pass_ms: answers().map(|answer| answer.engine_seconds).sum::<f64>() * 1e3 / passes,
        first_text_ms: millis(answers().filter_map(|answer| answer.first_text_seconds).collect()),
        answer_ms: millis(answers().map(|answer| answer.seconds).collect()).context("no answers")?,
        same: Outcome::of(&same, is_baseline).context("no answers")?,
        common_prefix: first.answers.iter().map(|answer| answer.common_prefix).sum::<f64>()
            / first.answers.len() as f64,
        right: right.and_then(|pairs| Outcome::of(&pairs, is_baseline)),
        num_unstable: unstable(ours),
        num_cut: first.answers.iter().filter(|answer| answer.cut).count(),
        cached_tokens: sum(|answer| answer.cached_tokens) / num_answers,
        joules_per_token: joules.map(|joules| joules / tokens),
        joules_per_right: joules.filter(|_| num_right > 0).map(|joules| joules / num_right as f64),
        is_exact: contender.options.strategy == Strategy::Jacobi,
        exact_cache: first.answers.first().and_then(|answer| answer.exact_cache),
    })
}

/// Prompts whose tokens are not the same in all rounds.
fn unstable(turns: &[&Turn]) -> usize {
    let Some((first, others)) = turns.split_first() else { return 0 };
    let differs = |index: usize| others.iter().any(|turn| turn.answers[index].tokens != first.answers[index].tokens);
    (0..first.answers.len()).filter(|index| differs(*index)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategies::race::tests::{answer, turn};

    fn contender(text: &str) -> Contender {
        Contender::parse(text).unwrap()
    }

    /// Two rounds of two prompts: in the first all is twice as slow, and `other` is wrong about the second prompt.
    fn turns(joules: Option<f64>) -> Vec<Turn> {
        let ours = |second: bool| {
            let mut answers = vec![answer(&[1, 2, 3, 4], true, Some(3.0)), answer(&[5, 6], second, joules)];
            answers[1].same_as_baseline = false;
            answers[1].common_prefix = 0.5;
            answers
        };
        let theirs = || vec![answer(&[1, 2, 3, 4], true, Some(3.0)), answer(&[5, 7], true, Some(1.0))];
        vec![
            turn("other", 1, 4.0, ours(false)),
            turn("ar", 1, 8.0, theirs()),
            turn("ar", 2, 4.0, theirs()),
            turn("other", 2, 1.0, ours(true)),
        ]
    }

    #[test]
    fn ratios_are_of_one_round_and_answers_of_the_first() {
        let contenders = [contender("ar={}"), contender(r#"other={"strategy": "jacobi"}"#)];
        let rows = rows(&turns(Some(1.0)), "m", 1, &contenders).unwrap();
        let [baseline, other] = &rows[..] else { panic!("two rows") };
        assert!(baseline.is_baseline && baseline.right.unwrap().difference.is_none());
        assert_eq!(baseline.speed_up, Summary::of(&[1.0, 1.0]).unwrap());
        assert_eq!((other.speed_up.min, other.speed_up.max), (2.0, 4.0), "not 8 and 1, across rounds");
        assert_eq!((other.tokens_per_second.min, other.tokens_per_second.max), (1.5, 6.0));
        assert_eq!(other.tokens_per_forward, 2.0, "6 tokens in 3 passes, in both rounds");
        assert_eq!((other.rows_per_pass, other.pass_ms), (8.0, 250.0 * 2.0 / 3.0));
        let right = other.right.unwrap();
        assert_eq!((right.share.value, right.difference.unwrap().value, right.only_theirs), (0.5, -0.5, 1));
        assert_eq!((other.same.share.value, other.common_prefix, other.num_unstable), (0.5, 0.75, 0));
        assert_eq!(other.joules_per_token, Some(8.0 / 12.0));
        assert_eq!(other.joules_per_right, Some(8.0 / 3.0), "three of four answers are right");
        assert!(other.is_exact && !baseline.is_exact);
    }

    #[test]
    fn one_request_of_unknown_energy_leaves_none() {
        let contenders = [contender("ar={}"), contender("other={}")];
        let rows = rows(&turns(None), "m", 1, &contenders).unwrap();
        assert_eq!((rows[1].joules_per_token, rows[1].joules_per_right), (None, None));
        assert_eq!(rows[0].joules_per_token, Some(8.0 / 12.0));
    }

    #[test]
    fn answers_that_change_between_rounds_are_counted_and_rounds_must_match() {
        let contenders = [contender("ar={}"), contender("other={}")];
        let mut turns = turns(None);
        turns[3].answers[0] = answer(&[1, 2, 3, 9], true, None);
        assert_eq!(rows(&turns, "m", 1, &contenders).unwrap()[1].num_unstable, 1);
        turns.pop();
        assert!(rows(&turns, "m", 1, &contenders).is_err());
        assert!(rows(&turns, "m", 2, &contenders).is_err(), "no turn at that batch size");
    }
}
