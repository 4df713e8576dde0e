//! From single requests to the figures of a contender, and to its ratios to the reference.

use serde::Serialize;

use crate::stats::{Summary, quantile};

/// One request and what came of it. Times are milliseconds at the client.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shot {
    /// Number of its prompt in the run.
    pub(super) prompt: u64,
    /// From sending to the first text.
    pub(super) ttft_ms: Option<f64>,
    /// From sending to the last event of the answer.
    pub(super) e2e_ms: Option<f64>,
    /// From the first text to the last, for each token but the first.
    pub(super) tpot_ms: Option<f64>,
    /// Tokens as the server's `usage` counts them.
    pub(super) prompt_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    pub(super) tokens: Option<u64>,
    #[serde(skip)]
    pub(super) text: String,
    /// Why there is no whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What one contender did in one turn.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Turn {
    /// 0 is the warm-up.
    pub(super) round: usize,
    pub(super) concurrency: usize,
    /// Place in the list of contenders.
    pub(super) contender: usize,
    /// Place in the order of the round.
    pub(super) place: usize,
    /// From the first request sent to the last answer.
    pub(super) seconds: f64,
    pub(super) shots: Vec<Shot>,
    /// Why it was not asked at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skipped: Option<String>,
}

impl Turn {
    /// Whether every request was answered; only then it has speeds.
    pub(super) fn is_whole(&self) -> bool {
        self.skipped.is_none() && !self.shots.is_empty() && self.shots.iter().all(|shot| shot.error.is_none())
    }

    /// Output tokens a second; `None` if a request failed or the server did not count.
    pub(super) fn tokens_per_s(&self) -> Option<f64> {
        let tokens: Option<u64> = self.shots.iter().map(|shot| shot.tokens).sum();
        tokens.filter(|_| self.is_whole()).map(|tokens| tokens as f64 / self.seconds)
    }

    /// Answers a second; `None` if a request failed.
    fn requests_per_s(&self) -> Option<f64> {
        self.is_whole().then(|| self.shots.len() as f64 / self.seconds)
    }
}

/// Median and 99th percentile, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Latency {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then(|| Self { p50_ms: quantile(&sorted, 0.5), p99_ms: quantile(&sorted, 0.99) })
    }
}

/// Texts of a contender beside those of the reference, on the same prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Agreement {
    pub(super) equal: usize,
    /// Prompts that both answered.
    pub(super) of: usize,
    /// Mean share of the longer text before the two differ.
    pub(super) same_beginning: f64,
}

/// The figures of a contender at one concurrency over all measured rounds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) contender: usize,
    pub(super) concurrency: usize,
    /// Over the rounds in which no request failed.
    pub(super) tokens_per_s: Option<Summary>,
    pub(super) requests_per_s: Option<Summary>,
    /// Tokens a second over those of the reference in the same round.
    pub(super) ratio: Option<Summary>,
    /// Of all answers of all rounds.
    pub(super) ttft: Option<Latency>,
    pub(super) tpot: Option<Latency>,
    pub(super) e2e: Option<Latency>,
    pub(super) requests: usize,
    pub(super) failed: usize,
    /// Turns that were left out, with the first reason.
    pub(super) skipped: usize,
    pub(super) first_error: Option<String>,
    /// Mean output tokens of an answer.
    pub(super) tokens_per_answer: Option<f64>,
    /// Share of the prompt tokens that the server had not to compute, where it tells.
    pub(super) cached_share: Option<f64>,
    /// Answers whose server did not count their tokens.
    pub(super) uncounted: usize,
    pub(super) agreement: Option<Agreement>,
}

