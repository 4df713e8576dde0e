//! The second half of a layer: one MLP, or a mixture of experts.
//!
//! A row is added up in an order that no other row can change: its experts in ascending order, then what is shared. So
//! it has the same bits in every batch.

use candle_core::{Device, Tensor};
use kernels::PackedLinear;

use super::mlp::{Mlp, MlpDims};
use crate::{
    ModelConfig, ModelError,
    config::{EXPERT_BIAS, EXPERT_PARTS, EXPERTS, MoeConfig, ROUTER, RouterConfig, RouterScore, SHARED_EXPERTS},
    loader::WeightStore,
};

/// One MLP, or experts.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Experts(Moe),
}

impl FeedForward {
    /// `prefix` is that of the layer; `experts` says whether it has any.
    pub(crate) fn load(
        weights: &mut WeightStore,
        prefix: &str,
        config: &ModelConfig,
        experts: Option<&MoeConfig>,
    ) -> Result<Self, ModelError> {
        match experts {
            Some(moe) => Ok(Self::Experts(Moe::load(weights, prefix, config, moe)?)),
            None => {
                let dims = MlpDims { hidden: config.hidden_size, inner: config.intermediate_size };
                let names = config.names.mlp.map(|part| format!("{prefix}.{part}"));
                Ok(Self::Dense(Mlp::load(weights, names, dims, config.mlp_bias)?))
            }
        }
    }

    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Dense(mlp) => mlp.forward(xs),
            Self::Experts(moe) => moe.forward(xs),
        }
    }

    pub(crate) fn num_params(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.num_params(),
            Self::Experts(moe) => moe.num_params(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.bytes(),
            Self::Experts(moe) => moe.bytes(),
        }
    }
}

/// Experts of which each row goes through a few, and perhaps an MLP that all rows go through.
#[derive(Debug)]
pub(crate) struct Moe {
    /// `[experts, hidden]`
    router: PackedLinear,
    rule: Rule,
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
}

impl Moe {
    fn load(
        weights: &mut WeightStore,
        prefix: &str,
        config: &ModelConfig,
        moe: &MoeConfig,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let router = weights.linear(&format!("{prefix}.{ROUTER}"), moe.num_experts, hidden)?;
        let bias = if moe.router.has_bias {
            let [usual, other] = EXPERT_BIAS.map(|name| format!("{prefix}.{name}"));
            let name = if weights.has(&other) { other } else { usual };
            weights.vector(&name, moe.num_experts)?.to_vec1()?
        } else {
            Vec::new()
        };
        let part = |group: String| EXPERT_PARTS.map(|part| format!("{prefix}.{group}.{part}"));
        let experts = (0..moe.num_experts).map(|index| {
            let dims = MlpDims { hidden, inner: moe.expert_size };
            Mlp::load(weights, part(format!("{EXPERTS}.{index}")), dims, false)
        });
        let experts = experts.collect::<Result<Vec<_>, _>>()?;
        let shared = match moe.shared_size {
            Some(inner) => Some(Mlp::load(weights, part(SHARED_EXPERTS.into()), MlpDims { hidden, inner }, false)?),
            None => None,
        };
        let rule = Rule { config: moe.router.clone(), bias, experts_per_row: moe.experts_per_row };
        Ok(Self { router, rule, experts, shared })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, hidden) = xs.dims2()?;
        let values: Vec<f32> = xs.flatten_all()?.to_vec1()?;
        let outputs: Vec<f32> = self.router.apply(xs)?.flatten_all()?.to_vec1()?;
        let mut visitors: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.experts.len()];
        for (row, outputs) in outputs.chunks_exact(self.experts.len()).enumerate() {
            for (expert, weight) in self.rule.choose(outputs) {
                visitors[expert].push((row, weight));
            }
        }
        let mut sums = vec![0f32; rows * hidden];
        for (expert, visitors) in self.experts.iter().zip(&visitors).filter(|(_, visitors)| !visitors.is_empty()) {
            let inputs = visitors.iter().flat_map(|(row, _)| &values[row * hidden..][..hidden]).copied().collect();
            let inputs = Tensor::from_vec(inputs, (visitors.len(), hidden), &Device::Cpu)?;
            let outputs: Vec<f32> = expert.forward(&inputs)?.flatten_all()?.to_vec1()?;
            for ((row, weight), output) in visitors.iter().zip(outputs.chunks_exact(hidden)) {
                let sum = &mut sums[row * hidden..][..hidden];
                sum.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
            }
        }
        let sums = Tensor::from_vec(sums, (rows, hidden), &Device::Cpu)?;
        match &self.shared {
            Some(shared) => Ok((sums + shared.forward(xs)?)?),
            None => Ok(sums),
        }
    }

    fn num_params(&self) -> usize {
        let mlps = self.experts.iter().chain(&self.shared).map(Mlp::num_params).sum::<usize>();
        self.router.out_features() * self.router.in_features() + self.rule.bias.len() + mlps
    }

    fn bytes(&self) -> usize {
        self.router.weight_bytes() + self.experts.iter().chain(&self.shared).map(Mlp::bytes).sum::<usize>()
    }
}

