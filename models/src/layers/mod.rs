//! The only copy of every layer. Families wire them together in [`crate::arch`].
//!
//! Activations are `[rows, features]` in f32; the rows of all sequences of a pass lie behind one another.

mod attention;
mod embedding;
mod mixer;
mod mlp;
mod moe;
mod rope;

pub(crate) use attention::Attention;
pub(crate) use embedding::Embedding;
pub(crate) use mixer::Pass;
pub(crate) use moe::FeedForward;
pub(crate) use rope::{Rope, values_of as rope_values};

use candle_core::Tensor;
use kernels::PackedLinear;
use mixer::Mixer;

use crate::{ModelError, loader::WeightStore};

/// A linear layer with an optional bias.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: PackedLinear,
    /// `[out]`
    bias: Option<Tensor>,
}

impl Linear {
    /// Several layers of one input side by side: their outputs follow each other in a row.
    pub(crate) fn stacked(
        weights: &mut WeightStore,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let packed = parts.iter().map(|(name, outputs)| weights.linear(name, *outputs, inputs));
        let weight = PackedLinear::stack(packed.collect::<Result<_, _>>()?)?;
        let bias = if bias {
            let biases = parts.iter().map(|(name, outputs)| weights.vector(&format!("{name}.bias"), *outputs));
            Some(Tensor::cat(&biases.collect::<Result<Vec<_>, _>>()?, 0)?)
        } else {
            None
        };
        Ok(Self { weight, bias })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor, ModelError> {
        let ys = self.weight.apply(xs)?;
        match &self.bias {
            Some(bias) => Ok(ys.broadcast_add(bias)?),
            None => Ok(ys),
        }
    }

    pub(crate) fn num_params(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, Tensor::elem_count);
        self.weight.out_features() * self.weight.in_features() + bias
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weight.weight_bytes() + self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>())
    }
}
