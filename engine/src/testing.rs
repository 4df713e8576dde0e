//! Models, a hand-cranked engine and fake sensors for tests.

mod energy;
mod powercap;

use std::{sync::Arc, thread, time::Duration};

pub use energy::{HandSampler, ManualClock, ScriptedMeter, metered_by_hand, metered_live, system_clock};
use models::{
    Backbone, BackboneSpec, ForwardBatch, KvCache, Logits, ModelError, TokenId,
    loader::LoadSummary,
    source::{GenerationDefaults, LoadedModel},
    text::{ChatTemplate, Tokenizer},
};
pub use models::{
    reference::{ReferenceConfig, ReferenceLlama},
    scripted::{Rule, Scripted},
};
pub use powercap::{PowercapDriver, PowercapTree, PowercapZone, USUAL_RANGE_UJ};
use tokio::sync::mpsc;

use crate::{
    Engine, EngineError, EngineSettings, EventStream, Request,
    decode::Decoder,
    energy::{EnergyError, EnergyMonitor, EnergyProvider, EnergySettings},
    event::Event,
    sequence::{EventSender, Job},
    worker::{Command, Worker},
};

/// A monitor that reads `provider` instead of the sensors of this machine; its thread runs.
///
/// # Errors
/// As [`EnergyMonitor::start`].
pub fn metered_with(
    settings: &EnergySettings,
    provider: Box<dyn EnergyProvider>,
) -> Result<EnergyMonitor, EnergyError> {
    EnergyMonitor::of(settings, provider)
}

/// Number of tokens of [`byte_tokenizer`]: one a byte, then `<|end|>`, then fillers.
pub const BYTE_VOCAB: usize = 260;
/// The end token of [`byte_tokenizer`].
pub const END: TokenId = TokenId(256);

/// A tokenizer whose token `b` is the byte `b` and whose token 256 is the special token `<|end|>`.
pub fn byte_tokenizer() -> Result<Tokenizer, ModelError> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256u32;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        // The byte-level alphabet writes unprintable bytes as the code points from 256 on.
        let spelled = if printable(byte) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        vocab.insert(char::from_u32(spelled).map(String::from).unwrap_or_default(), byte.into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(256, "<|end|>"), special(257, "<|user|>"), special(258, "<|assistant|>"),
            special(259, "<|mask|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), "byte tokenizer")
}

/// `backbone` with the byte tokenizer, a plain chat template and the end token `<|end|>`.
pub fn model(backbone: impl Backbone + 'static) -> Result<LoadedModel, ModelError> {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    Ok(LoadedModel {
        id: "scripted".into(),
        backbone: Box::new(backbone),
        tokenizer: Arc::new(byte_tokenizer()?),
        chat_template: Some(Arc::new(ChatTemplate::new(template, None, None)?)),
        stop_ids: vec![END],
        generation: GenerationDefaults::default(),
        jacobi: None,
        diffusion: models::DiffusionHints::default(),
        summary: LoadSummary::default(),
    })
}

/// A causal model over bytes that answers by `rule`.
pub fn scripted(rule: Rule) -> Result<LoadedModel, ModelError> {
    model(Scripted::causal(rule, BYTE_VOCAB, 2048))
}

/// The same, each pass taking at least `pass_time`: for tests of cancellation and queues.
pub fn slow(rule: Rule, pass_time: Duration) -> Result<LoadedModel, ModelError> {
    model(Delayed { inner: Scripted::causal(rule, BYTE_VOCAB, 2048), pass_time })
}

/// A backbone that takes its time.
#[derive(Debug)]
struct Delayed<B> {
    inner: B,
    pass_time: Duration,
}

impl<B: Backbone> Backbone for Delayed<B> {
    fn spec(&self) -> &BackboneSpec {
        self.inner.spec()
    }

    fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits, ModelError> {
        thread::sleep(self.pass_time);
        self.inner.forward(batch, kv)
    }
}

/// An engine without a thread: the test turns the crank.
pub struct Harness {
    worker: Worker,
    threads: rayon::ThreadPool,
}

impl std::fmt::Debug for Harness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").finish_non_exhaustive()
    }
}

/// Everything that one request said.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transcript {
    /// All text.
    pub text: String,
    /// All tokens.
    pub tokens: Vec<TokenId>,
    /// All events, in order.
    pub events: Vec<Event>,
}

