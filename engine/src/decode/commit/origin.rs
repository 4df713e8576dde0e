//! The "origin" rule of Dream (arXiv:2508.15487, reference sampler): every slot by its own coin.

use super::{BlockStart, Candidate, CommitPolicy, Rule, schedule::Grid};
use crate::sampling::SlotNoise;

/// At step `j` of a time grid each undecided slot is committed with probability `1 - t_(j+1) / t_j`, and in the last
/// step all of them are. A step in which no coin falls is skipped: the pass would see the same canvas again.
#[derive(Debug, Clone)]
pub struct Origin {
    noise: SlotNoise,
    grid: Grid,
}

impl Origin {
    /// Coins are keyed by `noise`.
    pub fn new(noise: SlotNoise) -> Self {
        Self { noise, grid: Grid::new(1) }
    }
}

impl CommitPolicy for Origin {
    fn begin(&mut self, block: BlockStart) {
        self.grid = Grid::new(block.steps);
    }

    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)> {
        let all = || (0..candidates.len()).map(|index| (index, Rule::Top)).collect();
        while let Some((step, share)) = self.grid.next() {
            let coin = |c: &Candidate| self.noise.at_step(step as u64 + 1).uniform(c.position as u64);
            let fallen = candidates.iter().enumerate().filter(|(_, c)| coin(c) < share);
            let chosen: Vec<_> = fallen.map(|(index, _)| (index, Rule::Top)).collect();
            if !chosen.is_empty() {
                return chosen;
            }
        }
        all()
    }
}
