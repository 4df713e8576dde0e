//! Next-token prediction of the answers: the target model.

use std::sync::Arc;

use super::{
    Loss, Recipe, TrainSettings,
    data::{Mix, Stream, validation},
};
use crate::{
    Net, Rows, Text, ZooError,
    net::{arg_max, ops::copied, token_loss},
    tasks::{Problem, Task},
    text::Encoded,
};

/// Trains on the answers of fresh problems.
#[derive(Debug)]
pub struct Ar {
    text: Text,
    seed: u64,
    mix: Mix,
    rows: usize,
    validation: Vec<(Problem, Encoded)>,
}

impl Ar {
    /// `problems` of each task for evaluation.
    pub fn new(text: Text, settings: &TrainSettings, problems: u64) -> Result<Self, ZooError> {
        let validation = validation(&text, problems)?;
        Ok(Self { text, seed: settings.seed, mix: settings.mix, rows: settings.rows, validation })
    }
}

/// Rows that predict the answer of a sequence that begins at row `start`, and what they should predict.
fn answer_rows(sample: &Encoded, start: usize) -> impl Iterator<Item = (u32, u32)> + '_ {
    let first = start + sample.prompt.len() - 1;
    sample.answer.iter().enumerate().map(move |(at, token)| ((first + at) as u32, *token))
}

/// Prompt and answer.
pub(super) fn whole(sample: &Encoded) -> Vec<u32> {
    sample.prompt.iter().chain(&sample.answer).copied().collect()
}

impl Recipe for Ar {
    type State = ();

    fn name(&self) -> &'static str {
        "ar"
    }

    fn state(&self, _: usize) -> Result<(), ZooError> {
        Ok(())
    }

    fn loss(&self, net: &Net, draw: u64, (): &mut ()) -> Result<Loss, ZooError> {
        let mut stream = Stream::new(&self.text, self.seed, self.mix, draw);
        let (mut rows, mut wanted, mut tokens) = (Rows::default(), Vec::new(), Vec::new());
        while rows.len() < self.rows {
            let sample = stream.next()?;
            let start = rows.push_causal(&whole(&sample));
            rows.close(start);
            for (row, token) in answer_rows(&sample, start) {
                wanted.push(row);
                tokens.push(token);
            }
        }
        let logits = net.logits(&net.hidden(&Arc::new(rows))?, &wanted)?;
        let weights = vec![1.0 / tokens.len() as f32; tokens.len()];
        let total = token_loss(&logits, tokens, weights)?;
        let parts = vec![("loss", f64::from(total.to_scalar::<f32>()?))];
        Ok(Loss { total, parts })
    }

    fn evaluate(&self, net: &Net) -> Result<Vec<(String, f64)>, ZooError> {
        exact(net, &self.validation)
    }
}

/// Share of problems per task whose right answer is what greedy decoding writes.
pub(super) fn exact(net: &Net, problems: &[(Problem, Encoded)]) -> Result<Vec<(String, f64)>, ZooError> {
    let samples: Vec<&Encoded> = problems.iter().map(|(_, sample)| sample).collect();
    let right = is_right(net, &samples)?;
    let mut figures = Vec::new();
    for task in Task::ALL {
        let own = problems.iter().zip(&right).filter(|((problem, _), _)| problem.task == task);
        let (count, hits) = own.fold((0, 0), |(count, hits), (_, right)| (count + 1, hits + usize::from(*right)));
        if count > 0 {
            figures.push((format!("exact_{task}"), hits as f64 / count as f64));
        }
    }
    Ok(figures)
}

/// Whether the right answer of each sample is what greedy decoding writes.
///
/// It is if, with the right answer before it, each of its tokens is the likeliest. That takes one pass.
pub(super) fn is_right(net: &Net, samples: &[&Encoded]) -> Result<Vec<bool>, ZooError> {
    let mut right = Vec::new();
    for chunk in samples.chunks(32) {
        let (mut rows, mut wanted) = (Rows::default(), Vec::new());
        for sample in chunk {
            let start = rows.push_causal(&whole(sample));
            rows.close(start);
            wanted.extend(answer_rows(sample, start));
        }
        let ids: Vec<u32> = wanted.iter().map(|(row, _)| *row).collect();
        let logits = copied(&net.logits(&net.hidden(&Arc::new(rows))?.detach(), &ids)?)?;
        let mut hits =
            logits.chunks_exact(net.shape().vocab).zip(&wanted).map(|(row, (_, token))| arg_max(row) == *token);
        for sample in chunk {
            // All are taken, right or not.
            right.push(hits.by_ref().take(sample.answer.len()).filter(|hit| !hit).count() == 0);
        }
    }
    Ok(right)
}