/// Figures of `contender` at `concurrency`; `reference` is whom it is compared with.
pub(super) fn row(turns: &[Turn], contender: usize, concurrency: usize, reference: usize) -> Row {
    let of = |wanted: usize| -> Vec<&Turn> {
        let is_wanted = |turn: &&Turn| turn.round > 0 && turn.contender == wanted && turn.concurrency == concurrency;
        turns.iter().filter(is_wanted).collect()
    };
    let (own, other) = (of(contender), of(reference));
    let twin = |turn: &Turn| other.iter().find(|twin| twin.round == turn.round).copied();
    let speeds: Vec<f64> = own.iter().filter_map(|turn| turn.tokens_per_s()).collect();
    let rates: Vec<f64> = own.iter().filter_map(|turn| turn.requests_per_s()).collect();
    let ratios: Vec<f64> =
        own.iter().filter_map(|turn| Some(turn.tokens_per_s()? / twin(turn)?.tokens_per_s()?)).collect();
    let shots: Vec<&Shot> = own.iter().flat_map(|turn| &turn.shots).collect();
    let good: Vec<&Shot> = shots.iter().filter(|shot| shot.error.is_none()).copied().collect();
    let counted: Vec<u64> = good.iter().filter_map(|shot| shot.tokens).collect();
    let errors = own.iter().filter_map(|turn| turn.skipped.as_ref());
    let mut errors = shots.iter().filter_map(|shot| shot.error.as_ref()).chain(errors);
    let pairs = own.iter().filter_map(|turn| Some((*turn, twin(turn)?)));
    Row {
        contender,
        concurrency,
        tokens_per_s: Summary::of(&speeds),
        requests_per_s: Summary::of(&rates),
        ratio: Summary::of(&ratios).filter(|_| contender != reference),
        ttft: Latency::of(good.iter().filter_map(|shot| shot.ttft_ms)),
        tpot: Latency::of(good.iter().filter_map(|shot| shot.tpot_ms)),
        e2e: Latency::of(good.iter().filter_map(|shot| shot.e2e_ms)),
        requests: shots.len(),
        failed: shots.len() - good.len(),
        skipped: own.iter().filter(|turn| turn.skipped.is_some()).count(),
        first_error: errors.next().cloned(),
        tokens_per_answer: mean(counted.iter().map(|tokens| *tokens as f64)),
        cached_share: cached_share(&good),
        uncounted: good.len() - counted.len(),
        agreement: (contender != reference).then(|| agreement(pairs)).flatten(),
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len();
    (count > 0).then(|| values.sum::<f64>() / count as f64)
}

fn cached_share(shots: &[&Shot]) -> Option<f64> {
    let told = shots.iter().filter_map(|shot| Some((shot.cached_tokens?, shot.prompt_tokens?)));
    let (cached, all) = told.fold((0, 0), |sum, (cached, all)| (sum.0 + cached, sum.1 + all));
    (all > 0).then(|| cached as f64 / all as f64)
}

fn agreement<'a>(pairs: impl Iterator<Item = (&'a Turn, &'a Turn)>) -> Option<Agreement> {
    let mut found = Agreement::default();
    for (own, other) in pairs {
        for shot in own.shots.iter().filter(|shot| shot.error.is_none()) {
            let twin = other.shots.iter().find(|twin| twin.prompt == shot.prompt && twin.error.is_none());
            let Some(twin) = twin else { continue };
            found.of += 1;
            found.equal += usize::from(shot.text == twin.text);
            found.same_beginning += same_beginning(&shot.text, &twin.text);
        }
    }
    (found.of > 0).then(|| Agreement { same_beginning: found.same_beginning / found.of as f64, ..found })
}

