//! Random weights and activations, and products of them.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use half::{bf16, f16};
use kernels::{
    GgmlType, dequantize,
    device::{Array, Device, DeviceFacts, DeviceFormat, DeviceLinear, DeviceWeight, ElementType, matmul, padded, run},
};

/// Elements past the end of an output that nobody may write, and what they hold.
const GUARD: usize = 257;
const UNTOUCHED: f32 = 12345.5;

/// Random numbers that are the same on every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// Between -1 and 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }
}

pub(crate) fn device(order: Order) -> Arc<dyn Device> {
    HostDevice::new(1 << 28, order)
}

/// A device of another generation or size.
pub(crate) fn other_device(capability: (u32, u32), num_multiprocessors: u32) -> Arc<dyn Device> {
    let facts = DeviceFacts { name: "host".into(), capability, num_multiprocessors, total_bytes: 1 << 28 };
    HostDevice::with_facts(facts, Order::Shuffled)
}

/// The bytes of a file, random, with scales that a model might have.
pub(crate) fn stored(ty: GgmlType, num_values: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..num_values / ty.block_len() {
        let start = bytes.len();
        bytes.extend((0..ty.block_bytes()).map(|_| random.bits() as u8));
        let block = &mut bytes[start..];
        let scale = f16::from_f32(0.004 + 0.003 * random.number()).to_le_bytes();
        match ty {
            GgmlType::F32 => block.copy_from_slice(&random.number().to_le_bytes()),
            GgmlType::F16 => block.copy_from_slice(&f16::from_f32(random.number()).to_le_bytes()),
            GgmlType::BF16 => block.copy_from_slice(&bf16::from_f32(random.number()).to_le_bytes()),
            GgmlType::Q6_K => block[208..].copy_from_slice(&scale),
            _ => {
                block[..2].copy_from_slice(&scale);
                if matches!(ty, GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K) {
                    block[2..4].copy_from_slice(&f16::from_f32(0.02 * random.number()).to_le_bytes());
                }
            }
        }
    }
    bytes
}

/// The type that a file has for a format.
pub(crate) fn file_type(format: DeviceFormat) -> GgmlType {
    match format {
        DeviceFormat::F16 => GgmlType::F16,
        DeviceFormat::BF16 => GgmlType::BF16,
        DeviceFormat::Q8_0 => GgmlType::Q8_0,
        DeviceFormat::Q4_K => GgmlType::Q4_K,
    }
}

/// A weight on a device, and its values `[out, in]`.
pub(crate) fn weight(
    device: &Arc<dyn Device>,
    format: DeviceFormat,
    (out, width): (usize, usize),
    random: &mut Random,
) -> (DeviceWeight, Vec<f32>) {
    let ty = file_type(format);
    let bytes = stored(ty, out * width, random);
    let mut values = vec![0.0; out * width];
    dequantize(ty, &bytes, &mut values).unwrap();
    (DeviceWeight::upload(device, format, (ty, &bytes), (out, width)).unwrap(), values)
}

/// Random activations `[rows, in]`, representable in the type.
pub(crate) fn activations(element: ElementType, rows: usize, width: usize, random: &mut Random) -> Vec<f32> {
    (0..rows * width)
        .map(|_| match element {
            ElementType::BF16 => bf16::from_f32(random.number()).to_f32(),
            _ => f16::from_f32(random.number()).to_f32(),
        })
        .collect()
}

/// Activations as the kernels read them, followed by what nobody may use.
pub(crate) fn upload(device: &Arc<dyn Device>, element: ElementType, xs: &[f32], width: usize) -> Array {
    let mut rows = Vec::new();
    for row in xs.chunks_exact(width) {
        rows.extend_from_slice(row);
        rows.resize(rows.len().next_multiple_of(padded(width)), 0.0);
    }
    rows.resize(rows.len() + padded(width), f32::NAN);
    if element == ElementType::BF16 {
        Array::from_slice(device, &rows.into_iter().map(bf16::from_f32).collect::<Vec<_>>()).unwrap()
    } else {
        Array::from_slice(device, &rows.into_iter().map(f16::from_f32).collect::<Vec<_>>()).unwrap()
    }
}

/// The partial sums `[sums, rows, out]`.
pub(crate) fn partial_sums(linear: &DeviceLinear, xs: &[f32], device: &Arc<dyn Device>) -> Vec<f32> {
    let rows = xs.len() / linear.in_features();
    let len = linear.num_sums(device.facts(), rows) * rows * linear.out_features();
    let mut out = vec![f32::NAN; len];
    out.resize(len + GUARD, UNTOUCHED);
    let out = Array::from_slice(device, &out).unwrap();
    let xs = upload(device, linear.activations(), xs, linear.in_features());
    run(&**device, &matmul(linear, &xs, &out, rows).unwrap()).unwrap();
    let mut sums = out.read::<f32>().unwrap();
    assert!(sums[len..].iter().all(|value| *value == UNTOUCHED), "written past the output");
    sums.truncate(len);
    sums
}

/// The sums added up in their order, `[rows, out]`.
pub(crate) fn product(linear: &DeviceLinear, xs: &[f32], device: &Arc<dyn Device>) -> Vec<f32> {
    let sums = partial_sums(linear, xs, device);
    let len = xs.len() / linear.in_features() * linear.out_features();
    let mut splits = sums.chunks_exact(len);
    let mut total = splits.next().unwrap().to_vec();
    for split in splits {
        total.iter_mut().zip(split).for_each(|(total, sum)| *total += sum);
    }
    total
}
