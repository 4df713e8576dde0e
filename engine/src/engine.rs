//! The handle: starting an engine, submitting requests, draining.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use models::{
    AttentionKind, Backbone, BackboneSpec, KvCache, TokenId,
    source::{DiffusionHints, GenerationDefaults, JacobiHints, LoadedModel},
    text::{ChatTemplate, Tokenizer},
};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};

use crate::{
    cost::CostTable,
    decode::{Ar, Decoder, Diffusion, DiffusionConfig, Jacobi, JacobiConfig},
    energy::{Arithmetic, EnergyMonitor, EngineMeter, SystemCause},
    error::{EngineError, SubmitError},
    event::Event,
    exposition::Exposition,
    metrics::{CanvasMetrics, Metrics},
    pages::PagePool,
    request::{DiffusionOptions, GuessRule, Request, Strategy, WindowPolicy},
    scheduler::RowBudget,
    sequence::{EventSender, Job, SequenceContext},
    settings::{EngineSettings, PAGE_LEN},
    solver::SolverMetrics,
    worker::{Command, DecoderFactory, Worker},
};

/// Events that a client may leave unread before its request is ended.
const EVENT_CAPACITY: usize = 4096;
/// Widest Jacobi block if neither request nor model nor settings name one.
const DEFAULT_WIDTH: usize = 8;

/// A running model. Clones share it; the worker stops when the last one is gone and nothing runs.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    plan: DecoderPlan,
    info: ModelInfo,
    metrics: Metrics,
    occupancy: Arc<Occupancy>,
    draining: AtomicBool,
    max_concurrent: usize,
    max_queue: usize,
}

/// What handle and worker both count.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    /// Requests accepted and not yet ended.
    in_flight: AtomicUsize,
    /// Running mean of the time that a request takes from its first step to its end, in microseconds; 0 before any.
    mean_micros: AtomicU64,
}

impl Occupancy {
    /// Takes places for `count` requests if no more than `capacity` are then in flight.
    pub(crate) fn claim(&self, count: usize, capacity: usize) -> bool {
        let claim = |in_flight: usize| in_flight.checked_add(count).filter(|total| *total <= capacity);
        self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).is_ok()
    }

    /// Gives `count` places back.
    pub(crate) fn release(&self, count: usize) {
        self.in_flight.fetch_sub(count, Ordering::AcqRel);
    }

    /// Learns how long a request took. Only the worker calls it, so load and store need not be one step.
    pub(crate) fn observe(&self, taken: Duration) {
        let mean = self.mean_micros.load(Ordering::Relaxed);
        let taken = taken.as_micros() as u64;
        self.mean_micros.store(if mean == 0 { taken.max(1) } else { (mean * 7 + taken) / 8 }, Ordering::Relaxed);
    }

    /// When a place should be free, if `slots` requests run at a time: at least one second, at most a minute.
    fn retry_after(&self, slots: usize) -> Duration {
        let per_place = self.mean_micros.load(Ordering::Relaxed) / slots.max(1) as u64;
        Duration::from_micros(per_place).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// What a caller may know of the model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name under which it was loaded.
    pub id: String,
    /// Family, as the config spells it.
    pub family: String,
    /// Longest prompt plus completion, in tokens.
    pub context_len: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Number of parameters.
    pub num_params: usize,
    /// Memory of the weights, in bytes.
    pub weight_bytes: usize,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How messages become a prompt; models that cannot chat have none.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// Sampling parameters that the model's authors recommend.
    pub generation: GenerationDefaults,
    /// Widest Jacobi block of requests that name none.
    pub width: usize,
    /// Measured cost of a pass: `(rows, milliseconds)`.
    pub pass_millis: Vec<(usize, f64)>,
    /// How the model attends.
    pub attention: AttentionKind,
    /// The token that marks an undecided slot; only diffusion models have one.
    pub mask_id: Option<TokenId>,
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sequences that decode.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV pages in use.
    pub kv_pages_used: usize,
    /// KV pages in all.
    pub kv_pages_total: usize,
}

/// The events of one request. Dropping it cancels the request before the next step.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<Event>,
}

