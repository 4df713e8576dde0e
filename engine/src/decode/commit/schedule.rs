//! How many slots each step of a block commits.

/// End of the time grid: the reference sampler of Dream never reaches 0.
const GRID_END: f64 = 1e-3;

/// A rule from the undecided slots of a block to a number for each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// As even as whole numbers allow, the larger ones first (LLaDA, arXiv:2502.09992).
    Even,
    /// `floor(m (1 - s / t))` of the `m` slots left, over a grid of times from 1 to 0.001; the last step takes the rest
    /// (Dream).
    Grid,
    /// `round(m / steps left)`, halves to even (Tiny A2D).
    Linear,
}

impl Schedule {
    /// The numbers of a block with `num_slots` slots to divide over `steps` steps, at least 1.
    pub fn quotas(self, num_slots: usize, steps: usize) -> Quotas {
        let kind = match self {
            Self::Even => Kind::Even { num_slots, steps },
            Self::Grid => Kind::Grid(Grid::new(steps)),
            Self::Linear => Kind::Linear { steps },
        };
        Quotas { kind, step: 0 }
    }
}

/// The numbers of one block, step by step.
#[derive(Debug, Clone)]
pub struct Quotas {
    kind: Kind,
    step: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    Even { num_slots: usize, steps: usize },
    Grid(Grid),
    Linear { steps: usize },
}

impl Default for Quotas {
    fn default() -> Self {
        Schedule::Even.quotas(0, 1)
    }
}

impl Quotas {
    /// The number of the next step with `num_left` slots undecided: from 1 to `num_left`, or 0 if there are none.
    ///
    /// Steps that would commit nothing are skipped, since a pass over an unchanged canvas changes nothing; and behind
    /// the last step everything is due.
    pub fn next(&mut self, num_left: usize) -> usize {
        loop {
            let step = self.step;
            self.step += 1;
            let quota = match &mut self.kind {
                Kind::Even { num_slots, steps } if step < *steps => {
                    *num_slots / *steps + usize::from(step < *num_slots % *steps)
                }
                Kind::Linear { steps } if step < *steps => half_to_even(num_left, *steps - step),
                Kind::Grid(grid) => match grid.next() {
                    Some((_, share)) => (num_left as f64 * share) as usize,
                    None => num_left,
                },
                Kind::Even { .. } | Kind::Linear { .. } => num_left,
            };
            if quota > 0 || num_left == 0 {
                return quota.min(num_left);
            }
        }
    }
}

/// `a / b` rounded, halves to the even neighbour.
fn half_to_even(a: usize, b: usize) -> usize {
    let (whole, rest) = (a / b, a % b);
    match (rest * 2).cmp(&b) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Greater => whole + 1,
        std::cmp::Ordering::Equal => whole + whole % 2,
    }
}

/// Times from 1 to [`GRID_END`] in equal steps: yields the step and the share `1 - s / t` that it commits.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    steps: usize,
    step: usize,
}

impl Grid {
    pub(super) fn new(steps: usize) -> Self {
        Self { steps, step: 0 }
    }

    fn time(&self, step: usize) -> f64 {
        1.0 - (1.0 - GRID_END) * step as f64 / self.steps as f64
    }
}

impl Iterator for Grid {
    type Item = (usize, f64);

    /// `None` from the last step on, which commits everything.
    fn next(&mut self) -> Option<(usize, f64)> {
        let step = self.step;
        (step + 1 < self.steps).then(|| {
            self.step += 1;
            (step, 1.0 - self.time(step + 1) / self.time(step))
        })
    }
}
