//! Local linear attention on a device whose kernels run on the host: logits of the processor up to rounding, the same bits
//! in every batch, and what is counted of the systems.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

use candle_core::{DType, Device as Candle, Tensor, safetensors};
use device_tests::{HostDevice, Order};
use kernels::device::{Device, ScoreQuery};
use models::{
    Capacity, ForwardBatch, KvCache, LoadOptions, LoadedModel, Logits, ModelError, ModelSource, PageId, Precision,
    Quantize, Segment, SolverReport, TokenId, Visibility,
    source::{load, load_on},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PAGE_LEN: usize = 8;
const NUM_PAGES: usize = 24;
const CAPACITY: Capacity =
    Capacity { max_rows: 64, max_tables: 4, context_len: 1 << 20, num_pages: NUM_PAGES, page_len: PAGE_LEN };
const LEN: usize = 40;
/// Layers times heads of both checkpoints.
const QUERIES_PER_ROW: usize = 2 * 4;
/// A window of 9 positions, and none.
const NAMES: [&str; 2] = ["window", "tied"];
const PRECISIONS: [Precision; 2] = [Precision::F16, Precision::BF16];

/// Says so and returns true where the kernels could not be compiled.
fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}

fn device() -> Arc<dyn Device> {
    HostDevice::new(1 << 28, Order::Forward)
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn folder(name: &str) -> ModelSource {
    ModelSource::Folder(golden("lla").join(name))
}

fn options(precision: Option<Precision>) -> LoadOptions {
    LoadOptions { tokenizer: Some(golden("tokenizer.json")), precision, ..LoadOptions::default() }
}

/// A copy of a checkpoint with another config and other weights.
fn changed(
    name: &str,
    edit: impl FnOnce(&mut Value),
    reweight: impl FnOnce(&mut HashMap<String, Tensor>),
) -> (TempDir, ModelSource) {
    let (copy, original) = (TempDir::new().unwrap(), golden("lla").join(name));
    let mut config = serde_json::from_str(&fs::read_to_string(original.join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = safetensors::load(original.join("model.safetensors"), &Candle::Cpu).unwrap();
    reweight(&mut tensors);
    safetensors::save(&tensors, copy.path().join("model.safetensors")).unwrap();
    let source = ModelSource::Folder(copy.path().into());
    (copy, source)
}

/// A model and its cache.
struct Subject {
    model: LoadedModel,
    kv: KvCache,
}

impl Subject {
    fn on_cpu(source: &ModelSource, options: &LoadOptions) -> Self {
        Self::reserve(load(source, options).unwrap())
    }

    fn on_device(source: &ModelSource, options: &LoadOptions) -> Self {
        Self::reserve(load_on(source, options, &device()).unwrap())
    }

    fn reserve(mut model: LoadedModel) -> Self {
        let kv = model.backbone.reserve(CAPACITY).unwrap();
        Self { model, kv }
    }

    fn forward(&mut self, segments: Vec<Segment<'_>>) -> Logits {
        self.model.backbone.forward(&ForwardBatch { segments }, &mut self.kv).unwrap()
    }

    /// Logits of a sequence that is read in pieces, all rows scored, `[rows, vocab]`.
    fn in_pieces(&mut self, tokens: &[TokenId], sequence: usize, lens: &[usize]) -> Vec<f32> {
        let (pages, mut start, mut all) = (pages(sequence), 0, Vec::new());
        for &len in lens {
            all.extend_from_slice(self.forward(vec![segment(tokens, start..start + len, &pages)]).values());
            start += len;
        }
        all
    }
}

fn segment<'a>(tokens: &'a [TokenId], rows: std::ops::Range<usize>, pages: &'a [PageId]) -> Segment<'a> {
    let (start, scored) = (rows.start, 0..rows.len());
    Segment { tokens: &tokens[rows], start, visibility: Visibility::Causal, scored, pages }
}

fn tokens(seed: usize) -> Vec<TokenId> {
    (0..LEN).map(|i| TokenId(((i * 37 + seed * 101 + i * i * 7) % 100) as u32)).collect()
}

/// Pages of the `index`th of four sequences, in an order that no formula would guess.
fn pages(index: usize) -> Vec<PageId> {
    (0..NUM_PAGES / 4).map(|page| PageId(((page * 4 + index) * 7 % NUM_PAGES) as u32)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The root mean square of the difference, relative to that of the expected values around their mean.
fn error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.is_finite()));
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / expected.len() as f64;
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let spread: f64 = expected.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    (difference / spread).sqrt()
}

/// Multiplies every weight of a matrix by one plus noise of at most the rounding of a type.
fn shake(tensors: &mut HashMap<String, Tensor>, precision: Precision) {
    let size = match precision {
        Precision::F16 => 2f64.powi(-11),
        Precision::BF16 => 2f64.powi(-8),
    };
    let mut state = 7u64;
    let mut names: Vec<String> = tensors.keys().cloned().collect();
    names.sort_unstable();
    for name in names {
        let tensor = tensors[&name].to_dtype(DType::F32).unwrap();
        if tensor.rank() < 2 {
            continue;
        }
        let noise: Vec<f32> = (0..tensor.elem_count())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                1.0 + (size * ((state >> 40) as f64 / f64::from(1 << 23) - 1.0)) as f32
            })
            .collect();
        let noise = Tensor::from_vec(noise, tensor.shape(), &Candle::Cpu).unwrap();
        tensors.insert(name, (tensor * noise).unwrap());
    }
}

