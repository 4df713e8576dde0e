//! Ops on rows of activations: RMS norm, rotary embedding, SwiGLU. Their data were written just before, so that they are
//! always warm.

use candle_core::{Device, Tensor};
use kernels::{AttentionPlan, PlanRow, peak::Products, rms_norm, rope, swiglu};

use super::{
    case::{Case, Label, Peer},
    counts,
    data::normal,
    suite::Suite,
};

/// f32 with an exponential or a sum in another order.
const TOLERANCE: f64 = 1e-4;
const EPS: f32 = 1e-5;
/// Base of the wavelengths of the rotation.
const THETA: f32 = 10_000.0;

/// All ops here have these in common.
fn case<'a>(label: Label, counts: counts::Counts, ours: super::case::Call<'a>, peer: Peer<'a>) -> Case<'a> {
    Case { label, counts, products: Products::F32, num_copies: 1, ours, peer, tolerance: TOLERANCE }
}

fn label(suite: &Suite<'_>, op: &'static str, rows: usize) -> Label {
    Label { rows, format: "f32".into(), ..suite.label(op) }
}

/// The norm before attention.
pub(super) fn run_norm(suite: &mut Suite<'_>) -> anyhow::Result<()> {
    let hidden = suite.sizes().hidden;
    for rows in suite.rows() {
        let mut random = suite.random();
        let (xs, weight) = (normal(&[rows, hidden], &mut random)?, normal(&[hidden], &mut random)?);
        suite.add(&case(
            label(suite, "rms_norm", rows),
            counts::rms_norm(rows, hidden),
            Box::new(|_| Ok(rms_norm(&xs, &weight, EPS)?)),
            Peer::Candle {
                name: "ops::rms_norm",
                call: Box::new(|_| Ok(candle_nn::ops::rms_norm(&xs, &weight, EPS)?)),
                arrange: Ok,
            },
        ))?;
    }
    Ok(())
}

/// The queries of a layer, at positions from 0 on. candle has heads before rows, and gets them so.
pub(super) fn run_rope(suite: &mut Suite<'_>) -> anyhow::Result<()> {
    let counts::Heads { heads, head_dim, .. } = suite.sizes().heads();
    for rows in suite.rows() {
        let xs = normal(&[rows, heads, head_dim], &mut suite.random())?;
        let by_head = xs.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let half = head_dim / 2;
        let angle = |at: usize| (at / half) as f32 * THETA.powf(-((at % half) as f32) / half as f32);
        let table = |of: fn(f32) -> f32| {
            let numbers: Vec<f32> = (0..rows * half).map(|at| of(angle(at))).collect();
            Tensor::from_vec(numbers, (rows, half), &Device::Cpu)
        };
        let (cos, sin) = (table(f32::cos)?, table(f32::sin)?);
        let row = |position| PlanRow { table: 0, position, visible_end: position + 1 };
        let plan = AttentionPlan::new(vec![vec![0]], (0..rows).map(row).collect(), rows)?;
        suite.add(&case(
            label(suite, "rope", rows),
            counts::rope(rows, heads, head_dim),
            Box::new(|_| Ok(rope(&xs, &cos, &sin, &plan)?)),
            Peer::Candle {
                name: "rotary_emb::rope",
                call: Box::new(|_| Ok(candle_nn::rotary_emb::rope(&by_head, &cos, &sin)?)),
                arrange: |output| output.squeeze(0)?.transpose(0, 1)?.contiguous(),
            },
        ))?;
    }
    Ok(())
}

/// The gate of the feed-forward layer; gate and up lie side by side.
pub(super) fn run_swiglu(suite: &mut Suite<'_>) -> anyhow::Result<()> {
    let inner = suite.sizes().inner;
    for rows in suite.rows() {
        let gate_up = normal(&[rows, 2 * inner], &mut suite.random())?;
        suite.add(&case(
            label(suite, "swiglu", rows),
            counts::swiglu(rows, inner),
            Box::new(|_| Ok(swiglu(&gate_up)?)),
            Peer::Candle {
                name: "ops::swiglu",
                call: Box::new(|_| Ok(candle_nn::ops::swiglu(&gate_up)?)),
                arrange: Ok,
            },
        ))?;
    }
    Ok(())
}
