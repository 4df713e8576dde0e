//! What a layer gives to the device.

use kernels::{
    Ridge,
    device::{
        AddNorm, Array, Attention, DeviceFacts, DeviceLinear, DeviceWeight, ElementType, HeadNorm, HeadShape, Launch,
        LlaCall, LlaRounds, LlaUploadedRidge, PartialSums, QkvFinish, Rotary, SwigluFinish, add_norm, attention,
        matmul, qkv_finish, swiglu_finish,
    },
};

use super::{room::Room, transformer::PassShape};
use crate::{
    ModelError,
    config::{LlaConfig, MixerConfig, ModelConfig, Qkv, RIDGE},
    kv::DeviceKv,
    loader::device::DeviceSource,
};

/// Sizes that all layers have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) heads: HeadShape,
    /// Pairs of features that RoPE rotates.
    pub(super) half: usize,
    pub(super) norm_eps: f32,
    /// Factor of the scores of attention.
    pub(super) scale: f32,
    /// The 16-bit type of everything that is multiplied.
    pub(super) precision: ElementType,
}

impl Sizes {
    pub(super) fn new(config: &ModelConfig, precision: ElementType) -> Self {
        let heads =
            HeadShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let scale = match config.mixer {
            MixerConfig::LocalLinear(LlaConfig { scale, .. }) => scale,
            MixerConfig::Softmax => None,
        };
        Self {
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads,
            half: config.rotary_dims / 2,
            norm_eps: config.norm_eps as f32,
            scale: scale.unwrap_or(1.0 / (config.head_dim as f32).sqrt()),
            precision,
        }
    }
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// f32, `[hidden]`
    attention_norm: Array,
    qkv: Linear,
    /// f32, `[head_dim]` each: of q and of k.
    head_norms: Option<[Array; 2]>,
    mixer: Mixer,
    output: Linear,
    mlp_norm: Array,
    gate_up: Linear,
    down: Linear,
}

/// How rows of a layer mix the values that they see.
#[derive(Debug)]
enum Mixer {
    Softmax,
    LocalLinear { ridge: LlaUploadedRidge, rounds: LlaRounds },
}

impl Mixer {
    /// `prefix` is that of the layer.
    fn load(source: &mut dyn DeviceSource, prefix: &str, config: &ModelConfig) -> Result<Self, ModelError> {
        let MixerConfig::LocalLinear(lla) = &config.mixer else { return Ok(Self::Softmax) };
        let name = format!("{prefix}.{RIDGE}");
        let theta = source.vector(&name, config.num_heads)?.read::<f32>()?;
        let ridges = lla.ridges(&theta).map_err(|value| source.bad_value(&name, &value))?;
        let ridge = LlaUploadedRidge::new(source.device(), Ridge::PerHead(&ridges))?;
        Ok(Self::LocalLinear { ridge, rounds: LlaRounds::from(lla.solver) })
    }

    fn num_params(&self, heads: HeadShape) -> usize {
        match self {
            Self::Softmax => 0,
            Self::LocalLinear { .. } => heads.num_heads,
        }
    }

    /// The launches from queries to what the output layer reads.
    fn launches(
        &self,
        (room, kv, sizes): (&Room, &DeviceKv, &Sizes),
        shape: PassShape,
    ) -> Result<Vec<Launch>, ModelError> {
        let (q, keys, values, output, scale) = (&room.q, &kv.keys, &kv.values, &room.mixed, sizes.scale);
        match (self, room.lla.as_ref().zip(shape.lla)) {
            (Self::Softmax, None) => Ok(attention(&Attention {
                q,
                keys,
                values,
                plan: &room.plan,
                shape: shape.plan,
                heads: sizes.heads,
                scale,
                output,
                records: &room.records,
            })?),
            (Self::LocalLinear { ridge, rounds }, Some((lla, shape))) => {
                Ok(lla.launches(shape, &LlaCall { q, keys, values, output, ridge, rounds: *rounds, scale })?)
            }
            _ => unreachable!("a room is made for the mixer of its model"),
        }
    }
}

/// A matrix product, with the bias that the next launch adds.
#[derive(Debug)]
pub(super) struct Linear(DeviceLinear);

impl Linear {
    /// Several layers of one input side by side.
    fn load(
        source: &mut dyn DeviceSource,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let weights = parts.iter().map(|(name, outputs)| source.weight(name, *outputs, inputs));
        let linear = DeviceLinear::stack(weights.collect::<Result<_, _>>()?)?;
        Ok(Self(match bias {
            true => linear.with_bias(joined(source, parts)?)?,
            false => linear,
        }))
    }

    /// Most partial sums of passes of up to `max_rows` rows.
    pub(super) fn most_sums(&self, facts: &DeviceFacts, max_rows: usize) -> usize {
        let sums = |rows: usize| self.0.num_sums(facts, rows) * rows * self.0.out_features();
        (1..=max_rows).map(sums).max().unwrap_or(0)
    }

    pub(super) fn num_params(&self) -> usize {
        self.0.out_features() * self.0.in_features() + self.0.bias().map_or(0, Array::len)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.parts().iter().map(DeviceWeight::bytes).sum::<usize>() + self.0.bias().map_or(0, Array::bytes)
    }