/// A product of a rounded weight and a rounded input is off by about as much as either rounding alone makes it. So the
/// error is at most twice that of the processor with weights that are off by as much as 16 bits put them.
#[test]
fn logits_are_those_of_the_processor() {
    if skipped() {
        return;
    }
    for name in NAMES {
        let expected = Subject::on_cpu(&folder(name), &options(None)).in_pieces(&tokens(3), 1, &[LEN]);
        for precision in PRECISIONS {
            let (_copy, shaken) = changed(name, |_| (), |tensors| shake(tensors, precision));
            let shaken = Subject::on_cpu(&shaken, &options(None)).in_pieces(&tokens(3), 1, &[LEN]);
            let tolerance = 2.0 * error(&shaken, &expected);
            let mut subject = Subject::on_device(&folder(name), &options(Some(precision)));
            let error = error(&subject.in_pieces(&tokens(3), 1, &[23, 1, 9, 7]), &expected);
            println!("{name} {precision:?}: {error:.1e} of {tolerance:.1e}");
            assert!(error <= tolerance, "{name} {precision:?}: {error:e} is above {tolerance:e}");
        }
    }
}

/// Rounding all weights to 8 bits is coarser than everything that a device rounds to 16.
#[test]
fn the_built_in_model_is_closer_than_its_weights_in_8_bits() {
    if skipped() {
        return;
    }
    let source: ModelSource = "leapfrog-lla".parse().unwrap();
    let logits = |mut subject: Subject| subject.in_pieces(&tokens(5), 0, &[24, 1, 15]);
    let expected = logits(Subject::on_cpu(&source, &LoadOptions::default()));
    let coarse = LoadOptions { quantize: Some(Quantize::Q8_0), ..LoadOptions::default() };
    let tolerance = error(&logits(Subject::on_cpu(&source, &coarse)), &expected);
    let error = error(&logits(Subject::on_device(&source, &LoadOptions::default())), &expected);
    println!("leapfrog-lla: {error:.1e} of {tolerance:.1e}");
    assert!(error <= tolerance, "{error:e} is above {tolerance:e}");
}

