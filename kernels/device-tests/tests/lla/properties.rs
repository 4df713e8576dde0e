//! Laws of the operator, and inputs made to break it.

use device_tests::Order;
use kernels::{
    LlaPlan, LlaRow,
    device::{ElementType, LlaDevicePlan, LlaRounds},
};

use crate::{
    case::{Case, TYPES, WAYS, Way, assert_within, bits, rounding, shape, vector_error, wide},
    skipped,
};

fn case(seed: u64) -> Case {
    Case::causal(shape(2, 1, 32, 32), 45, 20, seed)
}

#[test]
fn the_order_of_threads_changes_nothing() {
    if skipped() {
        return;
    }
    for element_type in [ElementType::F32, ElementType::BF16] {
        for way in WAYS {
            let [forward, backward, shuffled] = [Order::Forward, Order::Backward, Order::Shuffled]
                .map(|order| case(1).run_in(way, element_type, order));
            assert_eq!(bits(&forward.output), bits(&backward.output), "{element_type:?}, {way:?}");
            assert_eq!(bits(&forward.output), bits(&shuffled.output), "{element_type:?}, {way:?}");
            assert_eq!(forward.counters, backward.counters);
        }
    }
}

#[test]
fn constants_pass_through() {
    if skipped() {
        return;
    }
    let mut case = case(2).with_ridge(1e-2);
    case.values.fill(1.0);
    for element_type in TYPES {
        for way in WAYS {
            let found = case.run(way, element_type);
            let tolerance = if element_type == ElementType::F32 { 1e-5 } else { rounding(element_type) };
            assert!(found.output.iter().all(|x| f64::from((x - 1.0).abs()) <= tolerance), "{element_type:?}, {way:?}");
        }
    }
}

#[test]
fn without_steps_it_is_softmax_attention_and_counted() {
    if skipped() {
        return;
    }
    let mut case = case(3).rounded(ElementType::F16);
    case.rounds = Some(LlaRounds { tolerance: 1e-3, max_steps: 0, num_rounds: 2 });
    let expected: Vec<f64> = case.reference().into_iter().flat_map(|solution| solution.softmax_output).collect();
    for way in WAYS {
        let found = case.run(way, ElementType::F16);
        assert_within(vector_error(&wide(&found.output), &expected, 32), 2.0 * rounding(ElementType::F16), "softmax");
        assert_eq!(found.counters.num_capped, 40, "{way:?}");
        assert_eq!(found.counters.iterations, 0);
    }
    case.rounds = Some(LlaRounds { tolerance: 1e-6, max_steps: 3, num_rounds: 1 });
    for way in WAYS {
        let counters = case.run(way, ElementType::F16).counters;
        assert_eq!((counters.num_capped, counters.iterations, counters.largest_iterations), (40, 120, 3), "{way:?}");
    }
}

/// Squares of residuals that no rounding reaches underflow; what is divided by them must not become the solution.
#[test]
fn steps_beyond_rounding_change_nothing() {
    if skipped() {
        return;
    }
    for (ridge, seed) in [(1.0, 41), (0.1, 42)] {
        let mut case = case(seed).with_ridge(ridge);
        let expected = case.expected();
        for tolerance in [0.0, 1e-30] {
            case.rounds = Some(LlaRounds { tolerance, max_steps: 512, num_rounds: 2 });
            for way in WAYS {
                let found = case.run(way, ElementType::F32);
                assert_eq!((found.counters.num_capped, found.counters.num_fallbacks), (0, 0), "{tolerance:e}, {way:?}");
                let error = vector_error(&wide(&found.output), &expected, 32);
                assert_within(error, 1e-3, &format!("tolerance {tolerance:e}, ridge {ridge}, {way:?}"));
            }
        }
    }
}

#[test]
fn what_is_not_seen_does_not_leak() {
    if skipped() {
        return;
    }
    // A window inside the page, and causal rows that share a tile with later ones.
    let rows = (0..20).map(|row| LlaRow { table: 0, visible_start: 5 + row / 2, visible_end: 30 + row });
    let plan = LlaPlan::new(vec![vec![0]], rows.collect(), 64).unwrap();
    let clean = Case::new(shape(2, 1, 32, 32), plan, 1, 4);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut dirty = clean.clone();
        // Row 3 sees positions 6..33.
        for position in (0..6).chain(33..64) {
            dirty.keys[position * 32..][..32].fill(bad);
            dirty.values[position * 32..][..32].fill(bad);
        }
        for element_type in TYPES {
            for way in WAYS {
                let (expected, got) = (clean.run(way, element_type).output, dirty.run(way, element_type).output);
                let of_row = |output: &[f32]| bits(&output[3 * 64..4 * 64]);
                assert_eq!(of_row(&got), of_row(&expected), "{bad}, {element_type:?}, {way:?}");
                // Rows that do see them must not look fine.
                assert!(got[19 * 64..].iter().all(|x| x.is_nan()), "{bad}, {element_type:?}, {way:?}");
            }
        }
    }
}

