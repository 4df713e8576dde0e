//! Models on a device whose kernels run on the host: the same logits as on the processor up to rounding, the same bits in
//! every batch, as one launch after the other or as a graph.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{path::Path, sync::Arc};

use device_tests::{HostDevice, Order};
use kernels::device::{Device, ScoreAdjustments, ScoreConfidence, ScoreConfidenceKind, ScoreQuery};
use models::{
    AttentionKind, Backbone, Capacity, ForwardBatch, KvCache, LoadOptions, LoadedModel, Logits, ModelError,
    ModelSource, PageId, Precision, Quantize, Segment, TokenId, Visibility,
    source::{load, load_on},
};

const PAGE_LEN: usize = 8;
const NUM_PAGES: usize = 24;
const CAPACITY: Capacity = Capacity { max_rows: 96, max_tables: 4, num_pages: NUM_PAGES, page_len: PAGE_LEN };

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}

fn device() -> Arc<dyn Device> {
    HostDevice::new(1 << 30, Order::Forward)
}

/// A model and its cache.
struct Subject {
    model: LoadedModel,
    kv: KvCache,
}

impl Subject {
    fn new(mut model: LoadedModel) -> Self {
        let kv = model.backbone.reserve(CAPACITY).unwrap();
        Self { model, kv }
    }

    fn on_cpu(source: &ModelSource, options: &LoadOptions) -> Self {
        Self::new(load(source, options).unwrap())
    }

    fn on_device(source: &ModelSource, options: &LoadOptions) -> Self {
        Self::new(load_on(source, options, &device()).unwrap())
    }

    fn vocab_size(&self) -> usize {
        self.model.backbone.spec().vocab_size
    }

    /// What rows of a sequence see that is read in pieces of whole blocks.
    fn visibility(&self, end: usize) -> Visibility {
        match self.model.backbone.spec().attention {
            AttentionKind::Causal => Visibility::Causal,
            AttentionKind::BlockCausal { block_len, .. } => Visibility::Blocks { origin: 0, block_len },
            AttentionKind::Full => Visibility::Through(end),
        }
    }

    fn forward(&mut self, segments: Vec<Segment<'_>>) -> Logits {
        self.model.backbone.forward(&ForwardBatch { segments }, &mut self.kv).unwrap()
    }
}

fn tokens(count: usize, seed: usize, vocab_size: usize) -> Vec<TokenId> {
    (0..count).map(|i| TokenId(((i * 37 + seed * 101 + i * i * 7) % (vocab_size - 8)) as u32)).collect()
}

/// Pages of the `index`th of four sequences, in an order that no formula would guess.
fn pages(index: usize) -> Vec<PageId> {
    (0..NUM_PAGES / 4).map(|page| PageId(((page * 4 + index) * 7 % NUM_PAGES) as u32)).collect()
}

fn golden(name: &str) -> ModelSource {
    ModelSource::Folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

fn golden_options(quantize: Option<Quantize>) -> LoadOptions {
    let tokenizer = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer.json"));
    LoadOptions { tokenizer: tokenizer.filter(|path| path.exists()), quantize, ..LoadOptions::default() }
}

/// The root mean square of the difference, relative to that of the expected values around their mean.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.is_finite()));
    let count = expected.len() as f64;
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let spread: f64 = expected.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (difference / spread).sqrt()
}

/// Logits of a sequence that is read in pieces, all rows scored.
fn in_pieces(subject: &mut Subject, tokens: &[TokenId], pieces: &[usize]) -> Vec<f32> {
    let pages = pages(1);
    let (mut start, mut all) = (0, Vec::new());
    for &len in pieces {
        let visibility = subject.visibility(start + len);
        let segment = Segment { tokens: &tokens[start..start + len], start, visibility, scored: 0..len, pages: &pages };
        all.extend_from_slice(subject.forward(vec![segment]).values());
        start += len;
    }
    all
}

fn compare(source: &ModelSource, options: &LoadOptions, pieces: &[usize]) -> f64 {
    let mut on_device = Subject::on_device(source, options);
    let cpu_options = LoadOptions { precision: None, ..options.clone() };
    let mut on_cpu = Subject::on_cpu(source, &cpu_options);
    let tokens = tokens(pieces.iter().sum(), 3, on_cpu.vocab_size());
    let expected = in_pieces(&mut on_cpu, &tokens, pieces);
    error(&in_pieces(&mut on_device, &tokens, pieces), &expected)
}

#[test]
fn probe() {
    if skipped() {
        return;
    }
    for name in ["leapfrog-ar", "leapfrog-cllm", "leapfrog-diffusion", "leapfrog-block"] {
        let source: ModelSource = name.parse().unwrap();
        let began = std::time::Instant::now();
        let e = compare(&source, &LoadOptions::default(), &[32, 1, 7]);
        println!("{name} {e:e} {:?}", began.elapsed());
    }
}
