//! The highest rates of the instructions that the kernels consist of: what the speed of a kernel is compared with.

use std::hint::black_box;

use super::{Kernel, LANES, Simd, dispatch};
use crate::arch::CpuLevel;

/// Products of one kind, with their sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// f32, by fused multiply-add.
    F32,
    /// Codes with activations of 8 bits, by the integer products that quantised layers use on this machine.
    Int8,
    /// Codes with activations of 16 bits, likewise.
    Int16,
}

/// What [`multiply`] has done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiplied {
    /// Multiplications and additions, each counted as one.
    pub operations: u64,
    /// Sum of all products.
    pub sum: f64,
}

/// Weights or codes that pass by; they stay in the first-level cache.
const STEPS: usize = 64;
/// Most rows whose sums are in registers.
const MAX_ROWS: usize = 12;
/// Passes over the operands before sums of integers are taken out: they must not overflow.
const PASSES: usize = 16;

/// Operands of all kinds, so that one loop can be had of each.
struct Operands {
    weights: [[f32; LANES]; STEPS],
    codes: [[u8; 4 * LANES]; STEPS],
    xs: [f32; MAX_ROWS],
    /// The low and the high bytes of activations.
    quads: [[[i8; 4]; 2]; MAX_ROWS],
    /// The low bytes alone, and whole activations, as integers.
    words: [[[[i16; 2]; 2]; MAX_ROWS]; 2],
}

impl Operands {
    /// Small numbers of both signs that differ from one another.
    fn new() -> Self {
        let number = |at: usize, most: usize| ((at * 2_654_435_761) >> 7) % (2 * most + 1);
        let signed = |at: usize, most: usize| number(at, most) as i32 - most as i32;
        let quad = |first: usize, most: usize| std::array::from_fn(|at| signed(first + at, most) as i8);
        let quads = std::array::from_fn(|r| [quad(8 * r + 1, 100), quad(8 * r + 5, 8)]);
        Self {
            weights: std::array::from_fn(|s| std::array::from_fn(|lane| signed(s * LANES + lane, 8) as f32)),
            codes: std::array::from_fn(|s| std::array::from_fn(|at| number(s * 64 + at, 7) as u8)),
            xs: std::array::from_fn(|r| signed(r + 1, 8) as f32),
            quads,
            words: [1, 2].map(|num_planes| {
                let word = |[low, high]: [[i8; 4]; 2], at: usize| {
                    i16::from(low[at]) + if num_planes == 2 { 256 * i16::from(high[at]) } else { 0 }
                };
                quads.map(|quad| [[0, 2], [1, 3]].map(|pair| pair.map(|at| word(quad, at))))
            }),
        }
    }
}

/// Multiplies and adds from registers for `rounds` rounds on this thread, at the level of this machine
/// ([`CpuLevel::current`]).
pub fn multiply(products: Products, rounds: usize) -> Multiplied {
    dispatch(CpuLevel::current(), Loop { products, rounds, operands: &black_box(Operands::new()) })
}

struct Loop<'a> {
    products: Products,
    rounds: usize,
    operands: &'a Operands,
}

impl Kernel for Loop<'_> {
    type Output = Multiplied;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Multiplied {
        // As many sums as hide the latency of an addition and leave registers for the operands.
        if S::TILE_ROWS >= 8 { self.rows::<S, MAX_ROWS, { MAX_ROWS / 2 }>(simd) } else { self.rows::<S, 5, 3>(simd) }
    }
}

