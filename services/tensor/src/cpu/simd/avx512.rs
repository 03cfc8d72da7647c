//! AVX-512 F, BW, VL and DQ: a vector is one register. With `DP` also BF16.
#![allow(unsafe_code, reason = "calls vector instructions")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "all for one reason: the token exists only where the processor has the instructions, and a load \
              or store that is not masked lies within its slice by the condition above it"
)]

use std::arch::x86_64::*;

use half::bf16;

use super::{Kernel, LANES, Pair, Simd};

/// Token of AVX-512, `DP`: with BF16.
#[derive(Clone, Copy)]
pub struct Avx512<const DP: bool>(());

/// Runs `kernel` with AVX-512.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL and DQ.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(()))
}

/// Runs `kernel` with AVX-512 and BF16.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ and BF16.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true>(()))
}

/// The first `n` lanes.
#[inline(always)]
fn lanes(n: usize) -> u16 {
    ((1_u32 << n.min(LANES)) - 1) as u16
}

/// Words whose lower halves are `v` rounded to bf16.
#[inline(always)]
fn rounded(v: __m512) -> __m512i {
    unsafe {
        let bits = _mm512_castps_si512(v);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nearest = _mm512_srli_epi32::<16>(up);
        let small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
        let nearest = _mm512_mask_and_epi32(nearest, small, high, _mm512_set1_epi32(0x8000));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_or_epi32(nearest, nan, high, _mm512_set1_epi32(0x40))
    }
}

/// Sixteen bf16.
#[inline(always)]
fn to_bf16<const DP: bool>(v: __m512) -> __m256i {
    unsafe {
        if DP {
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))
        } else {
            _mm512_cvtepi32_epi16(rounded(v))
        }
    }
}

#[inline(always)]
fn scaled(p: __m512d, t: __m512d) -> __m512d {
    unsafe {
        let exponent = _mm512_slli_epi64::<52>(_mm512_castpd_si512(t));
        _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(p), exponent))
    }
}

#[inline(always)]
fn from_bf16(v: __m256i) -> __m512 {
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v))) }
}

