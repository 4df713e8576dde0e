//! Local linear attention, which candle has not: checked against the reference in f64.

use anyhow::ensure;
use kernels::peak::Products;

use super::{
    case::{Case, Label, Peer},
    counts::{self, Counts},
    suite::Suite,
};
use crate::lla::{Inputs, Oracle, Shape, cpu, operations};

/// Penalty on the slopes.
const RIDGE: f32 = 0.1;
/// Residuals of 1e-5, amplified by condition numbers of some hundreds.
const TOLERANCE: f64 = 1e-2;
/// New positions of a call, beside a single one.
const BLOCK_ROWS: usize = 32;

/// One row, and a block of them, at the end of the context.
pub(super) fn run(suite: &mut Suite<'_>, context: usize) -> anyhow::Result<()> {
    let counts::Heads { heads, kv_heads, head_dim } = suite.sizes().heads();
    let cache_bytes = 2 * context * kv_heads * head_dim * size_of::<f32>();
    for rows in [1, BLOCK_ROWS.min(context)] {
        let shape = Shape { heads, kv_heads, dim: head_dim, rows, context };
        ensure!(shape.fits(), "--context {context} is more than local linear attention is measured with");
        for cold in suite.temperatures("The KV cache of local linear attention", cache_bytes) {
            let num_copies = super::data::copies(cache_bytes, suite.copies_for(cold));
            let seed = suite.random().below(1 << 30) as u64;
            let inputs = (0..num_copies as u64)
                .map(|copy| Inputs::new(shape, seed + copy))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let oracle = Oracle::new(&inputs[0], RIDGE)?;
            let steps = cpu(&inputs[0], RIDGE, true)?.details.map(|details| details.iterations).unwrap_or_default();
            ensure!(steps.len() == rows * heads, "{} queries were solved and not {}", steps.len(), rows * heads);
            let visible: Vec<usize> = (0..rows).map(|row| shape.visible_end(row)).collect();
            let bytes = counts::attention(&visible, suite.sizes().heads()).bytes;
            suite.add(&Case {
                label: Label {
                    what: format!("{rows} over {context}"),
                    rows,
                    format: "f32".into(),
                    cold,
                    ..suite.label("lla")
                },
                counts: Counts { bytes, operations: operations(shape, &steps) as usize },
                products: Products::F32,
                num_copies,
                ours: Box::new(|copy| Ok(cpu(&inputs[copy], RIDGE, false)?.output)),
                peer: Peer::NoSuchOp {
                    error: Box::new(|output| Ok(oracle.error(&output.flatten_all()?.to_vec1::<f32>()?))),
                },
                tolerance: TOLERANCE,
            })?;
        }
    }
    Ok(())
}
