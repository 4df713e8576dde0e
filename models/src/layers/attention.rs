//! Multi-head attention with grouped key/value heads over the paged KV cache.

use candle_core::Tensor;

use super::{Linear, Mixer, Pass, Rope};
use crate::{
    ModelError,
    config::{ModelConfig, Qkv},
    kv::LayerKv,
    loader::WeightStore,
};

/// Sizes of one attention layer.
#[derive(Debug, Clone, Copy)]
struct AttentionDims {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention {
    dims: AttentionDims,
    qkv: Linear,
    output: Linear,
    /// Norms over the features of each head of q and k, `[head_dim]`.
    qk_norm: Option<(Tensor, Tensor)>,
    norm_eps: f32,
    mixer: Mixer,
}

impl Attention {
    /// `prefix` is that of the layer.
    pub(crate) fn load(weights: &mut WeightStore, prefix: &str, config: &ModelConfig) -> Result<Self, ModelError> {
        let ModelConfig { hidden_size: hidden, num_heads: heads, num_kv_heads: kv_heads, head_dim, names, .. } =
            *config;
        let name = |part: &str| format!("{prefix}.{part}");
        let qkv = match names.qkv {
            Qkv::Separate([q, k, v]) => {
                vec![(name(q), heads * head_dim), (name(k), kv_heads * head_dim), (name(v), kv_heads * head_dim)]
            }
            Qkv::Fused(qkv) => vec![(name(qkv), (heads + 2 * kv_heads) * head_dim)],
        };
        let qkv = Linear::stacked(weights, &qkv, hidden, config.qkv_bias)?;
        let output = [(name(names.output), hidden)];
        let output = Linear::stacked(weights, &output, heads * head_dim, config.output_bias)?;
        let qk_norm = if config.qk_norm {
            let [q_norm, k_norm] = names.qk_norms;
            let mut norm = |part: &str| weights.vector(&format!("{prefix}.{part}.weight"), head_dim);
            Some((norm(q_norm)?, norm(k_norm)?))
        } else {
            None
        };
        let mixer = Mixer::load(weights, prefix, config)?;
        let dims = AttentionDims { heads, kv_heads, head_dim };
        Ok(Self { dims, qkv, output, qk_norm, norm_eps: config.norm_eps as f32, mixer })
    }

    /// `[rows, hidden]` to `[rows, hidden]`; writes the rows' keys and values.
    pub(crate) fn forward(
        &self,
        xs: &Tensor,
        rope: &Rope,
        pass: &mut Pass,
        kv: &LayerKv,
    ) -> Result<Tensor, ModelError> {
        let AttentionDims { heads, kv_heads, head_dim } = self.dims;
        let rows = xs.dim(0)?;
        let qkv = self.qkv.forward(xs)?;
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.contiguous()?.reshape((rows, heads, head_dim))
        };
        let mut q = part(0, heads)?;
        let mut k = part(heads, kv_heads)?;
        let v = part(heads + kv_heads, kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = kernels::rms_norm(&q, q_norm, self.norm_eps)?;
            k = kernels::rms_norm(&k, k_norm, self.norm_eps)?;
        }
        let q = kernels::rope(&q, &rope.cos, &rope.sin, &pass.plan)?;
        let k = kernels::rope(&k, &rope.cos, &rope.sin, &pass.plan)?;
        kernels::write_kv(&kv.keys, &k, &pass.plan)?;
        kernels::write_kv(&kv.values, &v, &pass.plan)?;
        self.output.forward(&self.mixer.forward(&q, kv, pass)?)
    }

    pub(crate) fn num_params(&self) -> usize {
        let norms = self.qk_norm.as_ref().map_or(0, |(q, k)| q.elem_count() + k.elem_count());
        self.qkv.num_params() + self.output.num_params() + self.mixer.num_params() + norms
    }

    pub(crate) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.output.bytes()
    }
}