impl<const DP: bool> Simd for Avx512<DP> {
    type F32 = __m512;
    type F64 = [__m512d; 2];
    type Pairs = __m512i;

    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn where_less(self, [a, b]: [__m512; 2], x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    fn where_nan(self, a: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), y, x) }
    }

    #[inline(always)]
    fn first(self, n: usize, v: __m512, fill: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(lanes(n), fill, v) }
    }

    #[inline(always)]
    fn scale_by_bits(self, p: __m512, t: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent))
        }
    }

    #[inline(always)]
    fn greater(self, a: __m512, b: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }

    #[inline(always)]
    fn nan(self, v: __m512) -> u16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) }
    }

    #[inline(always)]
    fn finite(self, v: __m512) -> u16 {
        // Quiet and signalling NaN, both infinities.
        unsafe { !_mm512_fpclass_ps_mask::<0x99>(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        unsafe {
            let v8 = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)))
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: __m512) -> f32 {
        unsafe {
            let v8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps::<1>(v8));
            let v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
            _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)))
        }
    }

    #[inline(always)]
    fn load_f32(self, x: &[f32], at: usize) -> __m512 {
        let x = &x[at..];
        if x.len() >= LANES {
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        } else {
            unsafe { _mm512_maskz_loadu_ps(lanes(x.len()), x.as_ptr()) }
        }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16], at: usize) -> __m512 {
        let x = &x[at..];
        if x.len() >= LANES {
            from_bf16(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
        } else {
            from_bf16(unsafe { _mm256_maskz_loadu_epi16(lanes(x.len()), x.as_ptr().cast()) })
        }
    }

    #[inline(always)]
    fn store_f32(self, v: __m512, x: &mut [f32], at: usize) {
        let x = &mut x[at..];
        if x.len() >= LANES {
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
        } else {
            unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr(), lanes(x.len()), v) }
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, x: &mut [bf16], at: usize) {
        let v = to_bf16::<DP>(v);
        let x = &mut x[at..];
        if x.len() >= LANES {
            unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
        } else {
            unsafe { _mm256_mask_storeu_epi16(x.as_mut_ptr().cast(), lanes(x.len()), v) }
        }
    }

    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m512 {
        if DP {
            from_bf16(to_bf16::<DP>(v))
        } else {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(rounded(v))) }
        }
    }

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const bf16) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    fn store_pairs(self, upper: __m512, lower: __m512, to: &mut [bf16; 2 * LANES]) {
        unsafe {
            let lower = _mm512_srli_epi32::<16>(_mm512_castps_si512(lower));
            let pairs = _mm512_or_si512(_mm512_castps_si512(upper), lower);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }

    #[inline(always)]
    fn upper(self, pairs: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32))) }
    }

    #[inline(always)]
    fn lower(self, pairs: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)) }
    }

    #[inline(always)]
    fn pair(self, upper: f32, lower: f32) -> Pair {
        if DP { [f32::from_bits(upper.to_bits() | lower.to_bits() >> 16), 0.0] } else { [upper, lower] }
    }

    #[inline(always)]
    fn dot(self, acc: __m512, x: &Pair, pairs: __m512i) -> __m512 {
        if DP {
            // The instruction adds the upper product first.
            unsafe {
                let x = _mm512_set1_epi32(x[0].to_bits() as i32);
                let x = std::mem::transmute::<__m512i, __m512bh>(x);
                _mm512_dpbf16_ps(acc, x, std::mem::transmute::<__m512i, __m512bh>(pairs))
            }
        } else {
            let acc = self.fma(self.splat(x[0]), self.upper(pairs), acc);
            self.fma(self.splat(x[1]), self.lower(pairs), acc)
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn load_f64(self, x: &[f32], at: usize, fill: f64) -> [__m512d; 2] {
        unsafe {
            let n = lanes(x.len() - at);
            let v = self.load_f32(x, at);
            let halves = [_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)];
            let fill = _mm512_set1_pd(fill);
            [
                _mm512_mask_blend_pd(n as u8, fill, _mm512_cvtps_pd(halves[0])),
                _mm512_mask_blend_pd((n >> 8) as u8, fill, _mm512_cvtps_pd(halves[1])),
            ]
        }
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> [__m512d; 2] {
        [unsafe { _mm512_set1_pd(x) }; 2]
    }

    #[inline(always)]
    fn to_array_f64(self, v: [__m512d; 2]) -> [f64; LANES] {
        unsafe { std::mem::transmute(v) }
    }

    #[inline(always)]
    fn add_f64(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        unsafe { [_mm512_add_pd(a[0], b[0]), _mm512_add_pd(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub_f64(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        unsafe { [_mm512_sub_pd(a[0], b[0]), _mm512_sub_pd(a[1], b[1])] }
    }

    #[inline(always)]
    fn div_f64(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        unsafe { [_mm512_div_pd(a[0], b[0]), _mm512_div_pd(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma_f64(self, a: [__m512d; 2], b: [__m512d; 2], c: [__m512d; 2]) -> [__m512d; 2] {
        unsafe { [_mm512_fmadd_pd(a[0], b[0], c[0]), _mm512_fmadd_pd(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn where_less_f64(self, [a, b]: [[__m512d; 2]; 2], x: [__m512d; 2], y: [__m512d; 2]) -> [__m512d; 2] {
        unsafe {
            let less =
                [_mm512_cmp_pd_mask::<_CMP_LT_OQ>(a[0], b[0]), _mm512_cmp_pd_mask::<_CMP_LT_OQ>(a[1], b[1])];
            [_mm512_mask_blend_pd(less[0], y[0], x[0]), _mm512_mask_blend_pd(less[1], y[1], x[1])]
        }
    }

    #[inline(always)]
    fn scale_by_bits_f64(self, p: [__m512d; 2], t: [__m512d; 2]) -> [__m512d; 2] {
        [scaled(p[0], t[0]), scaled(p[1], t[1])]
    }
}
