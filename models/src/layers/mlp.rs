//! The gated feed-forward layer (SwiGLU; Shazeer, arXiv:2002.05202).

use candle_core::Tensor;

use super::Linear;
use crate::{ModelError, config::CausalConfig, loader::WeightStore};

/// `down(silu(gate(x)) * up(x))`
#[derive(Debug)]
pub(crate) struct Mlp {
    gate_up: Linear,
    down: Linear,
}

impl Mlp {
    pub(crate) fn load(weights: &mut WeightStore, prefix: &str, config: &CausalConfig) -> Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("{prefix}.{part}");
        let gate_up = [(name("gate_proj"), inner), (name("up_proj"), inner)];
        Ok(Self {
            gate_up: Linear::stacked(weights, &gate_up, hidden, config.mlp_bias)?,
            down: Linear::stacked(weights, &[(name("down_proj"), hidden)], inner, config.mlp_bias)?,
        })
    }

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
