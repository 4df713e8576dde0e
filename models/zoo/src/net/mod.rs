//! The network that is trained: a decoder of the Llama shape over packed rows, with gradients.

mod attention;
mod cholesky;
mod lla;
pub(crate) mod ops;
mod rows;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::ops::{CrossEntropy, RmsNorm, SwiGlu, Targets};
pub use self::rows::Rows;
pub(crate) use self::{
    attention::{Attention, Weighting},
    lla::Lla,
};
use crate::ZooError;

/// Sizes of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Features of a row.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Features inside the MLP.
    pub ffn: usize,
    /// Whether q, k and v have a bias, as in Qwen2 and Dream.
    pub qkv_bias: bool,
    /// Whether the heads of q and k are normed, as in Qwen3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm: bool,
    /// How rows mix.
    #[serde(default, skip_serializing_if = "Mixer::is_softmax")]
    pub mixer: Mixer,
}

/// How rows mix.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// Softmax attention.
    #[default]
    Softmax,
    /// Linear attention with the feature map `elu + 1`.
    Linear,
    /// Local linear attention; the ridge of a head is `ridge_floor + softplus` of a parameter.
    Lla {
        /// Above zero.
        ridge_floor: f32,
    },
}

impl Mixer {
    /// Whether it is softmax attention.
    pub fn is_softmax(&self) -> bool {
        *self == Self::Softmax
    }
}

/// Base of the rotary frequencies.
pub const ROPE_THETA: f32 = 10_000.0;
/// Added to the mean square in norms.
pub const NORM_EPS: f32 = 1e-5;
/// Name of the embeddings.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// What the parameter of a ridge starts from: a ridge of about 1, the variance of a normed key.
const RIDGE_START: f32 = 0.4;

impl Shape {
    /// Names and sizes of all parameters, under the names of the Llama family. The embedding is also the output matrix.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![(EMBEDDING.to_owned(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| all.push((format!("model.layers.{layer}.{name}"), shape));
            add("input_layernorm.weight", vec![self.hidden]);
            for (part, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{part}_proj.weight"), vec![rows, self.hidden]);
                if self.qkv_bias {
                    add(&format!("self_attn.{part}_proj.bias"), vec![rows]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", vec![self.head_dim]);
                add("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            if matches!(self.mixer, Mixer::Lla { .. }) {
                add("self_attn.ridge", vec![self.heads]);
            }
            add("self_attn.o_proj.weight", vec![self.hidden, q]);
            add("post_attention_layernorm.weight", vec![self.hidden]);
            add("mlp.gate_proj.weight", vec![self.ffn, self.hidden]);
            add("mlp.up_proj.weight", vec![self.ffn, self.hidden]);
            add("mlp.down_proj.weight", vec![self.hidden, self.ffn]);
        }
        all.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        all
    }
}

/// A network: its parameters by name, f32 on the CPU.
#[derive(Debug, Clone)]
pub struct Net {
    shape: Shape,
    parameters: BTreeMap<String, Var>,
}

impl Net {
    /// A network with random weights.
    pub fn new(shape: Shape, seed: u64) -> Result<Self, ZooError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut parameters = BTreeMap::new();
        for (name, dims) in shape.parameters() {
            let count = dims.iter().product();
            let values: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.ends_with(".bias") {
                vec![0.0; count]
            } else if name.ends_with(".ridge") {
                vec![RIDGE_START; count]
            } else {
                let is_output = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if is_output { 0.04 / (2.0 * shape.layers as f32).sqrt() } else { 0.04 };
                (0..count).map(|_| normal(&mut rng) * deviation).collect()
            };
            parameters.insert(name, Var::from_vec(values, dims, &Device::Cpu)?);
        }
        Ok(Self { shape, parameters })
    }

    /// A network with the given weights; parameters of `shape` that are missing must be biases, and become zero.
    pub fn from_weights(shape: Shape, weights: &BTreeMap<String, Tensor>) -> Result<Self, ZooError> {
        let mut parameters = BTreeMap::new();
        for (name, dims) in shape.parameters() {
            let tensor = match weights.get(&name) {
                Some(tensor) if tensor.dims() == dims => tensor.to_dtype(DType::F32)?.copy()?,
                Some(tensor) => {
                    let reason = format!("`{name}` is {:?}, expected {dims:?}", tensor.dims());
                    return Err(ZooError::Settings(reason));
                }
                None if name.ends_with(".bias") => Tensor::zeros(dims, DType::F32, &Device::Cpu)?,
                None => return Err(ZooError::Settings(format!("`{name}` is missing"))),
            };
            parameters.insert(name, Var::from_tensor(&tensor)?);
        }
        Ok(Self { shape, parameters })
    }

    /// Its sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Its parameters by name.
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// Number of parameters.
    pub fn num_params(&self) -> usize {
        self.parameters.values().map(|var| var.elem_count()).sum()
    }

