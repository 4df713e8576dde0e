//! The pre-norm transformer of [`arch`](crate::arch) on a device.

use std::sync::Arc;

use kernels::{
    LlaPlan,
    device::{
        AddNorm, Array, Device, DeviceFacts, DeviceFormat, DeviceLinear, DeviceWeight, Launch, LlaStepShape, PlanShape,
        ScoreQuery, ScoreResult, ScoreShape, add_norm, embed, matmul, run,
    },
};

use super::{
    layer::{Layer, Linear, Sizes},
    recordings::Recordings,
    room::Room,
};
use crate::{
    Backbone, BackboneSpec, Capacity, ForwardBatch, KvCache, KvLayout, Logits, ModelConfig, ModelError, Precision,
    RowScorer, ScoredRows, SolverReport,
    arch::attention_plan,
    config::MixerConfig,
    loader::device::{DeviceSource, MadeUp},
};

/// Rows beyond this many come in multiples of it, so that there are few shapes: a matrix product takes as many at once.
const ROW_STEP: usize = 8;
/// No row.
const NO_ROW: u32 = u32::MAX;

/// A language model on a device, causal or diffusion.
#[derive(Debug)]
pub struct DeviceTransformer {
    device: Arc<dyn Device>,
    config: ModelConfig,
    spec: BackboneSpec,
    sizes: Sizes,
    embedding: DeviceWeight,
    layers: Vec<Layer>,
    /// f32, `[hidden]`
    norm: Array,
    head: DeviceLinear,
    room: Option<Room>,
    passes: Recordings<PassShape>,
    heads: Recordings<usize>,
    scores: Recordings<ScoreShape>,
}

/// What fixes the launches of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PassShape {
    pub(super) plan: PlanShape,
    /// Of models with local linear attention.
    pub(super) lla: Option<LlaStepShape>,
    num_scored: usize,
}

impl DeviceTransformer {
    /// A model of weights that are made up on the device, for measurements: its time is that of a real one, its text
    /// means nothing.
    ///
    /// # Errors
    /// If the device has no kernels for it, or the weights do not fit.
    pub fn made_up(
        config: &ModelConfig,
        device: &Arc<dyn Device>,
        (precision, format): (Precision, DeviceFormat),
        seed: u32,
    ) -> Result<Self, ModelError> {
        Self::load(config, &mut MadeUp { device: Arc::clone(device), precision, format, seed })
    }

