use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use kernels::{ActivationBits, GgmlType, KernelError, PackedLinear, WeightFormat, dequantize, reference};

use crate::{BATCHES, Random, bits, on_every_level};

const QUANTIZED: [(GgmlType, GgmlDType); 8] = [
    (GgmlType::Q4_0, GgmlDType::Q4_0),
    (GgmlType::Q4_1, GgmlDType::Q4_1),
    (GgmlType::Q5_0, GgmlDType::Q5_0),
    (GgmlType::Q5_1, GgmlDType::Q5_1),
    (GgmlType::Q8_0, GgmlDType::Q8_0),
    (GgmlType::Q4_K, GgmlDType::Q4K),
    (GgmlType::Q5_K, GgmlDType::Q5K),
    (GgmlType::Q6_K, GgmlDType::Q6K),
];
const FLOATS: [(GgmlType, GgmlDType); 3] =
    [(GgmlType::F32, GgmlDType::F32), (GgmlType::F16, GgmlDType::F16), (GgmlType::BF16, GgmlDType::BF16)];

/// Random weights as candle stores them, and as candle reads them back.
fn quantized(dtype: GgmlDType, out_features: usize, in_features: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let weight = Random(seed).values(out_features * in_features);
    let weight = Tensor::from_vec(weight, (out_features, in_features), &Device::Cpu).unwrap();
    let weight = QTensor::quantize(&weight, dtype).unwrap();
    let values = weight.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (weight.data().unwrap().into_owned(), values)
}

fn forward(linear: &PackedLinear, xs: &[f32]) -> Vec<f32> {
    let rows = xs.len() / linear.in_features();
    let mut ys = vec![f32::NAN; rows * linear.out_features()];
    linear.forward(xs, rows, &mut ys).unwrap();
    ys
}

/// Refuses outputs whose error exceeds `tolerance` times the sum of the magnitudes of the products.
#[track_caller]
fn assert_products(ys: &[f32], xs: &[f32], weight: &[f32], in_features: usize, tolerance: f64, what: &str) {
    let magnitudes = |values: &[f32]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
    let expected = reference::linear(xs, weight, in_features);
    let scale = reference::linear(&magnitudes(xs), &magnitudes(weight), in_features);
    assert_eq!(ys.len(), expected.len());
    for (at, ((&y, expected), scale)) in ys.iter().zip(&expected).zip(&scale).enumerate() {
        let error = (f64::from(y) - expected).abs();
        assert!(error <= tolerance * scale, "{what}: y[{at}] is {y}, should be {expected}, scale {scale}");
    }
}

#[test]
fn dequantize_has_the_meaning_that_candle_gives_the_blocks() {
    for (ty, dtype) in QUANTIZED.into_iter().chain(FLOATS) {
        let (bytes, expected) = quantized(dtype, 3, 512, 11);
        let mut values = vec![f32::NAN; expected.len()];
        dequantize(ty, &bytes, &mut values).unwrap();
        assert_eq!(bits(&values), bits(&expected), "{ty}");
        assert_eq!(GgmlType::from_code(ty.code()).unwrap(), ty);
        assert_eq!(bytes.len(), 3 * 512 / ty.block_len() * ty.block_bytes());
    }
}

#[test]
fn rows_survive_the_packing() {
    for (ty, dtype) in QUANTIZED.into_iter().chain(FLOATS) {
        for out_features in [1, 15, 16, 17] {
            let (bytes, expected) = quantized(dtype, out_features, 512, 12);
            let linear = PackedLinear::from_ggml(ty, &bytes, out_features, 512).unwrap();
            for (index, expected) in expected.chunks_exact(512).enumerate() {
                let mut row = vec![f32::NAN; 512];
                linear.row(index, &mut row).unwrap();
                assert_eq!(bits(&row), bits(expected), "{ty} row {index}");
            }
        }
    }
}

#[test]
fn f32_weights_match_the_reference_at_odd_sizes() {
    for (out_features, in_features) in [(1, 1), (15, 7), (16, 16), (17, 33), (63, 100), (64, 64), (65, 129), (130, 577)]
    {
        let mut random = Random(out_features as u64);
        let weight = random.values(out_features * in_features);
        let linear = PackedLinear::from_f32(&weight, out_features, in_features).unwrap();
        for rows in [1, 2, 3, 4, 5, 7, 8, 9, 13] {
            let xs = random.values(rows * in_features);
            let results = on_every_level(2, || forward(&linear, &xs));
            for (level, ys) in &results {
                assert_products(ys, &xs, &weight, in_features, 1e-5, &format!("{level} {out_features}x{in_features}"));
                assert_eq!(bits(ys), bits(&results[0].1), "{level} and portable, {rows} rows");
            }
        }
    }
}

