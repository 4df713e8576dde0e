//! Weights on a device: conversions, rows by token, random ones.

use device_tests::Order;
use half::{bf16, f16};
use kernels::{
    GgmlType, dequantize,
    device::{Array, DeviceFormat, DeviceWeight, ElementType, embed, run},
    reference,
};

use crate::{
    case::{Random, device, file_type, stored, weight},
    skipped,
};

/// Rows of a weight, `[ids, in]`.
fn rows(weight: &DeviceWeight, ids: &[u32]) -> Vec<f32> {
    let device = weight.device();
    let len = ids.len() * weight.in_features();
    let (ids_array, out) =
        (Array::from_slice(device, ids).unwrap(), Array::from_slice(device, &vec![7.25f32; len + 65]).unwrap());
    run(&**device, &[embed(weight, &ids_array, &out, ids.len()).unwrap()]).unwrap();
    let mut values = out.read::<f32>().unwrap();
    assert!(values[len..].iter().all(|value| *value == 7.25), "written past the output");
    values.truncate(len);
    values
}

#[test]
fn rows_are_what_the_file_says() {
    if skipped() {
        return;
    }
    let (device, random) = (device(Order::Shuffled), &mut Random::new(23));
    for (format, width) in [
        (DeviceFormat::F16, 1100),
        (DeviceFormat::F16, 3),
        (DeviceFormat::BF16, 77),
        (DeviceFormat::Q8_0, 96),
        (DeviceFormat::Q4_K, 512),
    ] {
        let (weight, values) = weight(&device, format, (300, width), random);
        let ids = [299, 0, 127, 128, 5, 5, 300, u32::MAX];
        let got = rows(&weight, &ids);
        for (id, got) in ids.iter().zip(got.chunks_exact(width)) {
            match values.chunks_exact(width).nth(*id as usize) {
                // One rounding of the product that the file's meaning rounds twice.
                Some(row) => row.iter().zip(got).for_each(|(expected, got)| {
                    let near = (expected - got).abs() <= 2.0 * f32::EPSILON * (expected.abs() + 0.02 * 63.0);
                    assert!(got == expected || format == DeviceFormat::Q4_K && near, "{format}: {got} for {expected}");
                }),
                None => assert!(got.iter().all(|value| value.is_nan()), "{format}: there is no row {id}"),
            }
        }
    }
}

#[test]
fn every_file_type_becomes_16_bit_floats() {
    if skipped() {
        return;
    }
    let (device, random) = (device(Order::Forward), &mut Random::new(29));
    for code in [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30] {
        let ty = GgmlType::from_code(code).unwrap();
        let (out, width) = (140, if ty.block_len() == 1 { 70 } else { 256 });
        let bytes = stored(ty, out * width, random);
        let mut values = vec![0.0; out * width];
        dequantize(ty, &bytes, &mut values).unwrap();
        let ids: Vec<u32> = (0..out as u32).collect();
        for (format, rounded) in [
            (DeviceFormat::F16, (|value| f16::from_f32(value).to_f32()) as fn(f32) -> f32),
            (DeviceFormat::BF16, |value| bf16::from_f32(value).to_f32()),
        ] {
            let weight = DeviceWeight::upload(&device, format, (ty, &bytes), (out, width)).unwrap();
            let expected: Vec<f32> = values.iter().map(|value| rounded(*value)).collect();
            assert_eq!(rows(&weight, &ids), expected, "{ty} as {format}");
        }
    }
}

#[test]
fn bytes_are_those_of_the_file() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    for (format, bits) in
        [(DeviceFormat::F16, 16.0), (DeviceFormat::BF16, 16.0), (DeviceFormat::Q8_0, 8.5), (DeviceFormat::Q4_K, 4.5)]
    {
        let weight = DeviceWeight::random(&device, format, (256, 512), 1).unwrap();
        assert_eq!(weight.bytes(), DeviceWeight::bytes_of(format, 256, 512));
        assert_eq!(weight.bytes() as f64 * 8.0, bits * 256.0 * 512.0, "{format}");
        assert_eq!(file_type(format).block_bytes() as f64 * 8.0 / file_type(format).block_len() as f64, bits);
    }
    assert_eq!(DeviceWeight::bytes_of(DeviceFormat::F16, 1, 1), 128 * 64 * 2, "tiles are whole");
}

#[test]
fn random_weights_are_those_of_the_reference() {
    if skipped() {
        return;
    }
    let device = device(Order::Shuffled);
    for (format, width) in
        [(DeviceFormat::F16, 90), (DeviceFormat::BF16, 128), (DeviceFormat::Q8_0, 96), (DeviceFormat::Q4_K, 512)]
    {
        let out = 150;
        let weight = DeviceWeight::random(&device, format, (out, width), 77).unwrap();
        let got = rows(&weight, &(0..out as u32).collect::<Vec<_>>());
        assert_eq!(got, reference::random_weight(format, (out, width), 77), "{format}");
        let other = DeviceWeight::random(&device, format, (out, width), 78).unwrap();
        assert_ne!(rows(&other, &[3]), got[3 * width..4 * width], "{format}: seeds differ");
        let mean = got.iter().map(|value| f64::from(*value)).sum::<f64>() / got.len() as f64;
        let square = got.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / got.len() as f64;
        let expected = 1.0 / (width as f64).sqrt();
        // Groups share scales, so that a weight of so few groups may be off by some percent.
        assert!((square.sqrt() / expected - 1.0).abs() < 0.05, "{format}: {} for {expected}", square.sqrt());
        assert!(mean.abs() < 0.1 * expected, "{format}: a mean of {mean} for {expected}");
    }
}

#[test]
fn padding_of_random_weights_is_zero() {
    if skipped() {
        return;
    }
    // What is past the inputs would be multiplied with zeros; NaN would show.
    let device = device(Order::Forward);
    for (format, width) in [(DeviceFormat::F16, 90), (DeviceFormat::Q8_0, 96)] {
        let random = &mut Random::new(31);
        let weight = DeviceWeight::random(&device, format, (9, width), 3).unwrap();
        let linear = kernels::device::DeviceLinear::new(weight);
        let xs = crate::case::activations(ElementType::F16, 3, width, random);
        let got = crate::case::product(&linear, &xs, &device);
        let exact = reference::matmul(&reference::random_weight(format, (9, width), 3), &xs, width);
        assert!(got.iter().zip(&exact).all(|(got, exact)| (f64::from(*got) - exact).abs() < 1e-5), "{format}");
    }
}