#[test]
fn probes_that_are_not_finite_fall_back_and_are_counted() {
    if skipped() {
        return;
    }
    let mut case = case(5);
    let expected: Vec<f64> = case.reference().into_iter().flat_map(|solution| solution.softmax_output).collect();
    let mut probe = vec![0.1; case.q.len()];
    for query in [0, 7, 39] {
        probe[query * 32 + 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][query % 3];
    }
    case.probe = Some(probe);
    for way in WAYS {
        let found = case.run(way, ElementType::F32);
        assert_eq!(found.counters.num_fallbacks, 3, "{way:?}");
        for query in [0, 7, 39] {
            let row = query * 32..(query + 1) * 32;
            let error = vector_error(&wide(&found.output[row.clone()]), &expected[row], 32);
            assert_within(error, 1e-5, "softmax attention");
        }
    }
    // A right side whose square overflows.
    let mut case = self::case(6);
    case.q.iter_mut().for_each(|x| *x *= 1e30);
    case.scale = 0.0;
    for way in WAYS {
        let found = case.run(way, ElementType::F32);
        assert_eq!(found.counters.num_fallbacks, 40, "{way:?}");
        assert!(found.output.iter().all(|x| x.is_finite()), "{way:?}");
    }
}

#[test]
fn what_fp16_cannot_hold_is_computed_in_f32() {
    if skipped() {
        return;
    }
    // Large and tiny keys, large and tiny values; one tile or split of several each time.
    for (of_keys, factor) in [(true, 1e4), (false, 1e6), (true, 1e-6), (false, 1e-7)] {
        let mut case = case(7);
        if of_keys {
            case.keys.iter_mut().for_each(|x| *x *= factor);
            case.q.iter_mut().for_each(|x| *x *= factor);
            case.scale /= factor * factor;
            case.ridge.iter_mut().for_each(|x| *x *= factor * factor);
        } else {
            case.values.iter_mut().for_each(|x| *x *= factor);
        }
        let case = case.rounded(ElementType::BF16);
        for way in WAYS {
            let found = case.run(way, ElementType::BF16);
            assert_within(case.error(&found), 2.0 * rounding(ElementType::BF16), &format!("{factor}, {way:?}"));
            // Decoding reads values in f32 anyway.
            assert_eq!(found.counters.num_wide > 0, of_keys || way == Way::Prefill, "{factor}, {way:?}");
        }
    }
}

#[test]
fn adversarial_inputs_stay_finite() {
    if skipped() {
        return;
    }
    let check = |case: &Case, what: &str| {
        for element_type in [ElementType::F32, ElementType::BF16] {
            for way in WAYS {
                let found = case.run(way, element_type);
                assert!(found.output.iter().all(|x| x.is_finite()), "{what}, {element_type:?}, {way:?}");
                assert_eq!(found.counters.num_fallbacks, 0, "{what}, {element_type:?}, {way:?}");
            }
        }
    };
    for ridge in [1e-6, 1e8] {
        check(&case(8).with_ridge(ridge), &format!("ridge {ridge}"));
    }
    let mut logits = case(9);
    logits.q.iter_mut().for_each(|x| *x *= 1e4);
    check(&logits, "logits of 1e4");
    let mut long = case(10);
    long.keys[7 * 32..8 * 32].iter_mut().for_each(|x| *x *= 100.0);
    check(&long, "one long key");
    let mut same = case(11);
    for position in 1..45 {
        same.keys.copy_within(0..32, position * 32);
    }
    check(&same, "one key, repeated");
    let mut far = case(12);
    far.q.iter_mut().for_each(|x| *x += 300.0);
    far.scale = 1e-3;
    check(&far, "queries far from all keys");
}

#[test]
fn plans_refuse_what_the_kernels_cannot_do() {
    let plan = LlaPlan::new(vec![vec![0]], vec![LlaRow { table: 0, visible_start: 0, visible_end: 4 }], 4).unwrap();
    for (shape, what) in [
        (shape(1, 1, 129, 8), "head size"),
        (shape(3, 2, 8, 8), "divide"),
        (shape(1, 1, 0, 8), "key_dim"),
        (shape(1, 1, 8, 0), "value_dim"),
    ] {
        let error = LlaDevicePlan::new(&plan, shape).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let huge = LlaPlan::new(vec![vec![u32::MAX - 1]], Vec::new(), 4).unwrap();
    assert!(LlaDevicePlan::new(&huge, shape(1, 1, 8, 8)).unwrap_err().to_string().contains("overflows"));
}

#[test]
fn rows_of_the_output_may_have_gaps() {
    if skipped() {
        return;
    }
    // The last group of heads does not fill a tile.
    let plain = Case::causal(shape(6, 2, 20, 12), 37, 7, 13);
    let gaps = Case { output_stride: Some(128), ..plain.clone() };
    for element_type in TYPES {
        for way in WAYS {
            let (expected, got) = (plain.run(way, element_type).output, gaps.run(way, element_type).output);
            for (expected, got) in expected.chunks(72).zip(got.chunks(128)) {
                assert_eq!(bits(&got[..72]), bits(expected), "{element_type:?}, {way:?}");
                assert!(got[72..].iter().all(|x| x.to_bits() == 0), "zeros, {element_type:?}, {way:?}");
            }
        }
    }
    let refused = LlaDevicePlan::new(&plain.plan, plain.shape).unwrap().with_output_stride(71).unwrap_err();
    assert!(refused.to_string().contains("at least` must have 72 elements, got 71"), "{refused}");
}
