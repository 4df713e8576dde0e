//! Residual, partial sums and normalisation.

use device_tests::Order;
use kernels::{
    KernelError,
    device::{AddNorm, Array, ElementType, PartialSums, add_norm, padded, run},
    reference,
};

use crate::common::{HALVES, ORDERS, Random, assert_rounded, bits, device, download, partials, skipped};

const EPS: f32 = 1e-5;

/// Output and residual of a call on random data.
fn call(order: Order, element: ElementType, (num_splits, rows, hidden): (usize, usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let device = device(order);
    let mut random = Random(hidden as u64);
    let (residual, weight) = (random.normal(rows * hidden), random.normal(hidden));
    let (sums, total) = partials(&device, &mut random, (num_splits.max(1), rows, hidden), num_splits % 2 == 1);
    let expected: Vec<f32> =
        if num_splits == 0 { residual.clone() } else { residual.iter().zip(&total).map(|(a, b)| a + b).collect() };
    let arrays = [&residual, &weight].map(|values| Array::from_slice(&device, values).unwrap());
    let output = Array::new(&device, element, rows * padded(hidden)).unwrap();
    let partials = (num_splits > 0).then_some(&sums);
    let call = AddNorm {
        residual: &arrays[0],
        partials,
        weight: &arrays[1],
        output: &output,
        selected: None,
        rows,
        hidden,
        eps: EPS,
    };
    run(&*device, &[add_norm(&call).unwrap()]).unwrap();
    let (got, left) = (download(&output), download(&arrays[0]));
    let what = format!("{element}, {num_splits} splits, {rows} x {hidden}");
    for (got, expected) in left.iter().zip(&expected) {
        assert!((got - expected).abs() <= 4e-6, "{what}: residual {got} for {expected}");
    }
    let expected = reference::rms_norm(&expected, &weight, EPS);
    for (got, expected) in got.chunks_exact(padded(hidden)).zip(expected.chunks_exact(hidden)) {
        assert_rounded(&got[..hidden], expected, element, &what);
        assert!(got[hidden..].iter().all(|x| x.to_bits() == 0), "{what}: padding");
    }
    (got, left)
}

#[test]
fn residual_and_output_match_the_reference() {
    if skipped() {
        return;
    }
    for element in HALVES {
        for hidden in [4, 60, 64, 68, 2044, 2048, 2052, 16384] {
            for num_splits in [0, 1, 2, 7] {
                call(Order::Forward, element, (num_splits, 2, hidden));
            }
        }
    }
}

#[test]
fn the_order_of_threads_does_not_matter() {
    if skipped() {
        return;
    }
    let found = ORDERS.map(|order| call(order, ElementType::F16, (3, 3, 2100)));
    for (output, residual) in &found {
        assert_eq!(bits(output), bits(&found[0].0));
        assert_eq!(bits(residual), bits(&found[0].1));
    }
}

/// Selected rows get the bits that they get among all rows, alone and beside others, and the residual stays.
#[test]
fn a_row_does_not_depend_on_the_others() {
    if skipped() {
        return;
    }
    let (rows, hidden, num_splits) = (5, 100, 3);
    let device = device(Order::Shuffled);
    let mut random = Random(1);
    let (residual, weight) = (random.normal(rows * hidden), random.normal(hidden));
    let (sums, _) = partials(&device, &mut random, (num_splits, rows, hidden), true);
    let weight = Array::from_slice(&device, &weight).unwrap();
    let run_on = |residual: &Array, sums: &PartialSums, rows: usize, selected: Option<&[u32]>| {
        let count = selected.map_or(rows, <[u32]>::len);
        let output = Array::new(&device, ElementType::BF16, count * padded(hidden)).unwrap();
        let index = selected.map(|selected| Array::from_slice(&device, selected).unwrap());
        let selected = index.as_ref().map(|index| (index, count));
        let (partials, weight, output_of) = (Some(sums), &weight, &output);
        let call = AddNorm { residual, partials, weight, output: output_of, selected, rows, hidden, eps: EPS };
        run(&*device, &[add_norm(&call).unwrap()]).unwrap();
        download(&output)
    };
    let upload = |values: &[f32]| Array::from_slice(&device, values).unwrap();
    let whole = upload(&residual);
    let selected = run_on(&whole, &sums, rows, Some(&[3, 0, 9, 3]));
    assert_eq!(bits(&download(&whole)), bits(&residual), "selecting writes no residual");
    let all = run_on(&whole, &sums, rows, None);
    assert_ne!(bits(&download(&whole)), bits(&residual));
    let width = padded(hidden);
    let at = |values: &[f32], row: usize| bits(&values[row * width..][..width]);
    assert_eq!([at(&selected, 0), at(&selected, 1), at(&selected, 3)], [at(&all, 3), at(&all, 0), at(&all, 3)]);
    assert_eq!(at(&selected, 2), vec![0; width], "no such row");
    let all_sums = download(&sums.sums);
    for row in 0..rows {
        let own: Vec<f32> =
            (0..num_splits).flat_map(|split| all_sums[(split * rows + row) * hidden..][..hidden].to_vec()).collect();
        let own = PartialSums { sums: upload(&own), ..sums.clone() };
        assert_eq!(at(&run_on(&upload(&residual[row * hidden..][..hidden]), &own, 1, None), 0), at(&all, row));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device(Order::Forward);
    let f32s = |len| Array::zeros(&device, ElementType::F32, len).unwrap();
    let (residual, weight, output) = (f32s(16), f32s(8), Array::zeros(&device, ElementType::F16, 128).unwrap());
    let sums = PartialSums { sums: f32s(31), num_splits: 2, bias: None };
    let good = AddNorm {
        residual: &residual,
        partials: None,
        weight: &weight,
        output: &output,
        selected: None,
        rows: 2,
        hidden: 8,
        eps: EPS,
    };
    assert!(add_norm(&good).is_ok());
    let refused = |call: AddNorm<'_>| add_norm(&call).unwrap_err();
    let error = refused(AddNorm { partials: Some(&sums), ..good });
    assert!(matches!(error, KernelError::Length { what: "sums", expected: 32, got: 31, .. }), "{error}");
    let shifted = f32s(18).slice(1..18).unwrap();
    let error = refused(AddNorm { residual: &shifted, ..good });
    assert!(matches!(error, KernelError::Misaligned { what: "residual", .. }), "{error}");
    assert!(matches!(refused(AddNorm { rows: 3, ..good }), KernelError::Length { what: "residual", .. }));
    assert!(matches!(refused(AddNorm { hidden: 6, ..good }), KernelError::NoKernelFor { what: "hidden", .. }));
    assert!(matches!(refused(AddNorm { output: &weight, ..good }), KernelError::NoKernelFor { what: "output", .. }));
    assert!(matches!(refused(AddNorm { selected: Some((&residual, 1)), ..good }), KernelError::Element { .. }));
}
