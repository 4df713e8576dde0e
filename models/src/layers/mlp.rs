//! The gated feed-forward layer (SwiGLU; Shazeer, arXiv:2002.05202).

use candle_core::Tensor;

use super::Linear;
use crate::{ModelError, loader::WeightStore};

/// `down(silu(gate(x)) * up(x))`
#[derive(Debug)]
pub(crate) struct Mlp {
    gate_up: Linear,
    down: Linear,
}

/// Sizes of an MLP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlpDims {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width between the projections.
    pub(crate) inner: usize,
}

impl Mlp {
    /// `names` are those of the gate, up and down projections.
    pub(crate) fn load(
        weights: &mut WeightStore,
        names: [String; 3],
        MlpDims { hidden, inner }: MlpDims,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let [gate, up, down] = names;
        Ok(Self {
            gate_up: Linear::stacked(weights, &[(gate, inner), (up, inner)], hidden, bias)?,
            down: Linear::stacked(weights, &[(down, hidden)], inner, bias)?,
        })
    }

    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor, ModelError> {
        self.down.forward(&kernels::swiglu(&self.gate_up.forward(xs)?)?)
    }

    pub(crate) fn num_params(&self) -> usize {
        self.gate_up.num_params() + self.down.num_params()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}