#[test]
fn a_row_has_the_same_bits_alone_in_pieces_and_in_a_batch() {
    if skipped() {
        return;
    }
    for (name, precision, quantize) in [
        ("window", Precision::BF16, None),
        ("tied", Precision::F16, None),
        ("tied", Precision::F16, Some(Quantize::Q8_0)),
    ] {
        let options = LoadOptions { quantize, ..options(Some(precision)) };
        let mut subject = Subject::on_device(&folder(name), &options);
        let (one, other, third) = (tokens(1), tokens(2), tokens(3));
        let whole = subject.in_pieces(&one, 1, &[LEN]);
        let row = whole.len() / LEN;
        for lens in [&[1; LEN][..], &[16, 8, 8, 8], &[33, 1, 6]] {
            assert_eq!(bits(&subject.in_pieces(&one, 1, lens)), bits(&whole), "{name} {lens:?}");
        }
        // A block of one sequence beside the prompt of another and the next token of a third.
        let own: [Vec<PageId>; 3] = [pages(1), pages(0), pages(3)];
        subject.in_pieces(&one[..20], 1, &[20]);
        let others = [subject.in_pieces(&other, 0, &[LEN]), subject.in_pieces(&third, 3, &[LEN])];
        let batch = subject.forward(vec![
            segment(&other, 0..LEN, &own[1]),
            segment(&one, 20..32, &own[0]),
            segment(&third, LEN - 1..LEN, &own[2]),
        ]);
        let expected = [&others[0][..], &whole[20 * row..32 * row], &others[1][(LEN - 1) * row..]].concat();
        assert_eq!(bits(batch.values()), bits(&expected), "{name} {precision:?} {quantize:?}");
    }
}

#[test]
fn scored_rows_come_with_a_report_of_their_pass_alone() {
    if skipped() {
        return;
    }
    let mut subject = Subject::on_device(&folder("tied"), &options(None));
    assert!(subject.model.backbone.spec().has_solver);
    let (tokens, pages) = (tokens(4), pages(2));
    let all = subject.forward(vec![segment(&tokens, 0..LEN, &pages)]);
    let best = |row: usize| {
        let row = all.row(row).iter().enumerate();
        row.max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token as u32).unwrap()
    };
    let whole = all.solver().cloned().unwrap();
    assert_eq!((whole.num_queries, whole.num_capped, whole.num_fallbacks), (LEN * QUERIES_PER_ROW, 0, 0));
    assert!(whole.most_steps > 4 && whole.num_steps > whole.num_queries, "{whole:?}");
    assert_eq!(whole.details, None, "nobody looks at each query");

    // From its second time on, a pass of this shape is a recording.
    let mut reports = Vec::new();
    for start in [10, 10, 10, 20, 30] {
        let Subject { model, kv } = &mut subject;
        let scorer = model.backbone.scorer().unwrap();
        let mut segment = segment(&tokens, start..start + 6, &pages);
        segment.scored = 4..6;
        let batch = ForwardBatch { segments: vec![segment] };
        let scored = scorer.forward_scored(&batch, kv, &mut || vec![ScoreQuery::default(); 2]).unwrap();
        let chosen: Vec<u32> = scored.rows.iter().map(|row| row.token).collect();
        assert_eq!(chosen, [best(start + 4), best(start + 5)]);
        let report = scored.solver.unwrap();
        assert_eq!(
            (report.num_queries, report.num_fallbacks, report.details.is_none()),
            (6 * QUERIES_PER_ROW, 0, true)
        );
        assert!(report.num_steps > 0 && report.num_steps < whole.num_steps);
        reports.push(report);
    }
    assert!(reports[0] == reports[1] && reports[1] == reports[2], "{reports:?}");
    assert_ne!(reports[3], reports[4], "of other rows");

    // Rows that nobody scores solve systems as well; a pass of no rows solves none.
    let mut unscored = segment(&tokens, 10..16, &pages);
    unscored.scored = 0..0;
    assert_eq!(subject.forward(vec![unscored]).solver(), Some(&reports[0]));
    assert_eq!(subject.forward(Vec::new()).solver(), None);
}

