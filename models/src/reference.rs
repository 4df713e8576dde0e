//! A Llama in f64, with softmax or local linear attention, written for clarity: the truth that faster forward passes and
//! all decoders are tested against.

use std::collections::HashMap;

use kernels::{
    LlaPlan, LlaRow,
    reference::{LlaInputs, LlaShape, lla},
};

use crate::{
    AttentionKind, Backbone, BackboneSpec, ForwardBatch, KvCache, KvLayout, LogitAlignment, Logits, ModelError, PageId,
    Segment, TokenId,
};

/// Sizes of a random model.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceConfig {
    /// Tokens.
    pub vocab_size: usize,
    /// Longest sequence.
    pub context_len: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Width of the MLP.
    pub inner: usize,
    /// Ridge of all heads, for local linear attention; `None` is softmax attention.
    pub ridge: Option<f64>,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        Self {
            vocab_size: 40,
            context_len: 128,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 4,
            inner: 24,
            ridge: None,
        }
    }
}

/// A random Llama that computes in f64.
#[derive(Debug)]
pub struct ReferenceLlama {
    spec: BackboneSpec,
    config: ReferenceConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    /// Keys and values of each layer by page and offset.
    kv: HashMap<(PageId, usize, usize), KeyValue>,
}

/// Key and value of one position.
type KeyValue = (Vec<f64>, Vec<f64>);

#[derive(Debug)]
struct Layer {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// `[out, in]`
#[derive(Debug)]
struct Matrix {
    inputs: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn random(outputs: usize, inputs: usize, next: &mut impl FnMut() -> f64) -> Self {
        let scale = 1.6 / (inputs as f64).sqrt();
        Self { inputs, values: (0..outputs * inputs).map(|_| next() * scale).collect() }
    }

