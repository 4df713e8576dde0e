//! Forward passes over whole sequences or chunks of them, and what their logits are compared with.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use models::{Backbone, ForwardBatch, KvCache, Logits, PageId, Segment, TokenId, Visibility};

pub(crate) const PAGE_LEN: usize = 8;
/// Largest error, relative to the range of the golden's logits.
pub(crate) const TOLERANCE: f32 = 2e-5;

/// A path below `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Logits of all rows, fed in chunks of the given lengths.
pub(crate) fn logits(
    model: &mut dyn Backbone,
    tokens: &[TokenId],
    chunks: &[usize],
    visibility: Visibility,
) -> Vec<Vec<f32>> {
    // Pages in an order that no formula would guess.
    let num_pages = 64u32.div_ceil(PAGE_LEN as u32);
    let pages: Vec<PageId> = (0..num_pages).map(|page| PageId(page * 5 % num_pages)).collect();
    let mut kv = KvCache::new(model.spec().kv, num_pages as usize, PAGE_LEN).expect("a small KV cache");
    let mut start = 0;
    let mut rows = Vec::new();
    for &len in chunks {
        let chunk = &tokens[start..start + len];
        let segment = Segment { tokens: chunk, start, visibility, scored: 0..len, pages: &pages };
        let part: Logits = model.forward(&ForwardBatch { segments: vec![segment] }, &mut kv).expect("a forward pass");
        rows.extend((0..len).map(|row| part.row(row).to_vec()));
        start += len;
    }
    rows
}

/// The largest difference, relative to the range of the expected values.
pub(crate) fn largest_error(got: &[Vec<f32>], expected: &Tensor) -> f32 {
    let expected: Vec<Vec<f32>> = expected.to_vec2().expect("a matrix of f32");
    assert_eq!((got.len(), got[0].len()), (expected.len(), expected[0].len()), "shapes differ");
    let range = expected.iter().flatten().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    // NaN in either is an error, which `max` would drop.
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, |worst, e| if e.is_nan() { e } else { worst.max(e) });
    worst / (range.1 - range.0)
}

/// Rows as a tensor.
pub(crate) fn tensor(rows: Vec<Vec<f32>>) -> Tensor {
    Tensor::new(rows, &Device::Cpu).expect("rows of one length")
}
