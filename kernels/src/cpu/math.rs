//! Functions of sixteen lanes.

use super::Simd;

/// `e^x` to about one unit in the last place. Below -87.3 the result is 0 or tiny, above 88 it stays at `e^88`; NaN
/// stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few bits, so that `n` times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Taylor coefficients, 1/7! to 1/2!: the remainder at ln(2) / 2 is below 6e-9.
    const TERMS: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let x = simd.min(simd.splat(88.0), simd.max(simd.splat(-87.3), x));
    let n = simd.round(simd.mul(x, simd.splat(LOG2_E)));
    let n_float = simd.to_float(n);
    let r = simd.fma(n_float, simd.splat(-LN2_HIGH), x);
    let r = simd.fma(n_float, simd.splat(-LN2_LOW), r);
    let mut p = simd.splat(TERMS[0]);
    for term in &TERMS[1..] {
        p = simd.fma(p, r, simd.splat(*term));
    }
    let p = simd.fma(simd.mul(p, r), r, r);
    let p = simd.add(p, simd.splat(1.0));
    // 2^n by its exponent bits; n lies in -126..=127.
    let scale = simd.reinterpret(simd.shl::<23>(simd.add_int(n, simd.splat_int(127))));
    simd.mul(p, scale)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::F) -> S::F {
    let negative = simd.sub(simd.splat(0.0), x);
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, negative)))
}
