//! Time of a forward pass on the device, and of a step from end to end.

use super::{
    Part, Setup,
    log::{Cell, Log, figure},
    subject::{Rows, Subject},
};
use crate::stats::Summary;

/// Name of the cells of passes.
pub(super) const PASS: &str = "pass";
/// Name of the cells of steps.
pub(super) const STEP: &str = "step";

/// Forward passes of every number of rows behind every context.
pub(super) fn forward(setup: &Setup, subject: &mut Subject, log: &mut Log) -> anyhow::Result<()> {
    log.note(
        Part::Forward,
        "Device time of a pass with its logits, the likeliest token and its probability of every row: all rows are scored, \
         as in a block that is denoised or checked; rows see what is before them. A round is the mean of passes that are \
         given at once.",
    );
    log.note(
        Part::Forward,
        "Memory limit: the bytes of all weights but an embedding of its own, and keys and values once, at the copy \
         bandwidth. Matrix rate: operations of matrix products and attention.",
    );
    for &context in &setup.contexts {
        let mut is_filled = false;
        for &rows in &setup.rows {
            let cell = Cell::new(Part::Forward, &subject.name, PASS).at(rows, context);
            let measured = setup.guarded(subject.refusal(rows, context), || {
                if !is_filled {
                    subject.prefill(context)?;
                    is_filled = true;
                }
                let pass = Rows::causal(context..context + rows);
                // Also looks at the scores.
                subject.pass(&pass)?;
                (0..setup.rounds).map(|_| subject.device_millis(&pass, setup.repeats)).collect()
            });
            log.add(with_shares(setup, subject, cell, measured, (rows, context)))?;
        }
    }
    Ok(())
}

fn with_shares(
    setup: &Setup,
    subject: &Subject,
    cell: Cell,
    measured: Result<Vec<f64>, String>,
    (rows, context): (usize, usize),
) -> Cell {
    let millis = match measured {
        Ok(millis) => millis,
        Err(reason) => return Cell { left_out: Some(reason), ..cell },
    };
    let cell = Cell { millis, ..cell };
    let Some(median) = cell.median() else { return cell };
    let memory = setup.facts.memory_share(subject.read_bytes(rows, context), median);
    let matrix = setup.facts.matrix_share(subject.operations(rows, context), median);
    cell.with(figure::MEMORY_SHARE, memory).with_some(figure::MATRIX_SHARE, matrix)
}

/// Steps from end to end beside the device time of their passes.
pub(super) fn steps(setup: &Setup, subject: &mut Subject, log: &mut Log) -> anyhow::Result<()> {
    log.note(
        Part::Steps,
        "Time on the clock of a pass and its scores: inputs and queries are written, the graphs given, the scores read \
         back. A round is the mean of steps that follow each other.",
    );
    let Some(&context) = setup.contexts.get(setup.contexts.len() / 2) else { return Ok(()) };
    let mut is_filled = false;
    for &rows in &setup.rows {
        let cell = Cell::new(Part::Steps, &subject.name, STEP).at(rows, context);
        let measured = setup.guarded(subject.refusal(rows, context), || {
            if !is_filled {
                subject.prefill(context)?;
                is_filled = true;
            }
            let pass = Rows::causal(context..context + rows);
            let device = subject.device_millis(&pass, setup.repeats)?;
            let mut millis = Vec::new();
            for _ in 0..setup.rounds {
                let mut seconds = 0.0;
                for _ in 0..setup.repeats {
                    seconds += subject.pass(&pass)?;
                }
                millis.push(1e3 * seconds / setup.repeats as f64);
            }
            let after = subject.device_millis(&pass, setup.repeats)?;
            Ok((millis, (device + after) / 2.0))
        });
        log.add(match measured {
            Err(reason) => Cell { left_out: Some(reason), ..cell },
            Ok((millis, device)) => {
                let ratio = Summary::of(&millis).map(|summary| summary.median / device);
                Cell { millis, ..cell }.with(figure::DEVICE_MS, device).with_some(figure::OVER_DEVICE, ratio)
            }
        })?;
    }
    Ok(())
}
