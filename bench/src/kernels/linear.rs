//! Matrix products: `kernels::PackedLinear` beside `QMatMul`, or `matmul` for floats.

use candle_core::Module;
use kernels::{ActivationBits, PackedLinear, peak::Products};

use super::{
    case::{Case, Label, Peer},
    counts,
    data::{Candles, Format, Weights, normal},
    shapes::Matrix,
    suite::Suite,
};

/// Sums of f32 in another order.
const FLOAT_TOLERANCE: f64 = 1e-4;
/// candle rounds activations to 8 bits whatever ours does: half a step of 1/127 of the largest of a block, over many.
const CODED_TOLERANCE: f64 = 0.06;

/// All rows of one matrix in one format.
pub(super) fn run(suite: &mut Suite<'_>, matrix: Matrix, format: Format) -> anyhow::Result<()> {
    let Matrix { name, outputs, inputs } = matrix;
    if !format.divides(inputs) {
        let block_len = format.ours().block_len();
        suite.note(format!(
            "{} of {} is not measured in {}: {inputs} inputs are not a multiple of {block_len}.",
            name,
            suite.shape_name(),
            format.name()
        ));
        return Ok(());
    }
    let bytes = PackedLinear::bytes_of(format.ours(), outputs, inputs);
    for cold in suite.temperatures(&format!("{name} in {}", format.name()), bytes) {
        let weights = Weights::new(format, (outputs, inputs), suite.copies_for(cold), &mut suite.random())?;
        for rows in suite.rows() {
            let xs = normal(&[rows, inputs], &mut suite.random())?;
            for &bits in widths(format) {
                let linears: Vec<_> = weights.ours.iter().map(|one| one.clone().with_activations(bits)).collect();
                let (products, tolerance, stored) = match (format, bits) {
                    (Format::F32, _) => (Products::F32, FLOAT_TOLERANCE, "f32".to_owned()),
                    (_, ActivationBits::Int8) => (Products::Int8, CODED_TOLERANCE, format!("{} x int8", format.name())),
                    (_, ActivationBits::Int16) => {
                        (Products::Int16, CODED_TOLERANCE, format!("{} x int16", format.name()))
                    }
                };
                suite.add(&Case {
                    label: Label { what: name.to_owned(), rows, format: stored, cold, ..suite.label("linear") },
                    counts: counts::linear(rows, (outputs, inputs), linears[0].weight_bytes()),
                    products,
                    num_copies: linears.len(),
                    ours: Box::new(|copy| Ok(linears[copy].apply(&xs)?)),
                    peer: match &weights.candles {
                        Candles::Floats(all) => Peer::Candle {
                            name: "Tensor::matmul",
                            call: Box::new(|copy| Ok(xs.matmul(&all[copy].t()?)?)),
                            arrange: Ok,
                        },
                        Candles::Blocks(all) => Peer::Candle {
                            name: "QMatMul::forward",
                            call: Box::new(|copy| Ok(all[copy].matmul.forward(&xs)?)),
                            arrange: Ok,
                        },
                    },
                    tolerance,
                })?;
            }
        }
    }
    Ok(())
}

/// Layers of floats do not round what goes in.
fn widths(format: Format) -> &'static [ActivationBits] {
    match format {
        Format::F32 => &[ActivationBits::Int16],
        _ => &[ActivationBits::Int16, ActivationBits::Int8],
    }
}
