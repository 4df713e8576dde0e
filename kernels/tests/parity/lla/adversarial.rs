//! Inputs made to break it: the output is finite everywhere, on every level with the same bits, and no row falls back.

use kernels::{LlaPlan, LlaReport, LlaRow, LlaSequence};

use super::{Case, assert_finite, assert_within, flat, reference_outputs, shape, vector_error, wide};
use crate::{Random, bits, on_every_level};

/// Runs a case on every level; refuses what is not finite and queries that fall back.
#[track_caller]
fn survive(case: &Case, what: &str) -> (Vec<f32>, LlaReport) {
    let results = on_every_level(2, || case.run());
    let first = flat(&results[0].1.output);
    for (level, out) in &results {
        let got = flat(&out.output);
        assert_finite(&got, &format!("{what}, {level}"));
        assert_eq!(bits(&got), bits(&first), "{what}, {level} and portable");
        assert_eq!(out.report.num_fallbacks, 0, "{what}, {level}");
    }
    (first, results[0].1.report.clone())
}

fn times(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

fn case(len: usize, seed: u64) -> Case {
    Case::causal(shape(2, 1, 16, 8), len, seed)
}

/// The error against the reference, where the system has a solution in f64.
fn error(case: &Case, out: &[f32]) -> f64 {
    vector_error(&wide(out), &reference_outputs(&case.reference()), case.shape.value_dim)
}

#[test]
fn scores_of_ten_thousand() {
    for sign in [1.0, -1.0] {
        let mut case = case(33, 40);
        times(&mut case.q, 100.0 * sign);
        times(&mut case.keys, 100.0);
        let (out, _) = survive(&case, "large scores");
        assert_within(error(&case, &out), 1e-2, "large scores");
    }
}

#[test]
fn one_key_a_hundred_times_longer() {
    for ridge in [0.5, 1e-3] {
        let mut case = case(40, 41).with_ridge(ridge);
        times(&mut case.keys[7 * 16..8 * 16], 100.0);
        survive(&case, "one long key");
    }
}

#[test]
fn queries_all_equal_and_far_from_all_keys() {
    let mut equal = case(40, 42);
    let first = equal.q[..16].to_vec();
    equal.q.chunks_exact_mut(16).for_each(|q| q.copy_from_slice(&first));
    let (out, _) = survive(&equal, "equal queries");
    assert_within(error(&equal, &out), 1e-4, "equal queries");
    let mut far = case(40, 43);
    times(&mut far.q, 200.0);
    far.scale /= 200.0;
    let (out, report) = survive(&far, "far queries");
    assert!(report.largest_eta > 1e4, "{}", report.largest_eta);
    assert_within(error(&far, &out), 1e-3, "far queries");
}

#[test]
fn repeated_keys_and_keys_in_a_subspace() {
    let mut repeated = case(40, 44).with_ridge(1e-3);
    let first = repeated.keys[..4 * 16].to_vec();
    repeated.keys = first.repeat(10);
    survive(&repeated, "four keys, ten times each");
    let mut flat_keys = case(60, 45).with_ridge(1e-3);
    // Two of sixteen dimensions.
    flat_keys.keys.chunks_exact_mut(16).for_each(|key| key[2..].fill(0.0));
    survive(&flat_keys, "keys in a plane");
}

#[test]
fn as_many_keys_as_dimensions_and_a_few_more() {
    for len in [16, 17, 18] {
        let case = case(len, 46).with_ridge(1e-3);
        let (out, _) = survive(&case, "about d keys");
        // Conditions reach 1e4 here, and a residual of 1e-5 is all that the solver promises.
        assert_within(error(&case, &out), 2e-2, &format!("{len} keys"));
    }
}

#[test]
fn ridges_of_a_millionth_and_a_hundred_million() {
    survive(&case(40, 47).with_ridge(1e-6), "tiny ridge");
    let large = case(40, 48).with_ridge(1e8);
    let (out, report) = survive(&large, "huge ridge");
    assert_within(error(&large, &out), 1e-5, "huge ridge");
    assert!(report.change < 1e-6, "{}", report.change);
}

#[test]
fn the_largest_halves_and_the_smallest() {
    for (factor, ridge) in [(2e4, 1.0), (2e4, 1e8), (2e4, 1e-6)] {
        let mut case = case(40, 49).with_ridge(ridge);
        for values in [&mut case.q, &mut case.keys, &mut case.values] {
            times(values, factor);
            values.iter_mut().for_each(|value| *value = value.clamp(-65504.0, 65504.0));
        }
        survive(&case, &format!("values to 65504, ridge {ridge}"));
        // The same with scores in the usual range.
        case.scale /= factor * factor;
        survive(&case, &format!("values to 65504, usual scores, ridge {ridge}"));
    }
    for ridge in [1.0, 1e-14, 1e-6] {
        let mut case = case(40, 50).with_ridge(ridge);
        for values in [&mut case.q, &mut case.keys, &mut case.values] {
            times(values, 1e-8);
        }
        survive(&case, &format!("values under 1e-7, ridge {ridge}"));
    }
}

#[test]
fn packed_sequences_of_one() {
    let lens = [1, 1, 5, 1, 64, 1];
    let mut rows = Vec::new();
    for len in lens {
        let start = rows.len();
        rows.extend((0..len).map(|row| LlaRow { table: 0, visible_start: start, visible_end: start + row + 1 }));
    }
    let count = rows.len();
    let plan = LlaPlan::new(vec![vec![0]], rows, count).unwrap();
    let case = Case::new(shape(2, 1, 16, 8), plan, 1, 51);
    let (out, _) = survive(&case, "packed");
    assert_within(error(&case, &out), 1e-4, "packed");
    // A row that sees one key returns its value.
    assert_within(vector_error(&wide(&out[..8]), &wide(&case.values[..8]), 8), 1e-6, "one key");
}

/// Rows without keys take nothing from the rows that share their tile, wherever their empty ranges lie.
#[test]
fn rows_that_see_nothing_anywhere() {
    let row = |visible_start, visible_end| LlaRow { table: 0, visible_start, visible_end };
    for empty in [0, 1, 16, 40, 64, 65, 470, 1000, 1023, 1024, 1025, 1399, 1400] {
        for rows in [[row(empty, empty), row(0, 30), row(3, 33)], [row(0, 30), row(3, 33), row(empty, empty)]] {
            let plan = LlaPlan::new(vec![vec![0]], rows.to_vec(), 1400).unwrap();
            let case = Case::new(shape(2, 1, 16, 8), plan, 1, empty as u64);
            let (out, _) = survive(&case, "empty row");
            assert_within(error(&case, &out), 1e-4, &format!("{rows:?}"));
        }
    }
}

#[test]
fn lengths_around_powers_of_two() {
    for len in [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129] {
        // The last rows of a sequence of this length.
        let num_rows = len.min(5);
        let sequence = LlaSequence { position: len - num_rows, num_rows };
        let plan = LlaPlan::contiguous(&[sequence], len, None).unwrap();
        let case = Case::new(shape(1, 1, 16, 8), plan, 1, len as u64);
        let (out, _) = survive(&case, "length");
        assert_within(error(&case, &out), 1e-4, &format!("{len} keys"));
    }
}

#[test]
fn an_overflowing_probe_falls_back_to_softmax_attention() {
    // The right side is beyond the largest square that f32 holds.
    let mut case = case(3, 52);
    times(&mut case.q, 1e30);
    case.scale = 0.0;
    let out = case.run();
    let got = flat(&out.output);
    assert_finite(&got, "fallback");
    assert_eq!(out.report.num_fallbacks, 6);
    assert_eq!(bits(&got), bits(&out.details.unwrap().softmax_output));
}

#[test]
fn heavy_tails_match_the_reference() {
    let mut case = case(70, 53);
    let mut random = Random(54);
    case.q = random.values(case.q.len());
    case.keys = random.values(case.keys.len());
    let (out, _) = survive(&case, "heavy tails");
    assert_within(error(&case, &out), 1e-3, "heavy tails");
}