/// Share of the longer text before the two differ, in bytes; 1 for two empty texts.
fn same_beginning(one: &str, other: &str) -> f64 {
    let longer = one.len().max(other.len());
    let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    if longer == 0 { 1.0 } else { same as f64 / longer as f64 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn shot(prompt: u64, tokens: u64, text: &str) -> Shot {
        Shot {
            prompt,
            ttft_ms: Some(10.0 + prompt as f64),
            e2e_ms: Some(100.0),
            tpot_ms: Some(5.0),
            prompt_tokens: Some(40),
            cached_tokens: Some(10),
            tokens: Some(tokens),
            text: text.into(),
            error: None,
        }
    }

    pub(crate) fn turn(round: usize, contender: usize, seconds: f64, shots: Vec<Shot>) -> Turn {
        Turn { round, concurrency: 4, contender, place: contender, seconds, shots, skipped: None }
    }

    fn two(tokens: u64) -> Vec<Shot> {
        vec![shot(0, tokens, "same"), shot(1, tokens, "text")]
    }

    #[test]
    fn ratios_are_of_the_same_round_and_the_warm_up_counts_for_nothing() {
        let turns = [
            turn(0, 0, 0.001, two(10)),
            turn(0, 1, 9.0, two(10)),
            turn(1, 0, 1.0, two(10)),
            turn(1, 1, 2.0, two(10)),
            turn(2, 1, 4.0, two(10)),
            turn(2, 0, 1.0, two(10)),
            turn(3, 0, 3.0, two(10)),
            turn(3, 1, 3.0, two(10)),
        ];
        let row = row(&turns, 0, 4, 1);
        let ratio = row.ratio.unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max, ratio.runs), (1.0, 2.0, 4.0, 3));
        let speed = row.tokens_per_s.unwrap();
        assert!((speed.min - 20.0 / 3.0).abs() < 1e-12 && speed.max == 20.0, "{speed:?}");
        assert_eq!(row.requests_per_s.unwrap().max, 2.0);
        assert_eq!((row.requests, row.failed), (6, 0));
        assert_eq!(row.ttft.unwrap(), Latency { p50_ms: 10.5, p99_ms: 11.0 });
        assert_eq!(row.tokens_per_answer, Some(10.0));
        assert_eq!(row.cached_share, Some(0.25));
        let own = super::row(&turns, 1, 4, 1);
        assert_eq!((own.ratio, own.agreement), (None, None));
        assert_eq!(super::row(&turns, 0, 8, 1).requests, 0, "another concurrency");
    }

    #[test]
    fn speeds_are_by_tokens_where_answers_differ_in_length() {
        let turns = [turn(1, 0, 1.0, two(20)), turn(1, 1, 1.0, two(5))];
        assert_eq!(row(&turns, 0, 4, 1).ratio.unwrap().median, 4.0);
    }

    #[test]
    fn a_turn_with_an_error_has_no_speed_and_costs_no_other_turn() {
        let mut broken = two(10);
        broken[1].error = Some("cut short".into());
        let mut absent = turn(3, 0, 0.0, Vec::new());
        absent.skipped = Some("it died".into());
        let turns = [
            turn(1, 0, 1.0, two(10)),
            turn(1, 1, 2.0, two(10)),
            turn(2, 0, 0.1, broken),
            turn(2, 1, 2.0, two(10)),
            absent,
            turn(3, 1, 2.0, two(10)),
        ];
        let row = row(&turns, 0, 4, 1);
        assert_eq!(row.ratio.unwrap(), Summary { min: 2.0, median: 2.0, max: 2.0, runs: 1 });
        assert_eq!((row.requests, row.failed, row.skipped), (4, 1, 1));
        assert_eq!(row.first_error.as_deref(), Some("cut short"));
        let other = super::row(&turns, 1, 4, 1);
        assert_eq!(other.tokens_per_s.unwrap().runs, 3);
        assert_eq!(other.first_error, None);
        let silent = [turn(1, 0, 1.0, vec![Shot { tokens: None, ..shot(0, 1, "a") }])];
        let row = super::row(&silent, 0, 4, 0);
        assert_eq!((row.tokens_per_s, row.uncounted), (None, 1));
        assert_eq!(row.requests_per_s.unwrap().median, 1.0);
    }

    #[test]
    fn texts_are_compared_prompt_by_prompt() {
        let reference =
            vec![shot(0, 1, "abcd"), shot(1, 1, "efgh"), Shot { error: Some("x".into()), ..shot(2, 1, "") }];
        let own = vec![shot(1, 1, "efxx"), shot(0, 1, "abcd"), shot(2, 1, "zz")];
        let turns = [turn(1, 0, 1.0, own), turn(1, 1, 1.0, reference)];
        let agreement = row(&turns, 0, 4, 1).agreement.unwrap();
        assert_eq!((agreement.equal, agreement.of, agreement.same_beginning), (1, 2, 0.75));
        assert_eq!(same_beginning("", ""), 1.0);
        assert_eq!(same_beginning("abc", ""), 0.0);
    }
}
