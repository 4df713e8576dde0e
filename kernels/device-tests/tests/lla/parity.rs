//! The kernels against the f64 reference on random data, every type, both ways.
//!
//! The tolerance is FlashAttention's: at most twice the error of a plain implementation in the same type, plus what
//! rounding the output costs. The plain one is, for 16-bit types, the exact solution rounded to the type before the last
//! pass; for f32, the CPU kernel, whose solver stops at a residual of 1e-5.

use candle_core::{Device, Tensor};
use kernels::{LlaPlan, LlaRow, LlaSequence, LlaSettings, LlaSolver, Ridge, device::ElementType, reference::LlaShape};

use crate::{
    case::{Case, Random, TYPES, WAYS, assert_within, round, rounding, shape, vector_error, wide},
    skipped,
};

/// The error of the plain implementation.
fn plain_error(case: &Case, element_type: ElementType, expected: &[f64]) -> f64 {
    let LlaShape { num_heads, num_kv_heads, key_dim, value_dim } = case.shape;
    if element_type != ElementType::F32 {
        let narrow = |value: f64| f64::from(round(value as f32, element_type));
        let probe = match &case.probe {
            Some(probe) => wide(probe),
            None => case.reference().into_iter().flat_map(|solution| solution.probe).map(narrow).collect(),
        };
        let output: Vec<f64> = case.parallax(&probe).into_iter().map(narrow).collect();
        return vector_error(&output, expected, value_dim);
    }
    let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let cache = |values: &[f32], dim| tensor(values, &[case.num_pages, num_kv_heads, case.plan.page_len(), dim]);
    let queries = |values: &[f32]| tensor(values, &[case.plan.num_rows(), num_heads, key_dim]);
    let (q, keys, values) = (queries(&case.q), cache(&case.keys, key_dim), cache(&case.values, value_dim));
    let output = match &case.probe {
        Some(probe) => kernels::parallax(&q, &queries(probe), (&keys, &values), &case.plan, case.scale).unwrap().output,
        None => {
            let ridge = Ridge::PerRow(&case.ridge);
            let settings = LlaSettings { scale: case.scale, ridge, solver: LlaSolver::default(), details: false };
            kernels::lla(&q, (&keys, &values), &case.plan, &settings).unwrap().output
        }
    };
    let output: Vec<f32> = output.flatten_all().unwrap().to_vec1().unwrap();
    vector_error(&wide(&output), expected, value_dim)
}

/// Both ways, all types.
#[track_caller]
fn check(case: &Case, what: &str) {
    for element_type in TYPES {
        check_type(case, element_type, what);
    }
}

#[track_caller]
fn check_type(case: &Case, element_type: ElementType, what: &str) {
    let case = case.rounded(element_type);
    let expected = case.expected();
    // Of f32 the rounding is that of sums over the keys.
    let floor = if element_type == ElementType::F32 { 2e-5 } else { 2.0 * rounding(element_type) };
    let tolerance = 2.0 * plain_error(&case, element_type, &expected) + floor;
    for way in WAYS {
        let found = case.run(way, element_type);
        let error = vector_error(&wide(&found.output), &expected, case.shape.value_dim);
        println!("{what} {element_type:?} {way:?}: {error:.1e} of {tolerance:.1e}, {:?}", found.counters);
        assert_within(error, tolerance, &format!("{what}, {element_type:?}, {way:?}"));
        assert_eq!(found.counters.num_fallbacks, 0, "{what}");
    }
}

#[test]
fn sizes_around_the_tiles() {
    if skipped() {
        return;
    }
    // Tiles of keys are 32 or 64, of queries 16 or 32, splits 256.
    for len in [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257] {
        let case = Case::causal(shape(2, 1, 32, 32), len, len.min(3), len as u64);
        check(&case, &format!("{len} keys"));
    }
    for num_rows in [15, 16, 17, 33] {
        let case = Case::causal(shape(1, 1, 32, 32), num_rows, num_rows, num_rows as u64);
        check(&case, &format!("{num_rows} rows"));
    }
}