    fn apply(&self, x: &[f64]) -> Vec<f64> {
        self.values.chunks(self.inputs).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }
}

impl ReferenceLlama {
    /// A model with random weights; the same seed gives the same model.
    pub fn random(config: ReferenceConfig, seed: u64) -> Self {
        let mut state = seed;
        let mut next = move || {
            // Sum of three uniforms: near enough to normal, with unit variance.
            (0..3)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as f64 / (1u64 << 31) as f64 * 2.0 - 1.0
                })
                .sum::<f64>()
        };
        let hidden = config.num_heads * config.head_dim;
        let kv_width = config.num_kv_heads * config.head_dim;
        let embedding = Matrix::random(config.vocab_size, hidden, &mut next);
        let layers = (0..config.num_layers).map(|_| Layer {
            query: Matrix::random(hidden, hidden, &mut next),
            key: Matrix::random(kv_width, hidden, &mut next),
            value: Matrix::random(kv_width, hidden, &mut next),
            output: Matrix::random(hidden, hidden, &mut next),
            gate: Matrix::random(config.inner, hidden, &mut next),
            up: Matrix::random(config.inner, hidden, &mut next),
            down: Matrix::random(hidden, config.inner, &mut next),
        });
        let layers = layers.collect();
        let spec = BackboneSpec {
            family: "reference".into(),
            vocab_size: config.vocab_size,
            context_len: config.context_len,
            attention: AttentionKind::Causal,
            alignment: LogitAlignment::NextSlot,
            mask_id: None,
            kv: KvLayout { num_layers: 1, num_kv_heads: 1, head_dim: 1, element_bytes: 4 },
            has_solver: false,
            num_params: 0,
            num_active_params: 0,
            attention_dim: 1,
            weight_bytes: 0,
        };
        Self { spec, config, embedding, layers, kv: HashMap::new() }
    }

    fn row(
        &mut self,
        segment: &Segment<'_>,
        page_len: usize,
        token: TokenId,
        position: usize,
    ) -> Result<Vec<f64>, ModelError> {
        let hidden = self.config.num_heads * self.config.head_dim;
        let first = token.0 as usize * hidden;
        let mut x: Vec<f64> = self.embedding.values[first..first + hidden].iter().map(|v| v * 4.0).collect();
        for index in 0..self.layers.len() {
            let normed = rms_norm(&x);
            let layer = &self.layers[index];
            let mut query = layer.query.apply(&normed);
            let mut key = layer.key.apply(&normed);
            rotate(&mut query, self.config.head_dim, position);
            rotate(&mut key, self.config.head_dim, position);
            let slot = |p: usize| (segment.pages[p / page_len], p % page_len, index);
            self.kv.insert(slot(position), (key, layer.value.apply(&normed)));
            let seen = (0..=position)
                .map(|p| self.kv.get(&slot(p)).ok_or(ModelError::UnwrittenPosition { position: p }))
                .collect::<Result<Vec<_>, _>>()?;
            let mixed = match self.config.ridge {
                Some(ridge) => self.attend_locally(&query, &seen, ridge)?,
                None => self.attend(&query, &seen),
            };
            add(&mut x, &layer.output.apply(&mixed));
            let normed = rms_norm(&x);
            let gated = layer.gate.apply(&normed).into_iter().zip(layer.up.apply(&normed));
            let inner: Vec<f64> = gated.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            add(&mut x, &layer.down.apply(&inner));
        }
        Ok(rms_norm(&x))
    }

    fn attend(&self, query: &[f64], seen: &[&KeyValue]) -> Vec<f64> {
        let ReferenceConfig { head_dim, num_heads, num_kv_heads, .. } = self.config;
        let mut mixed = vec![0.0; query.len()];
        for head in 0..num_heads {
            let q = &query[head * head_dim..(head + 1) * head_dim];
            let shared = head / (num_heads / num_kv_heads) * head_dim..;
            let dot = |key: &[f64]| -> f64 { q.iter().zip(&key[shared.clone()]).map(|(a, b)| a * b).sum() };
            let scores: Vec<f64> = seen.iter().map(|(key, _)| dot(key) / (head_dim as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let out = &mut mixed[head * head_dim..(head + 1) * head_dim];
            for (score, (_, value)) in scores.iter().zip(seen) {
                let weight = (score - max).exp() / total;
                out.iter_mut().zip(&value[shared.clone()]).for_each(|(out, value)| *out += weight * value);
            }
        }
        mixed
    }
}

impl ReferenceLlama {
    /// Local linear attention, as the kernels' own reference has it.
    fn attend_locally(&self, query: &[f64], seen: &[&KeyValue], ridge: f64) -> Result<Vec<f64>, ModelError> {
        let ReferenceConfig { head_dim, num_heads, num_kv_heads, .. } = self.config;
        // All positions as one page, `[kv_heads, positions, head_dim]`.
        let page = |part: fn(&KeyValue) -> &[f64]| -> Vec<f64> {
            let heads = (0..num_kv_heads).flat_map(|head| seen.iter().map(move |kv| &part(kv)[head * head_dim..]));
            heads.flat_map(|values| values[..head_dim].iter().copied()).collect()
        };
        let (keys, values) = (page(|kv| kv.0.as_slice()), page(|kv| kv.1.as_slice()));
        let row = LlaRow { table: 0, visible_start: 0, visible_end: seen.len() };
        let plan = LlaPlan::new(vec![vec![0]], vec![row], seen.len())?;
        let scale = (head_dim as f64).sqrt().recip();
        let inputs = LlaInputs { q: query, keys: &keys, values: &values, ridge: &vec![ridge; num_heads], scale };
        let shape = LlaShape { num_heads, num_kv_heads, key_dim: head_dim, value_dim: head_dim };
        let solutions = lla(&inputs, &plan, shape).expect("a ridge that is not lost beside random keys");
        Ok(solutions.into_iter().flat_map(|solution| solution.output).collect())
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn rms_norm(x: &[f64]) -> Vec<f64> {
    let mean_square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().map(|v| v / (mean_square + 1e-6).sqrt()).collect()
}

fn rotate(x: &mut [f64], head_dim: usize, position: usize) {
    let half = head_dim / 2;
    for head in x.chunks_mut(head_dim) {
        for pair in 0..half {
            let angle = position as f64 / 100f64.powf(pair as f64 / half as f64);
            let (a, b) = (head[pair], head[pair + half]);
            head[pair] = a * angle.cos() - b * angle.sin();
            head[pair + half] = b * angle.cos() + a * angle.sin();
        }
    }
}

impl Backbone for ReferenceLlama {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        batch.check(&self.spec, kv)?;
        let mut logits = Vec::new();
        for segment in &batch.segments {
            // What the caller has declared invalid is forgotten, so that reading it is an error and not luck.
            let valid = |page: &PageId, offset: usize| match segment.pages.iter().position(|p| p == page) {
                Some(index) => index * kv.page_len() + offset < segment.start,
                None => true,
            };
            self.kv.retain(|(page, offset, _), _| valid(page, *offset));
            for (row, &token) in segment.tokens.iter().enumerate() {
                let state = self.row(segment, kv.page_len(), token, segment.start + row)?;
                if segment.scored.contains(&row) {
                    logits.extend(self.embedding.apply(&state).into_iter().map(|logit| logit as f32));
                }
            }
        }
        Logits::new(logits, self.spec.vocab_size)
    }
}
