//! The fixed quota: a number of slots per step, the best first. The baseline of every comparison.

use super::{BlockStart, Candidate, CommitPolicy, Quotas, Rule, Schedule, by_rank, ranked};
use crate::sampling::SlotNoise;

/// What the quota ranks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    /// The confidence of the proposals.
    Confidence,
    /// Uniform noise of this key, fresh in every step.
    Random(SlotNoise),
    /// The position, from left to right.
    Sequential,
}

/// Commits the number of slots that a schedule asks for.
#[derive(Debug, Clone)]
pub struct Quota {
    schedule: Schedule,
    ranking: Ranking,
    /// Whether the schedule divides the block's undecided slots (LLaDA) or all of its slots (SDAR).
    whole_block: bool,
    quotas: Quotas,
    step: u64,
}

impl Quota {
    /// A quota over the undecided slots of each block.
    pub fn new(schedule: Schedule, ranking: Ranking) -> Self {
        Self { schedule, ranking, whole_block: false, quotas: Quotas::default(), step: 0 }
    }

    /// The same over all slots of each block, whoever fills them.
    pub fn of_whole_blocks(self) -> Self {
        Self { whole_block: true, ..self }
    }
}

impl CommitPolicy for Quota {
    fn begin(&mut self, block: BlockStart) {
        let num_slots = if self.whole_block { block.len } else { block.num_open };
        self.quotas = self.schedule.quotas(num_slots, block.steps);
    }

    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)> {
        let count = self.quotas.next(candidates.len());
        self.step += 1;
        let order = match self.ranking {
            Ranking::Confidence => ranked(candidates),
            Ranking::Sequential => (0..candidates.len()).collect(),
            Ranking::Random(noise) => {
                let draw = |c: &Candidate| noise.at_step(self.step).uniform(c.position as u64) as f32;
                let drawn: Vec<_> = candidates.iter().map(|c| Candidate { confidence: draw(c), ..*c }).collect();
                ranked(&drawn)
            }
        };
        by_rank(&order, count)
    }
}