#[test]
fn the_steps_of_the_config_count() {
    if skipped() {
        return;
    }
    let report = |mut subject: Subject| -> (Vec<f32>, SolverReport) {
        let pages = pages(0);
        let logits = subject.forward(vec![segment(&tokens(6), 0..LEN, &pages)]);
        (logits.values().to_vec(), logits.solver().cloned().unwrap())
    };
    let full = report(Subject::on_device(&folder("tied"), &options(None)));
    for (steps, num_capped) in [(0, Some(LEN * QUERIES_PER_ROW)), (2, None)] {
        let (_copy, source) = changed("tied", |config| config["lla_max_iterations"] = json!(steps), |_| ());
        let (expected, on_cpu) = report(Subject::on_cpu(&source, &options(None)));
        let (got, on_device) = report(Subject::on_device(&source, &options(None)));
        assert_eq!(on_device.most_steps, steps);
        if let Some(num_capped) = num_capped {
            assert_eq!((on_device.num_capped, on_cpu.num_capped), (num_capped, num_capped));
        }
        assert!(on_device.num_capped > LEN * QUERIES_PER_ROW / 2, "{on_device:?}");
        // Far nearer to the processor with as many steps than to the model with all.
        let (near, far) = (error(&got, &expected), error(&got, &full.0));
        println!("{steps} steps: {near:.1e}, {far:.1e}");
        assert!(near * 20.0 < far, "{steps} steps: {near:e}, {far:e}");
    }
}

#[test]
fn ridges_that_cannot_be_are_refused_as_on_the_processor() {
    let theta = |theta: [f32; 4]| {
        move |tensors: &mut HashMap<String, Tensor>| {
            let theta = Tensor::new(&theta, &Candle::Cpu).unwrap();
            tensors.insert("model.layers.1.self_attn.ridge".into(), theta);
        }
    };
    for (floor, value, cause) in [(0.05, f32::NAN, "contains NaN"), (3e38, 3e38, "is infinite in f32")] {
        let edit = |config: &mut Value| config["lla_ridge_floor"] = json!(floor);
        let (_copy, source) = changed("tied", edit, theta([0.0, 0.0, value, 0.0]));
        let refused = |result: Result<LoadedModel, ModelError>| result.unwrap_err().to_string();
        let on_device = refused(load_on(&source, &options(None), &device()));
        assert!(on_device.contains(cause), "{on_device}");
        assert_eq!(on_device, refused(load(&source, &options(None))));
    }
}

#[test]
fn memory_is_planned_with_the_room_of_the_solver() {
    for name in NAMES {
        let device = device();
        let before = device.free_bytes().unwrap();
        let mut model = load_on(&folder(name), &options(None), &device).unwrap();
        let num_params = load(&folder(name), &options(None)).unwrap().backbone.spec().num_params;
        assert_eq!(model.backbone.spec().num_params, num_params, "ridges are parameters");
        let weights = before - device.free_bytes().unwrap();
        let kv = model.backbone.reserve(CAPACITY).unwrap();
        let taken = before - device.free_bytes().unwrap();
        drop((model, kv));
        // Enough for all but the last kilobytes.
        let short: Arc<dyn Device> = HostDevice::new(taken - 4096, Order::Forward);
        let mut model = load_on(&folder(name), &options(None), &short).unwrap();
        let refused = model.backbone.reserve(CAPACITY).unwrap_err();
        let ModelError::DeviceMemory { workspace_mib, .. } = refused else { panic!("{refused}") };
        // 64 rows of 4 heads, each with a matrix of 32 x 32 and 36 more values.
        assert!(workspace_mib as usize >= (64 * 4 * (32 * 32 + 36) * 4usize).div_ceil(1 << 20), "{refused}");
        assert_eq!(short.free_bytes().unwrap(), taken - 4096 - weights, "nothing is kept");
        // Passes fit the room that is there: none of them allocates. A sixteenth of the device is left to the driver.
        let spare = taken.div_ceil(15) + 16;
        let exact: Arc<dyn Device> = HostDevice::new(taken + spare, Order::Forward);
        let mut subject = Subject::reserve(load_on(&folder(name), &options(None), &exact).unwrap());
        assert_eq!(exact.free_bytes().unwrap(), spare);
        if device_tests::AVAILABLE {
            for lens in [&[LEN][..], &[39, 1]] {
                subject.in_pieces(&tokens(7), 3, lens);
            }
            assert_eq!(exact.free_bytes().unwrap(), spare);
        }
    }
}
