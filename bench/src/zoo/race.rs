//! Wall-clock time at batch 1: everybody answers the same questions in each round, one after the other.

use serde::Serialize;
use zoo::tasks::Task;

use super::{
    exam::{Answer, Method, Question, Tally, ask},
    subject::Subject,
};
use crate::stats::Estimate;

/// A model under a method.
#[derive(Debug)]
pub(super) struct Contender<'a> {
    pub(super) subject: &'a Subject,
    pub(super) method: Method,
}

/// Time and tokens of one task in one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Clock {
    tokens: usize,
    /// From submission to the end, as the client sees it.
    seconds: f64,
    /// Tokens after those of the first pass; all of a canvas.
    decode_tokens: usize,
    /// From the first committed token to the end; the whole time in the engine of a canvas, which has no prefill.
    decode_seconds: f64,
    cached_tokens: usize,
}

impl Clock {
    fn add(&mut self, answer: &Answer) {
        self.tokens += answer.num_tokens;
        self.seconds += answer.client.as_secs_f64();
        let first = if answer.is_canvas { 0 } else { answer.first_tokens };
        self.decode_tokens += answer.num_tokens - first;
        self.decode_seconds += if answer.is_canvas { answer.engine } else { answer.decode }.as_secs_f64();
        self.cached_tokens += answer.cached_tokens;
    }

    fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            seconds: self.seconds + other.seconds,
            decode_tokens: self.decode_tokens + other.decode_tokens,
            decode_seconds: self.decode_seconds + other.decode_seconds,
            cached_tokens: self.cached_tokens + other.cached_tokens,
        }
    }
}

/// Which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// Without prefill, queue and transport.
    Decode,
    /// All of it.
    EndToEnd,
}

/// All rounds of one contender.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Lane {
    pub(super) model: &'static str,
    pub(super) method: String,
    /// By round and task, in the order of [`Task::ALL`].
    rounds: Vec<[Clock; Task::ALL.len()]>,
    #[serde(skip)]
    pub(super) tally: Tally,
    #[serde(skip)]
    pub(super) chain: Tally,
}

impl Lane {
    /// Tokens per second of each round.
    pub(super) fn speeds(&self, span: Span, wanted: impl Fn(Task) -> bool) -> Vec<f64> {
        let speed = |tasks: &[Clock; Task::ALL.len()]| {
            let wanted = Task::ALL.into_iter().zip(tasks).filter(|(task, _)| wanted(*task));
            let sum = wanted.fold(Clock::default(), |sum, (_, clock)| sum.plus(*clock));
            match span {
                Span::Decode => sum.decode_tokens as f64 / sum.decode_seconds,
                Span::EndToEnd => sum.tokens as f64 / sum.seconds,
            }
        };
        self.rounds.iter().map(speed).collect()
    }

    /// Speed over that of `other` in the same round: median and range.
    pub(super) fn against(&self, other: &Self, span: Span, wanted: impl Fn(Task) -> bool) -> Option<Estimate> {
        let (ours, theirs) = (self.speeds(span, &wanted), other.speeds(span, &wanted));
        let ratios: Vec<f64> =
            ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).filter(|ratio| ratio.is_finite()).collect();
        Estimate::of_rounds(&ratios)
    }

    pub(super) fn median(&self, span: Span) -> f64 {
        Estimate::of_rounds(&self.speeds(span, |_| true)).map_or(0.0, |speed| speed.value)
    }

    /// Prompt tokens that were not computed because an earlier request had the same beginning, in all rounds.
    pub(super) fn cached_tokens(&self) -> usize {
        self.rounds.iter().flatten().map(|clock| clock.cached_tokens).sum()
    }
}

/// Lets the contenders take turns, `rounds` times after one that warms up. Who begins changes from round to round.
pub(super) fn race(
    contenders: &[Contender<'_>],
    questions: &[Question],
    rounds: usize,
    seed: u64,
) -> anyhow::Result<Vec<Lane>> {
    let lane = |contender: &Contender<'_>| Lane {
        model: contender.subject.name,
        method: contender.method.name.clone(),
        rounds: Vec::new(),
        tally: Tally::default(),
        chain: Tally::default(),
    };
    let mut lanes: Vec<Lane> = contenders.iter().map(lane).collect();
    for round in 0..=rounds {
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            let Contender { subject, method } = &contenders[at];
            let mut clocks = [Clock::default(); Task::ALL.len()];
            for question in questions {
                let answer = ask(subject, method, question, seed)?;
                clocks[question.task() as usize].add(&answer);
                // Round 0 warms up.
                if round > 0 {
                    lanes[at].tally.add(&answer);
                    if question.task() == Task::Chain {
                        lanes[at].chain.add(&answer);
                    }
                }
            }
            if round > 0 {
                lanes[at].rounds.push(clocks);
            }
        }
        eprintln!("timed round {round} of {rounds} done");
    }
    Ok(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo::exam::tests::answer;

    fn lane(millis: &[u64]) -> Lane {
        let clocks = |millis: &u64| {
            let mut clocks = [Clock::default(); Task::ALL.len()];
            for (task, clock) in Task::ALL.into_iter().zip(&mut clocks) {
                let mut answer = answer(task, 0, true, 11, 4);
                answer.decode = std::time::Duration::from_millis(*millis);
                clock.add(&answer);
            }
            clocks
        };
        let rounds = millis.iter().map(clocks).collect();
        Lane { model: "m", method: "way".into(), rounds, tally: Tally::default(), chain: Tally::default() }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let (ours, theirs) = (lane(&[10, 20, 40]), lane(&[20, 80, 80]));
        assert_eq!(ours.speeds(Span::Decode, |_| true), [1000.0, 500.0, 250.0], "the first token is not counted");
        let ratio = ours.against(&theirs, Span::Decode, |task| task == Task::Math).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (2.0, 2.0, 4.0));
        assert!((ours.median(Span::EndToEnd) - 1100.0).abs() < 1e-9, "55 tokens in 50 ms");
    }

    #[test]
    fn tasks_are_indexed_in_their_order() {
        for (index, task) in Task::ALL.into_iter().enumerate() {
            assert_eq!(task as usize, index);
        }
    }
}
