//! The pre-norm causal transformer of the Llama, Qwen2 and Qwen3 families.
//!
//! What sets the families apart is in the config: biases on q, k and v (Qwen2), norms on the heads of q and k (Qwen3),
//! a head of its own or the transposed embeddings, and the scaling of RoPE.

use candle_core::Tensor;
use kernels::{AttentionPlan, PlanRow};

use crate::{
    AttentionKind, Backbone, BackboneSpec, ForwardBatch, KvCache, KvLayout, LogitAlignment, Logits, ModelError,
    Segment,
    config::CausalConfig,
    layers::{Attention, Embedding, Linear, Mlp, Rope},
    loader::WeightStore,
};

/// A causal language model.
#[derive(Debug)]
pub struct CausalLm {
    spec: BackboneSpec,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `None`: the embeddings are the head.
    head: Option<Linear>,
    rope: Rope,
    norm_eps: f32,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: Mlp,
}

impl CausalLm {
    /// Takes the weights that `config` asks for out of `weights`.
    pub fn load(config: &CausalConfig, weights: &mut WeightStore) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let embedding = Embedding::new(weights.linear("model.embed_tokens", config.vocab_size, hidden)?);
        let layers = (0..config.num_layers).map(|i| Layer::load(weights, &format!("model.layers.{i}"), config));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = weights.vector("model.norm.weight", hidden)?;
        let head = if config.tie_embeddings {
            None
        } else {
            Some(Linear::stacked(weights, &[("lm_head".into(), config.vocab_size)], hidden, false)?)
        };
        let num_params = embedding.num_params()
            + layers.iter().map(Layer::num_params).sum::<usize>()
            + norm.elem_count()
            + head.as_ref().map_or(0, Linear::num_params);
        let weight_bytes = embedding.bytes()
            + layers.iter().map(|layer| layer.attention.bytes() + layer.mlp.bytes()).sum::<usize>()
            + head.as_ref().map_or(0, Linear::bytes);
        let spec = BackboneSpec {
            family: config.family.name().into(),
            vocab_size: config.vocab_size,
            context_len: config.context_len,
            attention: AttentionKind::Causal,
            alignment: LogitAlignment::NextSlot,
            mask_id: None,
            kv: KvLayout {
                num_layers: config.num_layers,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
            },
            num_params,
            weight_bytes,
        };
        let rope = Rope::new(config)?;
        Ok(Self { spec, embedding, layers, norm, head, rope, norm_eps: config.norm_eps as f32 })
    }

    fn logits(&self, xs: &Tensor) -> Result<Logits, ModelError> {
        let xs = kernels::rms_norm(xs, &self.norm, self.norm_eps)?;
        let logits = match &self.head {
            Some(head) => head.forward(&xs)?,
            None => self.embedding.head(&xs)?,
        };
        Logits::new(logits.flatten_all()?.to_vec1()?, self.spec.vocab_size)
    }
}

impl Layer {
    fn load(weights: &mut WeightStore, prefix: &str, config: &CausalConfig) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        Ok(Self {
            attention_norm: weights.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
            attention: Attention::load(weights, &format!("{prefix}.self_attn"), config)?,
            mlp_norm: weights.vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
            mlp: Mlp::load(weights, &format!("{prefix}.mlp"), config)?,
        })
    }

    fn num_params(&self) -> usize {
        let norms = self.attention_norm.elem_count() + self.mlp_norm.elem_count();
        self.attention.num_params() + self.mlp.num_params() + norms
    }
}

impl Backbone for CausalLm {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        batch.check(&self.spec, kv)?;
        if batch.segments.is_empty() {
            return Logits::new(Vec::new(), self.spec.vocab_size);
        }
        let plan = attention_plan(batch, kv)?;
        self.rope.cover(batch.segments.iter().map(Segment::end).max().unwrap_or(0))?;
        let mut xs = self.embedding.forward(batch.segments.iter().flat_map(|segment| segment.tokens))?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = kernels::rms_norm(&xs, &layer.attention_norm, self.norm_eps)?;
            xs = (xs + layer.attention.forward(&normed, &self.rope, &plan, kv.layer(index))?)?;
            let normed = kernels::rms_norm(&xs, &layer.mlp_norm, self.norm_eps)?;
            xs = (xs + layer.mlp.forward(&normed)?)?;
        }
        match scored_rows(&xs, batch)? {
            Some(scored) => self.logits(&scored),
            None => Logits::new(Vec::new(), self.spec.vocab_size),
        }
    }
}

/// Where each row reads and writes, once for all layers.
fn attention_plan(batch: &ForwardBatch<'_>, kv: &KvCache) -> Result<AttentionPlan, ModelError> {
    let tables = batch.segments.iter().map(|segment| segment.pages.iter().map(|page| page.0).collect());
    let rows = batch.segments.iter().enumerate().flat_map(|(table, segment)| {
        (segment.start..segment.end()).map(move |position| PlanRow {
            table,
            position,
            visible_end: segment.visibility.end(position, segment.end()),
        })
    });
    Ok(AttentionPlan::new(tables.collect(), rows.collect(), kv.page_len())?)
}

/// The rows of `xs` whose logits are wanted; `None` if there are none.
fn scored_rows(xs: &Tensor, batch: &ForwardBatch<'_>) -> Result<Option<Tensor>, ModelError> {
    let mut parts = Vec::new();
    let mut first = 0;
    for segment in &batch.segments {
        if !segment.scored.is_empty() {
            parts.push(xs.narrow(0, first + segment.scored.start, segment.scored.len())?);
        }
        first += segment.tokens.len();
    }
    match parts.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.contiguous()?)),
        _ => Ok(Some(Tensor::cat(&parts, 0)?)),
    }
}