    /// Takes the weights that `config` asks for out of `source`.
    pub(crate) fn load(config: &ModelConfig, source: &mut dyn DeviceSource) -> Result<Self, ModelError> {
        let refuse = |what: &str| ModelError::NotOnDevice { origin: config.family.name().into(), what: what.into() };
        if config.moe.is_some() {
            return Err(refuse("a model with experts"));
        }
        let device = Arc::clone(source.device());
        let (hidden, names) = (config.hidden_size, config.names);
        let sizes = Sizes::new(config, source.precision().element());
        let embedding = source.weight(names.embedding, config.vocab_size, hidden)?;
        let layers = (0..config.num_layers).map(|index| Layer::load(source, index, config));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = source.vector(&format!("{}.weight", names.norm), hidden)?;
        let head = match config.tie_embeddings {
            true => embedding.clone(),
            false => source.weight(names.head, config.vocab_size, hidden)?,
        };
        let linears = || layers.iter().flat_map(Layer::linears);
        let head_copies = usize::from(!config.tie_embeddings);
        let table = config.vocab_size * hidden;
        let num_params = (1 + head_copies) * table
            + linears().map(Linear::num_params).sum::<usize>()
            + layers.iter().map(|layer| layer.num_vector_params(&sizes)).sum::<usize>()
            + hidden;
        let weight_bytes = embedding.bytes() + head_copies * head.bytes() + linears().map(Linear::bytes).sum::<usize>();
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
                element_bytes: sizes.precision.size(),
            },
            has_solver: matches!(config.mixer, MixerConfig::LocalLinear(_)),
            num_params,
            num_active_params: num_params,
            attention_dim: config.num_heads * config.head_dim,
            weight_bytes,
        };
        Ok(Self {
            config: config.clone(),
            spec,
            sizes,
            embedding,
            layers,
            norm,
            // Its logits are no partial sums: they are read as they are.
            head: DeviceLinear::new(head).with_splits(1)?,
            room: None,
            passes: Recordings::new(&device),
            heads: Recordings::new(&device),
            scores: Recordings::new(&device),
            device,
        })
    }

    /// Gives a pass to the device, up to the scored rows before the head. Does not wait. Returns how many are scored.
    fn give(&mut self, batch: &ForwardBatch<'_>, kv: &KvCache) -> Result<usize, ModelError> {
        batch.check(&self.spec, kv)?;
        let room =
            self.room.as_ref().ok_or(ModelError::BeyondCapacity { what: "rows", got: batch.num_rows(), room: 0 })?;
        check_capacity(batch, room.capacity)?;
        let layers = kv.device_layers()?;
        let (num_rows, num_scored) = (stepped(batch.num_rows()), batch.num_scored());
        let num_rows = num_rows.min(room.capacity.max_rows);
        let plan = attention_plan(batch, kv)?;
        let step = room.plan.step(&plan, num_rows)?;
        room.plan.write(&step)?;
        let mut shape = PassShape { plan: step.shape(), lla: None, num_scored: stepped(num_scored).min(num_rows) };
        if let (Some(lla), MixerConfig::LocalLinear(config)) = (&room.lla, self.config.mixer) {
            let step = lla.step(&LlaPlan::from_attention(&plan, config.window), num_rows)?;
            lla.write(&step)?;
            shape.lla = Some(step.shape());
        }
        write_rows(room, batch, num_rows)?;
        let (model, room) = (&Parts::of(&self.embedding, &self.layers, &self.norm, &self.sizes), room);
        self.passes.run(shape, || model.launches(room, layers, shape))?;
        Ok(num_scored)
    }

    /// Gives the head for some of the scored rows to the device: their logits then lie at the start of `logits`.
    fn give_head(&mut self, first: usize, count: usize) -> Result<(), ModelError> {
        let Some(room) = &self.room else { return Ok(()) };
        let width = room.last.len() / room.capacity.max_rows;
        let xs = room.last.slice(first * width..(first + count) * width)?;
        let launches = || Ok(matmul(&self.head, &xs, &room.logits, count)?);
        match first {
            0 => self.heads.run(count, launches),
            _ => Ok(run(&*self.device, &launches()?)?),
        }
    }

    /// Scores the logits that are there. Waits.
    fn score(&mut self, queries: &[ScoreQuery]) -> Result<Vec<ScoreResult>, ModelError> {
        let Some(room) = &mut self.room else { return Ok(Vec::new()) };
        let shape = room.score.prepare(queries)?;
        let (score, logits) = (&room.score, &room.logits);
        self.scores.run(shape, || Ok(score.launches(&shape, logits)?))?;
        Ok(score.read()?)
    }

    /// How the solvers of the pass that was the last fared. Comes after the last results of the pass were read, so there is
    /// nothing left to wait for.
    fn solver(&self, batch: &ForwardBatch<'_>) -> Result<Option<SolverReport>, ModelError> {
        let Some(lla) = self.room.as_ref().and_then(|room| room.lla.as_ref()).filter(|_| !batch.segments.is_empty())
        else {
            return Ok(None);
        };
        let num_queries = batch.num_rows() * self.sizes.heads.num_heads * self.layers.len();
        Ok(Some(SolverReport::of_device(num_queries, &lla.counters()?)))
    }

    /// Ranges of scored rows whose logits are there at a time.
    fn turns(&self, num_scored: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let most = self.room.as_ref().map_or(1, Room::most_scored);
        (0..num_scored).step_by(most).map(move |first| (first, most.min(num_scored - first)))
    }
}

/// What the launches of a pass are made from.
struct Parts<'a> {
    embedding: &'a DeviceWeight,
    layers: &'a [Layer],
    norm: &'a Array,
    sizes: &'a Sizes,
}

impl<'a> Parts<'a> {
    fn of(embedding: &'a DeviceWeight, layers: &'a [Layer], norm: &'a Array, sizes: &'a Sizes) -> Self {
        Self { embedding, layers, norm, sizes }
    }

    fn launches(
        &self,
        room: &Room,
        caches: &[crate::kv::DeviceKv],
        shape: PassShape,
    ) -> Result<Vec<Launch>, ModelError> {
        let rows = shape.plan.num_rows();
        let mut launches = vec![embed(self.embedding, &room.tokens, &room.residual, rows)?];
        let mut left = None;
        for (layer, kv) in self.layers.iter().zip(caches) {
            left = Some(layer.launch((room, kv, self.sizes), shape, left.as_ref(), &mut launches)?);
        }
        if shape.num_scored > 0 {
            launches.push(add_norm(&AddNorm {
                residual: &room.residual,
                partials: left.as_ref(),
                weight: self.norm,
                output: &room.last,
                selected: Some((&room.scored, shape.num_scored)),
                rows,
                hidden: self.sizes.hidden,
                eps: self.sizes.norm_eps,
            })?);
        }
        Ok(launches)
    }
}

