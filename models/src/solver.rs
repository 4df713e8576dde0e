//! How the solvers of a pass fared.

use kernels::{LlaReport, device::LlaCounters};

/// The systems that local linear attention solved in one pass, over all layers. A query is one head of one row in one
/// layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SolverReport {
    /// Queries.
    pub num_queries: usize,
    /// Steps of all queries.
    pub num_steps: usize,
    /// Most steps of a query.
    pub most_steps: usize,
    /// Queries that used all steps without reaching the tolerance.
    pub num_capped: usize,
    /// Queries that returned softmax attention because their solution, or its output, was not finite.
    pub num_fallbacks: usize,
    /// What is known on the processor alone: the kernels of a device add up the numbers above and no more.
    pub details: Option<SolverDetails>,
}

/// The part of a [`SolverReport`] that looks at every query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SolverDetails {
    /// `iterations[n]` queries took `n` steps.
    pub iterations: Vec<usize>,
    /// Queries that rounding stopped before the tolerance.
    pub num_frozen: usize,
    /// Queries whose ridge is below a thousandth of the mean variance of the keys that they see.
    pub num_weak_ridges: usize,
    /// Largest squared Mahalanobis distance of a query from the mean of its keys.
    pub largest_eta: f32,
    /// For each layer, the norm of the difference from softmax attention, relative to the norm of softmax attention.
    pub changes: Vec<f64>,
}

impl SolverReport {
    /// Adds what one layer reports.
    pub(crate) fn add(&mut self, layer: &LlaReport) {
        self.num_queries += layer.num_queries;
        self.num_steps += layer.iterations.iter().enumerate().map(|(steps, count)| steps * count).sum::<usize>();
        self.most_steps = self.most_steps.max(layer.iterations.len().saturating_sub(1));
        self.num_capped += layer.num_capped;
        self.num_fallbacks += layer.num_fallbacks;
        self.details.get_or_insert_default().add(layer);
    }

    /// What the kernels of a device counted in a pass of so many queries.
    pub(crate) fn of_device(num_queries: usize, counters: &LlaCounters) -> Self {
        Self {
            num_queries,
            num_steps: counters.iterations as usize,
            most_steps: counters.largest_iterations as usize,
            num_capped: counters.num_capped as usize,
            num_fallbacks: counters.num_fallbacks as usize,
            details: None,
        }
    }
}

impl SolverDetails {
    fn add(&mut self, layer: &LlaReport) {
        if self.iterations.len() < layer.iterations.len() {
            self.iterations.resize(layer.iterations.len(), 0);
        }
        for (total, count) in self.iterations.iter_mut().zip(&layer.iterations) {
            *total += count;
        }
        self.num_frozen += layer.num_frozen;
        self.num_weak_ridges += layer.num_weak_ridges;
        self.largest_eta = self.largest_eta.max(layer.largest_eta);
        self.changes.push(layer.change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        let layer = |iterations: &[usize], eta, change| LlaReport {
            num_queries: iterations.iter().sum(),
            iterations: iterations.to_vec(),
            num_capped: 1,
            num_frozen: 2,
            num_fallbacks: 3,
            num_weak_ridges: 4,
            largest_eta: eta,
            change,
        };
        let mut report = SolverReport::default();
        report.add(&layer(&[0, 5, 1], 7.0, 0.5));
        report.add(&layer(&[2, 0, 0, 8], 3.0, 0.25));
        let expected = SolverReport {
            num_queries: 16,
            num_steps: 31,
            most_steps: 3,
            num_capped: 2,
            num_fallbacks: 6,
            details: Some(SolverDetails {
                iterations: vec![2, 5, 1, 8],
                num_frozen: 4,
                num_weak_ridges: 8,
                largest_eta: 7.0,
                changes: vec![0.5, 0.25],
            }),
        };
        assert_eq!(report, expected);
    }
}
