//! Vectors of sixteen lanes on every CPU. A kernel is written once over [`Simd`] and compiled per level; all levels run
//! the same operations in the same order, so they give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
pub mod peak;
mod portable;
mod rows;
mod shared;

pub(crate) use rows::for_rows;
pub(crate) use shared::SharedSlice;

use crate::arch::CpuLevel;

/// Lanes per vector.
pub(crate) const LANES: usize = 16;

/// Proof that the CPU has a set of vector instructions, and those instructions. Every method is one step on sixteen
/// lanes and must be inlined into [`dispatch`]'s entry points to be worth anything.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Sixteen times four unsigned bytes.
    type C: Copy;
    /// Sixteen times four unsigned codes, widened.
    type W: Copy;
    /// Whether products of 16-bit integers beat those of bytes here.
    const WIDE: bool;
    /// The most activation rows that a tile of the linear kernels should hold in registers.
    const TILE_ROWS: usize;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, to: &mut [f32; LANES], value: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`: a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`: a NaN in `b` stays.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `value` in the lanes below `count`, `other` in the rest.
    fn first(self, count: usize, value: Self::F, other: Self::F) -> Self::F;
    /// Sum by halves: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, value: Self::F) -> f32;
    /// Largest lane; the lanes must not be NaN.
    fn largest(self, value: Self::F) -> f32;
    /// Sixteen f16, widened.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Sixteen unsigned bytes, widened.
    fn load_u8(self, from: &[u8; LANES]) -> Self::F;
    /// Sixteen signed bytes, widened.
    fn load_i8(self, from: &[u8; LANES]) -> Self::F;
    /// Row `i` becomes lane `i` of every row.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];

    fn splat_int(self, value: i32) -> Self::I;
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// Larger of the lanes, as signed integers.
    fn max_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl<const BITS: u32>(self, value: Self::I) -> Self::I;
    /// Arithmetic shift.
    fn shr<const BITS: u32>(self, value: Self::I) -> Self::I;
    fn and_int(self, a: Self::I, b: Self::I) -> Self::I;
    fn sum_int(self, value: Self::I) -> i32;
    fn largest_int(self, value: Self::I) -> i32;
    /// Low byte of each lane.
    fn store_bytes(self, to: &mut [i8; LANES], value: Self::I);
    /// Nearest integers, ties to even; lanes must be within i32.
    fn round(self, value: Self::F) -> Self::I;
    fn to_float(self, value: Self::I) -> Self::F;
    fn bits(self, value: Self::F) -> Self::I;
    fn reinterpret(self, value: Self::I) -> Self::F;

    fn load_codes(self, from: &[u8; 64]) -> Self::C;
    /// Low four bits of each byte.
    fn low_codes(self, codes: Self::C) -> Self::C;
    /// High four bits of each byte.
    fn high_codes(self, codes: Self::C) -> Self::C;
    /// Adds the product of each lane's four unsigned codes with the four signed bytes `x` to the lane; exact.
    /// `SMALL` promises codes below 128.
    fn dot<const SMALL: bool>(self, sum: Self::I, codes: Self::C, x: &[i8; 4]) -> Self::I;
    /// The codes as 16-bit integers.
    fn widen(self, codes: Self::C) -> Self::W;
    /// Adds the product of each lane's four codes with the four integers of `x` to the lane; exact while the sum is within
    /// i32. `x` holds values 0 and 2, then 1 and 3.
    fn dot_wide(self, sum: Self::I, codes: Self::W, x: &[[i16; 2]; 2]) -> Self::I;
}

/// A computation that runs on any level.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Must be `#[inline(always)]`, so that it is compiled with the instructions of the level.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` on `level`.
///
/// # Panics
/// If the machine lacks the level, which [`CpuLevel::current`] never returns.
pub(crate) fn dispatch<K: Kernel>(level: CpuLevel, kernel: K) -> K::Output {
    match level {
        CpuLevel::Portable => kernel.run(portable::Portable),
        #[cfg(target_arch = "x86_64")]
        CpuLevel::Avx2 => avx2::run(kernel),
        #[cfg(target_arch = "x86_64")]
        CpuLevel::Avx512 => avx512::run(kernel),
        #[cfg(not(target_arch = "x86_64"))]
        CpuLevel::Avx2 | CpuLevel::Avx512 => kernel.run(portable::Portable),
    }
}
