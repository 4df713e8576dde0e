//! The forward passes that energy is divided over.

use super::{
    monitor::SystemCause,
    report::Ticket,
    types::{Nanos, Rail},
};

/// Steps kept for domains that have not been read since; some minutes of small passes.
const CAPACITY: usize = 1 << 16;

/// What a position is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// A position of the prompt, for the first time.
    Prefill,
    /// Anything else.
    Decode,
}

impl Phase {
    pub(crate) const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Who pays. The order settles ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Account {
    Request(Ticket, Phase),
    System(SystemCause),
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) account: Account,
    /// Relative to the other shares of the step.
    pub(crate) weight: u64,
}

/// A forward pass, or other work of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    id: u64,
    pub(crate) begin: Nanos,
    /// `None` while it runs.
    pub(crate) end: Option<Nanos>,
    accelerators: Box<[usize]>,
    pub(crate) shares: Box<[Share]>,
}

impl Step {
    /// Whether the rail takes part in it.
    pub(crate) fn concerns(&self, rail: &Rail) -> bool {
        match rail {
            Rail::Host => true,
            Rail::Accelerator(index) => self.accelerators.contains(index),
        }
    }

    /// Requests that it computes for.
    pub(crate) fn tickets(&self) -> Vec<Ticket> {
        let ticket = |share: &Share| match share.account {
            Account::Request(ticket, _) => Some(ticket),
            Account::System(_) => None,
        };
        let mut tickets: Vec<Ticket> = self.shares.iter().filter_map(ticket).collect();
        tickets.sort_unstable();
        tickets.dedup();
        tickets
    }
}

/// The steps that may still get energy, in the order of their beginnings.
#[derive(Debug, Default)]
pub(crate) struct StepLog {
    steps: Vec<Step>,
    next_id: u64,
    num_open: usize,
}

impl StepLog {
    /// A step begins. Its id, and, if the log was full, the moment up to which steps are forgotten: energy from before
    /// it cannot be divided any more.
    pub(crate) fn begin(&mut self, begin: Nanos, accelerators: &[usize], shares: &[Share]) -> (u64, Option<Nanos>) {
        let mut forgotten = None;
        if self.steps.len() >= CAPACITY {
            forgotten = Some(begin);
            self.steps.retain(|step| step.end.is_none());
        }
        let id = self.next_id;
        self.next_id += 1;
        self.num_open += 1;
        let accelerators = accelerators.into();
        self.steps.push(Step { id, begin, end: None, accelerators, shares: scaled(shares) });
        (id, forgotten)
    }

    /// The step with this id ends; it is returned unless it is unknown or has ended before.
    pub(crate) fn end(&mut self, id: u64, end: Nanos) -> Option<&Step> {
        let index = self.steps.binary_search_by_key(&id, |step| step.id).ok()?;
        let step = &mut self.steps[index];
        if step.end.is_some() {
            return None;
        }
        step.end = Some(end.max(step.begin));
        self.num_open -= 1;
        Some(step)
    }

    /// Whether any step runs.
    pub(crate) fn is_busy(&self) -> bool {
        self.num_open > 0
    }

    /// All steps that have not been forgotten.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Forgets what ended by `settled`.
    pub(crate) fn forget(&mut self, settled: Nanos) {
        self.steps.retain(|step| step.end.is_none_or(|end| end > settled));
    }
}

/// Weights of at most 32 bits in the same proportions, so that exact products of them and of times fit; none becomes 0.
fn scaled(shares: &[Share]) -> Box<[Share]> {
    let largest = shares.iter().map(|share| share.weight).max().unwrap_or(0);
    let shift = (u64::BITS - largest.leading_zeros()).saturating_sub(32);
    let scale = |share: &Share| Share { weight: (share.weight >> shift).max(share.weight.min(1)), ..*share };
    shares.iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(ticket: u64, weight: u64) -> Share {
        Share { account: Account::Request(Ticket(ticket), Phase::Decode), weight }
    }

    #[test]
    fn steps_are_kept_until_they_are_settled() {
        let mut log = StepLog::default();
        let (first, _) = log.begin(Nanos(0), &[], &[share(1, 1)]);
        let (second, _) = log.begin(Nanos(5), &[1], &[share(2, 1), share(2, 3), share(1, 1)]);
        assert!(log.is_busy());
        assert_eq!(log.end(second, Nanos(10)).unwrap().tickets(), [Ticket(1), Ticket(2)]);
        assert!(log.end(second, Nanos(11)).is_none(), "it has ended");
        log.forget(Nanos(10));
        assert_eq!(log.steps().len(), 1, "the first still runs");
        assert!(log.steps()[0].concerns(&Rail::Host));
        assert!(!log.steps()[0].concerns(&Rail::Accelerator(1)));
        log.end(first, Nanos(12)).unwrap();
        assert!(!log.is_busy());
        log.forget(Nanos(11));
        assert_eq!(log.steps().len(), 1);
        log.forget(Nanos(12));
        assert!(log.steps().is_empty());
        assert!(log.end(first, Nanos(13)).is_none(), "it is forgotten");
    }

    #[test]
    fn a_log_that_nobody_reads_does_not_grow_without_end() {
        let mut log = StepLog::default();
        let (running, _) = log.begin(Nanos(0), &[], &[]);
        let mut forgotten = None;
        for at in 1..=CAPACITY as u64 {
            let (id, lost) = log.begin(Nanos(at), &[], &[]);
            log.end(id, Nanos(at));
            forgotten = forgotten.or(lost);
        }
        assert_eq!(forgotten, Some(Nanos(CAPACITY as u64)));
        assert!(log.steps().len() <= CAPACITY);
        assert!(log.end(running, Nanos(1 << 20)).is_some());
    }

    #[test]
    fn large_weights_keep_their_proportions() {
        let shares = scaled(&[share(1, 3 << 50), share(2, 1 << 50), share(3, 1), share(4, 0)]);
        let weights: Vec<u64> = shares.iter().map(|share| share.weight).collect();
        assert_eq!(weights, [3 << 30, 1 << 30, 1, 0]);
        assert_eq!(scaled(&[share(1, 90), share(2, 10)])[0].weight, 90);
    }
}
