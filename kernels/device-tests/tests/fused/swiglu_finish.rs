//! The gated activation.

use device_tests::Order;
use kernels::{
    KernelError,
    device::{Array, ElementType, PartialSums, SwigluFinish, padded, run, swiglu_finish},
    reference,
};

use crate::common::{HALVES, ORDERS, Random, assert_rounded, bits, device, download, partials, skipped};

fn call(order: Order, element: ElementType, (num_splits, rows, ffn): (usize, usize, usize)) -> Vec<f32> {
    let device = device(order);
    let mut random = Random(ffn as u64);
    let (sums, total) = partials(&device, &mut random, (num_splits, rows, 2 * ffn), num_splits % 2 == 1);
    let output = Array::new(&device, element, rows * padded(ffn)).unwrap();
    let launch = swiglu_finish(&SwigluFinish { partials: &sums, output: &output, rows, ffn }).unwrap();
    run(&*device, &[launch]).unwrap();
    let (got, expected) = (download(&output), reference::swiglu(&total, ffn));
    for (got, expected) in got.chunks_exact(padded(ffn)).zip(expected.chunks_exact(ffn)) {
        assert_rounded(&got[..ffn], expected, element, &format!("{element}, {num_splits} splits, {ffn}"));
        assert!(got[ffn..].iter().all(|x| x.to_bits() == 0), "padding");
    }
    got
}

#[test]
fn outputs_match_the_reference() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for ffn in [4, 64, 100, 1020, 1024, 1028] {
            for num_splits in [1, 2, 5] {
                call(Order::Forward, element, (num_splits, 3, ffn));
            }
        }
    }
    let found = ORDERS.map(|order| bits(&call(order, ElementType::BF16, (3, 2, 1100))));
    assert!(found.iter().all(|bits| *bits == found[0]));
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    if skipped() {
        return;
    }
    let (rows, ffn) = (4, 72);
    let device = device(Order::Forward);
    let (sums, _) = partials(&device, &mut Random(5), (3, rows, 2 * ffn), true);
    let run_on = |sums: &PartialSums, rows: usize| {
        let output = Array::new(&device, ElementType::F16, rows * padded(ffn)).unwrap();
        let launch = swiglu_finish(&SwigluFinish { partials: sums, output: &output, rows, ffn }).unwrap();
        run(&*device, &[launch]).unwrap();
        bits(&download(&output))
    };
    let all = run_on(&sums, rows);
    let values = download(&sums.sums);
    for row in 0..rows {
        let own: Vec<f32> =
            (0..3).flat_map(|split| values[(split * rows + row) * 2 * ffn..][..2 * ffn].to_vec()).collect();
        let own = PartialSums { sums: Array::from_slice(&device, &own).unwrap(), ..sums.clone() };
        assert_eq!(run_on(&own, 1), all[row * padded(ffn)..][..padded(ffn)]);
    }
}

/// Products beyond fp16 become its largest number; NaN stays.
#[test]
fn large_values_stay_finite() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    let values = [300.0f32, 300.0, 1.0, -500.0, 400.0, -400.0, f32::NAN, 1.0];
    let sums = PartialSums { sums: Array::from_slice(&device, &values).unwrap(), num_splits: 1, bias: None };
    let output = Array::new(&device, ElementType::F16, 64).unwrap();
    let launch = swiglu_finish(&SwigluFinish { partials: &sums, output: &output, rows: 1, ffn: 4 }).unwrap();
    run(&*device, &[launch]).unwrap();
    let got = download(&output);
    assert_eq!(got[..2], [65504.0, -65504.0]);
    assert!(got[2].is_nan() && got[3].abs() < 1e-30, "{got:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device(Order::Forward);
    let sums = |len, num_splits| PartialSums {
        sums: Array::zeros(&device, ElementType::F32, len).unwrap(),
        num_splits,
        bias: None,
    };
    let output = Array::zeros(&device, ElementType::F16, 64).unwrap();
    let refused = |sums: &PartialSums, rows, ffn| {
        swiglu_finish(&SwigluFinish { partials: sums, output: &output, rows, ffn }).unwrap_err()
    };
    assert!(matches!(refused(&sums(15, 1), 1, 8), KernelError::Length { what: "sums", expected: 16, got: 15, .. }));
    assert!(matches!(refused(&sums(16, 0), 1, 8), KernelError::Zero { what: "splits", .. }));
    assert!(matches!(refused(&sums(99, 1), 1, 9), KernelError::NoKernelFor { what: "ffn", .. }));
    assert!(matches!(refused(&sums(999, 1), 2, 8), KernelError::Length { expected: 128, got: 64, .. }));
}
