//! The pre-norm transformer of [`arch`](crate::arch) on a device.

use std::sync::Arc;

use kernels::{
    KernelError, LlaPlan,
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
/// Widest head that attention has kernels for.
const MOST_HEAD_DIM: usize = 128;
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

    /// Milliseconds that a pass takes on the device, its logits and their scores included: the mean of `repeats` passes
    /// that are given at once after two that warm up, so that the device never waits for the host. `queries` are one a
    /// scored row.
    ///
    /// # Errors
    /// Those of [`RowScorer::forward_scored`], and if `repeats` is zero.
    pub fn pass_millis(
        &mut self,
        batch: &ForwardBatch<'_>,
        kv: &KvCache,
        queries: &[ScoreQuery],
        repeats: usize,
    ) -> Result<f64, ModelError> {
        if queries.len() != batch.num_scored() {
            return Err(ModelError::QueryCount { expected: batch.num_scored(), got: queries.len() });
        }
        if repeats == 0 {
            return Err(KernelError::Zero { op: "pass", what: "repeats" }.into());
        }
        let shape = self.write(batch, kv)?;
        // A shape is launched at first, and recorded when it comes again.
        self.give_passes(shape, kv, queries, 2)?;
        let device = Arc::clone(&self.device);
        let mut failure = None;
        let millis = device.millis(&mut || {
            failure = self.give_passes(shape, kv, queries, repeats).err();
            Ok(())
        })?;
        match failure {
            Some(error) => Err(error),
            None => Ok(f64::from(millis) / repeats as f64),
        }
    }

    /// Gives the same pass to the device several times, with its logits and scores. Does not wait.
    fn give_passes(
        &mut self,
        shape: PassShape,
        kv: &KvCache,
        queries: &[ScoreQuery],
        repeats: usize,
    ) -> Result<(), ModelError> {
        for _ in 0..repeats {
            self.start(shape, kv)?;
            for (first, count) in self.turns(queries.len()) {
                self.give_head(first, count)?;
                self.give_scores(&queries[first..first + count])?;
            }
        }
        Ok(())
    }

    /// Takes the weights that `config` asks for out of `source`.
    pub(crate) fn load(config: &ModelConfig, source: &mut dyn DeviceSource) -> Result<Self, ModelError> {
        check_kernels(config)?;
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
        let shape = self.write(batch, kv)?;
        self.start(shape, kv)?;
        Ok(batch.num_scored())
    }

    /// Writes what changes from pass to pass to the device. Returns the shape whose launches run the pass.
    fn write(&self, batch: &ForwardBatch<'_>, kv: &KvCache) -> Result<PassShape, ModelError> {
        batch.check(&self.spec, kv)?;
        let room =
            self.room.as_ref().ok_or(ModelError::BeyondCapacity { what: "rows", got: batch.num_rows(), room: 0 })?;
        check_capacity(batch, room.capacity)?;
        if !room.owns(kv.device_layers()?) {
            return Err(ModelError::ForeignCache {
                expected: "in the cache that was reserved for it",
                got: "elsewhere",
            });
        }
        let num_rows = stepped(batch.num_rows()).min(room.capacity.max_rows);
        let plan = attention_plan(batch, kv)?;
        let step = room.plan.step(&plan, num_rows)?;
        room.plan.write(&step)?;
        let mut shape =
            PassShape { plan: step.shape(), lla: None, num_scored: stepped(batch.num_scored()).min(num_rows) };
        if let (Some(lla), MixerConfig::LocalLinear(config)) = (&room.lla, self.config.mixer) {
            let step = lla.step(&LlaPlan::from_attention(&plan, config.window), num_rows)?;
            lla.write(&step)?;
            shape.lla = Some(step.shape());
        }
        write_rows(room, batch, num_rows)?;
        Ok(shape)
    }

    /// Gives the launches of a shape to the device.
    fn start(&mut self, shape: PassShape, kv: &KvCache) -> Result<(), ModelError> {
        let Some(room) = &self.room else { return Ok(()) };
        let layers = kv.device_layers()?;
        let model = &Parts::of(&self.embedding, &self.layers, &self.norm, &self.sizes);
        self.passes.run(shape, || model.launches(room, layers, shape))
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
        self.give_scores(queries)?;
        self.room.as_ref().map_or(Ok(Vec::new()), |room| Ok(room.score.read()?))
    }

    /// Gives the scores of the logits that are there to the device. Does not wait.
    fn give_scores(&mut self, queries: &[ScoreQuery]) -> Result<(), ModelError> {
        let Some(room) = &mut self.room else { return Ok(()) };
        let shape = room.score.prepare(queries)?;
        let (score, logits) = (&room.score, &room.logits);
        self.scores.run(shape, || Ok(score.launches(&shape, logits)?))
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
        // Recorded passes know the memory of the room that they were recorded in, and keep it.
        self.passes = Recordings::new(&self.device);
        self.heads = Recordings::new(&self.device);
        self.scores = Recordings::new(&self.device);
        self.room = None;
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

/// Refuses what there are no kernels for, before a weight is read.
fn check_kernels(config: &ModelConfig) -> Result<(), ModelError> {
    let refuse = |what: String| Err(ModelError::NotOnDevice { origin: config.family.name().into(), what });
    let ModelConfig { head_dim, hidden_size, intermediate_size, .. } = *config;
    if config.moe.is_some() {
        return refuse("a model with experts".into());
    }
    if !head_dim.is_multiple_of(8) || head_dim > MOST_HEAD_DIM {
        return refuse(format!("a model with heads of {head_dim} (not a multiple of 8 up to {MOST_HEAD_DIM})"));
    }
    if !hidden_size.is_multiple_of(4) || !intermediate_size.is_multiple_of(4) {
        return refuse(format!("a model of widths {hidden_size} and {intermediate_size} (not multiples of 4)"));
    }
    Ok(())
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