impl EventStream {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for callers without an async runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl Engine {
    /// Reserves the KV cache, measures what a pass costs and starts the device thread. Blocks for a few seconds.
    pub fn start(model: LoadedModel, settings: EngineSettings) -> Result<Self, EngineError> {
        Self::start_metered(model, settings, &EnergyMonitor::off())
    }

    /// The same with a monitor that says what each request costs. All engines of a process share one.
    pub fn start_metered(
        model: LoadedModel,
        settings: EngineSettings,
        energy: &EnergyMonitor,
    ) -> Result<Self, EngineError> {
        Self::start_with(model, settings, None, energy)
    }

    /// The same with a decoder of the caller's choice for every request.
    pub(crate) fn start_with(
        model: LoadedModel,
        settings: EngineSettings,
        make_decoder: Option<DecoderFactory>,
        energy: &EnergyMonitor,
    ) -> Result<Self, EngineError> {
        let (worker, shared, commands, pool) = prepare(model, &settings, make_decoder, energy)?;
        thread::Builder::new()
            .name("leapfrog-device".into())
            // Kernels run on the pool of the thread that calls them, so the whole loop lives inside it.
            .spawn(move || pool.install(move || worker.run(commands)))
            .map_err(EngineError::Thread)?;
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.shared.info
    }

    /// Accepts all of `requests` or none of them.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Vec<EventStream>, SubmitError> {
        let shared = &*self.shared;
        let capacity = shared.max_concurrent + shared.max_queue;
        for request in &requests {
            shared.plan.check(request)?;
        }
        if requests.len() > capacity {
            let message = format!("{} choices in one request; this server holds {capacity}", requests.len());
            return Err(SubmitError::InvalidParameter { param: "n", message });
        }
        if shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::ShuttingDown);
        }
        if !shared.occupancy.claim(requests.len(), capacity) {
            shared.metrics.refused.inc_by(requests.len() as u64);
            let retry_after = shared.occupancy.retry_after(shared.max_concurrent);
            return Err(SubmitError::QueueFull { max_queue: shared.max_queue, retry_after });
        }
        let submitted = Instant::now();
        let num_requests = requests.len();
        let (jobs, streams) = requests
            .into_iter()
            .map(|request| {
                let (events, receiver) = EventSender::channel(EVENT_CAPACITY);
                (Job { request, events, submitted }, EventStream { events: receiver })
            })
            .unzip();
        if shared.commands.send(Command::Submit(jobs)).is_err() {
            shared.occupancy.release(num_requests);
            return Err(SubmitError::ShuttingDown);
        }
        Ok(streams)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let metrics = &self.shared.metrics;
        let running = metrics.running.get() as usize;
        Load {
            running,
            waiting: self.shared.occupancy.in_flight.load(Ordering::Acquire).saturating_sub(running),
            kv_pages_used: metrics.pages_used.get() as usize,
            kv_pages_total: metrics.pages_total.get() as usize,
        }
    }

    /// Registers the metrics of `engines` under the prefix `leapfrog`, those of each with the id of its model as the
    /// label `model`. Ids must differ.
    pub fn register_metrics(engines: &[Self], registry: &mut Registry) {
        let metrics = |engine: &Self| (engine.shared.info.id.clone(), engine.shared.metrics.clone());
        let exposition = Exposition(engines.iter().map(metrics).collect());
        registry.register_collector(Box::new(exposition.canvases()));
        registry.sub_registry_with_prefix("leapfrog").register_collector(Box::new(exposition));
    }

    /// Refuses new requests from now on and returns when the accepted ones are done.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        let (done, answer) = oneshot::channel();
        if self.shared.commands.send(Command::Drain(done)).is_ok() {
            // An error means that the worker has stopped, which is what we wait for.
            let _ = answer.await;
        }
    }
}

/// A worker for tests to step by hand, with the threads that its passes need.
#[cfg(feature = "testing")]
pub(crate) fn by_hand(
    model: LoadedModel,
    settings: &EngineSettings,
    make_decoder: Option<DecoderFactory>,
    energy: &EnergyMonitor,
) -> Result<(Worker, rayon::ThreadPool), EngineError> {
    let (worker, _, _, threads) = prepare(model, settings, make_decoder, energy)?;
    Ok((worker, threads))
}

