//! How a layer of attention mixes the values that a row sees.

use std::num::NonZeroUsize;

use candle_core::Tensor;
use kernels::{AttentionPlan, LlaOutput, LlaPlan, LlaSettings, LlaSolver, Ridge};

use crate::{
    ModelError, SolverReport,
    config::{LlaConfig, MixerConfig, ModelConfig, RIDGE},
    kv::LayerKv,
    loader::WeightStore,
};

/// One forward pass, as all its layers see it.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Where each row reads and writes.
    pub(crate) plan: AttentionPlan,
    /// The same for local linear attention; the first layer that needs it makes it for all.
    lla: Option<LlaPlan>,
    /// What the layers with local linear attention report, so far.
    pub(crate) solver: Option<SolverReport>,
}

impl Pass {
    pub(crate) fn new(plan: AttentionPlan) -> Self {
        Self { plan, lla: None, solver: None }
    }
}

/// The mixer of one layer.
#[derive(Debug)]
pub(crate) enum Mixer {
    Softmax {
        scale: f32,
    },
    LocalLinear {
        scale: f32,
        /// `[heads]`, f32 whatever the other weights become: a ridge sets how many steps a query takes and how much
        /// rounding its solution takes up.
        ridge: Vec<f32>,
        solver: LlaSolver,
        window: Option<NonZeroUsize>,
    },
}

impl Mixer {
    /// `prefix` is that of the layer.
    pub(crate) fn load(weights: &mut WeightStore, prefix: &str, config: &ModelConfig) -> Result<Self, ModelError> {
        let usual_scale = 1.0 / (config.head_dim as f32).sqrt();
        match &config.mixer {
            MixerConfig::Softmax => Ok(Self::Softmax { scale: usual_scale }),
            MixerConfig::LocalLinear(lla) => Ok(Self::LocalLinear {
                scale: lla.scale.unwrap_or(usual_scale),
                ridge: ridges(weights, &format!("{prefix}.{RIDGE}"), config.num_heads, lla)?,
                solver: lla.solver,
                window: lla.window,
            }),
        }
    }

    /// `[rows, heads, head_dim]` to `[rows, heads * head_dim]`.
    pub(crate) fn forward(&self, q: &Tensor, kv: &LayerKv, pass: &mut Pass) -> Result<Tensor, ModelError> {
        match self {
            Self::Softmax { scale } => Ok(kernels::attention(q, &kv.keys, &kv.values, &pass.plan, *scale)?),
            Self::LocalLinear { scale, ridge, solver, window } => {
                let plan = pass.lla.get_or_insert_with(|| LlaPlan::from_attention(&pass.plan, *window));
                let ridge = Ridge::PerHead(ridge);
                let settings = LlaSettings { scale: *scale, ridge, solver: *solver, details: false };
                let LlaOutput { output, report, .. } = kernels::lla(q, (&kv.keys, &kv.values), plan, &settings)?;
                pass.solver.get_or_insert_default().add(&report);
                Ok(output)
            }
        }
    }

    pub(crate) fn num_params(&self) -> usize {
        match self {
            Self::Softmax { .. } => 0,
            Self::LocalLinear { ridge, .. } => ridge.len(),
        }
    }
}

/// The ridges of the heads, `[num_heads]`, finite and above zero.
fn ridges(weights: &mut WeightStore, name: &str, num_heads: usize, config: &LlaConfig) -> Result<Vec<f32>, ModelError> {
    let theta: Vec<f32> = weights.vector(name, num_heads)?.to_vec1()?;
    config.ridges(&theta).map_err(|value| weights.bad_value(name, &value))
}
