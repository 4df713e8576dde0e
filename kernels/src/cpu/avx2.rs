//! Sixteen lanes in two AVX2 registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};
use crate::arch::CpuLevel;

/// The level with AVX2, FMA and F16C. Only [`run`] makes one, after it has checked the CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Runs `kernel` compiled for this level.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }
    assert!(CpuLevel::Avx2.is_available(), "the CPU has AVX2, FMA and F16C");
    // SAFETY: the assertion above checked all the features.
    unsafe { compiled(kernel) }
}

/// Instructions that the token's existence proves to be there.
macro_rules! step {
    ($($body:tt)*) => {
        // SAFETY: an `Avx2` exists only after `run` checked the features; pointers come from references to arrays as
        // large as the access, and no instruction used here needs alignment.
        unsafe { $($body)* }
    };
}

/// Lowers sixteen lanes to eight by `$merge`, then to one.
macro_rules! halves {
    ($value:ident, $merge256:ident, $merge128:ident) => {{
        let eight = $merge256($value[0], $value[1]);
        let four = $merge128(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = $merge128(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($merge128(two, _mm_movehdup_ps(two)))
    }};
}

/// Lowers sixteen integer lanes to one.
macro_rules! halves_int {
    ($value:ident, $merge256:ident, $merge128:ident) => {{
        let eight = $merge256($value[0], $value[1]);
        let four = $merge128(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = $merge128(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        _mm_cvtsi128_si32($merge128(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
    }};
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type C = [__m256i; 2];
    /// Even and odd codes of each half.
    type W = [[__m256i; 2]; 2];
    // Bytes times bytes need two instructions to reach 32 bits, and codes from 128 on twice as many.
    const WIDE: bool = true;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        step!([_mm256_set1_ps(value); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        step!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], value: Self::F) {
        step!({
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        step!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        step!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn first(self, count: usize, value: Self::F, other: Self::F) -> Self::F {
        step!({
            let count = _mm256_set1_epi32(count.min(LANES) as i32);
            let low = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            [
                _mm256_blendv_ps(other[0], value[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other[1], value[1], _mm256_castsi256_ps(high)),
            ]
        })
    }
    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        step!(halves!(value, _mm256_add_ps, _mm_add_ps))
    }
    #[inline(always)]
    fn largest(self, value: Self::F) -> f32 {
        step!(halves!(value, _mm256_max_ps, _mm_max_ps))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        step!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8).cast())),
        ])
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F {
        step!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))),
            ]
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::F {
        step!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
            ]
        })
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        step!({
            let mut out = rows;
            // Four 8x8 squares; the two off the diagonal change places.
            for (top, left) in [(0, 0), (0, 1), (8, 0), (8, 1)] {
                let mut pairs = [_mm256_setzero_ps(); 8];
                for i in [0, 4] {
                    let (a, b) = (rows[top + i][left], rows[top + i + 1][left]);
                    let (c, d) = (rows[top + i + 2][left], rows[top + i + 3][left]);
                    let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                    pairs[i] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_low, cd_low);
                    pairs[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_low, cd_low);
                    pairs[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_high, cd_high);
                    pairs[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_high, cd_high);
                }
                for j in 0..4 {
                    out[8 * left + j][top / 8] = _mm256_permute2f128_ps::<0x20>(pairs[j], pairs[j + 4]);
                    out[8 * left + j + 4][top / 8] = _mm256_permute2f128_ps::<0x31>(pairs[j], pairs[j + 4]);
                }
            }
            out
        })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        step!([_mm256_set1_epi32(value); 2])
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn max_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!([_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self, value: Self::I) -> Self::I {
        step!({
            let bits = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sll_epi32(value[0], bits), _mm256_sll_epi32(value[1], bits)]
        })
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self, value: Self::I) -> Self::I {
        step!({
            let bits = _mm_cvtsi32_si128(BITS as i32);
            [_mm256_sra_epi32(value[0], bits), _mm256_sra_epi32(value[1], bits)]
        })
    }
    #[inline(always)]
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!([_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn sum_int(self, value: Self::I) -> i32 {
        step!(halves_int!(value, _mm256_add_epi32, _mm_add_epi32))
    }
    #[inline(always)]
    fn largest_int(self, value: Self::I) -> i32 {
        step!(halves_int!(value, _mm256_max_epi32, _mm_max_epi32))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [i8; LANES], value: Self::I) {
        step!({
            let mask = _mm256_set1_epi32(255);
            let (a, b) = (_mm256_and_si256(value[0], mask), _mm256_and_si256(value[1], mask));
            // Packing works within halves of a register; the permutation puts the lanes back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        })
    }
    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        step!([_mm256_cvtps_epi32(value[0]), _mm256_cvtps_epi32(value[1])])
    }
    #[inline(always)]
    fn to_float(self, value: Self::I) -> Self::F {
        step!([_mm256_cvtepi32_ps(value[0]), _mm256_cvtepi32_ps(value[1])])
    }
    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        step!([_mm256_castps_si256(value[0]), _mm256_castps_si256(value[1])])
    }
    #[inline(always)]
    fn reinterpret(self, value: Self::I) -> Self::F {
        step!([_mm256_castsi256_ps(value[0]), _mm256_castsi256_ps(value[1])])
    }

    #[inline(always)]
    fn load_codes(self, from: &[u8; 64]) -> Self::C {
        step!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())])
    }
    #[inline(always)]
    fn low_codes(self, codes: Self::C) -> Self::C {
        step!({
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(codes[0], mask), _mm256_and_si256(codes[1], mask)]
        })
    }
    #[inline(always)]
    fn high_codes(self, codes: Self::C) -> Self::C {
        step!({
            let mask = _mm256_set1_epi8(15);
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(codes[0]), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(codes[1]), mask),
            ]
        })
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, sum: Self::I, codes: Self::C, x: &[i8; 4]) -> Self::I {
        step!({
            let x = _mm256_set1_epi32(x.as_ptr().cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            let mut out = sum;
            for half in 0..2 {
                // Pair sums of `maddubs` saturate at 16 bits. Codes below 128 cannot reach that (2 * 127 * 128), nor
                // can the top bit alone (2 * 128 * 127 upwards, 2 * 128 * 128 = 32768 downwards).
                let top = _mm256_set1_epi8(i8::MIN);
                let small = if SMALL { codes[half] } else { _mm256_andnot_si256(top, codes[half]) };
                let pairs = _mm256_maddubs_epi16(small, x);
                out[half] = _mm256_add_epi32(out[half], _mm256_madd_epi16(pairs, ones));
                if !SMALL {
                    let pairs = _mm256_maddubs_epi16(_mm256_and_si256(top, codes[half]), x);
                    out[half] = _mm256_add_epi32(out[half], _mm256_madd_epi16(pairs, ones));
                }
            }
            out
        })
    }
    #[inline(always)]
    fn widen(self, codes: Self::C) -> Self::W {
        step!({
            let low = _mm256_set1_epi16(0xFF);
            [
                [_mm256_and_si256(codes[0], low), _mm256_srli_epi16::<8>(codes[0])],
                [_mm256_and_si256(codes[1], low), _mm256_srli_epi16::<8>(codes[1])],
            ]
        })
    }
    #[inline(always)]
    fn dot_wide(self, sum: Self::I, codes: Self::W, x: &[[i16; 2]; 2]) -> Self::I {
        step!({
            let even = _mm256_set1_epi32(x[0].as_ptr().cast::<i32>().read_unaligned());
            let odd = _mm256_set1_epi32(x[1].as_ptr().cast::<i32>().read_unaligned());
            let mut out = sum;
            for half in 0..2 {
                out[half] = _mm256_add_epi32(out[half], _mm256_madd_epi16(codes[half][0], even));
                out[half] = _mm256_add_epi32(out[half], _mm256_madd_epi16(codes[half][1], odd));
            }
            out
        })
    }
}