/// Builds everything that the device thread needs.
fn prepare(
    model: LoadedModel,
    settings: &EngineSettings,
    make_decoder: Option<DecoderFactory>,
    energy: &EnergyMonitor,
) -> Result<(Worker, Shared, mpsc::UnboundedReceiver<Command>, rayon::ThreadPool), EngineError> {
    settings.validate()?;
    let spec = model.backbone.spec().clone();
    let (context_len, num_pages) = settings.plan_kv(spec.context_len, spec.kv.bytes_per_token())?;
    let plan = DecoderPlan::of(&model, settings, context_len)?;
    let made_by_plan = plan.clone();
    let make_decoder = make_decoder.unwrap_or_else(|| Box::new(move |request| made_by_plan.make(request)));
    let LoadedModel {
        id,
        mut backbone,
        tokenizer,
        chat_template,
        stop_ids,
        generation,
        jacobi,
        diffusion: _,
        summary: _,
    } = model;
    let capacity = settings.capacity(&spec, (context_len, num_pages), default_width(settings, jacobi.as_ref()));
    let num_threads = settings.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .thread_name(|i| format!("leapfrog-compute-{i}"))
        .build()
        .map_err(|error| EngineError::Thread(std::io::Error::other(error)))?;
    let warmup = energy.begin(SystemCause::Warmup);
    let (kv, cost) = threads.install(|| -> Result<_, EngineError> {
        let mut kv = backbone.reserve(capacity)?;
        let cost = calibrate(backbone.as_mut(), &mut kv, capacity.max_rows)?;
        Ok((kv, cost))
    })?;
    drop(warmup);
    let arithmetic = Arithmetic {
        params: spec.num_active_params as u64,
        attention: (spec.kv.num_layers * spec.attention_dim) as u64,
    };
    let meter = EngineMeter::new(energy, &id, arithmetic, backbone.device().map(|facts| facts.uuid.as_str()));
    let metrics = Metrics {
        // A device reports no details.
        solver: spec.has_solver.then(|| SolverMetrics::new(backbone.device().is_none())),
        canvas: spec.mask_id.map(|_| CanvasMetrics::default()),
        ..Metrics::new()
    };
    metrics.pages_total.set(num_pages as i64);
    let occupancy = Arc::new(Occupancy::default());
    let (commands, receiver) = mpsc::unbounded_channel();
    let info = ModelInfo {
        id,
        family: spec.family.clone(),
        context_len,
        vocab_size: spec.vocab_size,
        num_params: spec.num_params,
        weight_bytes: spec.weight_bytes,
        tokenizer: tokenizer.clone(),
        chat_template,
        generation,
        width: default_width(settings, jacobi.as_ref()),
        pass_millis: cost.points().to_vec(),
        attention: spec.attention,
        mask_id: spec.mask_id,
    };
    let worker = Worker {
        backbone,
        kv,
        pool: PagePool::new(num_pages, PAGE_LEN),
        context: SequenceContext { tokenizer, end_ids: Arc::from(stop_ids), mask_id: spec.mask_id, context_len },
        cost,
        budget: RowBudget { max_rows: settings.max_rows, interleave_rows: settings.interleave_rows },
        max_concurrent: settings.max_concurrent,
        make_decoder,
        metrics: metrics.clone(),
        meter,
        occupancy: occupancy.clone(),
        running: Vec::new(),
        waiting: VecDeque::new(),
        drains: Vec::new(),
        num_passes: 0,
    };
    let shared = Shared {
        commands,
        plan,
        info,
        metrics,
        occupancy,
        draining: AtomicBool::new(false),
        max_concurrent: settings.max_concurrent,
        max_queue: settings.max_queue,
    };
    Ok((worker, shared, receiver, threads))
}

/// Only causal models decode blocks of adaptive width today; timing the others would say nothing.
fn calibrate(backbone: &mut dyn Backbone, kv: &mut KvCache, max_rows: usize) -> Result<CostTable, EngineError> {
    match backbone.spec().attention {
        AttentionKind::Causal => Ok(CostTable::calibrate(backbone, kv, max_rows)?),
        AttentionKind::BlockCausal { .. } | AttentionKind::Full => Ok(CostTable::from_points(Vec::new())),
    }
}

