//! AVX2 with FMA: a vector is two registers, an f64 vector four.
#![allow(unsafe_code, reason = "calls vector instructions")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "all for one reason: the token exists only where the processor has the instructions, and a load \
              or store lies within its slice by the condition above it"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, LANES, Pair, Simd};

/// Token of AVX2.
#[derive(Clone, Copy)]
pub struct Avx2(());

type V = [__m256; 2];
type V64 = [__m256d; 4];

/// Runs `kernel` with AVX2.
///
/// # Safety
/// The processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// One operation on both registers.
macro_rules! both {
    ($op:ident, $($v:expr),+) => {
        unsafe { [$op($($v[0]),+), $op($($v[1]),+)] }
    };
}

/// One operation on all four registers.
macro_rules! all {
    ($op:ident, $($v:expr),+) => {
        unsafe { [$op($($v[0]),+), $op($($v[1]),+), $op($($v[2]),+), $op($($v[3]),+)] }
    };
}

/// A bit per lane, set where a lane's sign is.
#[inline(always)]
fn signs(v: V) -> u16 {
    unsafe { (_mm256_movemask_ps(v[0]) | _mm256_movemask_ps(v[1]) << 8) as u16 }
}

/// Words whose lower halves are `v` rounded to bf16.
#[inline(always)]
fn rounded(v: __m256) -> __m256i {
    unsafe {
        let bits = _mm256_castps_si256(v);
        let high = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let nearest = _mm256_srli_epi32::<16>(up);
        let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
        let small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        let zero = _mm256_and_si256(high, _mm256_set1_epi32(0x8000));
        let nearest = _mm256_blendv_epi8(nearest, zero, small);
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(nearest, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan)
    }
}

#[inline(always)]
fn scaled(p: __m256, t: __m256) -> __m256 {
    unsafe {
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent))
    }
}

#[inline(always)]
fn scaled_f64(p: __m256d, t: __m256d) -> __m256d {
    unsafe {
        let exponent = _mm256_slli_epi64::<52>(_mm256_castpd_si256(t));
        _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(p), exponent))
    }
}

#[inline(always)]
fn not_finite(v: __m256) -> __m256 {
    unsafe {
        let full = _mm256_set1_epi32(0x7f80_0000);
        let exponent = _mm256_and_si256(_mm256_castps_si256(v), full);
        _mm256_castsi256_ps(_mm256_cmpeq_epi32(exponent, full))
    }
}

#[inline(always)]
fn shifted(v: __m256i) -> __m256 {
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)) }
}

impl Simd for Avx2 {
    type F32 = V;
    type F64 = V64;
    type Pairs = [__m256i; 2];

