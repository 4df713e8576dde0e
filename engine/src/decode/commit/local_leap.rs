//! LocalLeap: a threshold, relaxed around anchors (arXiv:2510.07081, section 4), and plain threshold decoding
//! (Fast-dLLM, arXiv:2505.22618), which is LocalLeap without a relaxed threshold.

use super::{BlockStart, Candidate, CommitPolicy, Rule, best, known};

/// Commits every candidate that reaches `threshold`, every one that reaches `relaxed` within `radius` positions of such
/// an anchor, and always the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalLeap {
    /// κ: confidence from which a candidate is an anchor. Inclusive.
    pub threshold: f32,
    /// τ: confidence that suffices near an anchor, inclusive; `None` is threshold decoding.
    pub relaxed: Option<f32>,
    /// W: distance in absolute positions up to which an anchor counts. Inclusive.
    pub radius: usize,
}

impl LocalLeap {
    /// Threshold decoding.
    pub fn threshold(threshold: f32) -> Self {
        Self { threshold, relaxed: None, radius: 0 }
    }
}

impl CommitPolicy for LocalLeap {
    fn begin(&mut self, _: BlockStart) {}

    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)> {
        let Some(top) = best(candidates) else { return Vec::new() };
        let is_anchor: Vec<bool> = candidates.iter().map(|c| known(c.confidence) >= self.threshold).collect();
        let near = match self.relaxed {
            Some(_) => self.near_anchors(candidates, &is_anchor),
            None => vec![false; candidates.len()],
        };
        let rule = |index: usize| {
            let confidence = known(candidates[index].confidence);
            // An anchor lies in its own neighbourhood: where the relaxed threshold is above the strict one, it must
            // reach the former.
            let needed = self.relaxed.filter(|_| near[index]).unwrap_or(self.threshold);
            match (confidence >= needed, is_anchor[index]) {
                (true, true) => Some(Rule::Anchor),
                (true, false) => Some(Rule::Relaxed),
                (false, _) => (index == top).then_some(Rule::Top),
            }
        };
        (0..candidates.len()).filter_map(|index| Some((index, rule(index)?))).collect()
    }
}

impl LocalLeap {
    /// Which candidates have an anchor within the radius: one sweep in each direction, remembering the last anchor.
    fn near_anchors(&self, candidates: &[Candidate], is_anchor: &[bool]) -> Vec<bool> {
        let mut near = vec![false; candidates.len()];
        let mut sweep = |indices: &mut dyn Iterator<Item = usize>| {
            let mut last: Option<usize> = None;
            for index in indices {
                let position = candidates[index].position;
                if is_anchor[index] {
                    last = Some(position);
                }
                near[index] |= last.is_some_and(|anchor| anchor.abs_diff(position) <= self.radius);
            }
        };
        sweep(&mut (0..candidates.len()));
        sweep(&mut (0..candidates.len()).rev());
        near
    }
}
