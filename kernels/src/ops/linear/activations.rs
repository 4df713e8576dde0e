//! Activations as integers: per row and group of 32 values one scale, and signed bytes in one or two planes.

use rayon::prelude::*;

use super::ggml::GROUP_LEN;
use crate::{
    arch::CpuLevel,
    cpu::{Kernel, LANES, SharedSlice, Simd, dispatch},
};

/// How finely a quantised layer rounds its activations. Layers with f32 weights do not round them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ActivationBits {
    /// Signed 8-bit: about 0.4 % of the largest value of each 32.
    Int8,
    /// Signed 16-bit, in two planes of bytes: about 0.002 % of the largest value of each 32.
    #[default]
    Int16,
}

impl ActivationBits {
    /// Byte planes per value.
    pub(super) fn planes(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Int16 => 2,
        }
    }
}

/// Rows below which one thread quantises them all.
const PARALLEL_VALUES: usize = 1 << 15;
/// Magnitudes below this are rounded to zero: their inverse would not be a finite f32.
const SMALLEST: f32 = 1e-30;

/// Four integers, values 0 and 2, then 1 and 3: the order in which bytes of codes are widened.
pub(super) type QuadWords = [[i16; 2]; 2];

/// Quads of a group.
const QUADS: usize = GROUP_LEN / 4;

/// Quantised activations. The value is `scale * (256 * high + low)` with two planes, `scale * plane` with one.
#[derive(Debug)]
pub(super) struct Activations {
    groups: usize,
    planes: usize,
    /// `[rows, groups, planes, 32]`; the high plane comes first.
    bytes: Vec<i8>,
    /// The same as whole integers where the level multiplies those: `[rows, groups, 8]` quads, else empty.
    words: Vec<QuadWords>,
    /// `[rows, groups]`
    heads: Vec<GroupHead>,
}

/// What the integer kernel needs of one group besides its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GroupHead {
    /// Value of one integer step.
    pub(super) scale: f32,
    /// `scale * sum`, for weights with an offset.
    pub(super) scaled_sum: f32,
    /// Minus the integer sum of values 0..16 and 16..32, for weights around a zero code.
    pub(super) negative_sums: [i32; 2],
}

impl Activations {
    /// Quantises `xs`, `[rows, in_features]`, where `in_features` is a multiple of 32.
    pub(super) fn new(level: CpuLevel, xs: &[f32], in_features: usize, bits: ActivationBits) -> Self {
        let (groups, planes) = (in_features / GROUP_LEN, bits.planes());
        let rows = xs.len() / in_features;
        let mut bytes = vec![0; rows * groups * planes * GROUP_LEN];
        let mut heads = vec![GroupHead::default(); rows * groups];
        let is_wide = dispatch(level, IsWide);
        let mut words = vec![QuadWords::default(); if is_wide { rows * groups * QUADS } else { 0 }];
        let quantize = |xs: &[f32], bytes: &mut [i8], heads: &mut [GroupHead]| match bits {
            ActivationBits::Int8 => dispatch(level, Quantize::<1> { xs, bytes, heads }),
            ActivationBits::Int16 => dispatch(level, Quantize::<2> { xs, bytes, heads }),
        };
        let rows_per_task = match xs.len() < PARALLEL_VALUES {
            true => rows,
            false => (PARALLEL_VALUES / 4).div_ceil(in_features),
        };
        let row_words = if is_wide { groups * QUADS } else { 0 };
        let (shared, rows_in_all) = (SharedSlice::new(&mut words), rows);
        let task = |first: usize, xs: &[f32], bytes: &mut [i8], heads: &mut [GroupHead]| {
            quantize(xs, bytes, heads);
            if is_wide {
                let rows = xs.len() / in_features;
                assert!(first + rows <= rows_in_all, "tasks are parts of the rows");
                // SAFETY: every task has its own rows, which lie within the buffer.
                let words = unsafe { shared.part(first * row_words, rows * row_words) };
                widen(bytes, planes, words);
            }
        };
        if rows_per_task >= rows {
            task(0, xs, &mut bytes, &mut heads);
        } else {
            xs.par_chunks(rows_per_task * in_features)
                .zip(
                    bytes
                        .par_chunks_mut(rows_per_task * groups * planes * GROUP_LEN)
                        .zip(heads.par_chunks_mut(rows_per_task * groups)),
                )
                .enumerate()
                .for_each(|(index, (xs, (bytes, heads)))| task(index * rows_per_task, xs, bytes, heads));
        }
        Self { groups, planes, bytes, words, heads }
    }