impl Backbone for DeviceTransformer {
    fn spec(&self) -> &BackboneSpec {
        &self.spec
    }

    /// Copies all logits to the host. Decoding does not: see [`RowScorer`].
    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        let num_scored = if batch.segments.is_empty() { 0 } else { self.give(batch, kv)? };
        let vocab_size = self.spec.vocab_size;
        let mut values = Vec::with_capacity(num_scored * vocab_size);
        for (first, count) in self.turns(num_scored) {
            self.give_head(first, count)?;
            if let Some(room) = &self.room {
                values.extend(room.logits.slice(0..count * vocab_size)?.read::<f32>()?);
            }
        }
        if num_scored == 0 {
            // A pass has ended when it returns.
            self.device.synchronize()?;
        }
        let logits = Logits::new(values, vocab_size)?;
        Ok(match self.solver(batch)? {
            Some(report) => logits.with_solver(report),
            None => logits,
        })
    }

    fn reserve(&mut self, capacity: Capacity) -> Result<KvCache, ModelError> {
        let linears = self.layers.iter().flat_map(Layer::linears);
        let most_sums =
            linears.map(|linear| linear.most_sums(self.device.facts(), capacity.max_rows)).max().unwrap_or(0);
        let model = (&self.spec, &self.config, &self.sizes);
        let (room, cache) = Room::new(&self.device, model, (capacity, most_sums))?;
        self.room = Some(room);
        Ok(cache)
    }

    fn device(&self) -> Option<&DeviceFacts> {
        Some(self.device.facts())
    }

    fn scorer(&mut self) -> Option<&mut dyn RowScorer> {
        Some(self)
    }
}

impl RowScorer for DeviceTransformer {
    fn forward_scored(
        &mut self,
        batch: &ForwardBatch<'_>,
        kv: &mut KvCache,
        queries: &mut dyn FnMut() -> Vec<ScoreQuery>,
    ) -> Result<ScoredRows, ModelError> {
        let num_scored = if batch.segments.is_empty() { 0 } else { self.give(batch, kv)? };
        let mut turns = self.turns(num_scored);
        let first_turn = turns.next();
        if let Some((first, count)) = first_turn {
            self.give_head(first, count)?;
        }
        // The device works meanwhile.
        let queries = queries();
        if queries.len() != num_scored {
            return Err(ModelError::QueryCount { expected: num_scored, got: queries.len() });
        }
        let mut rows = Vec::with_capacity(num_scored);
        for (first, count) in first_turn.into_iter().chain(turns) {
            if first > 0 {
                self.give_head(first, count)?;
            }
            rows.extend(self.score(&queries[first..first + count])?);
        }
        if num_scored == 0 {
            self.device.synchronize()?;
        }
        Ok(ScoredRows { rows, solver: self.solver(batch)? })
    }
}

fn check_capacity(batch: &ForwardBatch<'_>, capacity: Capacity) -> Result<(), ModelError> {
    let counts =
        [("rows", batch.num_rows(), capacity.max_rows), ("page tables", batch.segments.len(), capacity.max_tables)];
    match counts.into_iter().find(|(_, got, room)| got > room) {
        Some((what, got, room)) => Err(ModelError::BeyondCapacity { what, got, room }),
        None => Ok(()),
    }
}

/// Writes tokens and the indices of scored rows; what only fills the shape is token 0 and no row.
fn write_rows(room: &Room, batch: &ForwardBatch<'_>, num_rows: usize) -> Result<(), ModelError> {
    let mut tokens = Vec::with_capacity(num_rows);
    let mut scored = Vec::with_capacity(num_rows);
    for segment in &batch.segments {
        let first = tokens.len();
        tokens.extend(segment.tokens.iter().map(|token| token.0));
        scored.extend(segment.scored.clone().map(|row| (first + row) as u32));
    }
    tokens.resize(num_rows, 0);
    scored.resize(num_rows, NO_ROW);
    room.tokens.write(0, &tokens)?;
    Ok(room.scored.write(0, &scored)?)
}

/// Rows as shapes have them.
fn stepped(count: usize) -> usize {
    if count <= ROW_STEP { count } else { count.next_multiple_of(ROW_STEP) }
}
