//! What the engine counts of models whose attention solves systems.

use std::{fmt, sync::atomic::AtomicU64};

use models::SolverReport;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::exposition::Page;

/// Instruments of local linear attention. A query is one head of one row in one layer.
#[derive(Debug, Clone)]
pub(crate) struct SolverMetrics {
    queries: Counter,
    iterations: Histogram,
    capped: Counter,
    frozen: Counter,
    fallbacks: Counter,
    weak_ridges: Counter,
    largest_eta: Gauge<f64, AtomicU64>,
    change: Histogram,
}

impl SolverMetrics {
    pub(crate) fn new() -> Self {
        let steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
        Self {
            queries: Counter::default(),
            iterations: Histogram::new(steps.map(f64::from)),
            capped: Counter::default(),
            frozen: Counter::default(),
            fallbacks: Counter::default(),
            weak_ridges: Counter::default(),
            largest_eta: Gauge::default(),
            change: Histogram::new([0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0]),
        }
    }

    /// Writes everything. Counters get the suffix `_total`.
    pub(crate) fn write(page: &mut Page<'_, '_>) -> fmt::Result {
        let queries = "Systems of local linear attention that were solved, one for each row, layer and head";
        page.solver("lla_queries", queries, |m| &m.queries)?;
        page.solver("lla_iterations", "Steps that a system took", |m| &m.iterations)?;
        let capped = "Systems that used all steps without reaching the tolerance";
        page.solver("lla_capped", capped, |m| &m.capped)?;
        let frozen = "Systems that rounding stopped before the tolerance";
        page.solver("lla_frozen", frozen, |m| &m.frozen)?;
        let fallbacks = "Systems without a finite solution, whose rows got softmax attention";
        page.solver("lla_fallbacks", fallbacks, |m| &m.fallbacks)?;
        let weak = "Systems whose ridge was below a thousandth of the mean variance of their keys";
        page.solver("lla_weak_ridges", weak, |m| &m.weak_ridges)?;
        let eta = "Largest squared Mahalanobis distance of a query from the mean of its keys so far";
        page.solver("lla_largest_eta", eta, |m| &m.largest_eta)?;
        let change = "Difference from softmax attention relative to it, in norm, one value for each layer and pass";
        page.solver("lla_change", change, |m| &m.change)
    }

    /// Adds one pass.
    pub(crate) fn observe(&self, report: &SolverReport) {
        self.queries.inc_by(report.num_queries as u64);
        for (steps, &count) in report.iterations.iter().enumerate() {
            (0..count).for_each(|_| self.iterations.observe(steps as f64));
        }
        self.capped.inc_by(report.num_capped as u64);
        self.frozen.inc_by(report.num_frozen as u64);
        self.fallbacks.inc_by(report.num_fallbacks as u64);
        self.weak_ridges.inc_by(report.num_weak_ridges as u64);
        // Only the device thread writes, so load and store need not be one step.
        self.largest_eta.set(self.largest_eta.get().max(f64::from(report.largest_eta)));
        // A value that is not a number would stay in the sum for good.
        report.changes.iter().filter(|change| change.is_finite()).for_each(|&change| self.change.observe(change));
    }
}
