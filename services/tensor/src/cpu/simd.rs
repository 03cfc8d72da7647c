//! Sixteen lanes of f32 on every instruction set.
//!
//! A kernel is written once, over [`Simd`], as a [`Kernel`]. [`dispatch`] runs it with the lanes of the
//! instruction set at hand: [`Scalar`](scalar::Scalar), plain Rust arrays, is the specification of every
//! lane operation, and the vector sets do the same IEEE operations, so they give the same bits.
//!
//! All lane operations and kernel bodies are `#[inline(always)]`: so they end up inside the one function per
//! instruction set below that is compiled with its target features. A token of an instruction set exists only
//! where the processor has it, which is what makes its safe methods sound.
#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use half::bf16;

use crate::cpu::isa::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

/// Lanes of every vector.
pub const LANES: usize = 16;

/// A pair of factors for [`Simd::dot`], as [`Simd::pair`] made it.
pub type Pair = [f32; 2];

/// Work that can be done with any instruction set.
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Does it; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A token of an instruction set, and its operations on sixteen lanes.
pub trait Simd: Copy + Send + Sync {
    /// Sixteen f32.
    type F32: Copy;
    /// Sixteen f64.
    type F64: Copy;
    /// Sixteen pairs of bf16, one per 32-bit word.
    type Pairs: Copy;

    /// Rows of a register tile: with 4 there are registers for 4 vectors each, with 2 for 2.
    const ROWS: usize;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::F32;
    /// a + b.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a − b.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a · b.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a / b.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// a where a > b, else b.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// x where a < b, else y.
    fn where_less(self, ab: [Self::F32; 2], x: Self::F32, y: Self::F32) -> Self::F32;
    /// x where a is NaN, else y.
    fn where_nan(self, a: Self::F32, x: Self::F32, y: Self::F32) -> Self::F32;
    /// The first `n` lanes of `v`, `fill` in the others.
    fn first(self, n: usize, v: Self::F32, fill: Self::F32) -> Self::F32;
    /// p · 2ⁿ for normal p and results, n being the lowest bits of `t`: what adding 1.5 · 2²³ to it leaves.
    fn scale_by_bits(self, p: Self::F32, t: Self::F32) -> Self::F32;
    /// A bit per lane, lane 0 lowest: a > b.
    fn greater(self, a: Self::F32, b: Self::F32) -> u16;
    /// A bit per lane, lane 0 lowest: NaN.
    fn nan(self, v: Self::F32) -> u16;
    /// A bit per lane, lane 0 lowest: neither NaN nor infinite.
    fn finite(self, v: Self::F32) -> u16;
    /// The greatest lane; of no use if one is NaN.
    fn reduce_max(self, v: Self::F32) -> f32;
    /// The sum of all lanes in the order (i, i+8), (i, i+4), (i, i+2), (i, i+1).
    fn reduce_add(self, v: Self::F32) -> f32;

    /// Elements `at..at + 16` of `x`, zero beyond its end.
    fn load_f32(self, x: &[f32], at: usize) -> Self::F32;
    /// The same, widened.
    fn load_bf16(self, x: &[bf16], at: usize) -> Self::F32;
    /// Stores lanes as elements `at..at + 16` of `x`, nothing beyond its end.
    fn store_f32(self, v: Self::F32, x: &mut [f32], at: usize);
    /// The same, rounded as [`crate::cpu::bf16::round`] does.
    fn store_bf16(self, v: Self::F32, x: &mut [bf16], at: usize);
    /// Lanes rounded to bf16 and widened again.
    fn round_bf16(self, v: Self::F32) -> Self::F32;

    /// Sixteen pairs of bf16.
    ///
    /// # Safety
    /// `from` must be readable for 64 bytes.
    unsafe fn load_pairs(self, from: *const bf16) -> Self::Pairs;
    /// Sixteen f32.
    ///
    /// # Safety
    /// `from` must be readable for 64 bytes.
    unsafe fn load_ptr(self, from: *const f32) -> Self::F32;
    /// Stores bf16 values as the upper and lower elements of sixteen pairs.
    fn store_pairs(self, upper: Self::F32, lower: Self::F32, to: &mut [bf16; 2 * LANES]);
    /// The upper element of every pair.
    fn upper(self, pairs: Self::Pairs) -> Self::F32;
    /// The lower element of every pair.
    fn lower(self, pairs: Self::Pairs) -> Self::F32;
    /// Factors for [`Simd::dot`]: both must be bf16 values.
    fn pair(self, upper: f32, lower: f32) -> Pair;
    /// acc + upper product, rounded, + lower product, rounded. (With AVX-512 BF16 denormals count as zero.)
    fn dot(self, acc: Self::F32, x: &Pair, pairs: Self::Pairs) -> Self::F32;
    /// Asks the second-level cache for the line at `address`, which may be any.
    fn prefetch<T>(self, address: *const T);

    /// Elements `at..at + 16` of `x` as f64, `fill` beyond its end.
    fn load_f64(self, x: &[f32], at: usize, fill: f64) -> Self::F64;
    /// `x` in all lanes.
    fn splat_f64(self, x: f64) -> Self::F64;
    /// All lanes.
    fn to_array_f64(self, v: Self::F64) -> [f64; LANES];
    /// a + b.
    fn add_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a − b.
    fn sub_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a / b.
    fn div_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a · b + c, rounded once.
    fn fma_f64(self, a: Self::F64, b: Self::F64, c: Self::F64) -> Self::F64;
    /// x where a < b, else y.
    fn where_less_f64(self, ab: [Self::F64; 2], x: Self::F64, y: Self::F64) -> Self::F64;
    /// p · 2ⁿ for normal p and results, n being the lowest bits of `t`: what adding 1.5 · 2⁵² to it leaves.
    fn scale_by_bits_f64(self, p: Self::F64, t: Self::F64) -> Self::F64;
}

/// Runs `kernel` with the lanes of `isa`, which the processor must have.
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a device is only made with an instruction set that the processor has.
        Isa::Avx512Bf16 => unsafe { avx512::run_bf16(kernel) },
        _ => dispatch_f32(isa, kernel),
    }
}

/// The same for kernels that know nothing of bf16: they are not compiled for its instructions once more.
pub fn dispatch_f32<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available());
    match isa {
        Isa::Scalar => kernel.run(scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a device is only made with an instruction set that the processor has.
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { avx512::run(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run(scalar::Scalar),
    }
}

#[cfg(test)]
mod tests;
