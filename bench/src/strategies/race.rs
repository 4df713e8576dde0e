//! Strategies take turns at the same prompts.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, anyhow};
use engine::{
    Engine, EngineSettings, Event, FinishReason, LoadOptions, ModelSource, Request, Sampling, SubmitError, TokenId,
    energy::Ticket,
};
use serde::Serialize;

use super::{
    catalogue::Contender,
    energy::{Joules, Meter},
    input::{Prompt, Prompts},
};

/// What came back for one prompt.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Answer {
    pub(super) prompt: String,
    /// Completion tokens as the engine counts them, the end token included.
    pub(super) num_tokens: usize,
    /// Passes that scored a slot.
    pub(super) passes: usize,
    /// Rows that those passes scored.
    pub(super) scored_rows: usize,
    /// Prompt tokens that an earlier request had computed.
    pub(super) cached_tokens: usize,
    /// From submission to the end, as the client sees it.
    pub(super) seconds: f64,
    /// From submission to the first text; `None` if there was none.
    pub(super) first_text_seconds: Option<f64>,
    /// In the engine from the first step to the end.
    pub(super) engine_seconds: f64,
    /// Whether the budget ended it.
    pub(super) cut: bool,
    /// Whether the checker accepts it; `None` without a checker.
    pub(super) right: Option<bool>,
    /// Whether its tokens are those of the baseline at the same batch in the same round.
    pub(super) same_as_baseline: bool,
    /// Tokens before the first that differs from the baseline's, over those of the longer of the two.
    pub(super) common_prefix: f64,
    pub(super) joules: Option<f64>,
    /// Why there are none.
    pub(super) no_joules: Option<String>,
    /// Whether the KV cache in force is exact; `None` without a canvas.
    pub(super) exact_cache: Option<bool>,
    pub(super) text: String,
    #[serde(skip)]
    pub(super) tokens: Vec<TokenId>,
    #[serde(skip)]
    ticket: Option<Ticket>,
}

impl Answer {
    pub(super) fn compare(&mut self, baseline: &[TokenId]) {
        self.same_as_baseline = self.tokens == baseline;
        self.common_prefix = common_prefix(&self.tokens, baseline);
    }

    fn charge(&mut self, joules: Joules) {
        match joules {
            Ok(joules) => self.joules = Some(joules),
            Err(reason) => self.no_joules = Some(reason),
        }
    }
}

/// Tokens before the first difference over the length of the longer one; 1 if both are empty.
pub(super) fn common_prefix<T: PartialEq>(ours: &[T], theirs: &[T]) -> f64 {
    match ours.len().max(theirs.len()) {
        0 => 1.0,
        longer => ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count() as f64 / longer as f64,
    }
}

/// All prompts under one strategy at one batch size.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Turn {
    pub(super) model: String,
    pub(super) strategy: String,
    /// Requests at a time.
    pub(super) batch: usize,
    /// From 1.
    pub(super) round: usize,
    /// Of the whole turn, by the clock.
    pub(super) seconds: f64,
    /// In the order of the prompts.
    pub(super) answers: Vec<Answer>,
}

impl Turn {
    pub(super) fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.answers.iter().map(|answer| answer.num_tokens).sum();
        tokens as f64 / self.seconds
    }
}

/// A strategy that a model does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Refused {
    pub(super) model: String,
    pub(super) strategy: String,
    pub(super) reason: String,
}

/// How models are run.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) load: LoadOptions,
    pub(super) threads: Option<usize>,
    /// The most requests at a time.
    pub(super) most: usize,
    /// `None` is 64 for diffusion models and 96 for the others.
    pub(super) max_tokens: Option<usize>,
    pub(super) seed: u64,
}

/// A running model with what it is asked.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) contenders: Vec<Contender>,
    pub(super) max_tokens: usize,
    /// Of each prompt.
    tokens: Vec<Vec<TokenId>>,
    seed: u64,
}

impl Subject {
    /// Loads a model and reads the prompts with its tokenizer; `contenders` is not filled yet.
    pub(super) fn load(
        (name, source): &(String, ModelSource),
        setup: &Setup,
        prompts: &Prompts,
        meter: &Meter,
    ) -> anyhow::Result<Self> {
        let model = engine::load(source, &setup.load).with_context(|| format!("--model {name}"))?;
        let settings =
            EngineSettings { threads: setup.threads, max_concurrent: setup.most, ..EngineSettings::default() };
        let engine = Engine::start_metered(model, settings, meter.monitor())?;
        let info = engine.model();
        let max_tokens = setup.max_tokens.unwrap_or(if info.mask_id.is_some() { 64 } else { 96 });
        let tokens = prompts.list.iter().map(|prompt| prompt.tokens(info)).collect::<anyhow::Result<_>>()?;
        let name = info.id.clone();
        Ok(Self { name, engine, contenders: Vec::new(), max_tokens, tokens, seed: setup.seed })
    }

