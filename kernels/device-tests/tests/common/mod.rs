//! What the tests of several ops need: seeded numbers, 16-bit arrays, plans.

use std::sync::Arc;

use device_tests::{HostDevice, Order};
use half::{bf16, f16};
use kernels::{
    AttentionPlan, PlanRow,
    device::{Array, Device, ElementType, PartialSums},
};

pub(crate) const HALVES: [ElementType; 2] = [ElementType::F16, ElementType::BF16];
pub(crate) const ORDERS: [Order; 3] = [Order::Forward, Order::Backward, Order::Shuffled];

/// Says so and returns true where the kernels could not be compiled.
pub(crate) fn skipped() -> bool {
    if !device_tests::AVAILABLE {
        println!("skipped: no C++ compiler");
    }
    !device_tests::AVAILABLE
}

pub(crate) fn device(order: Order) -> Arc<dyn Device> {
    HostDevice::new(1 << 30, order)
}

/// Seeded numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Normal numbers, by Box and Muller.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (0..count)
            .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
            .collect()
    }

    /// `0..count` in some order.
    pub(crate) fn shuffled(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for at in (1..count).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }
}

/// `value` as the type holds it.
pub(crate) fn round(value: f32, element: ElementType) -> f32 {
    match element {
        ElementType::F16 => f16::from_f32(value).to_f32(),
        ElementType::BF16 => bf16::from_f32(value).to_f32(),
        other => panic!("{other} is no 16-bit type"),
    }
}

/// Largest relative error of rounding to the type.
pub(crate) fn rounding(element: ElementType) -> f64 {
    if element == ElementType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) }
}

/// A 16-bit array.
pub(crate) fn upload(device: &Arc<dyn Device>, values: &[f32], element: ElementType) -> Array {
    match element {
        ElementType::F16 => {
            Array::from_slice(device, &values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>()).unwrap()
        }
        ElementType::BF16 => {
            Array::from_slice(device, &values.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()).unwrap()
        }
        _ => Array::from_slice(device, values).unwrap(),
    }
}

pub(crate) fn download(array: &Array) -> Vec<f32> {
    match array.element() {
        ElementType::F16 => array.read::<f16>().unwrap().into_iter().map(f16::to_f32).collect(),
        ElementType::BF16 => array.read::<bf16>().unwrap().into_iter().map(bf16::to_f32).collect(),
        _ => array.read().unwrap(),
    }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Random partial sums on a device, and what they add up to in f64.
pub(crate) fn partials(
    device: &Arc<dyn Device>,
    random: &mut Random,
    (num_splits, rows, width): (usize, usize, usize),
    has_bias: bool,
) -> (PartialSums, Vec<f32>) {
    let sums = random.normal(num_splits * rows * width);
    let bias = if has_bias { random.normal(width) } else { vec![0.0; width] };
    let total = (0..rows * width)
        .map(|at| {
            let sum: f64 = (0..num_splits).map(|split| f64::from(sums[split * rows * width + at])).sum();
            (sum + f64::from(bias[at % width])) as f32
        })
        .collect();
    let bias = has_bias.then(|| Array::from_slice(device, &bias).unwrap());
    (PartialSums { sums: Array::from_slice(device, &sums).unwrap(), num_splits, bias }, total)
}

/// Refuses values that are further from the expected ones than twice what rounding to the type costs, plus what f32 costs
/// for sums of terms of size one.
#[track_caller]
pub(crate) fn assert_rounded(got: &[f32], expected: &[f32], element: ElementType, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let allowed = 2.0 * rounding(element) * f64::from(expected.abs()) + 4e-6;
        let error = (f64::from(got) - f64::from(expected)).abs();
        assert!(error <= allowed, "{what}[{at}]: {got} for {expected}");
    }
}

/// A plan whose table `t` has `lens[t]` positions in pages of `page_len`, shuffled among all of them.
pub(crate) fn plan(random: &mut Random, lens: &[usize], rows: Vec<PlanRow>, page_len: usize) -> (AttentionPlan, usize) {
    let counts: Vec<usize> = lens.iter().map(|len| len.div_ceil(page_len)).collect();
    let num_pages = counts.iter().sum::<usize>() + 1;
    let mut order = random.shuffled(num_pages).into_iter();
    let tables = counts.iter().map(|&count| order.by_ref().take(count).collect()).collect();
    (AttentionPlan::new(tables, rows, page_len).unwrap(), num_pages)
}

pub(crate) fn row(table: usize, position: usize, visible_end: usize) -> PlanRow {
    PlanRow { table, position, visible_end }
}
