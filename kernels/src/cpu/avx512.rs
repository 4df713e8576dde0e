//! Sixteen lanes in one AVX-512 register, byte products by VNNI.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};
use crate::arch::CpuLevel;

/// The level with AVX-512 and VNNI. Only [`run`] makes one, after it has checked the CPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

/// Runs `kernel` compiled for this level.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn compiled<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }
    assert!(CpuLevel::Avx512.is_available(), "the CPU has AVX-512 and VNNI");
    // SAFETY: the assertion above checked all the features.
    unsafe { compiled(kernel) }
}

/// Instructions that the token's existence proves to be there.
macro_rules! step {
    ($($body:tt)*) => {
        // SAFETY: an `Avx512` exists only after `run` checked the features; pointers come from references to arrays
        // as large as the access, and no instruction used here needs alignment.
        unsafe { $($body)* }
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type C = __m512i;
    /// Even and odd codes.
    type W = [__m512i; 2];
    const WIDE: bool = false;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        step!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        step!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], value: Self::F) {
        step!(_mm512_storeu_ps(to.as_mut_ptr(), value))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        step!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        step!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn first(self, count: usize, value: Self::F, other: Self::F) -> Self::F {
        let mask = if count >= LANES { u16::MAX } else { (1 << count) - 1 };
        step!(_mm512_mask_blend_ps(mask, other, value))
    }
    #[inline(always)]
    fn sum(self, value: Self::F) -> f32 {
        step!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn largest(self, value: Self::F) -> f32 {
        step!(_mm512_reduce_max_ps(value))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        step!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F {
        step!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::F {
        step!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        step!({
            let mut pairs = rows;
            for i in (0..LANES).step_by(4) {
                let ab = (_mm512_unpacklo_ps(rows[i], rows[i + 1]), _mm512_unpackhi_ps(rows[i], rows[i + 1]));
                let cd = (_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]), _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
                // Lane group g of `pairs[i + j]` holds column 4 g + j of rows i..i + 4.
                pairs[i] = _mm512_shuffle_ps::<0b01_00_01_00>(ab.0, cd.0);
                pairs[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(ab.0, cd.0);
                pairs[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(ab.1, cd.1);
                pairs[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(ab.1, cd.1);
            }
            let mut out = rows;
            for j in 0..4 {
                let (a, b, c, d) = (pairs[j], pairs[j + 4], pairs[j + 8], pairs[j + 12]);
                let (ab02, ab13) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (cd02, cd13) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                out[j] = _mm512_shuffle_f32x4::<0x88>(ab02, cd02);
                out[j + 4] = _mm512_shuffle_f32x4::<0x88>(ab13, cd13);
                out[j + 8] = _mm512_shuffle_f32x4::<0xdd>(ab02, cd02);
                out[j + 12] = _mm512_shuffle_f32x4::<0xdd>(ab13, cd13);
            }
            out
        })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::I {
        step!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn max_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self, value: Self::I) -> Self::I {
        step!(_mm512_slli_epi32::<BITS>(value))
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self, value: Self::I) -> Self::I {
        step!(_mm512_srai_epi32::<BITS>(value))
    }
    #[inline(always)]
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I {
        step!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn sum_int(self, value: Self::I) -> i32 {
        step!(_mm512_reduce_add_epi32(value))
    }
    #[inline(always)]
    fn largest_int(self, value: Self::I) -> i32 {
        step!(_mm512_reduce_max_epi32(value))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [i8; LANES], value: Self::I) {
        step!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(value)))
    }
    #[inline(always)]
    fn round(self, value: Self::F) -> Self::I {
        step!(_mm512_cvtps_epi32(value))
    }
    #[inline(always)]
    fn to_float(self, value: Self::I) -> Self::F {
        step!(_mm512_cvtepi32_ps(value))
    }
    #[inline(always)]
    fn bits(self, value: Self::F) -> Self::I {
        step!(_mm512_castps_si512(value))
    }
    #[inline(always)]
    fn reinterpret(self, value: Self::I) -> Self::F {
        step!(_mm512_castsi512_ps(value))
    }

    #[inline(always)]
    fn load_codes(self, from: &[u8; 64]) -> Self::C {
        step!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn low_codes(self, codes: Self::C) -> Self::C {
        step!(_mm512_and_si512(codes, _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn high_codes(self, codes: Self::C) -> Self::C {
        step!(_mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15)))
    }
    #[inline(always)]
    fn dot<const SMALL: bool>(self, sum: Self::I, codes: Self::C, x: &[i8; 4]) -> Self::I {
        step!(_mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x.as_ptr().cast::<i32>().read_unaligned())))
    }
    #[inline(always)]
    fn widen(self, codes: Self::C) -> Self::W {
        step!([_mm512_and_si512(codes, _mm512_set1_epi16(0xFF)), _mm512_srli_epi16::<8>(codes)])
    }
    #[inline(always)]
    fn dot_wide(self, sum: Self::I, codes: Self::W, x: &[[i16; 2]; 2]) -> Self::I {
        step!({
            let even = _mm512_set1_epi32(x[0].as_ptr().cast::<i32>().read_unaligned());
            let odd = _mm512_set1_epi32(x[1].as_ptr().cast::<i32>().read_unaligned());
            let sum = _mm512_add_epi32(sum, _mm512_madd_epi16(codes[0], even));
            _mm512_add_epi32(sum, _mm512_madd_epi16(codes[1], odd))
        })
    }
}
