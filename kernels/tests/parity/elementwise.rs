use candle_core::{Device, Tensor};
use kernels::{AttentionPlan, KernelError, PlanRow, reference, rms_norm, rope, swiglu};

use crate::{BATCHES, Random, assert_close, bits, on_every_level};

fn tensor(values: &[f32], shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A plan whose rows have the given positions.
fn plan(positions: &[usize]) -> AttentionPlan {
    let rows = positions.iter().map(|&position| PlanRow { table: 0, position, visible_end: position + 1 }).collect();
    let capacity = positions.iter().max().map_or(1, |&last| last + 1);
    AttentionPlan::new(vec![(0..capacity as u32).collect()], rows, 1).unwrap()
}

/// Runs `op` on `rows` rows of `xs` and returns its rows.
fn assert_rows_are_independent(xs: &[f32], rows: usize, op: impl Fn(&[f32], usize) -> Vec<f32> + Sync) {
    let width = xs.len() / rows;
    let alone: Vec<_> = xs.chunks_exact(width).enumerate().map(|(row, x)| op(x, row)).collect();
    for num_threads in [1, 2] {
        for batch in BATCHES.into_iter().filter(|&batch| batch <= rows).chain([rows]) {
            for (level, out) in on_every_level(num_threads, || op(&xs[..batch * width], 0)) {
                for (row, out) in out.chunks_exact(out.len() / batch).enumerate() {
                    assert_eq!(bits(out), bits(&alone[row]), "{level}, {num_threads} threads, row {row} of {batch}");
                }
            }
        }
    }
}

#[test]
fn swiglu_matches_the_reference() {
    for ffn in [1, 15, 16, 17, 48, 1537] {
        let mut gate_up = Random(ffn as u64).values(5 * 2 * ffn);
        for (at, extreme) in [0.0, 100.0, -100.0, 1e30, -1e30].into_iter().enumerate() {
            gate_up[at * 2 * ffn] = extreme;
        }
        let xs = tensor(&gate_up, (5, 2 * ffn));
        let expected = reference::swiglu(&gate_up, ffn);
        for (level, out) in on_every_level(2, || swiglu(&xs).unwrap()) {
            assert_eq!(out.dims(), [5, ffn]);
            // Three roundings and an exponential of two units.
            assert_close(&flat(&out), &expected, (1e-6, 1e-6), &level.to_string());
        }
    }
    let width = 2 * 1000;
    assert_rows_are_independent(&Random(1).values(150 * width), 150, |xs, _| {
        flat(&swiglu(&tensor(xs, (xs.len() / width, width))).unwrap())
    });
}

#[test]
fn swiglu_keeps_nan_and_refuses_odd_rows() {
    for (level, out) in on_every_level(1, || flat(&swiglu(&tensor(&[f32::NAN, 1.0, 2.0, 3.0], (1, 4))).unwrap())) {
        assert!(out[0].is_nan() && out[1].is_finite(), "{level}");
    }
    assert!(matches!(swiglu(&tensor(&[0.0; 6], (2, 3))), Err(KernelError::Shape { .. })));
    assert!(matches!(swiglu(&tensor(&[0.0; 6], (1, 2, 3))), Err(KernelError::Shape { .. })));
}

#[test]
fn rms_norm_matches_the_reference() {
    for dim in [1, 15, 16, 17, 63, 64, 65, 576] {
        let mut random = Random(dim as u64);
        let (xs, weight) = (random.values(6 * dim), random.values(dim));
        let (x, w) = (tensor(&xs, (2, 3, dim)), tensor(&weight, dim));
        let expected = reference::rms_norm(&xs, &weight, 1e-5);
        for (level, out) in on_every_level(2, || rms_norm(&x, &w, 1e-5).unwrap()) {
            assert_eq!(out.dims(), [2, 3, dim]);
            assert_close(&flat(&out), &expected, (2e-6, 1e-30), &level.to_string());
        }
    }
    let weight = Random(2).values(577);
    assert_rows_are_independent(&Random(1).values(150 * 577), 150, |xs, _| {
        flat(&rms_norm(&tensor(xs, (xs.len() / 577, 577)), &tensor(&weight, 577), 1e-6).unwrap())
    });
    let xs = tensor(&weight, (1, 577));
    assert!(matches!(rms_norm(&xs, &tensor(&[1.0; 3], 3), 1e-5), Err(KernelError::Shape { .. })));
}

#[test]
fn rope_matches_the_reference() {
    for (heads, head_dim, rotary_dims) in [(1, 2, 2), (3, 64, 64), (2, 6, 6), (5, 34, 34), (2, 128, 64), (3, 6, 2)] {
        let half = rotary_dims / 2;
        let mut random = Random(head_dim as u64);
        let (cos, sin) = (random.values(50 * half), random.values(50 * half));
        let tables = (tensor(&cos, (50, half)), tensor(&sin, (50, half)));
        let positions = [7, 0, 49, 7, 31];
        let xs = random.values(5 * heads * head_dim);
        let x = tensor(&xs, (5, heads, head_dim));
        let shape = reference::RopeShape { head_dim, rotary_dims };
        let expected = reference::rope(&xs, (&cos, &sin), &positions, shape);
        for (level, out) in on_every_level(2, || rope(&x, &tables.0, &tables.1, &plan(&positions)).unwrap()) {
            assert_eq!(out.dims(), x.dims());
            assert_eq!(bits(&flat(&out)), bits(&expected), "{level}");
        }
    }
    let half = 32;
    let tables =
        (tensor(&Random(4).values(200 * half), (200, half)), tensor(&Random(5).values(200 * half), (200, half)));
    assert_rows_are_independent(&Random(3).values(150 * 9 * 64), 150, |xs, first| {
        let rows = xs.len() / (9 * 64);
        let plan = plan(&(first..first + rows).collect::<Vec<_>>());
        flat(&rope(&tensor(xs, (rows, 9, 64)), &tables.0, &tables.1, &plan).unwrap())
    });
}

#[test]
fn rope_refuses_positions_past_its_tables_and_other_rows_than_the_plan() {
    let x = tensor(&[1.0; 8], (2, 1, 4));
    let table = tensor(&[1.0; 6], (3, 2));
    assert!(matches!(rope(&x, &table, &table, &plan(&[0, 3])), Err(KernelError::OutOfRange { .. })));
    assert!(matches!(rope(&x, &table, &table, &plan(&[0])), Err(KernelError::Shape { .. })));
    let narrow = tensor(&[1.0; 3], (3, 1));
    assert!(matches!(rope(&x, &table, &narrow, &plan(&[0, 1])), Err(KernelError::Shape { .. })));
    let wide = tensor(&[1.0; 9], (3, 3));
    assert!(matches!(rope(&x, &wide, &wide, &plan(&[0, 1])), Err(KernelError::Shape { .. })), "6 of 4 features");
}
