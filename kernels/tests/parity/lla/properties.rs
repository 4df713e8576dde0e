//! Laws of the operator on random data, and the reference at odd sizes.

use candle_core::{DType, Device, Tensor};
use kernels::{
    AttentionPlan, KernelError, LlaPlan, LlaRow, LlaSequence, LlaSettings, LlaSolver, PlanRow, Ridge, attention, lla,
    parallax, reference,
};

use super::{Case, assert_finite, assert_within, flat, reference_outputs, shape, vector_error, wide};
use crate::{Random, bits, on_every_level};

/// Rounding of f32 sums and a residual of 1e-5, with systems of condition up to some hundreds.
const TOLERANCE: f64 = 1e-4;

#[test]
fn the_kernel_matches_the_reference_at_odd_sizes() {
    for (seed, heads) in [
        shape(1, 1, 16, 16),
        shape(6, 2, 33, 20),
        shape(4, 4, 64, 8),
        shape(9, 3, 16, 40),
        shape(2, 1, 1, 3),
        shape(35, 1, 8, 16),
        shape(2, 2, 80, 64),
    ]
    .into_iter()
    .enumerate()
    {
        let row = |table, visible_start, visible_end| LlaRow { table, visible_start, visible_end };
        let rows = vec![
            row(0, 0, 1),
            row(0, 0, 2),
            row(0, 0, 63),
            row(0, 5, 64),
            row(0, 40, 65),
            row(1, 0, 16),
            row(1, 3, 3),
            row(1, 7, 31),
            row(0, 0, 70),
        ];
        let plan = LlaPlan::new(vec![vec![3, 0], vec![1]], rows, 35).unwrap();
        let mut case = Case::new(heads, plan, 4, seed as u64);
        for (at, ridge) in case.ridge.iter_mut().enumerate() {
            *ridge = [0.1, 0.5, 3.0, 40.0][at % 4];
        }
        let expected = reference_outputs(&case.reference());
        let probe = Random(99).normal(case.q.len());
        let parallax = case.in_f64(|inputs| reference::parallax(inputs, &wide(&probe), &case.plan, heads));
        let results = on_every_level(2, || (case.outputs(), case.parallax(&probe).0));
        for (level, (out, with_probe)) in &results {
            let what = format!("{heads:?}, {level}");
            assert_within(vector_error(&wide(out), &expected, heads.value_dim), TOLERANCE, &what);
            assert_within(vector_error(&wide(with_probe), &parallax, heads.value_dim), 1e-5, &what);
            assert_eq!(bits(out), bits(&results[0].1.0), "{what} and portable");
            assert_eq!(bits(with_probe), bits(&results[0].1.1), "{what} and portable");
        }
    }
}

#[test]
fn long_rows_match_the_reference_around_the_borders_of_segments() {
    let ends = [63, 64, 65, 127, 1023, 1024, 1025, 1100];
    let rows = ends.map(|end| LlaRow { table: 0, visible_start: 0, visible_end: end });
    let case =
        Case::new(shape(2, 1, 8, 8), LlaPlan::new(vec![vec![0]], rows.to_vec(), 1100).unwrap(), 1, 3).with_ridge(0.1);
    let error = vector_error(&wide(&case.outputs()), &reference_outputs(&case.reference()), 8);
    assert_within(error, TOLERANCE, "long rows");
}

#[test]
fn outputs_are_linear_in_the_values_and_constants_pass_through() {
    let case = Case::causal(shape(2, 1, 16, 8), 40, 20);
    let mut random = Random(21);
    let (matrix, constant) = (random.normal(64), random.normal(8));
    let apply = |values: &[f32]| -> Vec<f32> {
        let row = |v: &[f32]| -> Vec<f32> {
            (0..8).map(|j| (0..8).map(|i| v[i] * matrix[i * 8 + j]).sum::<f32>() + constant[j]).collect()
        };
        values.chunks_exact(8).flat_map(row).collect()
    };
    let mapped = Case { values: apply(&case.values), ..case.clone() };
    let expected = apply(&case.outputs());
    assert_within(vector_error(&wide(&mapped.outputs()), &wide(&expected), 8), TOLERANCE, "V B + c");
}

