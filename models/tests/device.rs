//! Models on a device whose kernels run on the host: the same logits as on the processor up to rounding, the same bits in
//! every batch, as one launch after the other or as a graph.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{path::Path, sync::Arc};

use device_tests::{HostDevice, Order};
use kernels::device::{Device, ScoreAdjustments, ScoreConfidence, ScoreConfidenceKind, ScoreQuery};
use models::{
    AttentionKind, Capacity, ForwardBatch, KvCache, LoadOptions, LoadedModel, Logits, ModelError, ModelSource, PageId,
    Precision, Quantize, Segment, TokenId, Visibility,
    source::{load, load_on},
};

const PAGE_LEN: usize = 8;
const NUM_PAGES: usize = 64;
const CAPACITY: Capacity =
    Capacity { max_rows: 96, max_tables: 4, context_len: 128, num_pages: NUM_PAGES, page_len: PAGE_LEN };

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}

fn device() -> Arc<dyn Device> {
    device_tests::any_device()
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

/// With the mask that the golden names, where the config does not.
fn golden_options(name: &str) -> LoadOptions {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mask_id = std::fs::read_to_string(folder.join(name).join("golden.json")).ok().and_then(|json| {
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        (json["mask_id_in_config"] == false).then(|| TokenId(json["mask_id"].as_u64().unwrap() as u32))
    });
    LoadOptions { tokenizer: Some(folder.join("tokenizer.json")), mask_id, ..LoadOptions::default() }
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

/// Root mean square errors that rounding explains: every value is rounded to the 16-bit type before it is multiplied, to
/// half a unit of the last of 11 or 8 bits, a few times in each layer, and errors of different roundings do not add up
/// but for their squares.
const F16_TOLERANCE: f64 = 4.0 / 2048.0;
const BF16_TOLERANCE: f64 = 4.0 / 256.0;

#[test]
fn the_built_in_models_give_the_logits_of_the_processor() {
    if skipped() {
        return;
    }
    for name in ["leapfrog-ar", "leapfrog-cllm", "leapfrog-diffusion", "leapfrog-block"] {
        let source: ModelSource = name.parse().unwrap();
        // One row, a few, more than a block of the matrix product; full blocks of the block-causal model.
        let f16 = compare(&source, &LoadOptions::default(), &[32, 64]);
        assert!(f16 < F16_TOLERANCE, "{name}: {f16}");
        let bf16 = LoadOptions { precision: Some(Precision::BF16), ..LoadOptions::default() };
        let bf16 = compare(&source, &bf16, &[32, 32]);
        assert!(bf16 < BF16_TOLERANCE && bf16 > f16, "{name}: {bf16}");
        let q8_0 = LoadOptions { quantize: Some(Quantize::Q8_0), ..LoadOptions::default() };
        let q8_0 = compare(&source, &q8_0, &[32, 32]);
        assert!(q8_0 < F16_TOLERANCE, "{name} in q8_0: {q8_0}");
    }
    let causal = compare(&"leapfrog-ar".parse().unwrap(), &LoadOptions::default(), &[1, 1, 7, 9, 33]);
    assert!(causal < F16_TOLERANCE, "{causal}");
}

#[test]
fn biases_head_norms_and_groups_of_heads_are_those_of_the_family() {
    if skipped() {
        return;
    }
    for name in [
        "llama-gqa-tied",
        "llama-mha-bias",
        "llama3-rope",
        "qwen3",
        "qwen3-untied",
        "diffusion/sdar",
        "diffusion/a2d-qwen2-mdlm",
        "diffusion/a2d-qwen3-mdlm",
        "diffusion/llada-gqa",
    ] {
        // Some of the files are bf16, which without the option is computed in bf16.
        let options = LoadOptions { precision: Some(Precision::F16), ..golden_options(name) };
        let error = compare(&golden(name), &options, &[32, 32]);
        // Random weights make large scores of attention, which roundings sway more.
        assert!(error < 2.0 * F16_TOLERANCE, "{name}: {error}");
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    if skipped() {
        return;
    }
    let mut subject = Subject::on_device(&"leapfrog-ar".parse().unwrap(), &LoadOptions::default());
    let vocab_size = subject.vocab_size();
    let sequences: Vec<(Vec<TokenId>, Vec<PageId>)> =
        [(40, 0), (9, 1), (1, 2), (23, 3)].map(|(len, i)| (tokens(len, i, vocab_size), pages(i))).into();
    let alone: Vec<Vec<f32>> = sequences
        .iter()
        .map(|(tokens, pages)| {
            // One row after the other.
            let rows = (0..tokens.len()).map(|row| {
                let segment = Segment {
                    tokens: &tokens[row..row + 1],
                    start: row,
                    visibility: Visibility::Causal,
                    scored: 0..1,
                    pages,
                };
                subject.forward(vec![segment]).values().to_vec()
            });
            rows.collect::<Vec<_>>().concat()
        })
        .collect();
    let segments = sequences.iter().map(|(tokens, pages)| Segment {
        tokens,
        start: 0,
        visibility: Visibility::Causal,
        scored: 0..tokens.len(),
        pages,
    });
    let together = subject.forward(segments.collect());
    assert_eq!(together.values(), alone.concat());
}

#[test]
fn a_replayed_pass_is_one_of_its_own_content() {
    if skipped() {
        return;
    }
    let source = "leapfrog-diffusion".parse().unwrap();
    let host = HostDevice::new(1 << 30, Order::Shuffled);
    let device: Arc<dyn Device> = host;
    let mut subject = Subject::new(load_on(&source, &LoadOptions::default(), &device).unwrap());
    let vocab_size = subject.vocab_size();
    let mut again = Vec::new();
    for round in 0..4 {
        let mut fresh = Subject::on_device(&source, &LoadOptions::default());
        let tokens = tokens(30, round, vocab_size);
        let pages = pages(round);
        // Positions, pages, tokens and scored rows differ; the shape does not.
        let segment = |tokens| Segment {
            tokens,
            start: 0,
            visibility: Visibility::Through(30),
            scored: round..round + 9,
            pages: &pages,
        };
        let expected = fresh.forward(vec![segment(&tokens)]);
        assert_eq!(subject.forward(vec![segment(&tokens)]), expected, "round {round}");
        again.push(expected);
    }
    assert_ne!(again[0], again[1]);
}

#[test]
fn scores_are_those_of_the_logits() {
    if skipped() {
        return;
    }
    let mut subject = Subject::on_device(&"leapfrog-ar".parse().unwrap(), &LoadOptions::default());
    let tokens = tokens(20, 5, subject.vocab_size());
    let pages = pages(2);
    let segment =
        || Segment { tokens: &tokens, start: 0, visibility: Visibility::Causal, scored: 4..20, pages: &pages };
    let logits = subject.forward(vec![segment()]);
    let confidence = ScoreConfidence { kind: ScoreConfidenceKind::Probability, filtered: false, held_down: vec![3] };
    let adjustments =
        ScoreAdjustments { bias: vec![(5, 4.0), (9, -2.0)], forbidden: vec![2], ..ScoreAdjustments::default() };
    let queries: Vec<ScoreQuery> = (0..16)
        .map(|row| ScoreQuery {
            noise_key: 77 * row,
            temperature: [0.0, 1.5][row as usize % 2],
            top_p: [1.0, 0.9, 1.0][row as usize % 3],
            adjustments: if row % 4 == 3 { adjustments.clone() } else { ScoreAdjustments::default() },
            confidence: (row % 5 != 0).then(|| confidence.clone()),
            logprobs: (row % 6 == 1).then_some(3),
            ..ScoreQuery::default()
        })
        .collect();
    for _ in 0..3 {
        let batch = ForwardBatch { segments: vec![segment()] };
        let scorer = subject.model.backbone.scorer().unwrap();
        let scored = scorer.forward_scored(&batch, &mut subject.kv, &mut || queries.clone()).unwrap();
        assert_eq!(scored.rows.len(), 16);
        for (row, (got, query)) in scored.rows.iter().zip(&queries).enumerate() {
            let expected = kernels::reference::score(logits.row(row), query);
            assert_eq!((got.token, got.is_broken), (expected.token, false), "row {row}");
            let near = |a: Option<f32>, b: Option<f32>| match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-5 * b.abs().max(1.0),
                (a, b) => a == b,
            };
            assert!(
                near(got.confidence, expected.confidence) && near(got.logprob, expected.logprob),
                "{got:?} {expected:?}"
            );
            let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!(ids(&got.top), ids(&expected.top));
        }
    }
    let batch = ForwardBatch { segments: vec![segment()] };
    let scorer = subject.model.backbone.scorer().unwrap();
    let refused = scorer.forward_scored(&batch, &mut subject.kv, &mut Vec::new).unwrap_err();
    assert!(matches!(refused, ModelError::QueryCount { expected: 16, got: 0 }), "{refused}");
}

#[test]
fn more_scored_rows_than_logits_fit_are_scored_in_turns() {
    if skipped() {
        return;
    }
    let source = "leapfrog-diffusion".parse().unwrap();
    let mut model = load_on(&source, &LoadOptions::default(), &device()).unwrap();
    let capacity = Capacity { max_rows: 300, max_tables: 1, context_len: 320, num_pages: 40, page_len: PAGE_LEN };
    let mut kv = model.backbone.reserve(capacity).unwrap();
    let tokens = tokens(300, 1, model.backbone.spec().vocab_size);
    let pages: Vec<PageId> = (0..40).rev().map(PageId).collect();
    let segment =
        |scored| Segment { tokens: &tokens, start: 0, visibility: Visibility::Through(300), scored, pages: &pages };
    let mut pass = |scored| {
        let batch = ForwardBatch { segments: vec![segment(scored)] };
        let query = ScoreQuery { logprobs: Some(0), ..ScoreQuery::default() };
        let mut queries = || vec![query.clone(); batch.num_scored()];
        model.backbone.scorer().unwrap().forward_scored(&batch, &mut kv, &mut queries).unwrap().rows
    };
    let all = pass(0..300);
    assert_eq!(all.len(), 300);
    assert_eq!(pass(270..300), all[270..]);
    assert_ne!(all[10], all[280]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_sizes() {
    if skipped() {
        return;
    }
    let source: ModelSource = "leapfrog-ar".parse().unwrap();
    let small: Arc<dyn Device> = HostDevice::new(2 << 20, Order::Forward);
    let refused = load_on(&source, &LoadOptions::default(), &small).unwrap_err();
    assert!(
        matches!(refused, ModelError::DeviceMemory { weights_mib: 5, cache_mib: 0, available_mib: 2, .. }),
        "{refused}"
    );

    let medium: Arc<dyn Device> = HostDevice::new(12 << 20, Order::Forward);
    let mut model = load_on(&source, &LoadOptions::default(), &medium).unwrap();
    let free = medium.free_bytes().unwrap();
    let large = Capacity { num_pages: 4096, ..CAPACITY };
    let refused = model.backbone.reserve(large).unwrap_err();
    assert!(matches!(refused, ModelError::DeviceMemory { cache_mib: 32, available_mib: 11, .. }), "{refused}");
    assert!(refused.to_string().contains("the KV cache 32 MiB"), "{refused}");
    assert_eq!(medium.free_bytes().unwrap(), free, "nothing is kept of what was refused");
    model.backbone.reserve(CAPACITY).unwrap();
}

#[test]
fn passes_beyond_the_room_are_refused_and_harm_nothing() {
    if skipped() {
        return;
    }
    let mut subject = Subject::on_device(&"leapfrog-ar".parse().unwrap(), &LoadOptions::default());
    let tokens = tokens(120, 1, subject.vocab_size());
    let pages: Vec<PageId> = (0..15).map(PageId).collect();
    let segment = |len: usize| Segment {
        tokens: &tokens[..len],
        start: 0,
        visibility: Visibility::Causal,
        scored: 0..1,
        pages: &pages,
    };
    let expected = subject.forward(vec![segment(30)]);
    let pass = |subject: &mut Subject, segments| {
        subject.model.backbone.forward(&ForwardBatch { segments }, &mut subject.kv).unwrap_err()
    };
    let refused = pass(&mut subject, vec![segment(97)]);
    assert!(matches!(refused, ModelError::BeyondCapacity { what: "rows", got: 97, room: 96 }), "{refused}");
    let refused = pass(&mut subject, vec![segment(1); 5]);
    assert!(matches!(refused, ModelError::BeyondCapacity { what: "page tables", got: 5, room: 4 }), "{refused}");
    let mut host_cache = KvCache::new(subject.model.backbone.spec().kv, NUM_PAGES, PAGE_LEN).unwrap();
    let batch = ForwardBatch { segments: vec![segment(5)] };
    let refused = subject.model.backbone.forward(&batch, &mut host_cache).unwrap_err();
    assert!(matches!(refused, ModelError::ForeignCache { .. }), "{refused}");
    assert_eq!(subject.forward(vec![segment(30)]), expected);

    // A new room: what was recorded in the old one is forgotten, and its cache belongs to nobody.
    let old = std::mem::replace(&mut subject.kv, subject.model.backbone.reserve(CAPACITY).unwrap());
    assert_eq!(subject.forward(vec![segment(30)]), expected);
    assert_eq!(subject.forward(vec![segment(30)]), expected);
    subject.kv = old;
    let refused = pass(&mut subject, vec![segment(30)]);
    assert!(matches!(refused, ModelError::ForeignCache { .. }), "{refused}");
}

#[test]
fn what_has_no_kernels_is_refused_by_name() {
    if skipped() {
        return;
    }
    let refusal = |source: &ModelSource, options: &LoadOptions, device: &Arc<dyn Device>| {
        load_on(source, options, device).map(drop).unwrap_err().to_string()
    };
    let ar: ModelSource = "leapfrog-ar".parse().unwrap();
    let f32 = LoadOptions { quantize: Some(Quantize::F32), ..LoadOptions::default() };
    assert!(refusal(&ar, &f32, &device()).contains("weights in f32"));
    let bf16 = LoadOptions { precision: Some(Precision::BF16), ..LoadOptions::default() };
    let turing: Arc<dyn Device> = HostDevice::with_capability(1 << 30, Order::Forward, (7, 5));
    assert!(refusal(&ar, &bf16, &turing).contains("compute capability 8.0"));
    let quantised = LoadOptions { quantize: Some(Quantize::Q8_0), ..bf16 };
    assert!(
        refusal(&ar, &quantised, &device()).contains("leave") || refusal(&ar, &quantised, &device()).contains("f16")
    );
    assert!(
        refusal(&golden("diffusion/llada-moe"), &golden_options("diffusion/llada-moe"), &device()).contains("experts")
    );
    let narrow = refusal(&golden("diffusion/llada"), &golden_options("diffusion/llada"), &device());
    assert!(narrow.contains("heads of 12"), "{narrow}");
}
