//! Layers of experts: how many there are and how a row finds its own.

use serde::Deserialize;

use super::{MAX_INTERMEDIATE_SIZE, MAX_LAYERS};
use crate::ModelError;

/// Most experts of a layer; beyond it a file is damaged.
pub(crate) const MAX_EXPERTS: usize = 4096;

/// Experts of a model's layers.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts that a row goes through.
    pub experts_per_row: usize,
    /// Width of an expert's MLP.
    pub expert_size: usize,
    /// Width of the MLP that every row goes through beside its experts, if there is one.
    pub shared_size: Option<usize>,
    /// Which layers have one MLP and no experts.
    pub dense_layers: Vec<bool>,
    /// How experts are chosen and weighed.
    pub router: RouterConfig,
}

/// How experts are chosen and weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterConfig {
    /// What makes scores of the router's outputs.
    pub score: RouterScore,
    /// Whether a bias is added to the scores for the choice (not for the weights).
    pub has_bias: bool,
    /// Equal groups of experts, and how many of them a row may choose from: those with the largest sums of their two
    /// best scores. `None`: from all experts.
    pub groups: Option<(usize, usize)>,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalise: bool,
    /// Factor of the weights.
    pub scale: f32,
}

/// What makes scores of the router's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScore {
    /// Soft-max over all experts.
    Softmax,
    /// Logistic function of each.
    Sigmoid,
}

impl MoeConfig {
    /// Checks every range that a layer relies on.
    pub(super) fn validate(&self, origin: &str) -> Result<(), ModelError> {
        let bad = |reason: String| Err(ModelError::BadConfig { origin: origin.into(), reason });
        for (field, value, most) in [
            ("number of experts", self.num_experts, MAX_EXPERTS),
            ("number of experts per token", self.experts_per_row, self.num_experts),
            ("width of an expert", self.expert_size, MAX_INTERMEDIATE_SIZE),
            ("width of the shared experts", self.shared_size.unwrap_or(1), MAX_INTERMEDIATE_SIZE),
        ] {
            if !(1..=most).contains(&value) {
                return bad(format!("the {field} is {value}, it must be between 1 and {most}"));
            }
        }
        if let Some((groups, kept)) = self.router.groups {
            // A group is judged by its two best.
            let is_even = groups > 0 && self.num_experts.is_multiple_of(groups) && self.num_experts / groups >= 2;
            let is_enough = (1..=groups).contains(&kept) && kept * (self.num_experts / groups) >= self.experts_per_row;
            if !is_even || !is_enough {
                let (experts, chosen) = (self.num_experts, self.experts_per_row);
                return bad(format!("{chosen} of {experts} experts cannot come from {kept} of {groups} equal groups"));
            }
        }
        if !(self.router.scale.is_finite() && self.router.scale > 0.0) {
            return bad(format!("the routed scaling factor is {}, it must be finite and positive", self.router.scale));
        }
        Ok(())
    }
}

/// The keys of LLaDA-MoE.
#[derive(Debug, Deserialize)]
struct RawLladaMoe {
    num_experts: usize,
    num_experts_per_tok: usize,
    expert_intermediate_size: usize,
    shared_expert_intermediate_size: Option<usize>,
    /// 1 is a layer of experts, 0 a dense one.
    moe_layer_freq: Option<Frequency>,
    moe_router_score_function: Option<String>,
    moe_router_enable_expert_bias: Option<bool>,
    norm_topk_prob: Option<bool>,
    routed_scaling_factor: Option<f32>,
    router_num_group: Option<i64>,
}

/// One number for all layers, or one a layer.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Frequency {
    Every(usize),
    PerLayer(Vec<usize>),
}