    fn get(&self, name: &str) -> Result<&Tensor, ZooError> {
        match self.parameters.get(name) {
            Some(var) => Ok(var.as_tensor()),
            None => Err(ZooError::Settings(format!("`{name}` is missing"))),
        }
    }

    fn linear(&self, xs: &Tensor, name: &str) -> Result<Tensor, ZooError> {
        let out = xs.matmul(&self.get(&format!("{name}.weight"))?.t()?)?;
        match self.parameters.get(&format!("{name}.bias")) {
            Some(bias) => Ok(out.broadcast_add(bias.as_tensor())?),
            None => Ok(out),
        }
    }

    /// One pass: the normed outputs of the last layer, `[rows, hidden]`.
    pub fn hidden(&self, rows: &Arc<Rows>) -> Result<Tensor, ZooError> {
        let ids = Tensor::new(rows.tokens.as_slice(), &Device::Cpu)?;
        self.layers(self.get(EMBEDDING)?.index_select(&ids, 0)?, rows)
    }

    /// The table of the embeddings, `[vocab, hidden]`, which is the output matrix too.
    pub(crate) fn embedding(&self) -> Result<&Tensor, ZooError> {
        self.get(EMBEDDING)
    }

    /// From embeddings of rows to the normed outputs of the last layer, both `[rows, hidden]`.
    pub(crate) fn layers(&self, mut xs: Tensor, rows: &Arc<Rows>) -> Result<Tensor, ZooError> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let weighting = Weighting::Softmax { scale };
        let attention = Attention { rows: rows.clone(), heads, kv_heads, head_dim, theta: ROPE_THETA, weighting };
        let norm = RmsNorm { eps: NORM_EPS };
        for layer in 0..self.shape.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed = xs.apply_op2(self.get(&name("input_layernorm.weight"))?, norm)?;
            let part = |part: &str| self.linear(&normed, &name(&format!("self_attn.{part}_proj")));
            let (mut q, mut k, v) = (part("q")?, part("k")?, part("v")?);
            if self.shape.qk_norm {
                q = q.apply_op2(self.get(&name("self_attn.q_norm.weight"))?, norm)?;
                k = k.apply_op2(self.get(&name("self_attn.k_norm.weight"))?, norm)?;
            }
            let mixed = match self.shape.mixer {
                Mixer::Softmax => q.apply_op3(&k, &v, attention.clone())?,
                Mixer::Linear => {
                    q.apply_op3(&k, &v, Attention { weighting: Weighting::Linear, ..attention.clone() })?
                }
                Mixer::Lla { ridge_floor } => Tensor::cat(&[q, k, v], 1)?
                    .apply_op2(self.get(&name("self_attn.ridge"))?, Lla::new(attention.clone(), scale, ridge_floor))?,
            };
            xs = (xs + self.linear(&mixed, &name("self_attn.o_proj"))?)?;
            let normed = xs.apply_op2(self.get(&name("post_attention_layernorm.weight"))?, norm)?;
            let gate = self.linear(&normed, &name("mlp.gate_proj"))?;
            let inner = gate.apply_op2(&self.linear(&normed, &name("mlp.up_proj"))?, SwiGlu)?;
            xs = (xs + self.linear(&inner, &name("mlp.down_proj"))?)?;
        }
        Ok(xs.apply_op2(self.get("model.norm.weight")?, norm)?)
    }

    /// Logits of some rows of [`Self::hidden`], `[wanted, vocab]`.
    pub fn logits(&self, hidden: &Tensor, wanted: &[u32]) -> Result<Tensor, ZooError> {
        let wanted = Tensor::new(wanted, &Device::Cpu)?;
        Ok(hidden.index_select(&wanted, 0)?.matmul(&self.get(EMBEDDING)?.t()?)?)
    }
}

/// Cross entropy with one token per row, weighted and summed: logits `[rows, vocab]` to `[]`.
pub(crate) fn token_loss(logits: &Tensor, tokens: Vec<u32>, weights: Vec<f32>) -> Result<Tensor, ZooError> {
    Ok(logits.apply_op1(CrossEntropy { targets: Targets::Tokens(tokens), weights })?)
}

/// Cross entropy with a distribution per row, weighted and summed; `wanted` is `[rows, vocab]` and gets no gradient.
pub(crate) fn soft_loss(logits: &Tensor, wanted: Vec<f32>, weights: Vec<f32>) -> Result<Tensor, ZooError> {
    Ok(logits.apply_op1(CrossEntropy { targets: Targets::Probabilities(wanted), weights })?)
}

/// Index of the largest value; the first of equal ones.
pub(crate) fn arg_max(row: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best as u32
}

/// A draw from the standard normal distribution (Box and Muller).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}
