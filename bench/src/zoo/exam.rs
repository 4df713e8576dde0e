//! Problems put to a model, and what came back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use engine::{
    DecodingOptions, DiffusionOptions, Event, EventStream, Finish, FinishReason, Request, Sampling, Strategy, TokenId,
};
use zoo::tasks::{Problem, Split, Task};

use super::subject::Subject;
use crate::stats::{Estimate, Part, paired_difference, ratio_of_sums, wilson};

/// A problem with its place in the sequence of its task.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) index: u64,
    pub(super) problem: Problem,
}

impl Question {
    pub(super) fn task(&self) -> Task {
        self.problem.task
    }
}

/// The first `count` problems of every task.
pub(super) fn questions(split: Split, seed: u64, count: u64) -> Vec<Question> {
    let of = |task: Task| (0..count).map(move |index| Question { index, problem: task.problem(split, seed, index) });
    Task::ALL.into_iter().flat_map(of).collect()
}

/// The first `count` of every task among `questions`.
pub(super) fn first(questions: &[Question], count: u64) -> Vec<Question> {
    questions.iter().filter(|question| question.index < count).cloned().collect()
}

/// A way to decode.
#[derive(Debug, Clone)]
pub(super) struct Method {
    pub(super) name: String,
    pub(super) decoding: DecodingOptions,
    pub(super) temperature: f32,
    pub(super) max_tokens: usize,
}

impl Method {
    /// One token a pass, greedy.
    pub(super) fn ar(max_tokens: usize) -> Self {
        let decoding = DecodingOptions { strategy: Strategy::Ar, ..DecodingOptions::default() };
        Self { name: "AR".into(), decoding, temperature: 0.0, max_tokens }
    }

    /// Jacobi of one width, or of a width that follows the cost of a pass.
    pub(super) fn jacobi(width: Option<usize>, max_tokens: usize) -> Self {
        let decoding = DecodingOptions {
            strategy: Strategy::Jacobi,
            width,
            adaptive: Some(width.is_none()),
            ..DecodingOptions::default()
        };
        let name = width.map_or("Jacobi, adaptive width".into(), |width| format!("Jacobi, width {width}"));
        Self { name, decoding, temperature: 0.0, max_tokens }
    }

    /// A canvas, greedy.
    pub(super) fn canvas(name: &str, diffusion: DiffusionOptions, max_tokens: usize) -> Self {
        let decoding = DecodingOptions { diffusion, ..DecodingOptions::default() };
        Self { name: name.into(), decoding, temperature: 0.0, max_tokens }
    }

    pub(super) fn at(self, temperature: f32) -> Self {
        if temperature == 0.0 {
            return self;
        }
        Self { name: format!("{}, T = {temperature}", self.name), temperature, ..self }
    }

    fn request(&self, prompt: &[TokenId], seed: u64) -> Request {
        Request {
            max_tokens: Some(self.max_tokens),
            sampling: Sampling { temperature: self.temperature, seed, ..Sampling::default() },
            decoding: self.decoding.clone(),
            ..Request::new(prompt.to_vec())
        }
    }
}

/// What a model made of a problem.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) task: Task,
    pub(super) index: u64,
    pub(super) text: String,
    pub(super) tokens: Vec<TokenId>,
    /// Why it is wrong, if it is.
    pub(super) wrong: Option<String>,
    /// Whether the budget ended it.
    pub(super) cut: bool,
    /// Completion tokens, as the engine counts them: the end token included.
    pub(super) num_tokens: usize,
    /// Of those, what the first pass committed.
    pub(super) first_tokens: usize,
    /// Passes that scored a slot.
    pub(super) passes: usize,
    pub(super) cached_tokens: usize,
    /// From submission to the end, as the client sees it.
    pub(super) client: Duration,
    /// In the engine from the first step to the end.
    pub(super) engine: Duration,
    /// In the engine from the first committed token to the end.
    pub(super) decode: Duration,
    pub(super) is_canvas: bool,
}

impl Answer {
    pub(super) fn correct(&self) -> bool {
        self.wrong.is_none()
    }
}

/// All answers of one model under one method, in the order of the questions.
#[derive(Debug, Clone)]
pub(super) struct Sitting {
    pub(super) model: &'static str,
    pub(super) method: String,
    pub(super) answers: Vec<Answer>,
}