#[test]
fn head_sizes() {
    if skipped() {
        return;
    }
    for (key_dim, value_dim) in [(32, 32), (64, 64), (96, 96), (128, 128), (64, 32), (40, 128), (7, 5)] {
        let case = Case::causal(shape(1, 1, key_dim, value_dim), 70, 5, key_dim as u64);
        check(&case, &format!("{key_dim} and {value_dim}"));
    }
}

#[test]
fn heads_share_keys_in_groups() {
    if skipped() {
        return;
    }
    // The last group is larger than a tile of queries.
    for (num_heads, num_kv_heads, num_rows) in [(4, 2, 9), (6, 2, 4), (3, 3, 5), (34, 1, 2)] {
        let case = Case::causal(shape(num_heads, num_kv_heads, 32, 32), 37, num_rows, num_heads as u64);
        check(&case, &format!("{num_heads} heads on {num_kv_heads}"));
    }
}

#[test]
fn pages_windows_and_packed_rows() {
    if skipped() {
        return;
    }
    let mut random = Random(70);
    let (page_len, num_pages) = (8, 24);
    let mut pages: Vec<u32> = (0..num_pages).collect();
    for i in (1..pages.len()).rev() {
        pages.swap(i, random.below(i + 1));
    }
    let tables = vec![pages[..10].to_vec(), pages[10..12].to_vec(), pages[12..].to_vec()];
    let mut rows = Vec::new();
    for (table, (len, count)) in [(77, 7), (13, 13), (96, 3)].into_iter().enumerate() {
        for end in len - count + 1..=len {
            // The last sequence has a window.
            let visible_start = if table == 2 { end - 40 } else { 0 };
            rows.push(LlaRow { table, visible_start, visible_end: end });
        }
    }
    rows.push(LlaRow { table: 1, visible_start: 4, visible_end: 4 });
    let plan = LlaPlan::new(tables, rows, page_len).unwrap();
    let case = Case::new(shape(4, 2, 32, 32), plan, num_pages as usize, 71);
    check(&case, "pages");
    for way in WAYS {
        let output = case.run(way, ElementType::F16).output;
        assert!(output[output.len() - 4 * 32..].iter().all(|x| *x == 0.0), "a row that sees nothing returns zeros");
    }
}

#[test]
fn parallax() {
    if skipped() {
        return;
    }
    for (seed, key_dim) in [(80, 64), (81, 128)] {
        let mut case = Case::causal(shape(2, 1, key_dim, key_dim), 75, 6, seed);
        let mut random = Random(seed + 10);
        case.probe = Some(random.normal(case.q.len()).into_iter().map(|x| 0.3 * x).collect());
        check(&case, &format!("parallax {key_dim}"));
    }
}

#[test]
fn chunks_agree_with_the_whole() {
    if skipped() {
        return;
    }
    let whole = Case::causal(shape(2, 1, 32, 32), 70, 70, 90).rounded(ElementType::BF16);
    let all = whole.run(WAYS[0], ElementType::BF16).output;
    let all = wide(&all);
    let row_len = 2 * 32;
    for (start, end) in [(0, 1), (1, 30), (30, 63), (63, 70)] {
        let part = whole.some_rows(&(start..end).collect::<Vec<_>>());
        for way in WAYS {
            let got = wide(&part.run(way, ElementType::BF16).output);
            let error = vector_error(&got, &all[start * row_len..end * row_len], 32);
            // Both are rounded to bf16, and iterate to a tolerance or not.
            assert_within(error, 4.0 * rounding(ElementType::BF16), &format!("rows {start}..{end}, {way:?}"));
        }
    }
    // Two sequences of different length in one call.
    let sequences = [LlaSequence { position: 0, num_rows: 20 }, LlaSequence { position: 30, num_rows: 2 }];
    let plan = LlaPlan::contiguous(&sequences, 40, None).unwrap();
    check_type(&Case::new(shape(1, 1, 32, 32), plan, 2, 91), ElementType::F16, "ragged");
}