impl Loop<'_> {
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize, const FEWER: usize>(&self, simd: S) -> Multiplied {
        let (per_lane, mut sum) = (if self.products == Products::F32 { 1 } else { 4 }, 0.0);
        for _ in 0..self.rounds {
            sum += match (self.products, S::WIDE) {
                (Products::F32, _) => self.floats::<S, ROWS>(simd),
                (Products::Int8, true) => self.words::<S, ROWS>(simd, 0),
                (Products::Int16, true) => self.words::<S, ROWS>(simd, 1),
                (Products::Int8, false) => self.bytes::<S, ROWS, 1>(simd),
                // A row has two sums here.
                (Products::Int16, false) => self.bytes::<S, FEWER, 2>(simd),
            };
        }
        let rows = if self.products == Products::Int16 && !S::WIDE { FEWER } else { ROWS };
        let products = self.rounds * PASSES * STEPS * rows * LANES * per_lane;
        Multiplied { operations: 2 * products as u64, sum }
    }

    #[inline(always)]
    fn floats<S: Simd, const ROWS: usize>(&self, simd: S) -> f64 {
        let mut sums = [simd.splat(0.0); ROWS];
        for _ in 0..PASSES {
            for weight in &self.operands.weights {
                let weight = simd.load(weight);
                for (sum, x) in sums.iter_mut().zip(&self.operands.xs) {
                    *sum = simd.fma(weight, simd.splat(*x), *sum);
                }
            }
        }
        sums.into_iter().map(|sum| f64::from(simd.sum(sum))).sum()
    }

    #[inline(always)]
    fn bytes<S: Simd, const ROWS: usize, const PLANES: usize>(&self, simd: S) -> f64 {
        let mut sums = [[simd.splat_int(0); PLANES]; ROWS];
        for _ in 0..PASSES {
            for codes in &self.operands.codes {
                let codes = simd.load_codes(codes);
                for (sums, quads) in sums.iter_mut().zip(&self.operands.quads) {
                    for (sum, quad) in sums.iter_mut().zip(quads) {
                        *sum = simd.dot::<true>(*sum, codes, quad);
                    }
                }
            }
        }
        let value = |sums: [S::I; PLANES]| {
            sums.into_iter().zip([1.0, 256.0]).map(|(sum, unit)| f64::from(simd.sum_int(sum)) * unit).sum::<f64>()
        };
        sums.into_iter().map(value).sum()
    }

    #[inline(always)]
    fn words<S: Simd, const ROWS: usize>(&self, simd: S, kind: usize) -> f64 {
        let mut sums = [simd.splat_int(0); ROWS];
        for _ in 0..PASSES {
            for codes in &self.operands.codes {
                let codes = simd.widen(simd.load_codes(codes));
                for (sum, words) in sums.iter_mut().zip(&self.operands.words[kind]) {
                    *sum = simd.dot_wide(*sum, codes, words);
                }
            }
        }
        sums.into_iter().map(|sum| f64::from(simd.sum_int(sum))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers, so that every level has the same sum.
    #[test]
    fn as_many_products_are_summed_as_are_counted() {
        let Operands { weights, codes, xs, quads, .. } = Operands::new();
        for level in CpuLevel::available() {
            let (rows, rows_of_two) = match level {
                CpuLevel::Portable => (5, 3),
                CpuLevel::Avx2 => (5, 5),
                CpuLevel::Avx512 => (MAX_ROWS, MAX_ROWS / 2),
            };
            let weight: f32 = weights.iter().flatten().sum();
            let floats = f64::from(weight) * f64::from(xs[..rows].iter().sum::<f32>());
            let integers = |rows: usize, value: &dyn Fn([i8; 2]) -> i64| -> f64 {
                let all = codes.iter().flat_map(|codes| codes.iter().enumerate());
                let of_code = |(at, &code): (usize, &u8)| {
                    let of_row = |[low, high]: &[[i8; 4]; 2]| i64::from(code) * value([low[at % 4], high[at % 4]]);
                    quads[..rows].iter().map(of_row).sum::<i64>()
                };
                all.map(of_code).sum::<i64>() as f64
            };
            let low = integers(rows, &|[low, _]| i64::from(low));
            let both = integers(rows_of_two, &|[low, high]| i64::from(low) + 256 * i64::from(high));
            let lanes = |rows: usize| 2 * 3 * (PASSES * STEPS * rows * LANES) as u64;
            for (products, sum, operations) in [
                (Products::F32, floats, lanes(rows)),
                (Products::Int8, low, 4 * lanes(rows)),
                (Products::Int16, both, 4 * lanes(rows_of_two)),
            ] {
                let done = level.scope(|| multiply(products, 3)).unwrap();
                assert_ne!(sum, 0.0);
                assert_eq!(done, Multiplied { operations, sum: sum * 3.0 * PASSES as f64 }, "{level} {products:?}");
            }
        }
    }
}