/// Puts all questions at once; the engine works at as many as it was set up for.
pub(super) fn sit(subject: &Subject, method: &Method, questions: &[Question], seed: u64) -> anyhow::Result<Sitting> {
    let began = Instant::now();
    let mut requests = Vec::new();
    for question in questions {
        requests.push(method.request(&subject.prompt(&question.problem)?, seed.wrapping_add(question.index)));
    }
    let streams = subject.engine.submit(requests)?;
    let answers = streams.into_iter().zip(questions).map(|(stream, question)| read(stream, question, began));
    let sitting =
        Sitting { model: subject.name, method: method.name.clone(), answers: answers.collect::<anyhow::Result<_>>()? };
    let all = sitting.tally(|_| true);
    eprintln!(
        "{} | {}: {} of {} right, {:.2} tokens per forward, {:.0} s",
        subject.name,
        method.name,
        all.correct,
        all.problems,
        all.per_pass(all.tokens),
        began.elapsed().as_secs_f64()
    );
    Ok(sitting)
}

/// Puts one question and waits for the answer.
pub(super) fn ask(subject: &Subject, method: &Method, question: &Question, seed: u64) -> anyhow::Result<Answer> {
    let request = method.request(&subject.prompt(&question.problem)?, seed.wrapping_add(question.index));
    let began = Instant::now();
    let stream = subject.engine.submit(vec![request])?.pop().context("one request, no stream")?;
    read(stream, question, began)
}

fn read(mut stream: EventStream, question: &Question, began: Instant) -> anyhow::Result<Answer> {
    let (mut text, mut tokens, mut first_tokens) = (String::new(), Vec::new(), 0);
    let finish: Finish = loop {
        match stream.next_blocking().context("the engine stopped")? {
            Event::Committed(commit) => {
                text.push_str(&commit.text);
                tokens.extend(commit.tokens.iter().map(|record| record.id));
                if first_tokens == 0 {
                    first_tokens = tokens.len();
                }
            }
            Event::Finished(finish) => break finish,
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) | Event::Frame(_) => {}
        }
    };
    let client = began.elapsed();
    ensure!(tokens.len() == finish.completion_tokens, "{} tokens came, {finish:?}", tokens.len());
    Ok(Answer {
        task: question.task(),
        index: question.index,
        wrong: question.problem.check(&text).err().map(|wrong| wrong.to_string()),
        text,
        tokens,
        cut: finish.reason == FinishReason::Length,
        num_tokens: finish.completion_tokens,
        first_tokens,
        passes: finish.stats.forward_passes,
        cached_tokens: finish.stats.cached_tokens,
        client,
        engine: finish.stats.prefill + finish.stats.decode,
        decode: finish.stats.decode,
        is_canvas: finish.stats.diffusion.is_some(),
    })
}

/// Sums over answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) problems: usize,
    pub(super) correct: usize,
    pub(super) cut: usize,
    pub(super) tokens: usize,
    pub(super) chars: usize,
    pub(super) passes: usize,
    pub(super) first_tokens: usize,
    pub(super) cached_tokens: usize,
    /// Canvases among them, which have no prefill.
    canvases: usize,
}

impl Tally {
    pub(super) fn add(&mut self, answer: &Answer) {
        self.problems += 1;
        self.correct += usize::from(answer.correct());
        self.cut += usize::from(answer.cut);
        self.tokens += answer.num_tokens;
        self.chars += answer.text.chars().count();
        self.passes += answer.passes;
        self.first_tokens += answer.first_tokens;
        self.cached_tokens += answer.cached_tokens;
        self.canvases += usize::from(answer.is_canvas);
    }

    /// `sum` for each pass; 0 without passes.
    pub(super) fn per_pass(&self, sum: usize) -> f64 {
        if self.passes == 0 { 0.0 } else { sum as f64 / self.passes as f64 }
    }

    /// Tokens per forward without the pass that ends the prefill and without what it commits; `None` if nothing is left,
    /// and for canvases.
    pub(super) fn after_first(&self) -> Option<f64> {
        let passes = self.passes.checked_sub(self.problems).filter(|passes| *passes > 0 && self.canvases == 0)?;
        Some((self.tokens - self.first_tokens) as f64 / passes as f64)
    }

    pub(super) fn accuracy(&self) -> Option<Estimate> {
        wilson(self.correct, self.problems)
    }
}

impl Sitting {
    pub(super) fn tally(&self, wanted: impl Fn(Task) -> bool) -> Tally {
        let mut tally = Tally::default();
        self.answers.iter().filter(|answer| wanted(answer.task)).for_each(|answer| tally.add(answer));
        tally
    }

    /// Tokens per forward with its interval.
    pub(super) fn tokens_per_forward(&self, seed: u64, wanted: impl Fn(Task) -> bool) -> Option<Estimate> {
        let part = |answer: &Answer| Part {
            group: answer.task as usize,
            above: answer.num_tokens as f64,
            below: answer.passes as f64,
        };
        let parts: Vec<Part> = self.answers.iter().filter(|answer| wanted(answer.task)).map(part).collect();
        ratio_of_sums(&parts, seed)
    }

