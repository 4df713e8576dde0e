//! What the engine counts of models whose attention solves systems.

use std::{fmt, sync::atomic::AtomicU64};

use models::{SolverDetails, SolverReport};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::exposition::Page;

/// Instruments of local linear attention. A query is one head of one row in one layer.
#[derive(Debug, Clone)]
pub(crate) struct SolverMetrics {
    queries: Counter,
    capped: Counter,
    fallbacks: Counter,
    details: Option<DetailMetrics>,
}

/// Instruments of what a [`SolverReport`] has details of.
#[derive(Debug, Clone)]
pub(crate) struct DetailMetrics {
    iterations: Histogram,
    frozen: Counter,
    weak_ridges: Counter,
    largest_eta: Gauge<f64, AtomicU64>,
    change: Histogram,
}

impl SolverMetrics {
    /// `has_details` says whether the reports of the model have any; what nobody counts is not shown as zero.
    pub(crate) fn new(has_details: bool) -> Self {
        Self {
            queries: Counter::default(),
            capped: Counter::default(),
            fallbacks: Counter::default(),
            details: has_details.then(DetailMetrics::new),
        }
    }

    fn details(&self) -> Option<&DetailMetrics> {
        self.details.as_ref()
    }

    /// Writes everything. Counters get the suffix `_total`.
    pub(crate) fn write(page: &mut Page<'_, '_>) -> fmt::Result {
        let queries = "Systems of local linear attention that were solved, one for each row, layer and head";
        page.solver("lla_queries", queries, |m| Some(&m.queries))?;
        page.solver("lla_iterations", "Steps that a system took", |m| Some(&m.details()?.iterations))?;
        let capped = "Systems that used all steps without reaching the tolerance";
        page.solver("lla_capped", capped, |m| Some(&m.capped))?;
        let frozen = "Systems that rounding stopped before the tolerance";
        page.solver("lla_frozen", frozen, |m| Some(&m.details()?.frozen))?;
        let fallbacks = "Systems without a finite solution, whose rows got softmax attention";
        page.solver("lla_fallbacks", fallbacks, |m| Some(&m.fallbacks))?;
        let weak = "Systems whose ridge was below a thousandth of the mean variance of their keys";
        page.solver("lla_weak_ridges", weak, |m| Some(&m.details()?.weak_ridges))?;
        let eta = "Largest squared Mahalanobis distance of a query from the mean of its keys so far";
        page.solver("lla_largest_eta", eta, |m| Some(&m.details()?.largest_eta))?;
        let change = "Difference from softmax attention relative to it, in norm, one value for each layer and pass";
        page.solver("lla_change", change, |m| Some(&m.details()?.change))
    }

    /// Adds one pass.
    pub(crate) fn observe(&self, report: &SolverReport) {
        self.queries.inc_by(report.num_queries as u64);
        self.capped.inc_by(report.num_capped as u64);
        self.fallbacks.inc_by(report.num_fallbacks as u64);
        if let (Some(metrics), Some(details)) = (&self.details, &report.details) {
            metrics.observe(details);
        }
    }
}

impl DetailMetrics {
    fn new() -> Self {
        let steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
        Self {
            iterations: Histogram::new(steps.map(f64::from)),
            frozen: Counter::default(),
            weak_ridges: Counter::default(),
            largest_eta: Gauge::default(),
            change: Histogram::new([0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0]),
        }
    }

    fn observe(&self, details: &SolverDetails) {
        for (steps, &count) in details.iterations.iter().enumerate() {
            (0..count).for_each(|_| self.iterations.observe(steps as f64));
        }
        self.frozen.inc_by(details.num_frozen as u64);
        self.weak_ridges.inc_by(details.num_weak_ridges as u64);
        // Only the device thread writes, so load and store need not be one step.
        self.largest_eta.set(self.largest_eta.get().max(f64::from(details.largest_eta)));
        // A value that is not a number would stay in the sum for good.
        details.changes.iter().filter(|change| change.is_finite()).for_each(|&change| self.change.observe(change));
    }
}