#[test]
fn equal_values_come_out_at_any_ridge() {
    for ridge in [1e-4, 1e-2, 1.0, 1e4] {
        let mut case = Case::causal(shape(2, 1, 16, 8), 40, 22).with_ridge(ridge);
        case.values.fill(1.0);
        let worst = case.outputs().iter().map(|value| (value - 1.0).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{ridge}: {worst}");
    }
}

#[test]
fn the_order_and_the_number_of_copies_of_the_keys_do_not_matter() {
    let len = 37;
    let row = |end| LlaRow { table: 0, visible_start: 0, visible_end: end };
    let plan = |end| LlaPlan::new(vec![vec![0]], vec![row(end); 3], end).unwrap();
    let case = Case::new(shape(2, 1, 16, 8), plan(len), 1, 23);
    let expected = wide(&case.outputs());
    // 10 and 37 have no common factor, so that this is a permutation.
    let permute = |from: &[f32], dim: usize| -> Vec<f32> {
        (0..len).flat_map(|at| from[at * 10 % len * dim..][..dim].to_vec()).collect()
    };
    let permuted = Case { keys: permute(&case.keys, 16), values: permute(&case.values, 8), ..case.clone() };
    assert_within(vector_error(&wide(&permuted.outputs()), &expected, 8), TOLERANCE, "permuted");
    let twice = Case { plan: plan(2 * len), keys: case.keys.repeat(2), values: case.values.repeat(2), ..case };
    assert_within(vector_error(&wide(&twice.outputs()), &expected, 8), TOLERANCE, "twice");
}

#[test]
fn a_rotation_of_queries_and_keys_changes_nothing() {
    let case = Case::causal(shape(2, 1, 16, 8), 40, 24);
    let expected = wide(&case.outputs());
    let normal = wide(&Random(25).normal(16));
    let square: f64 = normal.iter().map(|x| x * x).sum();
    let reflect = |vectors: &[f32]| -> Vec<f32> {
        let one = |vector: &[f32]| -> Vec<f32> {
            let along = 2.0 * vector.iter().zip(&normal).map(|(&x, n)| f64::from(x) * n).sum::<f64>() / square;
            vector.iter().zip(&normal).map(|(&x, n)| (f64::from(x) - along * n) as f32).collect()
        };
        vectors.chunks_exact(16).flat_map(one).collect()
    };
    let turned = Case { q: reflect(&case.q), keys: reflect(&case.keys), ..case };
    assert_within(vector_error(&wide(&turned.outputs()), &expected, 8), TOLERANCE, "reflected");
}

#[test]
fn joint_scaling_changes_nothing() {
    let case = Case::causal(shape(2, 1, 16, 8), 40, 26);
    let expected = wide(&case.outputs());
    for factor in [0.125_f32, 3.0, 64.0] {
        let times = |values: &[f32]| values.iter().map(|value| value * factor).collect();
        let scaled = Case {
            q: times(&case.q),
            keys: times(&case.keys),
            ridge: case.ridge.iter().map(|ridge| ridge * factor * factor).collect(),
            scale: case.scale / (factor * factor),
            ..case.clone()
        };
        assert_within(vector_error(&wide(&scaled.outputs()), &expected, 8), TOLERANCE, &format!("{factor}"));
    }
}

#[test]
fn without_steps_it_is_softmax_attention() {
    let mut case = Case::causal(shape(4, 2, 16, 16), 40, 27);
    case.solver.max_iterations = 0;
    let out = case.run();
    let got = flat(&out.output);
    assert_eq!(bits(&got), bits(&out.details.unwrap().softmax_output));
    assert_eq!(out.report.change, 0.0);
    let rows = (0..40).map(|position| PlanRow { table: 0, position, visible_end: position + 1 }).collect();
    let plan = AttentionPlan::new(vec![vec![0]], rows, 40).unwrap();
    let (keys, values) = (case.tensor(&case.keys, 16), case.tensor(&case.values, 16));
    let softmax = flat(&attention(&case.queries(&case.q), &keys, &values, &plan, case.scale).unwrap());
    assert_within(vector_error(&wide(&got), &wide(&softmax), 16), 1e-5, "attention");
}

#[test]
fn a_large_ridge_is_softmax_attention_and_the_distance_shrinks_on_the_way() {
    let mut last = f64::INFINITY;
    for ridge in [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4] {
        let report = Case::causal(shape(2, 1, 16, 16), 64, 28).with_ridge(ridge).run().report;
        assert!(report.change < last, "{ridge}: {} after {last}", report.change);
        assert_eq!((report.num_capped, report.num_frozen, report.num_fallbacks), (0, 0, 0), "{ridge}");
        last = report.change;
    }
    assert!(last < 1e-3, "{last}");
}

/// `A x` of a query in f64, its right side, for row `row` of one head with as many keys as rows.
fn system(case: &Case, row: usize, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let dim = case.shape.key_dim;
    let query = wide(&case.q[row * dim..][..dim]);
    let keys: Vec<Vec<f64>> = case.keys.chunks_exact(dim).take(row + 1).map(wide).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scores: Vec<f64> = keys.iter().map(|key| f64::from(case.scale) * dot(&query, key)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut mean = vec![0.0; dim];
    for (weight, key) in weights.iter().zip(&keys) {
        mean.iter_mut().zip(key).for_each(|(mean, key)| *mean += weight / total * key);
    }
    let mut image: Vec<f64> = x.iter().map(|x| f64::from(case.ridge[row]) * x).collect();
    for (weight, key) in weights.iter().zip(&keys) {
        let centred: Vec<f64> = key.iter().zip(&mean).map(|(key, mean)| key - mean).collect();
        let along = weight / total * dot(&centred, x);
        image.iter_mut().zip(&centred).for_each(|(image, centred)| *image += along * centred);
    }
    (image, mean.iter().zip(&query).map(|(mean, query)| mean - query).collect())
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn the_residual_is_what_the_tolerance_says() {
    for tolerance in [1e-2, 1e-3, 1e-5] {
        let mut case = Case::causal(shape(1, 1, 16, 8), 60, 29);
        case.solver.tolerance = tolerance;
        let out = case.run();
        assert_eq!(out.report.num_capped, 0);
        for (row, probe) in out.details.unwrap().probe.chunks_exact(16).enumerate() {
            let (image, right) = system(&case, row, &wide(probe));
            let residual: Vec<f64> = image.iter().zip(&right).map(|(image, right)| image - right).collect();
            let relative = norm(&residual) / norm(&right);
            assert!(relative <= 5.0 * f64::from(tolerance), "row {row}: {relative} at {tolerance}");
        }
    }
}

#[test]
fn one_step_goes_down_the_right_side() {
    let mut case = Case::causal(shape(1, 1, 16, 8), 60, 30);
    case.solver = LlaSolver { tolerance: 0.0, max_iterations: 1 };
    for (row, probe) in case.run().details.unwrap().probe.chunks_exact(16).enumerate() {
        let (_, right) = system(&case, row, &[0.0; 16]);
        let (image, _) = system(&case, row, &right);
        let step = norm(&right).powi(2) / image.iter().zip(&right).map(|(a, b)| a * b).sum::<f64>();
        let expected: Vec<f64> = right.iter().map(|right| step * right).collect();
        assert_within(vector_error(&wide(probe), &expected, 16), 1e-5, &format!("row {row}"));
    }
}

#[test]
fn probes_grow_with_the_steps() {
    let mut case = Case::causal(shape(1, 1, 16, 8), 60, 31).with_ridge(0.1);
    let mut last = vec![0.0; 60];
    for max_iterations in 0..12 {
        case.solver = LlaSolver { tolerance: 0.0, max_iterations };
        let probes = case.run().details.unwrap().probe;
        for (row, (last, probe)) in last.iter_mut().zip(probes.chunks_exact(16)).enumerate() {
            let now = norm(&wide(probe));
            assert!(now >= *last * (1.0 - 1e-5), "row {row}, {max_iterations} steps: {now} after {last}");
            *last = now;
        }
    }
}

/// Squares of residuals that no rounding reaches underflow; what is divided by them must not become the solution.
#[test]
fn steps_beyond_rounding_change_nothing() {
    for tolerance in [0.0, 1e-38, 1e-30, 1e-20] {
        for (ridge, seed) in [(1.0, 41), (0.1, 42), (0.01, 43)] {
            let mut case = Case::causal(shape(2, 1, 16, 8), 60, seed).with_ridge(ridge);
            let expected = flat(&case.run().output);
            case.solver.tolerance = tolerance;
            let out = case.run();
            assert_eq!((out.report.num_capped, out.report.num_fallbacks), (0, 0), "{tolerance:e}, ridge {ridge}");
            let error = vector_error(&wide(&flat(&out.output)), &wide(&expected), 8);
            assert_within(error, 1e-3, &format!("tolerance {tolerance:e}, ridge {ridge}"));
        }
    }
}

#[test]
fn its_own_probe_makes_parallax_local_linear_attention() {
    let case = Case::causal(shape(4, 2, 16, 8), 50, 32);
    let out = case.run();
    let details = out.details.unwrap();
    let (own, fallbacks) = case.parallax(&details.probe);
    assert_eq!((bits(&own), fallbacks), (bits(&flat(&out.output)), 0));
    let (zero, fallbacks) = case.parallax(&vec![0.0; case.q.len()]);
    assert_eq!((bits(&zero), fallbacks), (bits(&details.softmax_output), 0));
    let mut broken = details.probe;
    broken[5 * 16 + 3] = f32::NAN;
    let (out, fallbacks) = case.parallax(&broken);
    assert_eq!((bits(&out[40..48]), fallbacks), (bits(&details.softmax_output[40..48]), 1));
    assert_eq!(bits(&out[48..]), bits(&own[48..]));
}

#[test]
fn reports_count_what_happened() {
    let mut case = Case::causal(shape(2, 1, 16, 8), 40, 33);
    let report = case.run().report;
    assert_eq!((report.num_capped, report.num_frozen, report.num_fallbacks, report.num_weak_ridges), (0, 0, 0, 0));
    assert!(report.largest_eta > 0.0 && report.change > 0.0, "{report:?}");
    case.solver.max_iterations = 2;
    let report = case.run().report;
    assert!(report.num_capped > 0 && report.iterations.len() == 3, "{report:?}");
    // The first row of each head sees one key, which has no variance.
    let report = case.with_ridge(1e-4).run().report;
    assert_eq!(report.num_weak_ridges, 78);
}

#[test]
fn a_ridge_for_each_head_is_that_ridge_in_every_row() {
    let mut case = Case::causal(shape(2, 1, 16, 8), 20, 34);
    let per_head = [0.3, 2.0];
    case.ridge = per_head.repeat(20);
    let settings =
        LlaSettings { scale: case.scale, ridge: Ridge::PerHead(&per_head), solver: case.solver, details: false };
    let (keys, values) = (case.tensor(&case.keys, 16), case.tensor(&case.values, 8));
    let out = lla(&case.queries(&case.q), (&keys, &values), &case.plan, &settings).unwrap();
    assert!(out.details.is_none());
    assert_eq!(bits(&flat(&out.output)), bits(&case.outputs()));
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let plan = |table, visible_start, visible_end, page_len| {
        LlaPlan::new(vec![vec![0, 4]], vec![LlaRow { table, visible_start, visible_end }], page_len)
    };
    assert!(plan(0, 3, 16, 8).is_ok());
    assert!(plan(0, 3, 3, 8).is_ok());
    assert!(matches!(plan(0, 0, 1, 0), Err(KernelError::Zero { .. })));
    assert!(matches!(plan(1, 0, 1, 8), Err(KernelError::OutOfRange { what: "page table", .. })));
    assert!(matches!(plan(0, 4, 3, 8), Err(KernelError::OutOfRange { what: "visible_start", .. })));
    assert!(matches!(plan(0, 0, 17, 8), Err(KernelError::OutOfRange { what: "visible position", .. })));
    let far = LlaSequence { position: usize::MAX, num_rows: 2 };
    assert!(matches!(LlaPlan::contiguous(&[far], 8, None), Err(KernelError::Overflow { .. })));
    let long = LlaSequence { position: 7, num_rows: 2 };
    assert!(matches!(LlaPlan::contiguous(&[long], 8, None), Err(KernelError::OutOfRange { .. })));
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let row = LlaRow { table: 0, visible_start: 0, visible_end: 16 };
    let plan = LlaPlan::new(vec![vec![0, 4]], vec![row], 8).unwrap();
    let call = |q: &Tensor, keys: &Tensor, values: &Tensor, ridge: &[f32], scale: f32, tolerance: f32| {
        let solver = LlaSolver { tolerance, ..LlaSolver::default() };
        let settings = LlaSettings { scale, ridge: Ridge::PerHead(ridge), solver, details: false };
        lla(q, (keys, values), &plan, &settings).map(|out| out.output)
    };
    let (q, keys, values, ridge) = (tensor(&[1, 4, 16]), tensor(&[5, 2, 8, 16]), tensor(&[5, 2, 8, 6]), [1.0; 4]);
    let out = call(&q, &keys, &values, &ridge, 1.0, 0.1).unwrap();
    assert_eq!(out.dims(), [1, 24]);
    assert_finite(&flat(&out), "zeros");
    let with = |q: &Tensor, keys: &Tensor, values: &Tensor| call(q, keys, values, &ridge, 1.0, 0.1);
    assert!(matches!(with(&q, &tensor(&[4, 2, 8, 16]), &values), Err(KernelError::OutOfRange { what: "page", .. })));
    assert!(matches!(with(&q, &keys, &tensor(&[5, 1, 8, 6])), Err(KernelError::Shape { what: "values", .. })));
    assert!(matches!(with(&q, &tensor(&[5, 2, 4, 16]), &values), Err(KernelError::Shape { what: "keys", .. })));
    assert!(matches!(with(&q, &tensor(&[5, 0, 8, 16]), &values), Err(KernelError::Shape { what: "keys", .. })));
    assert!(matches!(with(&tensor(&[2, 4, 16]), &keys, &values), Err(KernelError::Shape { what: "q", .. })));
    assert!(matches!(with(&tensor(&[1, 4, 8]), &keys, &values), Err(KernelError::Shape { what: "q", .. })));
    assert!(matches!(with(&tensor(&[4, 16]), &keys, &values), Err(KernelError::Shape { what: "q", .. })));
    assert!(matches!(with(&tensor(&[1, 3, 16]), &keys, &values), Err(KernelError::HeadGroups { .. })));
    let double = q.to_dtype(DType::F64).unwrap();
    assert!(matches!(with(&double, &keys, &values), Err(KernelError::DType { what: "q", .. })));
    let turned = tensor(&[1, 16, 4]).transpose(1, 2).unwrap();
    assert!(matches!(with(&turned, &keys, &values), Err(KernelError::NotContiguous { what: "q", .. })));

    let with = |ridge: &[f32], scale, tolerance| call(&q, &keys, &values, ridge, scale, tolerance);
    assert!(matches!(with(&[1.0; 3], 1.0, 0.1), Err(KernelError::Length { what: "ridge", .. })));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = with(&[1.0, bad, 1.0, 1.0], 1.0, 0.1);
        assert!(matches!(error, Err(KernelError::Domain { what: "ridge", index: 1, .. })), "{bad}");
    }
    assert!(matches!(with(&ridge, f32::INFINITY, 0.1), Err(KernelError::Domain { what: "scale", .. })));
    assert!(matches!(with(&ridge, 1.0, -0.1), Err(KernelError::Domain { what: "tolerance", .. })));
    assert!(matches!(with(&ridge, 1.0, f32::NAN), Err(KernelError::Domain { what: "tolerance", .. })));
    let probe = tensor(&[1, 4, 8]);
    assert!(matches!(
        parallax(&q, &probe, (&keys, &values), &plan, 1.0),
        Err(KernelError::Shape { what: "probe", .. })
    ));

    let nobody = LlaPlan::new(vec![], vec![], 8).unwrap();
    let settings = LlaSettings { scale: 1.0, ridge: Ridge::PerRow(&[]), solver: LlaSolver::default(), details: true };
    let out = lla(&tensor(&[0, 4, 16]), (&keys, &values), &nobody, &settings).unwrap();
    assert_eq!(out.output.dims(), [0, 24]);
}