    /// Passes of this sitting over those of `other`, which had the same questions.
    pub(super) fn share_of_passes(&self, other: &Self, seed: u64) -> anyhow::Result<Option<Estimate>> {
        let part = |(ours, theirs): (&Answer, &Answer)| Part {
            group: ours.task as usize,
            above: ours.passes as f64,
            below: theirs.passes as f64,
        };
        let parts: Vec<Part> = self.pairs(other)?.map(part).collect();
        Ok(ratio_of_sums(&parts, seed))
    }

    /// Accuracy less that of `other`, which had the same questions.
    pub(super) fn accuracy_difference(
        &self,
        other: &Self,
        wanted: impl Fn(Task) -> bool,
    ) -> anyhow::Result<Option<Estimate>> {
        let pairs = self.pairs(other)?.filter(|(ours, _)| wanted(ours.task));
        Ok(paired_difference(pairs.map(|(ours, theirs)| (ours.correct(), theirs.correct()))))
    }

    /// Questions whose tokens differ from those of `other`.
    pub(super) fn different(&self, other: &Self) -> anyhow::Result<usize> {
        Ok(self.pairs(other)?.filter(|(ours, theirs)| ours.tokens != theirs.tokens).count())
    }

    /// The same sitting with the first `count` problems of each task alone.
    pub(super) fn first(&self, count: u64) -> Self {
        let answers = self.answers.iter().filter(|answer| answer.index < count).cloned().collect();
        Self { answers, ..self.clone() }
    }

    fn pairs<'a>(&'a self, other: &'a Self) -> anyhow::Result<impl Iterator<Item = (&'a Answer, &'a Answer)>> {
        let key = |answer: &Answer| (answer.task, answer.index);
        let same = self.answers.iter().map(key).eq(other.answers.iter().map(key));
        ensure!(same, "`{}` and `{}` had different questions", self.method, other.method);
        Ok(self.answers.iter().zip(&other.answers))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn answer(task: Task, index: u64, correct: bool, num_tokens: usize, passes: usize) -> Answer {
        Answer {
            task,
            index,
            text: "12é".into(),
            tokens: vec![TokenId(index as u32); num_tokens],
            wrong: (!correct).then(|| "wrong".into()),
            cut: false,
            num_tokens,
            first_tokens: 1,
            passes,
            cached_tokens: 0,
            client: Duration::from_millis(10),
            engine: Duration::from_millis(9),
            decode: Duration::from_millis(8),
            is_canvas: false,
        }
    }

    fn sitting(answers: Vec<Answer>) -> Sitting {
        Sitting { model: "m", method: "way".into(), answers }
    }

    #[test]
    fn tokens_per_forward_are_sums_over_sums() {
        let sitting = sitting(vec![
            answer(Task::Math, 0, true, 30, 10),
            answer(Task::Math, 1, false, 2, 2),
            answer(Task::Chain, 0, true, 8, 8),
        ]);
        let all = sitting.tally(|_| true);
        assert_eq!((all.problems, all.correct, all.tokens, all.passes, all.chars), (3, 2, 40, 20, 9));
        assert_eq!(all.per_pass(all.tokens), 2.0, "not the mean of 3, 1 and 1");
        assert_eq!(all.after_first(), Some(37.0 / 17.0));
        let math = sitting.tally(|task| task == Task::Math);
        assert_eq!(math.per_pass(math.tokens), 32.0 / 12.0);
        assert_eq!(sitting.tokens_per_forward(1, |_| true).unwrap().value, 2.0);
        assert_eq!(Tally { problems: 1, passes: 1, ..Tally::default() }.after_first(), None);
    }

    #[test]
    fn pairs_are_of_the_same_questions() {
        let ours = sitting(vec![answer(Task::Math, 0, true, 10, 5), answer(Task::Math, 1, true, 10, 1)]);
        let mut theirs = sitting(vec![answer(Task::Math, 0, true, 10, 10), answer(Task::Math, 1, false, 9, 14)]);
        assert_eq!(ours.share_of_passes(&theirs, 1).unwrap().unwrap().value, 0.25, "of the sums");
        assert_eq!(ours.accuracy_difference(&theirs, |_| true).unwrap().unwrap().value, 0.5);
        assert_eq!(ours.different(&theirs).unwrap(), 1);
        theirs.answers.swap(0, 1);
        assert!(ours.different(&theirs).is_err());
        assert!(ours.different(&ours.first(1)).is_err());
    }
}
