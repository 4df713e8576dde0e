//! The factor rule of Fast-dLLM (arXiv:2505.22618): commit as many as support each other.

use super::{BlockStart, Candidate, CommitPolicy, Rule, known, ranked};

/// Ranks the candidates and commits the longest prefix with `c_(n) >= 1 - factor / (n + 1)` for its members from the
/// second on; the first is free.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// Larger commits more.
    pub factor: f32,
}

impl CommitPolicy for Factor {
    fn begin(&mut self, _: BlockStart) {}

    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)> {
        let order = ranked(candidates);
        let needed = |n: usize| 1.0 - self.factor / (n as f32 + 1.0);
        let rest = order.iter().zip(1..).skip(1);
        let supported = rest.take_while(|(index, n)| known(candidates[**index].confidence) >= needed(*n)).count();
        let count = order.len().min(1) + supported;
        let mut chosen: Vec<_> = order[..count].iter().map(|&index| (index, Rule::Anchor)).collect();
        if let Some((_, rule)) = chosen.first_mut() {
            *rule = Rule::Top;
        }
        chosen.sort_unstable_by_key(|&(index, _)| index);
        chosen
    }
}