    /// Integers of row `row`, `[groups, 8]` quads; empty unless the level multiplies whole integers.
    pub(super) fn words(&self, row: usize) -> &[QuadWords] {
        let len = self.groups * QUADS;
        self.words.get(row * len..(row + 1) * len).unwrap_or_default()
    }

    /// Bytes of row `row`, `[groups, planes, 32]`.
    pub(super) fn bytes(&self, row: usize) -> &[i8] {
        let len = self.groups * self.planes * GROUP_LEN;
        &self.bytes[row * len..(row + 1) * len]
    }

    /// Heads of row `row`, `[groups]`.
    pub(super) fn heads(&self, row: usize) -> &[GroupHead] {
        &self.heads[row * self.groups..(row + 1) * self.groups]
    }
}

/// Puts the planes of each group together.
fn widen(bytes: &[i8], planes: usize, words: &mut [QuadWords]) {
    let quads = words.as_chunks_mut::<QUADS>().0;
    for (bytes, quads) in bytes.chunks_exact(planes * GROUP_LEN).zip(quads) {
        let (first, last) = (&bytes[..GROUP_LEN], &bytes[(planes - 1) * GROUP_LEN..]);
        let value = |at: usize| match planes {
            1 => i16::from(last[at]),
            _ => 256 * i16::from(first[at]) + i16::from(last[at]),
        };
        for (quad, words) in quads.iter_mut().enumerate() {
            let at = 4 * quad;
            *words = [[value(at), value(at + 2)], [value(at + 1), value(at + 3)]];
        }
    }
}

/// Asks a level whether it multiplies whole integers.
struct IsWide;

impl Kernel for IsWide {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        S::WIDE
    }
}

struct Quantize<'a, const PLANES: usize> {
    xs: &'a [f32],
    bytes: &'a mut [i8],
    heads: &'a mut [GroupHead],
}

impl<const PLANES: usize> Kernel for Quantize<'_, PLANES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // The high plane of 32512 = 127 * 256 still fits in a signed byte.
        let steps = if PLANES == 1 { 127.0 } else { 32512.0 };
        let (vectors, _) = self.xs.as_chunks::<LANES>();
        let (groups, _) = vectors.as_chunks::<2>();
        let (bytes, _) = self.bytes.as_chunks_mut::<LANES>();
        for ((x, bytes), head) in groups.iter().zip(bytes.chunks_exact_mut(2 * PLANES)).zip(self.heads) {
            let x = [simd.load(&x[0]), simd.load(&x[1])];
            // Compared as integers, so that a NaN is the largest of all.
            let positive = simd.splat_int(i32::MAX);
            let magnitudes = [simd.and_int(simd.bits(x[0]), positive), simd.and_int(simd.bits(x[1]), positive)];
            let largest = simd.largest_int(simd.max_int(magnitudes[0], magnitudes[1]));
            let largest = f32::from_bits(largest as u32);
            let (scale, inverse) = if largest < SMALLEST {
                (0.0, 0.0)
            } else if largest.is_finite() {
                (largest / steps, steps / largest)
            } else {
                // Nothing sensible can be said of the row any more; NaN says so.
                (f32::NAN, 0.0)
            };
            let mut sums = [0; 2];
            for half in 0..2 {
                let finite = if scale.is_nan() { simd.splat(0.0) } else { x[half] };
                let codes = simd.round(simd.mul(finite, simd.splat(inverse)));
                sums[half] = simd.sum_int(codes);
                if PLANES == 1 {
                    simd.store_bytes(&mut bytes[half], codes);
                } else {
                    // low = signed low byte, high = what remains.
                    let low = simd.shr::<24>(simd.shl::<24>(codes));
                    simd.store_bytes(&mut bytes[half], simd.shr::<8>(simd.sub_int(codes, low)));
                    simd.store_bytes(&mut bytes[2 + half], low);
                }
            }
            let scaled_sum = scale * (sums[0] + sums[1]) as f32;
            *head = GroupHead { scale, scaled_sum, negative_sums: [-sums[0], -sums[1]] };
        }
    }
}
