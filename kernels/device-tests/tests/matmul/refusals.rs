//! What does not fit is refused by name, before anything runs.

use std::sync::Arc;

use device_tests::Order;
use kernels::{
    GgmlType, KernelError,
    device::{Array, Device, DeviceFormat, DeviceLinear, DeviceWeight, ElementType, embed, matmul},
};

use crate::{
    case::{Random, device, other_device, weight},
    skipped,
};

#[test]
fn arrays_that_do_not_fit() {
    if skipped() {
        return;
    }
    let (device, random) = (device(Order::Forward), &mut Random::new(1));
    let (weight, _) = weight(&device, DeviceFormat::F16, (20, 70), random);
    let linear = DeviceLinear::new(weight.clone()).with_splits(2).unwrap();
    let array = |element, len| Array::new(&device, element, len).unwrap();
    let xs = array(ElementType::F16, 3 * 128);
    let out = array(ElementType::F32, 2 * 3 * 20);
    assert_eq!(matmul(&linear, &xs, &out, 3).unwrap().len(), 1);
    assert!(matmul(&linear, &xs, &out, 0).unwrap().iter().all(|launch| launch.is_empty()));
    let refused = matmul(&linear, &xs, &out, 4).unwrap_err();
    assert!(matches!(refused, KernelError::Length { what: "xs", expected: 512, got: 384, .. }), "{refused}");
    let refused = matmul(&linear, &xs, &out.slice(0..119).unwrap(), 3).unwrap_err();
    assert!(matches!(refused, KernelError::Length { what: "out", expected: 120, got: 119, .. }), "{refused}");
    let refused = matmul(&linear, &array(ElementType::BF16, 384), &out, 3).unwrap_err();
    assert!(matches!(refused, KernelError::Element { what: "xs", expected: ElementType::F16, .. }), "{refused}");
    let refused = matmul(&linear, &xs, &array(ElementType::F16, 120), 3).unwrap_err();
    assert!(matches!(refused, KernelError::Element { what: "out", .. }), "{refused}");
    let odd = array(ElementType::F16, 3 * 128 + 4).slice(4..388).unwrap();
    let refused = matmul(&linear, &odd, &out, 3).unwrap_err();
    assert!(matches!(refused, KernelError::Alignment { what: "xs", alignment: 16, .. }), "{refused}");
    let refused = matmul(&linear, &xs, &out, usize::MAX / 8).unwrap_err();
    assert!(matches!(refused, KernelError::Overflow { .. }), "{refused}");

    let (ids, rows) = (array(ElementType::U32, 2), array(ElementType::F32, 140));
    assert!(embed(&weight, &ids, &rows, 2).is_ok());
    let refused = embed(&weight, &ids, &rows, 3).unwrap_err();
    assert!(matches!(refused, KernelError::Length { what: "ids", .. }), "{refused}");
    let refused = embed(&weight, &ids, &rows.slice(0..139).unwrap(), 2).unwrap_err();
    assert!(matches!(refused, KernelError::Length { what: "out", .. }), "{refused}");
    let refused = embed(&weight, &rows, &rows, 2).unwrap_err();
    assert!(matches!(refused, KernelError::Element { what: "ids", .. }), "{refused}");
}

#[test]
fn weights_that_do_not_fit() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    let upload = |format, ty, len: usize, shape| {
        DeviceWeight::upload(&device, format, (ty, vec![0u8; len].as_slice()), shape).unwrap_err()
    };
    let refused = upload(DeviceFormat::Q4_K, GgmlType::Q8_0, 272, (1, 256));
    assert!(matches!(refused, KernelError::NoConversion { stored: "Q8_0", format: "Q4_K" }), "{refused}");
    assert!(refused.to_string().contains("Q8_0") && refused.to_string().contains("Q4_K"), "{refused}");
    let refused = upload(DeviceFormat::Q8_0, GgmlType::F32, 128, (1, 32));
    assert!(matches!(refused, KernelError::NoConversion { .. }), "{refused}");
    let refused = upload(DeviceFormat::F16, GgmlType::F32, 12, (2, 2));
    assert!(matches!(refused, KernelError::Length { what: "bytes", expected: 16, got: 12, .. }), "{refused}");
    let refused = upload(DeviceFormat::F16, GgmlType::F32, 0, (0, 2));
    assert!(matches!(refused, KernelError::EmptyWeight { .. }), "{refused}");
    let refused = upload(DeviceFormat::F16, GgmlType::Q4_0, 18, (1, 33));
    assert!(matches!(refused, KernelError::PartialBlock { in_features: 33, block_len: 32, .. }), "{refused}");
    let refused = DeviceWeight::random(&device, DeviceFormat::Q4_K, (1, 128), 1).unwrap_err();
    assert!(matches!(refused, KernelError::PartialBlock { in_features: 128, block_len: 256, .. }), "{refused}");
    let refused = DeviceWeight::random(&device, DeviceFormat::F16, (1 << 20, 1 << 20), 1).unwrap_err();
    assert!(matches!(refused, KernelError::DeviceMemory { .. }), "{refused}");

    let mut values = [1.0f32; 200 * 3];
    values[500] = 65520.0;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let refused = DeviceWeight::upload(&device, DeviceFormat::F16, (GgmlType::F32, &bytes), (200, 3)).unwrap_err();
    assert!(matches!(refused, KernelError::Domain { index: 500, .. }), "{refused}");
    assert!(DeviceWeight::upload(&device, DeviceFormat::BF16, (GgmlType::F32, &bytes), (200, 3)).is_ok());
}