/// Which experts a row goes through, and with what weights.
#[derive(Debug)]
struct Rule {
    config: RouterConfig,
    /// Added to the scores for the choice; one an expert, or none at all.
    bias: Vec<f32>,
    experts_per_row: usize,
}

impl Rule {
    /// The chosen experts in ascending order with their weights, from the outputs of the router. Of equal scores the
    /// one of the lower index is preferred.
    fn choose(&self, outputs: &[f32]) -> Vec<(usize, f32)> {
        let scores = match self.config.score {
            RouterScore::Softmax => softmax(outputs),
            RouterScore::Sigmoid => outputs.iter().map(|output| 1.0 / (1.0 + (-output).exp())).collect(),
        };
        let biased: Vec<f32> = match self.bias.is_empty() {
            true => scores.clone(),
            false => scores.iter().zip(&self.bias).map(|(score, bias)| score + bias).collect(),
        };
        let mut chosen = best(&biased, self.candidates(&biased), self.experts_per_row);
        chosen.sort_unstable();
        let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
        let weight = |expert: usize| match self.config.normalise {
            // What keeps the published code from dividing by zero.
            true => scores[expert] / (sum + 1e-20) * self.config.scale,
            false => scores[expert] * self.config.scale,
        };
        chosen.into_iter().map(|expert| (expert, weight(expert))).collect()
    }

    /// The experts that may be chosen, in ascending order.
    fn candidates(&self, biased: &[f32]) -> Vec<usize> {
        let Some((num_groups, num_kept)) = self.config.groups else { return (0..biased.len()).collect() };
        let group_len = biased.len() / num_groups;
        let judged: Vec<f32> = biased
            .chunks_exact(group_len)
            .map(|group| best(group, (0..group_len).collect(), 2).iter().map(|expert| group[*expert]).sum())
            .collect();
        let mut kept = best(&judged, (0..num_groups).collect(), num_kept);
        kept.sort_unstable();
        kept.into_iter().flat_map(|group| group * group_len..(group + 1) * group_len).collect()
    }
}

/// The `count` of `candidates` (in ascending order) with the largest scores, best first; of equal ones the lower index.
fn best(scores: &[f32], mut candidates: Vec<usize>, count: usize) -> Vec<usize> {
    candidates.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    candidates.truncate(count);
    candidates
}

fn softmax(outputs: &[f32]) -> Vec<f32> {
    let largest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = outputs.iter().map(|output| (output - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(config: RouterConfig, bias: &[f32], experts_per_row: usize) -> Rule {
        Rule { config, bias: bias.to_vec(), experts_per_row }
    }

    fn sigmoid_groups(groups: Option<(usize, usize)>) -> RouterConfig {
        RouterConfig { score: RouterScore::Sigmoid, has_bias: true, groups, normalise: true, scale: 2.5 }
    }

    fn experts(chosen: &[(usize, f32)]) -> Vec<usize> {
        chosen.iter().map(|(expert, _)| *expert).collect()
    }

    #[test]
    fn softmax_weights_are_shares_of_all_experts() {
        let config =
            RouterConfig { score: RouterScore::Softmax, has_bias: false, groups: None, normalise: false, scale: 1.0 };
        let chosen = rule(config, &[], 2).choose(&[0.0, 2.0, 1.0, 2.0]);
        let total = 1.0 + 2.0 * 2f32.exp() + 1f32.exp();
        assert_eq!(experts(&chosen), [1, 3], "ascending");
        assert!((chosen[0].1 - 2f32.exp() / total).abs() < 1e-6, "{chosen:?}");
    }

    #[test]
    fn of_equal_scores_the_lower_index_wins() {
        let chosen = rule(sigmoid_groups(None), &[0.0; 5], 3).choose(&[1.0, 3.0, 1.0, 1.0, 1.0]);
        assert_eq!(experts(&chosen), [0, 1, 2]);
    }

    #[test]
    fn the_bias_chooses_and_does_not_weigh() {
        let chosen = rule(sigmoid_groups(None), &[0.0, 0.0, 9.0], 2).choose(&[1.0, 0.5, -3.0]);
        assert_eq!(experts(&chosen), [0, 2]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let expected = 2.5 * sigmoid(-3.0) / (sigmoid(1.0) + sigmoid(-3.0));
        assert!((chosen[1].1 - expected).abs() < 1e-6, "{chosen:?}, expected {expected}");
    }

    #[test]
    fn groups_are_judged_by_their_two_best() {
        // Group 0 has the best expert, group 1 the best pair.
        let outputs = [5.0, -9.0, -9.0, 1.0, 1.0, -9.0, 0.0, 0.0, 0.0];
        let chosen = rule(sigmoid_groups(Some((3, 1))), &[0.0; 9], 2).choose(&outputs);
        assert_eq!(experts(&chosen), [3, 4]);
        let chosen = rule(sigmoid_groups(Some((3, 2))), &[0.0; 9], 2).choose(&outputs);
        assert_eq!(experts(&chosen), [3, 4], "groups 1 and 2 have the better pairs");
        let chosen = rule(sigmoid_groups(None), &[0.0; 9], 2).choose(&outputs);
        assert_eq!(experts(&chosen), [0, 3]);
    }
}
