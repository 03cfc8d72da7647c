//! exp, the same bits on every path: only IEEE operations and fused multiply-adds.
//!
//! x = n·ln 2 + r with n the nearest integer, e^r by a polynomial of degree 6 (11 in f64) that interpolates
//! at Chebyshev nodes of |r| ≤ ln 2 / 2, and 2ⁿ by adding n to the exponent's bits. Within the given range
//! neither the polynomial's value nor the result leaves the normal numbers.

use super::simd::Simd;

/// Below this exp gives +0: near the smallest normal number.
pub const LOW: f32 = -87.33;

/// Above this exp gives +∞.
pub const HIGH: f32 = 88.72;

/// Below this the f64 exp gives +0.
pub const LOW_F64: f64 = -708.0;

/// exp of every lane: NaN stays as it is. Error below 1 unit in the last place.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.where_less([s.splat(HIGH), x], s.splat(f32::INFINITY), exp_to_high(s, x))
}

/// The same bits for x up to [`HIGH`] and for NaN, in fewer operations.
#[inline(always)]
pub fn exp_to_high<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let magic = s.splat(12_582_912.0);
    let t = s.fma(x, s.splat(std::f32::consts::LOG2_E), magic);
    let n = s.sub(t, magic);
    let r = s.fma(n, s.splat(-std::f32::consts::LN_2), x);
    let r = s.fma(n, s.splat(1.904_654_2e-9), r);
    let p = s.fma(s.splat(f32::from_bits(0x3ab6_88ff)), r, s.splat(f32::from_bits(0x3c09_0631)));
    let p = s.fma(p, r, s.splat(f32::from_bits(0x3d2a_aa8c)));
    let p = s.fma(p, r, s.splat(f32::from_bits(0x3e2a_aa6e)));
    let p = s.fma(p, r, s.splat(0.5));
    let p = s.fma(p, r, s.splat(1.0));
    let p = s.fma(p, r, s.splat(1.0));
    let y = s.scale_by_bits(p, t);
    let y = s.where_less([x, s.splat(LOW)], s.splat(0.0), y);
    s.where_nan(x, x, y)
}

/// exp of every lane, for x ≤ 0 (NaN gives some NaN).
#[inline(always)]
pub fn exp_f64<S: Simd>(s: S, x: S::F64) -> S::F64 {
    let magic = s.splat_f64(6_755_399_441_055_744.0);
    let t = s.fma_f64(x, s.splat_f64(std::f64::consts::LOG2_E), magic);
    let n = s.sub_f64(t, magic);
    let r = s.fma_f64(n, s.splat_f64(-std::f64::consts::LN_2), x);
    let r = s.fma_f64(n, s.splat_f64(-2.319_046_813_846_3e-17), r);
    let mut p = s.splat_f64(2.510_056_927_581_368_3e-8);
    for c in [
        2.762_032_742_826_824e-7,
        2.755_726_807_289_01e-6,
        2.480_152_079_257_269_4e-5,
        1.984_126_986_330_322_3e-4,
        1.388_888_891_753_829_6e-3,
        8.333_333_333_330_011e-3,
        4.166_666_666_662_348e-2,
        1.666_666_666_666_666_9e-1,
        5.000_000_000_000_001e-1,
        1.0,
        1.0,
    ] {
        p = s.fma_f64(p, r, s.splat_f64(c));
    }
    let y = s.scale_by_bits_f64(p, t);
    s.where_less_f64([x, s.splat_f64(LOW_F64)], s.splat_f64(0.0), y)
}

#[cfg(test)]
mod tests;