/// The experts of a LLaDA-MoE config with `num_layers` layers.
pub(super) fn read_llada_moe(text: &str, num_layers: usize, origin: &str) -> Result<MoeConfig, ModelError> {
    let bad = |reason: String| ModelError::BadConfig { origin: origin.into(), reason };
    let raw: RawLladaMoe = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let refuse = |field: &str, value: String, supported: &str| {
        Err(ModelError::Unsupported { origin: origin.into(), field: field.into(), value, supported: supported.into() })
    };
    if let Some(size) = raw.shared_expert_intermediate_size.filter(|size| *size > 0) {
        return refuse("shared_expert_intermediate_size", size.to_string(), "null");
    }
    if let Some(groups) = raw.router_num_group.filter(|groups| *groups > 1) {
        return refuse("router_num_group", groups.to_string(), "null");
    }
    let dense_layers = match raw.moe_layer_freq {
        None | Some(Frequency::Every(1)) => Vec::new(),
        Some(Frequency::PerLayer(layers))
            if layers.len() == num_layers && layers.iter().all(|experts| *experts < 2) =>
        {
            layers.iter().map(|experts| *experts == 0).collect()
        }
        Some(other) => return Err(bad(format!("`moe_layer_freq` is {other:?} for {num_layers} layers"))),
    };
    Ok(MoeConfig {
        num_experts: raw.num_experts,
        experts_per_row: raw.num_experts_per_tok,
        expert_size: raw.expert_intermediate_size,
        shared_size: None,
        dense_layers,
        router: RouterConfig {
            score: score(raw.moe_router_score_function.as_deref().unwrap_or("softmax"), origin)?,
            has_bias: raw.moe_router_enable_expert_bias.unwrap_or(false),
            groups: None,
            normalise: raw.norm_topk_prob.unwrap_or(false),
            scale: raw.routed_scaling_factor.unwrap_or(1.0),
        },
    })
}

/// The keys of LLaDA2.
#[derive(Debug, Deserialize)]
struct RawLlada2 {
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    num_shared_experts: Option<usize>,
    first_k_dense_replace: Option<usize>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    score_function: Option<String>,
    moe_router_enable_expert_bias: Option<bool>,
    norm_topk_prob: Option<bool>,
    routed_scaling_factor: Option<f32>,
}

/// The experts of a LLaDA2 config with `num_layers` layers.
pub(super) fn read_llada2(text: &str, num_layers: usize, origin: &str) -> Result<MoeConfig, ModelError> {
    let bad = |reason: String| ModelError::BadConfig { origin: origin.into(), reason };
    let raw: RawLlada2 = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let num_dense = raw.first_k_dense_replace.unwrap_or(0);
    if num_dense > num_layers.min(MAX_LAYERS) {
        return Err(bad(format!("{num_dense} dense layers of {num_layers}")));
    }
    let num_shared = raw.num_shared_experts.unwrap_or(0);
    let shared_size = raw.moe_intermediate_size.checked_mul(num_shared);
    let shared_size = shared_size.ok_or_else(|| bad(format!("{num_shared} shared experts are too many")))?;
    Ok(MoeConfig {
        num_experts: raw.num_experts,
        experts_per_row: raw.num_experts_per_tok,
        expert_size: raw.moe_intermediate_size,
        shared_size: Some(shared_size).filter(|size| *size > 0),
        dense_layers: vec![true; num_dense],
        router: RouterConfig {
            score: score(raw.score_function.as_deref().unwrap_or("sigmoid"), origin)?,
            has_bias: raw.moe_router_enable_expert_bias.unwrap_or(true),
            groups: raw.n_group.filter(|groups| *groups > 1).map(|groups| (groups, raw.topk_group.unwrap_or(groups))),
            normalise: raw.norm_topk_prob.unwrap_or(true),
            scale: raw.routed_scaling_factor.unwrap_or(1.0),
        },
    })
}

fn score(name: &str, origin: &str) -> Result<RouterScore, ModelError> {
    match name {
        "softmax" => Ok(RouterScore::Softmax),
        "sigmoid" => Ok(RouterScore::Sigmoid),
        other => Err(ModelError::Unsupported {
            origin: origin.into(),
            field: "score function of the router".into(),
            value: format!("`{other}`"),
            supported: "softmax, sigmoid".into(),
        }),
    }
}
