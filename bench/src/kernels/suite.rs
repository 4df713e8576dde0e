//! What is measured for one shape, and what has come out so far.

use anyhow::ensure;

use super::{
    KernelsArgs, Op, Temperature, attention,
    case::{Case, Cell, Effort, Label, measure},
    counts::Heads,
    data::Format,
    limits::{Caches, Limits},
    linear, lla, rows,
    shapes::{Shape, Sizes},
    vocab,
};
use crate::stats::SplitMix;

/// All cells of a run.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) cells: Vec<Cell>,
    /// What was left out, and why.
    pub(super) notes: Vec<String>,
}

/// The ops of one shape.
pub(super) struct Suite<'a> {
    pub(super) args: &'a KernelsArgs,
    pub(super) limits: &'a Limits,
    pub(super) shape: Shape,
    pub(super) results: &'a mut Results,
}

impl Sizes {
    pub(super) fn heads(self) -> Heads {
        Heads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

impl Suite<'_> {
    /// All cells of one op.
    pub(super) fn run(&mut self, op: Op) -> anyhow::Result<()> {
        match op {
            Op::Linear => self.formats(|suite, format| {
                suite.sizes().matrices().into_iter().try_for_each(|matrix| linear::run(suite, matrix, format))
            }),
            Op::Attention => attention::run(self, self.args.context),
            Op::RmsNorm => rows::run_norm(self),
            Op::Rope => rows::run_rope(self),
            Op::Swiglu => rows::run_swiglu(self),
            Op::Embedding => self.formats(vocab::run_embedding),
            Op::Argmax => vocab::run_argmax(self),
            Op::Confidence => vocab::run_confidence(self),
            Op::Lla => lla::run(self, self.args.context),
        }
    }

    fn formats(&mut self, run: impl Fn(&mut Self, Format) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.args.formats.iter().try_for_each(|format| run(self, *format))
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.shape.sizes()
    }

    pub(super) fn shape_name(&self) -> &'static str {
        self.shape.name()
    }

    pub(super) fn rows(&self) -> Vec<usize> {
        self.args.rows.clone()
    }

    /// The same numbers for every case, so that a cell does not depend on which others are measured.
    pub(super) fn random(&self) -> SplitMix {
        SplitMix(self.args.seed)
    }

    /// Whether to measure cold, warm or both. Data that no cache holds cannot be warm; `what` then stands in a note.
    pub(super) fn temperatures(&mut self, what: &str, bytes: usize) -> Vec<bool> {
        let last_bytes = self.limits.caches.last_bytes();
        let fits = bytes <= last_bytes;
        if !fits && self.args.data.contains(&Temperature::Warm) {
            let shape = self.shape_name();
            self.note(format!("{what} of {shape} is never warm: {bytes} bytes, and the last cache has {last_bytes}."));
        }
        let measured = self.args.data.iter().filter(|data| fits || **data == Temperature::Cold);
        measured.map(|data| *data == Temperature::Cold).collect()
    }

    /// The caches that copies have to be larger than.
    pub(super) fn copies_for(&self, cold: bool) -> Option<Caches> {
        cold.then_some(self.limits.caches)
    }

    /// A label to be completed.
    pub(super) fn label(&self, op: &'static str) -> Label {
        Label { op, shape: self.shape.name(), what: String::new(), rows: 1, format: String::new(), cold: false }
    }

    pub(super) fn note(&mut self, text: String) {
        self.results.notes.push(text);
    }

    /// Measures a case.
    pub(super) fn add(&mut self, case: &Case<'_>) -> anyhow::Result<()> {
        eprintln!("{}", case.label);
        let effort = Effort { rounds: self.args.rounds, sample: self.args.sample() };
        let measured = measure(case, effort)?;
        ensure!(measured.ours_s.iter().all(|seconds| *seconds > 0.0), "the clock stood still: raise --sample-ms");
        let bound = self.limits.bound(case.counts, case.products, case.label.cold)?;
        self.results.cells.push(Cell {
            label: case.label.clone(),
            counts: case.counts,
            num_copies: case.num_copies,
            ours_s: measured.ours_s,
            candle: measured.candle,
            error: measured.error,
            tolerance: case.tolerance,
            bound_s: bound.seconds,
            bound_by: bound.by,
        });
        Ok(())
    }
}