    const ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [unsafe { _mm256_set1_ps(x) }; 2]
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn where_less(self, [a, b]: [V; 2], x: V, y: V) -> V {
        let less =
            unsafe { [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])] };
        both!(_mm256_blendv_ps, y, x, less)
    }

    #[inline(always)]
    fn where_nan(self, a: V, x: V, y: V) -> V {
        let nan =
            unsafe { [_mm256_cmp_ps::<_CMP_UNORD_Q>(a[0], a[0]), _mm256_cmp_ps::<_CMP_UNORD_Q>(a[1], a[1])] };
        both!(_mm256_blendv_ps, y, x, nan)
    }

    #[inline(always)]
    fn first(self, n: usize, v: V, fill: V) -> V {
        let keep = unsafe {
            let n = _mm256_set1_epi32(n.min(LANES) as i32);
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let upper = _mm256_add_epi32(lanes, _mm256_set1_epi32(8));
            [
                _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, lanes)),
                _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, upper)),
            ]
        };
        both!(_mm256_blendv_ps, fill, v, keep)
    }

    #[inline(always)]
    fn scale_by_bits(self, p: V, t: V) -> V {
        [scaled(p[0], t[0]), scaled(p[1], t[1])]
    }

    #[inline(always)]
    fn greater(self, a: V, b: V) -> u16 {
        signs(unsafe { [_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])] })
    }

    #[inline(always)]
    fn nan(self, v: V) -> u16 {
        signs(unsafe {
            [_mm256_cmp_ps::<_CMP_UNORD_Q>(v[0], v[0]), _mm256_cmp_ps::<_CMP_UNORD_Q>(v[1], v[1])]
        })
    }

    #[inline(always)]
    fn finite(self, v: V) -> u16 {
        !signs([not_finite(v[0]), not_finite(v[1])])
    }

    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        unsafe {
            let v8 = _mm256_max_ps(v[0], v[1]);
            let v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)))
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: V) -> f32 {
        unsafe {
            let v8 = _mm256_add_ps(v[0], v[1]);
            let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
        }
    }

    #[inline(always)]
    fn load_f32(self, x: &[f32], at: usize) -> V {
        let x = &x[at..];
        if x.len() >= LANES {
            unsafe { self.load_ptr(x.as_ptr()) }
        } else {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            unsafe { self.load_ptr(lanes.as_ptr()) }
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16], at: usize) -> V {
        let x = &x[at..];
        let mut lanes = [bf16::ZERO; LANES];
        let from = if x.len() >= LANES {
            x.as_ptr()
        } else {
            lanes[..x.len()].copy_from_slice(x);
            lanes.as_ptr()
        };
        unsafe {
            let v = _mm256_loadu_si256(from.cast());
            [
                shifted(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v))),
                shifted(_mm256_cvtepu16_epi32(_mm256_extracti128_si256::<1>(v))),
            ]
        }
    }

    #[inline(always)]
    fn store_f32(self, v: V, x: &mut [f32], at: usize) {
        let x = &mut x[at..];
        if x.len() >= LANES {
            unsafe {
                _mm256_storeu_ps(x.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(x.as_mut_ptr().add(8), v[1]);
            }
        } else {
            let lanes: [f32; LANES] = unsafe { std::mem::transmute::<V, [f32; LANES]>(v) };
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: V, x: &mut [bf16], at: usize) {
        let words = unsafe {
            let packed = _mm256_packus_epi32(rounded(v[0]), rounded(v[1]));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
        };
        let x = &mut x[at..];
        if x.len() >= LANES {
            unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), words) }
        } else {
            let lanes: [bf16; LANES] = unsafe { std::mem::transmute(words) };
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }

    #[inline(always)]
    fn round_bf16(self, v: V) -> V {
        [shifted(rounded(v[0])), shifted(rounded(v[1]))]
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const bf16) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(LANES).cast())] }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> V {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    fn store_pairs(self, upper: V, lower: V, to: &mut [bf16; 2 * LANES]) {
        for i in 0..2 {
            unsafe {
                let lower = _mm256_srli_epi32::<16>(_mm256_castps_si256(lower[i]));
                let pairs = _mm256_or_si256(_mm256_castps_si256(upper[i]), lower);
                _mm256_storeu_si256(to[i * LANES..].as_mut_ptr().cast(), pairs);
            }
        }
    }

    #[inline(always)]
    fn upper(self, pairs: [__m256i; 2]) -> V {
        let mask = unsafe { _mm256_set1_epi32(0xffff_0000_u32 as i32) };
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_and_si256(pairs[0], mask)),
                _mm256_castsi256_ps(_mm256_and_si256(pairs[1], mask)),
            ]
        }
    }

    #[inline(always)]
    fn lower(self, pairs: [__m256i; 2]) -> V {
        [shifted(pairs[0]), shifted(pairs[1])]
    }

    #[inline(always)]
    fn pair(self, upper: f32, lower: f32) -> Pair {
        [upper, lower]
    }

    #[inline(always)]
    fn dot(self, acc: V, x: &Pair, pairs: [__m256i; 2]) -> V {
        let acc = self.fma(self.splat(x[0]), self.upper(pairs), acc);
        self.fma(self.splat(x[1]), self.lower(pairs), acc)
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn load_f64(self, x: &[f32], at: usize, fill: f64) -> V64 {
        let x = &x[at..];
        if x.len() >= LANES {
            unsafe {
                let x = x.as_ptr();
                [
                    _mm256_cvtps_pd(_mm_loadu_ps(x)),
                    _mm256_cvtps_pd(_mm_loadu_ps(x.add(4))),
                    _mm256_cvtps_pd(_mm_loadu_ps(x.add(8))),
                    _mm256_cvtps_pd(_mm_loadu_ps(x.add(12))),
                ]
            }
        } else {
            let mut lanes = [fill; LANES];
            for (lane, &x) in lanes.iter_mut().zip(x) {
                *lane = f64::from(x);
            }
            unsafe { std::mem::transmute::<[f64; LANES], V64>(lanes) }
        }
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> V64 {
        [unsafe { _mm256_set1_pd(x) }; 4]
    }

    #[inline(always)]
    fn to_array_f64(self, v: V64) -> [f64; LANES] {
        unsafe { std::mem::transmute(v) }
    }

    #[inline(always)]
    fn add_f64(self, a: V64, b: V64) -> V64 {
        all!(_mm256_add_pd, a, b)
    }

    #[inline(always)]
    fn sub_f64(self, a: V64, b: V64) -> V64 {
        all!(_mm256_sub_pd, a, b)
    }

    #[inline(always)]
    fn div_f64(self, a: V64, b: V64) -> V64 {
        all!(_mm256_div_pd, a, b)
    }

    #[inline(always)]
    fn fma_f64(self, a: V64, b: V64, c: V64) -> V64 {
        all!(_mm256_fmadd_pd, a, b, c)
    }

    #[inline(always)]
    fn where_less_f64(self, [a, b]: [V64; 2], x: V64, y: V64) -> V64 {
        let less = unsafe {
            [
                _mm256_cmp_pd::<_CMP_LT_OQ>(a[0], b[0]),
                _mm256_cmp_pd::<_CMP_LT_OQ>(a[1], b[1]),
                _mm256_cmp_pd::<_CMP_LT_OQ>(a[2], b[2]),
                _mm256_cmp_pd::<_CMP_LT_OQ>(a[3], b[3]),
            ]
        };
        all!(_mm256_blendv_pd, y, x, less)
    }

    #[inline(always)]
    fn scale_by_bits_f64(self, p: V64, t: V64) -> V64 {
        [scaled_f64(p[0], t[0]), scaled_f64(p[1], t[1]), scaled_f64(p[2], t[2]), scaled_f64(p[3], t[3])]
    }
}
