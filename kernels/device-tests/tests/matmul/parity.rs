//! Against the reference in f64.

use device_tests::Order;
use kernels::{
    device::{DeviceFormat, DeviceLinear},
    reference,
};

use crate::{
    case::{Random, activations, device, other_device, product, weight},
    skipped,
};

/// Fails if the error is more than twice that of one sum in f32 after the other, for the worst output, with a floor of
/// one rounding of the largest sum of magnitudes.
#[track_caller]
fn check(what: &str, got: &[f32], weight: &[f32], xs: &[f32], width: usize) {
    let exact = reference::matmul(weight, xs, width);
    assert_eq!(got.len(), exact.len(), "{what}");
    let (mut plain_error, mut floor) = (0f64, 0f64);
    let mut expected = exact.iter();
    for x in xs.chunks_exact(width) {
        for w in weight.chunks_exact(width) {
            let (mut sum, mut magnitude) = (0f32, 0f32);
            for (x, w) in x.iter().zip(w) {
                sum += x * w;
                magnitude += (x * w).abs();
            }
            plain_error = plain_error.max((f64::from(sum) - expected.next().unwrap()).abs());
            floor = floor.max(f64::from(magnitude) * f64::from(f32::EPSILON) / 2.0);
        }
    }
    let tolerance = 2.0 * plain_error + floor;
    for (at, (got, exact)) in got.iter().zip(&exact).enumerate() {
        let error = (f64::from(*got) - exact).abs();
        assert!(error <= tolerance, "{what}, element {at}: {got} for {exact}, off by {error:e} of {tolerance:e}");
    }
}

fn widths(format: DeviceFormat) -> &'static [usize] {
    match format {
        DeviceFormat::F16 | DeviceFormat::BF16 => &[64, 5, 200],
        DeviceFormat::Q8_0 => &[64, 32, 224],
        DeviceFormat::Q4_K => &[256, 512],
    }
}

/// All numbers of rows on either side of what a kernel takes, with inputs and outputs that fill nothing.
fn check_rows(format: DeviceFormat) {
    if skipped() {
        return;
    }
    let device = device(Order::Shuffled);
    let random = &mut Random::new(11 + format as u64);
    let widths = widths(format);
    for (at, rows) in [1, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130].into_iter().enumerate() {
        let (out, width) = ([20, 131, 1][at % 3], widths[(at / 2) % widths.len()]);
        let (weight, values) = weight(&device, format, (out, width), random);
        let linear = DeviceLinear::new(weight);
        let xs = activations(linear.activations(), rows, width, random);
        let got = product(&linear, &xs, &device);
        check(&format!("{format}, {rows} rows, {out} x {width}"), &got, &values, &xs, width);
    }
}

#[test]
fn f16() {
    check_rows(DeviceFormat::F16);
}

#[test]
fn bf16() {
    check_rows(DeviceFormat::BF16);
}

#[test]
fn q8_0() {
    check_rows(DeviceFormat::Q8_0);
}

#[test]
fn q4_k() {
    check_rows(DeviceFormat::Q4_K);
}

#[test]
fn many_stages_wrap_around_the_ring() {
    if skipped() {
        return;
    }
    let device = device(Order::Shuffled);
    let random = &mut Random::new(3);
    for format in DeviceFormat::ALL {
        for (rows, width) in [(3, 2048), (33, 1280)] {
            let (weight, values) = weight(&device, format, (40, width), random);
            for splits in [1, 3] {
                let linear = DeviceLinear::new(weight.clone()).with_splits(splits).unwrap();
                let xs = activations(linear.activations(), rows, width, random);
                let got = product(&linear, &xs, &device);
                check(&format!("{format}, {rows} rows, {splits} splits"), &got, &values, &xs, width);
            }
        }
    }
}

#[test]
fn turing_takes_narrower_tiles_and_shorter_rings() {
    if skipped() {
        return;
    }
    let device = other_device((7, 5), 40);
    let random = &mut Random::new(5);
    for format in [DeviceFormat::F16, DeviceFormat::Q8_0, DeviceFormat::Q4_K] {
        for rows in [2, 70] {
            let (weight, values) = weight(&device, format, (20, 512), random);
            let linear = DeviceLinear::new(weight);
            let xs = activations(linear.activations(), rows, 512, random);
            check(&format!("{format}, {rows} rows"), &product(&linear, &xs, &device), &values, &xs, 512);
        }
    }
}

#[test]
fn weights_stand_side_by_side() {
    if skipped() {
        return;
    }
    let device = device(Order::Backward);
    let random = &mut Random::new(7);
    // Two launches of f16, since one takes four parts, and one of Q8_0 between them.
    let formats = [
        (DeviceFormat::F16, 130),
        (DeviceFormat::Q8_0, 17),
        (DeviceFormat::F16, 3),
        (DeviceFormat::F16, 129),
        (DeviceFormat::F16, 8),
        (DeviceFormat::F16, 16),
    ];
    let (width, rows) = (96, 5);
    let (mut parts, mut all) = (Vec::new(), Vec::new());
    for (format, out) in formats {
        let (part, values) = weight(&device, format, (out, width), random);
        parts.push(part);
        all.extend(values);
    }
    let linear = DeviceLinear::stack(parts).unwrap().with_splits(2).unwrap();
    assert_eq!(linear.out_features() * width, all.len());
    let xs = activations(linear.activations(), rows, width, random);
    check("stack", &product(&linear, &xs, &device), &all, &xs, width);
}