    /// Adds the product with `xs` to the launches; its sums lie in `sums` until the next product.
    fn launch(
        &self,
        (xs, sums, rows): (&Array, &Array, usize),
        launches: &mut Vec<Launch>,
    ) -> Result<PartialSums, ModelError> {
        launches.extend(matmul(&self.0, xs, sums, rows)?);
        let num_splits = self.0.num_sums(sums.device().facts(), rows);
        Ok(PartialSums { sums: sums.clone(), num_splits, bias: self.0.bias().cloned() })
    }
}

/// The biases of several layers behind one another, f32.
fn joined(source: &mut dyn DeviceSource, parts: &[(String, usize)]) -> Result<Array, ModelError> {
    let mut values = Vec::new();
    for (name, outputs) in parts {
        values.extend(source.vector(&format!("{name}.bias"), *outputs)?.read::<f32>()?);
    }
    Ok(Array::from_slice(source.device(), &values)?)
}

impl Layer {
    pub(super) fn load(source: &mut dyn DeviceSource, index: usize, config: &ModelConfig) -> Result<Self, ModelError> {
        let ModelConfig {
            hidden_size: hidden, intermediate_size: inner, num_heads, num_kv_heads, head_dim, names, ..
        } = *config;
        let prefix = format!("{}.{index}", names.layers);
        let name = |part: &str| format!("{prefix}.{part}");
        let (q_dim, kv_dim) = (num_heads * head_dim, num_kv_heads * head_dim);
        let qkv = match names.qkv {
            Qkv::Separate([q, k, v]) => vec![(name(q), q_dim), (name(k), kv_dim), (name(v), kv_dim)],
            Qkv::Fused(qkv) => vec![(name(qkv), q_dim + 2 * kv_dim)],
        };
        let [gate, up, down] = names.mlp.map(name);
        let head_norms = match config.qk_norm {
            true => {
                let [q, k] = names.qk_norms.map(|part| format!("{prefix}.{part}.weight"));
                Some([source.vector(&q, head_dim)?, source.vector(&k, head_dim)?])
            }
            false => None,
        };
        Ok(Self {
            attention_norm: source.vector(&format!("{prefix}.{}.weight", names.attention_norm), hidden)?,
            qkv: Linear::load(source, &qkv, hidden, config.qkv_bias)?,
            head_norms,
            mixer: Mixer::load(source, &prefix, config)?,
            output: Linear::load(source, &[(name(names.output), hidden)], q_dim, config.output_bias)?,
            mlp_norm: source.vector(&format!("{prefix}.{}.weight", names.mlp_norm), hidden)?,
            gate_up: Linear::load(source, &[(gate, inner), (up, inner)], hidden, config.mlp_bias)?,
            down: Linear::load(source, &[(down, hidden)], inner, config.mlp_bias)?,
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }

    /// Parameters of the norms and of the mixer.
    pub(super) fn num_vector_params(&self, sizes: &Sizes) -> usize {
        let heads = self.head_norms.iter().flatten().map(Array::len).sum::<usize>();
        self.attention_norm.len() + self.mlp_norm.len() + heads + self.mixer.num_params(sizes.heads)
    }

    /// Adds the launches of the layer. `before` is what the layer before it leaves to add to the residual stream; returned
    /// is what this one leaves.
    pub(super) fn launch(
        &self,
        (room, kv, sizes): (&Room, &DeviceKv, &Sizes),
        shape: PassShape,
        before: Option<&PartialSums>,
        launches: &mut Vec<Launch>,
    ) -> Result<PartialSums, ModelError> {
        let rows = shape.plan.num_rows();
        let norm = |partials: Option<&PartialSums>, weight: &Array| {
            add_norm(&AddNorm {
                residual: &room.residual,
                partials,
                weight,
                output: &room.normed,
                selected: None,
                rows,
                hidden: sizes.hidden,
                eps: sizes.norm_eps,
            })
        };
        launches.push(norm(before, &self.attention_norm)?);
        let qkv = self.qkv.launch((&room.normed, &room.sums, rows), launches)?;
        let [cos, sin] = &room.rotary;
        let head_norm =
            self.head_norms.as_ref().map(|[q_weight, k_weight]| HeadNorm { q_weight, k_weight, eps: sizes.norm_eps });
        launches.push(qkv_finish(&QkvFinish {
            partials: &qkv,
            plan: &room.plan,
            shape: shape.plan,
            heads: sizes.heads,
            norm: head_norm,
            rotary: Some(Rotary { cos, sin, half: sizes.half }),
            q: &room.q,
            keys: &kv.keys,
            values: &kv.values,
        })?);
        launches.extend(self.mixer.launches((room, kv, sizes), shape)?);
        let mixed = self.output.launch((&room.mixed, &room.sums, rows), launches)?;
        launches.push(norm(Some(&mixed), &self.mlp_norm)?);
        let gate_up = self.gate_up.launch((&room.normed, &room.sums, rows), launches)?;
        let (output, ffn) = (&room.inner, sizes.inner);
        launches.push(swiglu_finish(&SwigluFinish { partials: &gate_up, output, rows, ffn })?);
        self.down.launch((&room.inner, &room.sums, rows), launches)
    }
}
