//! Commit policies: which undecided slots of a block become final after a pass.
//!
//! A policy sees proposals with confidences, never logits, and holds nothing but its place in a schedule. Laws that
//! all of them keep: the selection is a subset of the candidates, it is empty only if there is no candidate, and ties
//! go to the smaller position. `engine/specs/diffusion.md` has the rules with their sources.

mod dynamic;
mod factor;
mod local_leap;
mod origin;
mod quota;
mod schedule;
#[cfg(test)]
mod tests;

use std::fmt;

pub use dynamic::Dynamic;
pub use factor::Factor;
pub use local_leap::LocalLeap;
pub use origin::Origin;
pub use quota::{Quota, Ranking};
pub use schedule::{Quotas, Schedule};

/// An undecided slot with what the pass proposes for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Absolute position.
    pub position: usize,
    /// Confidence of the proposal. NaN counts as 0.
    pub confidence: f32,
}

/// Why a slot was selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The best of its pass, or one of a quota.
    Top,
    /// It reached the threshold.
    Anchor,
    /// It reached the relaxed threshold near an anchor.
    Relaxed,
}

/// A block at its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockStart {
    /// Undecided slots.
    pub num_open: usize,
    /// All slots, those of the prompt included where it shares the block.
    pub len: usize,
    /// Steps that a schedule may take, at least 1.
    pub steps: usize,
}

/// A rule from candidates to those that become final.
pub trait CommitPolicy: Send + fmt::Debug {
    /// A block begins.
    fn begin(&mut self, block: BlockStart);

    /// The selected candidates as indices, ascending. `candidates` are ascending in position.
    fn select(&mut self, candidates: &[Candidate]) -> Vec<(usize, Rule)>;
}

/// NaN counts as 0: it never reaches a threshold above 0 and never wins against a number.
fn known(confidence: f32) -> f32 {
    if confidence.is_nan() { 0.0 } else { confidence }
}

/// Indices in the order of rank: larger confidence first, the smaller index in a tie.
fn ranked(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| known(candidates[b].confidence).total_cmp(&known(candidates[a].confidence)));
    order
}

/// The candidate of the largest confidence; the first in a tie.
fn best(candidates: &[Candidate]) -> Option<usize> {
    let better = |best: usize, i: usize| known(candidates[i].confidence) > known(candidates[best].confidence);
    (0..candidates.len()).reduce(|best, i| if better(best, i) { i } else { best })
}

/// The first `count` of `order`, ascending, as committed by rank.
fn by_rank(order: &[usize], count: usize) -> Vec<(usize, Rule)> {
    let mut chosen: Vec<_> = order.iter().take(count).map(|&index| (index, Rule::Top)).collect();
    chosen.sort_unstable_by_key(|&(index, _)| index);
    chosen
}
