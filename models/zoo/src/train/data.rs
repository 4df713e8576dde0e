//! Problems for training and for evaluation, as tokens.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    ZooError,
    tasks::{Problem, Split, Task},
    text::{Encoded, Text},
};

/// Problems that one draw may look at.
const INDICES_PER_DRAW: u64 = 1 << 16;

/// How often each task is drawn, in the order of [`Task::ALL`]; shares of their sum, which is not 0.
pub type Mix = [u32; 5];

/// An endless stream of training problems; what it gives depends on the seed and the numbers of the draw alone.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    text: &'a Text,
    rng: ChaCha8Rng,
    seed: u64,
    mix: Mix,
    next: u64,
}

impl<'a> Stream<'a> {
    /// The stream of draw number `draw`.
    pub(crate) fn new(text: &'a Text, seed: u64, mix: Mix, draw: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed ^ draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { text, rng, seed, mix, next: draw * INDICES_PER_DRAW }
    }

    /// The next problem.
    pub(crate) fn next(&mut self) -> Result<Encoded, ZooError> {
        let mut left = self.rng.random_range(0..self.mix.iter().sum());
        let task = Task::ALL.into_iter().zip(self.mix).find(|(_, share)| match left.checked_sub(*share) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        let task = task.map_or(Task::Math, |(task, _)| task);
        let problem = task.problem(Split::Train, self.seed, self.next);
        self.next += 1;
        self.text.problem(&problem)
    }

    /// The generator, for other draws of the same step.
    pub(crate) fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }
}

/// `count` problems of each task for choosing among checkpoints.
pub(crate) fn validation(text: &Text, count: u64) -> Result<Vec<(Problem, Encoded)>, ZooError> {
    let problems = Task::ALL.into_iter().flat_map(|task| (0..count).map(move |index| (task, index)));
    problems
        .map(|(task, index)| {
            let problem = task.problem(Split::Validation, 0, index);
            let encoded = text.problem(&problem)?;
            Ok((problem, encoded))
        })
        .collect()
}
