//! The pre-norm transformer of all families.
//!
//! What sets the families apart is in the config: names and biases, norms on the heads of q and k, how much of a head
//! RoPE rotates and how it is stretched, softmax or local linear attention, a head of its own or the transposed
//! embeddings, one MLP or experts. Whether a row sees what comes after it is said by the batch, so causal and diffusion
//! models are the same code.

use candle_core::Tensor;
use kernels::{AttentionPlan, PlanRow};

use crate::{
    Backbone, BackboneSpec, ForwardBatch, KvCache, KvLayout, Logits, ModelConfig, ModelError, Segment,
    config::MixerConfig,
    layers::{Attention, Embedding, FeedForward, Linear, Pass, Rope},
    loader::WeightStore,
};

/// A language model, causal or diffusion.
#[derive(Debug)]
pub struct Transformer {
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
    mlp: FeedForward,
}

impl Transformer {
    /// Takes the weights that `config` asks for out of `weights`.
    pub fn load(config: &ModelConfig, weights: &mut WeightStore) -> Result<Self, ModelError> {
        let (hidden, names) = (config.hidden_size, config.names);
        let embedding = Embedding::new(weights.linear(names.embedding, config.vocab_size, hidden)?);
        let layers = (0..config.num_layers).map(|index| Layer::load(weights, index, config));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = weights.vector(&format!("{}.weight", names.norm), hidden)?;
        let head = if config.tie_embeddings {
            None
        } else {
            Some(Linear::stacked(weights, &[(names.head.into(), config.vocab_size)], hidden, false)?)
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
            attention: config.attention,
            alignment: config.alignment,
            mask_id: config.mask_id,
            kv: KvLayout {
                num_layers: config.num_layers,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                element_bytes: size_of::<f32>(),
            },
            has_solver: matches!(config.mixer, MixerConfig::LocalLinear(_)),
            num_params,
            num_active_params: num_params.saturating_sub(config.num_idle_params()),
            attention_dim: config.num_heads * config.head_dim,
            weight_bytes,
        };
        let rope = Rope::new(config)?;
        Ok(Self { spec, embedding, layers, norm, head, rope, norm_eps: config.norm_eps as f32 })
    }

    fn logits(&self, scored: Option<&Tensor>) -> Result<Logits, ModelError> {
        let Some(xs) = scored else { return Logits::new(Vec::new(), self.spec.vocab_size) };
        let xs = kernels::rms_norm(xs, &self.norm, self.norm_eps)?;
        let logits = match &self.head {
            Some(head) => head.forward(&xs)?,
            None => self.embedding.head(&xs)?,
        };
        Logits::new(logits.flatten_all()?.to_vec1()?, self.spec.vocab_size)
    }
}

impl Layer {
    fn load(weights: &mut WeightStore, index: usize, config: &ModelConfig) -> Result<Self, ModelError> {
        let (hidden, names) = (config.hidden_size, config.names);
        let prefix = format!("{}.{index}", names.layers);
        Ok(Self {
            attention_norm: weights.vector(&format!("{prefix}.{}.weight", names.attention_norm), hidden)?,
            attention: Attention::load(weights, &prefix, config)?,
            mlp_norm: weights.vector(&format!("{prefix}.{}.weight", names.mlp_norm), hidden)?,
            mlp: FeedForward::load(weights, &prefix, config, config.experts_of_layer(index))?,
        })
    }

    fn num_params(&self) -> usize {
        let norms = self.attention_norm.elem_count() + self.mlp_norm.elem_count();
        self.attention.num_params() + self.mlp.num_params() + norms
    }
}

impl Backbone for Transformer {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        batch.check(&self.spec, kv)?;
        if batch.segments.is_empty() {
            return Logits::new(Vec::new(), self.spec.vocab_size);
        }
        let mut pass = Pass::new(attention_plan(batch, kv)?);
        self.rope.cover(batch.segments.iter().map(Segment::end).max().unwrap_or(0))?;
        let mut xs = self.embedding.forward(batch.segments.iter().flat_map(|segment| segment.tokens))?;
        for (layer, kv) in self.layers.iter().zip(kv.host_layers()?) {
            let normed = kernels::rms_norm(&xs, &layer.attention_norm, self.norm_eps)?;
            xs = (xs + layer.attention.forward(&normed, &self.rope, &mut pass, kv)?)?;
            let normed = kernels::rms_norm(&xs, &layer.mlp_norm, self.norm_eps)?;
            xs = (xs + layer.mlp.forward(&normed)?)?;
        }
        let logits = self.logits(scored_rows(&xs, batch)?.as_ref())?;
        Ok(match pass.solver {
            Some(report) => logits.with_solver(report),
            None => logits,
        })
    }
}

/// Where each row reads and writes, once for all layers.
pub(crate) fn attention_plan(batch: &ForwardBatch<'_>, kv: &KvCache) -> Result<AttentionPlan, ModelError> {
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