fn default_width(settings: &EngineSettings, hints: Option<&JacobiHints>) -> usize {
    settings.width.or(hints.map(|hints| hints.width)).unwrap_or(DEFAULT_WIDTH).clamp(1, crate::request::MAX_WIDTH)
}

/// How requests become decoders.
#[derive(Debug, Clone)]
struct DecoderPlan {
    width: usize,
    guess: GuessRule,
    trained: bool,
    diffusion: DiffusionHints,
    spec: BackboneSpec,
    context_len: usize,
}

impl DecoderPlan {
    fn of(model: &LoadedModel, settings: &EngineSettings, context_len: usize) -> Result<Self, EngineError> {
        let hints = model.jacobi.as_ref();
        let guess = match hints.map(|hints| hints.guess.as_deref()) {
            // A consistency model is trained on random tokens of its context; on a plain model only copies pay.
            Some(None | Some("context-random" | "context_random")) => GuessRule::ContextRandom,
            None | Some(Some("lookup")) => GuessRule::Lookup,
            Some(Some(other)) => {
                let message = format!("`{other}` is not known; supported: context-random, lookup");
                return Err(EngineError::InvalidSetting { setting: "guess of the model's jacobi hints", message });
            }
        };
        let spec = model.backbone.spec().clone();
        if let (AttentionKind::BlockCausal { block_len, .. }, Some(own)) =
            (spec.attention, model.diffusion.block_length)
            && !block_len.is_multiple_of(own)
        {
            let message = format!("the model's blocks have {block_len} tokens; {own} does not divide them");
            return Err(EngineError::InvalidSetting {
                setting: "block_length of the model's diffusion hints",
                message,
            });
        }
        let (width, trained, diffusion) = (default_width(settings, hints), hints.is_some(), model.diffusion);
        Ok(Self { width, guess, trained, diffusion, spec, context_len })
    }

    /// Checks everything about `request` that depends on the model.
    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        request.validate(self.spec.vocab_size, self.context_len)?;
        let is_diffusion = self.spec.mask_id.is_some();
        let family = &self.spec.family;
        let invalid = |param, message| Err(SubmitError::InvalidParameter { param, message });
        match request.decoding.strategy {
            Strategy::Ar | Strategy::Jacobi if is_diffusion => {
                return invalid("decoding.strategy", format!("`{family}` is a diffusion model: it has no next token"));
            }
            _ if is_diffusion => return self.canvas(request).map(drop),
            Strategy::Diffusion => {
                return invalid("decoding.strategy", format!("`{family}` is not a diffusion model"));
            }
            Strategy::Auto | Strategy::Ar | Strategy::Jacobi => {}
        }
        if request.decoding.diffusion != DiffusionOptions::default() {
            return invalid(
                "decoding",
                format!("the options of a canvas are for diffusion models; `{family}` is none"),
            );
        }
        if !request.infill.is_empty() {
            return invalid("suffix", format!("infill needs a diffusion model; `{family}` is none"));
        }
        if request.frames {
            return invalid("stream_options.include_frames", format!("`{family}` fills no canvas"));
        }
        Ok(())
    }

    fn canvas(&self, request: &Request) -> Result<DiffusionConfig, SubmitError> {
        DiffusionConfig::resolve(&self.spec, self.context_len, self.diffusion, request)
    }

    /// The decoder of a request that [`DecoderPlan::check`] accepts.
    fn make(&self, request: &Request) -> Result<Box<dyn Decoder>, SubmitError> {
        let options = &request.decoding;
        if self.spec.mask_id.is_some() {
            return Ok(Box::new(Diffusion::new(self.canvas(request)?, &request.prompt)));
        }
        Ok(match options.strategy {
            Strategy::Ar => Box::new(Ar),
            Strategy::Auto | Strategy::Jacobi | Strategy::Diffusion => Box::new(Jacobi::new(JacobiConfig {
                width: options.width.unwrap_or(self.width),
                window: options.window.unwrap_or(WindowPolicy::Sliding),
                guess: options.guess.unwrap_or(self.guess),
                adaptive: options.adaptive.unwrap_or(true),
                trained: self.trained,
                seed: request.sampling.seed ^ u64::from(request.choice),
            })),
        })
    }
}