impl Transcript {
    /// Takes what `stream` has so far; does not wait.
    fn drain(&mut self, stream: &mut mpsc::Receiver<Event>) {
        while let Ok(event) = stream.try_recv() {
            if let Event::Committed(commit) = &event {
                self.text.push_str(&commit.text);
                self.tokens.extend(commit.tokens.iter().map(|record| record.id));
            }
            self.events.push(event);
        }
    }

    /// The last event, if it is the end.
    pub fn finish(&self) -> Option<&crate::Finish> {
        match self.events.last() {
            Some(Event::Finished(finish)) => Some(finish),
            _ => None,
        }
    }
}

impl Harness {
    /// An engine with the decoders that requests ask for.
    pub fn new(model: LoadedModel, settings: EngineSettings) -> Result<Self, EngineError> {
        let (worker, threads) = crate::engine::by_hand(model, &settings, None, &EnergyMonitor::off())?;
        Ok(Self { worker, threads })
    }

    /// An engine that decodes every request with a decoder of the test's.
    pub fn with_decoder(
        model: LoadedModel,
        settings: EngineSettings,
        make: impl Fn(&Request) -> Box<dyn Decoder> + Send + 'static,
    ) -> Result<Self, EngineError> {
        let (worker, threads) = crate::engine::by_hand(
            model,
            &settings,
            Some(Box::new(move |request| Ok(make(request)))),
            &EnergyMonitor::off(),
        )?;
        Ok(Self { worker, threads })
    }

    /// An engine whose passes `energy` meters.
    pub fn metered(model: LoadedModel, settings: EngineSettings, energy: &EnergyMonitor) -> Result<Self, EngineError> {
        let (worker, threads) = crate::engine::by_hand(model, &settings, None, energy)?;
        Ok(Self { worker, threads })
    }

    /// Queues a request; checks of [`Engine::submit`] do not apply.
    pub fn submit(&mut self, request: Request) -> mpsc::Receiver<Event> {
        let (events, receiver) = EventSender::channel(4096);
        self.worker.occupancy.claim(1, usize::MAX);
        let job = Job { request, events, submitted: std::time::Instant::now() };
        self.worker.take(Command::Submit(vec![job]));
        receiver
    }

    /// One decode step; false when nothing is left to do.
    pub fn step(&mut self) -> bool {
        let Self { worker, threads } = self;
        threads.install(|| worker.step())
    }

    /// Pages in use.
    pub fn pages_used(&self) -> usize {
        self.worker.pool.num_pages() - self.worker.pool.num_free()
    }

    /// For each running sequence: its tokens, its valid KV length.
    pub fn kv_lens(&self) -> Vec<(usize, usize)> {
        let lens = |s: &crate::sequence::Sequence| (s.num_tokens(), s.lease.table().len());
        self.worker.running.iter().map(lens).collect()
    }

    /// Runs requests to their ends together and returns what each said.
    pub fn run(&mut self, requests: Vec<Request>) -> Vec<Transcript> {
        let mut streams: Vec<_> = requests.into_iter().map(|request| self.submit(request)).collect();
        let mut transcripts = vec![Transcript::default(); streams.len()];
        loop {
            let busy = self.step();
            for (transcript, stream) in transcripts.iter_mut().zip(&mut streams) {
                transcript.drain(stream);
            }
            if !busy {
                return transcripts;
            }
        }
    }

    /// Runs one request to its end.
    pub fn run_one(&mut self, request: Request) -> Transcript {
        self.run(vec![request]).remove(0)
    }
}

/// Starts a threaded engine that decodes every request with a decoder of the test's.
pub fn start_with_decoder(
    model: LoadedModel,
    settings: EngineSettings,
    make: impl Fn(&Request) -> Box<dyn Decoder> + Send + 'static,
) -> Result<Engine, EngineError> {
    Engine::start_with(model, settings, Some(Box::new(move |request| Ok(make(request)))), &EnergyMonitor::off())
}

/// Reads a stream to its end.
pub fn collect(stream: &mut EventStream) -> Transcript {
    let mut transcript = Transcript::default();
    while let Some(event) = stream.next_blocking() {
        if let Event::Committed(commit) = &event {
            transcript.text.push_str(&commit.text);
            transcript.tokens.extend(commit.tokens.iter().map(|record| record.id));
        }
        transcript.events.push(event);
    }
    transcript
}