    /// Keeps those of `contenders` that the model runs, and says why it refuses the others. Requests that are accepted
    /// are cancelled at once.
    pub(super) fn admit(&mut self, contenders: Vec<Contender>) -> anyhow::Result<Vec<Refused>> {
        let mut refused = Vec::new();
        for (index, contender) in contenders.into_iter().enumerate() {
            let request = self.request(&contender, 0);
            match self.engine.submit(vec![request]) {
                Ok(_) => self.contenders.push(contender),
                Err(error @ SubmitError::InvalidParameter { .. }) if index > 0 => refused.push(Refused {
                    model: self.name.clone(),
                    strategy: contender.name,
                    reason: error.to_string(),
                }),
                Err(error) => return Err(anyhow!(error).context(format!("{}, {}", self.name, contender.name))),
            }
        }
        Ok(refused)
    }

    fn request(&self, contender: &Contender, prompt: usize) -> Request {
        Request {
            max_tokens: Some(self.max_tokens),
            sampling: Sampling { seed: self.seed, ..Sampling::default() },
            decoding: contender.options.clone(),
            ..Request::new(self.tokens[prompt].clone())
        }
    }

    /// All prompts, `batch` at a time: as one is done, the next is sent.
    pub(super) fn turn(
        &self,
        contender: &Contender,
        prompts: &Prompts,
        (batch, round): (usize, usize),
        meter: &Meter,
    ) -> anyhow::Result<Turn> {
        let next = AtomicUsize::new(0);
        let client = || -> anyhow::Result<Vec<(usize, Answer)>> {
            let mut answers = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(prompt) = prompts.list.get(index) else { return Ok(answers) };
                let answer = ask(&self.engine, self.request(contender, index), prompt);
                answers.push((
                    index,
                    answer.with_context(|| format!("{}, {}, {}", self.name, contender.name, prompt.id))?,
                ));
            }
        };
        let began = Instant::now();
        let parts = thread::scope(|scope| {
            let clients: Vec<_> = (0..batch).map(|_| scope.spawn(client)).collect();
            let join =
                |client: thread::ScopedJoinHandle<'_, _>| client.join().map_err(|_| anyhow!("a client panicked"))?;
            clients.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let mut answers: Vec<(usize, Answer)> = parts.into_iter().flatten().collect();
        answers.sort_unstable_by_key(|(index, _)| *index);
        let mut answers: Vec<Answer> = answers.into_iter().map(|(_, answer)| answer).collect();
        for answer in &mut answers {
            answer.charge(meter.joules(answer.ticket));
        }
        Ok(Turn { model: self.name.clone(), strategy: contender.name.clone(), batch, round, seconds, answers })
    }
}

fn ask(engine: &Engine, request: Request, prompt: &Prompt) -> anyhow::Result<Answer> {
    let began = Instant::now();
    let mut stream = engine.submit(vec![request])?.pop().context("one request, no stream")?;
    let (mut text, mut tokens, mut first_text_seconds) = (String::new(), Vec::new(), None);
    let finish = loop {
        match stream.next_blocking().context("the engine stopped")? {
            Event::Committed(commit) => {
                if first_text_seconds.is_none() && !commit.text.is_empty() {
                    first_text_seconds = Some(began.elapsed().as_secs_f64());
                }
                text.push_str(&commit.text);
                tokens.extend(commit.tokens.iter().map(|record| record.id));
            }
            Event::Finished(finish) => break finish,
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) | Event::Frame(_) => {}
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Answer {
        prompt: prompt.id.clone(),
        num_tokens: finish.completion_tokens,
        passes: finish.stats.forward_passes,
        scored_rows: finish.stats.scored_rows,
        cached_tokens: finish.stats.cached_tokens,
        seconds,
        first_text_seconds,
        engine_seconds: (finish.stats.prefill + finish.stats.decode).as_secs_f64(),
        cut: finish.reason == FinishReason::Length,
        right: prompt.is_right(&text),
        same_as_baseline: true,
        common_prefix: 1.0,
        joules: None,
        no_joules: None,
        exact_cache: finish.stats.diffusion.as_ref().map(|canvas| canvas.cache.is_exact()),
        text,
        tokens,
        ticket: finish.ticket,
    })
}

/// Who takes the `turn`-th turn of a round among `count`: everybody once, and another one begins in each round.
pub(super) fn whose(turn: usize, round: usize, count: usize) -> usize {
    (turn + round) % count
}

/// Everything once, in each of `rounds` rounds after one that warms up. Who begins changes from round to round.
pub(super) fn race(
    subjects: &[Subject],
    prompts: &Prompts,
    batches: &[usize],
    rounds: usize,
    meter: &Meter,
) -> anyhow::Result<Vec<Turn>> {
    let mut turns = Vec::new();
    for round in 0..=rounds {
        for subject in (0..subjects.len()).map(|turn| &subjects[whose(turn, round, subjects.len())]) {
            for &batch in batches {
                let mut these = Vec::new();
                for turn in 0..subject.contenders.len() {
                    let contender = &subject.contenders[whose(turn, round, subject.contenders.len())];
                    these.push(subject.turn(contender, prompts, (batch, round), meter)?);
                }
                compare(&mut these, &subject.contenders[0].name)?;
                // Round 0 warms up.
                if round > 0 {
                    turns.extend(these);
                }
                eprintln!("round {round} of {rounds}: {}, {batch} at a time, done", subject.name);
            }
        }
    }
    Ok(turns)
}

/// Fills in how the answers agree with those of the baseline of the same round.
fn compare(turns: &mut [Turn], baseline: &str) -> anyhow::Result<()> {
    let found = turns.iter().find(|turn| turn.strategy == baseline).context("the baseline had no turn")?;
    let texts: Vec<Vec<TokenId>> = found.answers.iter().map(|answer| answer.tokens.clone()).collect();
    for turn in turns {
        turn.answers.iter_mut().zip(&texts).for_each(|(answer, baseline)| answer.compare(baseline));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An answer of these tokens, in half as many passes.
    pub(crate) fn answer(tokens: &[u32], right: bool, joules: Option<f64>) -> Answer {
        Answer {
            prompt: "p".into(),
            num_tokens: tokens.len(),
            passes: tokens.len().div_ceil(2),
            scored_rows: 4 * tokens.len(),
            cached_tokens: 1,
            seconds: 0.5,
            first_text_seconds: None,
            engine_seconds: 0.25,
            cut: false,
            right: Some(right),
            same_as_baseline: true,
            common_prefix: 1.0,
            joules,
            no_joules: None,
            exact_cache: None,
            text: String::new(),
            tokens: tokens.iter().map(|id| TokenId(*id)).collect(),
            ticket: None,
        }
    }

    pub(crate) fn turn(strategy: &str, round: usize, seconds: f64, answers: Vec<Answer>) -> Turn {
        Turn { model: "m".into(), strategy: strategy.into(), batch: 1, round, seconds, answers }
    }

    #[test]
    fn answers_are_compared_with_those_of_the_baseline() {
        let answers = |first: &[u32]| vec![answer(first, true, None), answer(&[7, 8], true, None)];
        let mut turns = [turn("other", 1, 1.0, answers(&[1, 2, 9, 4])), turn("ar", 1, 1.0, answers(&[1, 2, 3, 4]))];
        compare(&mut turns, "ar").unwrap();
        let found = |turn: &Turn| {
            turn.answers.iter().map(|answer| (answer.same_as_baseline, answer.common_prefix)).collect::<Vec<_>>()
        };
        assert_eq!(found(&turns[0]), [(false, 0.5), (true, 1.0)]);
        assert_eq!(found(&turns[1]), [(true, 1.0), (true, 1.0)]);
        assert!(compare(&mut turns, "absent").is_err());
    }

    #[test]
    fn the_common_prefix_is_a_share_of_the_longer_text() {
        assert_eq!(common_prefix(&[1, 2, 3, 4], &[1, 2, 9, 4]), 0.5);
        assert_eq!(common_prefix(&[1, 2], &[1, 2, 3, 4]), 0.5, "what is missing differs");
        assert_eq!(common_prefix(&[1, 2, 3, 4], &[1, 2]), 0.5, "either way");
        assert_eq!(common_prefix(&[9, 2], &[1, 2]), 0.0, "a prefix, not an overlap");
        assert_eq!(common_prefix::<u8>(&[], &[]), 1.0);
        assert_eq!(common_prefix(&[], &[1]), 0.0);
    }

    #[test]
    fn everybody_has_a_turn_and_another_begins() {
        let order = |round| (0..3).map(|turn| whose(turn, round, 3)).collect::<Vec<_>>();
        assert_eq!([order(0), order(1), order(2), order(3)], [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
    }
}
