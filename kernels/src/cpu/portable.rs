//! Sixteen lanes as arrays, for the compiler to vectorise.

use half::f16;

use super::{LANES, Simd};

/// The level without assumptions. `fma` is a library call where the build target has no such instruction: slow, but the
/// result is the same everywhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

macro_rules! halves {
    ($value:ident, |$a:ident, $b:ident| $merge:expr) => {{
        let mut lanes = $value;
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                let ($a, $b) = (lanes[lane], lanes[lane + width]);
                lanes[lane] = $merge;
            }
        }
        lanes[0]
    }};
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type C = [u8; 64];
    type W = [u8; 64];
    const WIDE: bool = false;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], value: Self::F) {
        *to = value;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes!(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn first(self, count: usize, value: Self::F, other: Self::F) -> Self::F {
        lanes!(|i| if i < count { value[i] } else { other[i] })
    }
    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        halves!(value, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, value: Self::F) -> f32 {
        halves!(value, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        lanes!(|i| f16::from_bits(from[i]).to_f32())
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F {
        lanes!(|i| f32::from(from[i]))
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::F {
        lanes!(|i| f32::from(from[i] as i8))
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = [[0.0; LANES]; LANES];
        for (r, row) in rows.iter().enumerate() {
            for (c, &value) in row.iter().enumerate() {
                out[c][r] = value;
            }
        }
        out
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        [value; LANES]
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn max_int(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self, value: Self::I) -> Self::I {
        lanes!(|i| value[i] << BITS)
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self, value: Self::I) -> Self::I {
        lanes!(|i| value[i] >> BITS)
    }
    #[inline(always)]
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn sum_int(self, value: Self::I) -> i32 {
        halves!(value, |a, b| a.wrapping_add(b))
    }
    #[inline(always)]
    fn largest_int(self, value: Self::I) -> i32 {
        halves!(value, |a, b| a.max(b))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [i8; LANES], value: Self::I) {
        *to = lanes!(|i| value[i] as i8);
    }
    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        lanes!(|i| value[i].round_ties_even() as i32)
    }
    #[inline(always)]
    fn to_float(self, value: Self::I) -> Self::F {
        lanes!(|i| value[i] as f32)
    }
    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        lanes!(|i| value[i].to_bits() as i32)
    }
    #[inline(always)]
    fn reinterpret(self, value: Self::I) -> Self::F {
        lanes!(|i| f32::from_bits(value[i] as u32))
    }

    #[inline(always)]
    fn load_codes(self, from: &[u8; 64]) -> Self::C {
        *from
    }
    #[inline(always)]
    fn low_codes(self, codes: Self::C) -> Self::C {
        let mut out = codes;
        for code in &mut out {
            *code &= 15;
        }
        out
    }
    #[inline(always)]
    fn high_codes(self, codes: Self::C) -> Self::C {
        let mut out = codes;
        for code in &mut out {
            *code >>= 4;
        }
        out
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, sum: Self::I, codes: Self::C, x: &[i8; 4]) -> Self::I {
        let x = [i32::from(x[0]), i32::from(x[1]), i32::from(x[2]), i32::from(x[3])];
        lanes!(|i| {
            let w = [codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]];
            sum[i] + i32::from(w[0]) * x[0] + i32::from(w[1]) * x[1] + i32::from(w[2]) * x[2] + i32::from(w[3]) * x[3]
        })
    }
    #[inline(always)]
    fn widen(self, codes: Self::C) -> Self::W {
        codes
    }
    #[inline(always)]
    fn dot_wide(self, sum: Self::I, codes: Self::W, x: &[[i16; 2]; 2]) -> Self::I {
        let x = [i32::from(x[0][0]), i32::from(x[1][0]), i32::from(x[0][1]), i32::from(x[1][1])];
        lanes!(|i| {
            let w = [codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]];
            sum[i] + i32::from(w[0]) * x[0] + i32::from(w[1]) * x[1] + i32::from(w[2]) * x[2] + i32::from(w[3]) * x[3]
        })
    }
}