#[test]
fn stacks_that_do_not_fit() {
    if skipped() {
        return;
    }
    let device = device(Order::Forward);
    let random = |format, width| DeviceWeight::random(&device, format, (8, width), 1).unwrap();
    assert!(matches!(DeviceLinear::stack(vec![]), Err(KernelError::EmptyStack)));
    let refused = DeviceLinear::stack(vec![random(DeviceFormat::F16, 64), random(DeviceFormat::F16, 96)]).unwrap_err();
    assert!(matches!(refused, KernelError::Unstackable { first: 64, other: 96, .. }), "{refused}");
    let refused = DeviceLinear::stack(vec![random(DeviceFormat::F16, 64), random(DeviceFormat::BF16, 64)]).unwrap_err();
    assert!(matches!(refused, KernelError::MixedActivations { other: ElementType::BF16, .. }), "{refused}");
    let linear = DeviceLinear::new(random(DeviceFormat::Q8_0, 64));
    assert!(matches!(linear.clone().with_splits(0), Err(KernelError::Zero { what: "splits", .. })));
    assert!(linear.clone().with_splits(1).is_ok());
    assert!(matches!(linear.clone().with_splits(2), Err(KernelError::OutOfRange { index: 2, len: 2, .. })), "one step");
    let bias = |element, len| linear.clone().with_bias(Array::new(&device, element, len).unwrap());
    assert_eq!(bias(ElementType::F32, 8).unwrap().bias().map(Array::len), Some(8));
    assert!(matches!(bias(ElementType::F32, 9), Err(KernelError::Length { what: "bias", expected: 8, got: 9, .. })));
    assert!(matches!(bias(ElementType::F16, 8), Err(KernelError::Element { what: "bias", .. })));
}

/// As `matmul.cpp` asserts of the kernels, and `matmul.cuh` explains.
#[test]
fn rings_fill_shared_memory() {
    let device = device(Order::Forward);
    for (format, rings) in [
        (DeviceFormat::F16, [5, 5, 4, 4, 3]),
        (DeviceFormat::BF16, [5, 5, 4, 4, 3]),
        (DeviceFormat::Q8_0, [8, 8, 7, 6, 4]),
        (DeviceFormat::Q4_K, [7, 6, 5, 3, 2]),
    ] {
        let linear = DeviceLinear::new(random_weight(&device, format));
        for (rows, ring) in [8, 16, 32, 64, 128].into_iter().zip(rings) {
            let xs = Array::new(&device, linear.activations(), rows * 256).unwrap();
            let out = Array::new(&device, ElementType::F32, rows * 8).unwrap();
            let launch = &matmul(&linear, &xs, &out, rows).unwrap()[0];
            let (prepared, codes) = match format {
                DeviceFormat::F16 | DeviceFormat::BF16 => (0, 16384 + rows * 128),
                DeviceFormat::Q8_0 => (0, 8704 + rows * 128),
                DeviceFormat::Q4_K => (4096 + rows * 16, 10240 + rows * 256),
            };
            assert_eq!(launch.shared_bytes() as usize, prepared + ring * codes, "{}", launch.kernel());
            assert!(launch.shared_bytes() <= 99 * 1024, "{}", launch.kernel());
            assert!(launch.kernel().ends_with(&format!("_{rows}")), "{}", launch.kernel());
        }
    }
}

fn random_weight(device: &Arc<dyn Device>, format: DeviceFormat) -> DeviceWeight {
    let bytes = crate::case::stored(crate::case::file_type(format), 8 * 256, &mut Random::new(2));
    DeviceWeight::upload(device, format, (crate::case::file_type(format), &bytes), (8, 256)).unwrap()
}

#[test]
fn bf16_needs_a_device_that_has_it() {
    let turing = other_device((7, 5), 40);
    let refused = DeviceWeight::random(&turing, DeviceFormat::BF16, (8, 64), 1).unwrap_err();
    assert!(
        matches!(&refused, KernelError::NoKernelFor { what: "weight", got, .. } if got.contains("7.5")),
        "{refused}"
    );
    let refused = DeviceWeight::upload(&turing, DeviceFormat::BF16, (GgmlType::BF16, &[0; 128]), (1, 64)).unwrap_err();
    assert!(matches!(refused, KernelError::NoKernelFor { .. }), "{refused}");
}
