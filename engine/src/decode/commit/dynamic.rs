//! The dynamic rule of SDAR (arXiv:2510.06303) and LLaDA2: everything above a threshold, a quota at least.

use super::{BlockStart, Candidate, CommitPolicy, Quotas, Rule, Schedule, by_rank, known, ranked};

/// Commits all candidates above `threshold` (exclusive) if they fill the quota of the step, else the quota's best.
#[derive(Debug, Clone)]
pub struct Dynamic {
    threshold: f32,
    schedule: Schedule,
    quotas: Quotas,
}

impl Dynamic {
    /// `schedule` gives the least number of slots of each step.
    pub fn new(threshold: f32, schedule: Schedule) -> Self {
        Self { threshold, schedule, quotas: Quotas::default() }
    }
}

impl CommitPolicy for Dynamic {
    fn begin(&mut self, block: BlockStart) {
        // The published schedules divide the whole block, also where the prompt takes a part of it.
        self.quotas = self.schedule.quotas(block.len, block.steps);
    }

    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)> {
        let quota = self.quotas.next(candidates.len());
        let above: Vec<_> = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| known(candidate.confidence) > self.threshold)
            .map(|(index, _)| (index, Rule::Anchor))
            .collect();
        if above.len() >= quota { above } else { by_rank(&ranked(candidates), quota) }
    }
}