#[test]
fn quantized_weights_match_the_exact_product() {
    for (ty, dtype) in QUANTIZED {
        for (out_features, in_features) in [(1, 256), (17, 512), (65, 768)] {
            let (bytes, weight) = quantized(dtype, out_features, in_features, 13);
            let packed = PackedLinear::from_ggml(ty, &bytes, out_features, in_features).unwrap();
            for (activations, tolerance) in [(ActivationBits::Int16, 1e-4), (ActivationBits::Int8, 1e-2)] {
                let linear = packed.clone().with_activations(activations);
                for rows in [1, 2, 3, 7, 8, 9, 21] {
                    let xs = Random(rows as u64).values(rows * in_features);
                    let results = on_every_level(2, || forward(&linear, &xs));
                    for (level, ys) in &results {
                        let what = format!("{ty} {activations:?} {level} {out_features}x{in_features}");
                        assert_products(ys, &xs, &weight, in_features, tolerance, &what);
                        assert_eq!(bits(ys), bits(&results[0].1), "{what}: portable differs, {rows} rows");
                    }
                }
            }
        }
    }
}

/// Codes and activations at their limits, where 16-bit sums would saturate and an f32 sum would lose the zero code.
#[test]
fn extreme_codes_do_not_overflow() {
    const IN: usize = 256;
    for byte in [0x7f, 0x80, 0x81, 0xff_u8] {
        let mut bytes = Vec::new();
        for _ in 0..17 * IN / 32 {
            bytes.extend_from_slice(&[0x00, 0x3c]);
            bytes.extend_from_slice(&[byte; 32]);
        }
        let mut weight = vec![0.0; 17 * IN];
        dequantize(GgmlType::Q8_0, &bytes, &mut weight).unwrap();
        let packed = PackedLinear::from_ggml(GgmlType::Q8_0, &bytes, 17, IN).unwrap();
        for sign in [-1.0, 1.0] {
            for activations in [ActivationBits::Int8, ActivationBits::Int16] {
                let xs = vec![sign; IN];
                let linear = packed.clone().with_activations(activations);
                for (level, ys) in on_every_level(1, || forward(&linear, &xs)) {
                    assert_products(&ys, &xs, &weight, IN, 1e-6, &format!("{level} {activations:?} {byte:#x}"));
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_give_nan_and_only_in_their_row() {
    let (bytes, _) = quantized(GgmlDType::Q8_0, 17, 64, 14);
    let linear = PackedLinear::from_ggml(GgmlType::Q8_0, &bytes, 17, 64).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut xs = Random(3).values(3 * 64);
        xs[64 + 5] = bad;
        for (level, ys) in on_every_level(1, || forward(&linear, &xs)) {
            assert!(ys[17..34].iter().all(|y| y.is_nan()), "{level}");
            assert!(ys[..17].iter().chain(&ys[34..]).all(|y| y.is_finite()), "{level}");
        }
    }
    for tiny in [0.0, 1e-40, 1e-31] {
        let ys = forward(&linear, &[tiny; 64]);
        assert!(ys.iter().all(|y| y.abs() < 1e-28), "{tiny}");
    }
}

fn mixed_stack(activations: ActivationBits) -> (PackedLinear, Vec<f32>) {
    const IN: usize = 512;
    let mut all = Vec::new();
    let mut parts = Vec::new();
    for (index, (ty, dtype)) in QUANTIZED.into_iter().chain(FLOATS).enumerate() {
        let out_features = [300, 17, 64, 1][index % 4];
        let (bytes, weight) = quantized(dtype, out_features, IN, index as u64);
        all.extend(weight);
        parts.push(PackedLinear::from_ggml(ty, &bytes, out_features, IN).unwrap().with_activations(activations));
    }
    (PackedLinear::stack(parts).unwrap(), all)
}

#[test]
fn a_stack_puts_its_parts_side_by_side() {
    let (stack, weight) = mixed_stack(ActivationBits::Int16);
    assert_eq!(stack.format(), WeightFormat::Mixed);
    assert_eq!(stack.out_features() * 512, weight.len());
    let xs = Random(5).values(9 * 512);
    for (level, ys) in on_every_level(2, || forward(&stack, &xs)) {
        assert_products(&ys, &xs, &weight, 512, 1e-4, &level.to_string());
    }
    let mut row = vec![0.0; 512];
    for index in [0, 299, 300, 317, stack.out_features() - 1] {
        stack.row(index, &mut row).unwrap();
        assert_eq!(row, weight[index * 512..][..512], "row {index}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_the_threads() {
    const IN: usize = 512;
    for activations in [ActivationBits::Int8, ActivationBits::Int16] {
        let (stack, _) = mixed_stack(activations);
        let xs = Random(6).values(64 * IN);
        let alone: Vec<Vec<f32>> = xs.chunks_exact(IN).map(|x| forward(&stack, x)).collect();
        for num_threads in [1, 2, 3] {
            for batch in BATCHES.into_iter().chain([1]) {
                for (level, ys) in on_every_level(num_threads, || forward(&stack, &xs[..batch * IN])) {
                    for (row, y) in ys.chunks_exact(stack.out_features()).enumerate() {
                        let what = format!("{level}, {num_threads} threads, {activations:?}, row {row} of {batch}");
                        assert_eq!(bits(y), bits(&alone[row]), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn tensors_flow_and_wrong_ones_are_refused() {
    let weight = Random(7).values(17 * 64);
    let linear = PackedLinear::from_f32(&weight, 17, 64).unwrap();
    let xs = Tensor::from_vec(Random(8).values(4 * 64), (4, 64), &Device::Cpu).unwrap();
    // A narrowed tensor starts inside its storage.
    let part = xs.narrow(0, 1, 2).unwrap();
    let ys = linear.apply(&part).unwrap();
    assert_eq!(ys.dims(), [2, 17]);
    let expected = forward(&linear, &part.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert_eq!(ys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
    assert_eq!(linear.apply(&xs.narrow(0, 0, 0).unwrap()).unwrap().dims(), [0, 17]);

    assert!(matches!(linear.apply(&xs.t().unwrap()), Err(KernelError::NotContiguous { .. })));
    assert!(matches!(linear.apply(&xs.reshape((8, 32)).unwrap()), Err(KernelError::Shape { .. })));
    assert!(matches!(linear.apply(&xs.flatten_all().unwrap()), Err(KernelError::Shape { .. })));
    assert!(matches!(linear.apply(&xs.to_dtype(candle_core::DType::F64).unwrap()), Err(KernelError::DType { .. })));
    assert!(matches!(linear.forward(&[0.0; 63], 1, &mut [0.0; 17]), Err(KernelError::Length { .. })));
    assert!(matches!(linear.forward(&[0.0; 64], 1, &mut [0.0; 16]), Err(KernelError::Length { .. })));
    assert!(matches!(linear.row(17, &mut [0.0; 64]), Err(KernelError::OutOfRange { .. })));
}

#[test]
fn wrong_weights_are_refused() {
    assert!(matches!(PackedLinear::from_f32(&[0.0; 5], 2, 3), Err(KernelError::Length { .. })));
    assert!(matches!(PackedLinear::from_f32(&[], 0, 3), Err(KernelError::EmptyWeight { .. })));
    assert!(matches!(PackedLinear::from_f32(&[], usize::MAX, 3), Err(KernelError::Overflow { .. })));
    assert!(matches!(PackedLinear::from_ggml(GgmlType::Q8_0, &[], 1, 33), Err(KernelError::PartialBlock { .. })));
    assert!(matches!(PackedLinear::from_ggml(GgmlType::Q8_0, &[0; 33], 1, 32), Err(KernelError::Length { .. })));
    assert!(matches!(PackedLinear::stack(vec![]), Err(KernelError::EmptyStack)));
    assert!(matches!(GgmlType::from_code(99), Err(KernelError::UnknownGgmlType { code: 99, .. })));
    let narrow = PackedLinear::from_f32(&[0.0; 4], 2, 2).unwrap();
    let wide = PackedLinear::from_f32(&[0.0; 6], 2, 3).unwrap();
    assert!(matches!(PackedLinear::stack(vec![narrow, wide]), Err(KernelError::Unstackable { .. })));
}

#[test]
fn the_size_of_packed_weights_is_known_beforehand() {
    for (ty, dtype) in QUANTIZED.into_iter().chain(FLOATS) {
        for (out_features, in_features) in [(1, 256), (16, 512), (37, 256)] {
            let (bytes, _) = quantized(dtype, out_features, in_features, 3);
            let packed = PackedLinear::from_ggml(ty, &bytes, out_features, in_features).unwrap();
            let told = PackedLinear::bytes_of(ty, out_features, in_features);
            assert_eq!(told, packed.weight_bytes(), "{ty} [{out_features}, {in_features}]");
        }
    }
}
