//! The adaptive block width: as wide as pays, by the measured cost of a pass (`engine/specs/jacobi.md`, section 6).

use crate::cost::PassCost;

/// Weight of the newest observation in the running estimates.
const EMA_WEIGHT: f64 = 0.15;
/// The same for a probe: probes are rare, so each must be able to change the picture.
const PROBE_WEIGHT: f64 = 0.5;
/// A new width must promise this much more than the current one.
const HYSTERESIS: f64 = 1.05;
/// Passes between two probes at full width, at least.
const PROBE_INTERVAL: f64 = 32.0;
/// Share of the time that probes may cost.
const PROBE_BUDGET: f64 = 0.02;
/// Prior that the next draft is right: for a model trained to predict blocks, after a lookup match, and otherwise.
const PRIOR_TRAINED: f64 = 0.85;
const PRIOR_MATCHED: f64 = 0.3;
const PRIOR_PLAIN: f64 = 0.05;

/// Running estimate of `s_k = P(accepted >= k)` for `k = 1..=n`.
#[derive(Debug, Clone)]
pub struct Survival(Vec<f64>);

impl Survival {
    fn geometric(width: usize, ratio: f64) -> Self {
        Self((0..width).map(|k| ratio.powi(k as i32)).collect())
    }

    fn observe(&mut self, width: usize, accepted: usize, weight: f64) {
        for (k, estimate) in self.0.iter_mut().enumerate().take(width).skip(1) {
            let survived = f64::from(u8::from(accepted > k));
            *estimate += weight * (survived - *estimate);
        }
        // A narrow pass says nothing of the slots beyond it: they go on as the observed ones begin.
        if width >= 2 {
            let ratio = self.0[width - 1].powf(1.0 / (width - 1) as f64);
            for k in width..self.0.len() {
                self.0[k] = self.0[k - 1] * ratio;
            }
        }
    }

    /// Expected number of committed tokens of a pass of `width`.
    pub fn expected(&self, width: usize) -> f64 {
        self.0[..width.min(self.0.len())].iter().sum()
    }
}

/// Chooses the width of the next pass of one sequence.
#[derive(Debug, Clone)]
pub struct WidthController {
    max_width: usize,
    plain: Survival,
    matched: Survival,
    /// Last width chosen, for each of the two estimates.
    current: [usize; 2],
    until_probe: f64,
}

impl WidthController {
    /// A controller for blocks of at most `max_width`.
    pub fn new(max_width: usize, trained: bool) -> Self {
        let prior = |ratio| Survival::geometric(max_width, if trained { PRIOR_TRAINED } else { ratio });
        Self {
            max_width,
            plain: prior(PRIOR_PLAIN),
            matched: prior(PRIOR_MATCHED),
            current: [1, 1],
            until_probe: PROBE_INTERVAL / 2.0,
        }
    }

    /// Width of the next pass, `1..=allowed`. `matched`: the guesses continue an earlier passage of the text.
    pub fn width(&self, allowed: usize, matched: bool, cost: &PassCost<'_>) -> usize {
        let allowed = allowed.clamp(1, self.max_width);
        if self.until_probe <= 0.0 {
            return allowed;
        }
        let survival = if matched { &self.matched } else { &self.plain };
        let rate = |width: usize| cost.rate(survival.expected(width), width);
        let current = self.current[usize::from(matched)].clamp(1, allowed);
        let best = (1..=allowed).fold(current, |best, width| if rate(width) > rate(best) { width } else { best });
        if rate(best) > rate(current) * HYSTERESIS { best } else { current }
    }

    /// Learns from a pass of `width` that committed `accepted` tokens.
    pub fn observe(&mut self, width: usize, accepted: usize, matched: bool, cost: &PassCost<'_>) {
        let probe = self.until_probe <= 0.0;
        let chosen = self.width(self.max_width, matched, cost);
        let survival = if matched { &mut self.matched } else { &mut self.plain };
        survival.observe(width, accepted, if probe { PROBE_WEIGHT } else { EMA_WEIGHT });
        if probe {
            let extra = cost.ratio(self.max_width) - 1.0;
            self.until_probe = PROBE_INTERVAL.max(extra / PROBE_BUDGET);
        } else {
            self.current[usize::from(matched)] = chosen;
            self.until_probe -= 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::CostTable;

    fn run(accept: impl Fn(usize) -> usize, trained: bool, steps: usize) -> (f64, f64) {
        // One row costs 1, sixteen cost 4.
        let table = CostTable::from_points(vec![(1, 1.0), (16, 4.0)]);
        let cost = PassCost::new(&table, 0, 0.0);
        let mut controller = WidthController::new(16, trained);
        let (mut time, mut tokens) = (0.0, 0.0);
        for _ in 0..steps {
            let width = controller.width(16, false, &cost);
            let accepted = accept(width);
            controller.observe(width, accepted, false, &cost);
            time += table.millis(width);
            tokens += accepted as f64;
        }
        (time, tokens)
    }

    #[test]
    fn a_model_that_never_guesses_right_costs_at_most_three_percent() {
        let (time, tokens) = run(|_| 1, false, 2000);
        assert_eq!(tokens, 2000.0);
        assert!(time < 2000.0 * 1.03, "{time} units for 2000 tokens");
    }

    #[test]
    fn a_model_that_always_guesses_right_runs_wide() {
        for trained in [false, true] {
            let (time, tokens) = run(|width| width, trained, 400);
            assert!(tokens / time > 3.0, "trained {trained}: {} tokens per unit of 4 at best", tokens / time);
        }
    }

    #[test]
    fn the_width_never_exceeds_what_is_allowed() {
        let table = CostTable::from_points(vec![(1, 1.0), (16, 1.0)]);
        let cost = PassCost::new(&table, 0, 0.0);
        let controller = WidthController::new(16, true);
        for allowed in 1..20 {
            let width = controller.width(allowed, false, &cost);
            assert!((1..=allowed.min(16)).contains(&width), "{width} of {allowed}");
        }
    }
}
