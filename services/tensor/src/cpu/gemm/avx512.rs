//! 512-bit kernels. Each row of a tile keeps two accumulators of 16 columns in registers: 8 rows are enough to
//! hide latencies; 10 also spread the widening of weights, which takes turns with multiplications on some cores.
#![allow(unsafe_code, reason = "kernels take pointers and run instructions found at run time")]

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::Dtype;

use super::kernel::{Kernels, Multiply, Tile};

/// The kernels for f32 activations and weights stored as `stored`; AVX-512 must be available.
pub fn fma_kernels(stored: Dtype) -> Kernels {
    let table: &'static [[Multiply; 3]] = match stored {
        Dtype::Bf16 => &table!(fma, Bf16, 2, [1 2 3 4 5 6 7 8 9 10]),
        Dtype::F16 => &table!(fma, F16, 2, [1 2 3 4 5 6 7 8 9 10]),
        Dtype::F32 => &table!(fma, F32, 4, [1 2 3 4 5 6 7 8 9 10]),
    };
    Kernels { table, dp: false }
}

/// The kernels for swapped bf16 pairs and weights stored as bf16; AVX-512 BF16 must be available.
pub fn dp_kernels() -> Kernels {
    Kernels { table: &table!(dp, Bf16, 2, [1 2 3 4 5 6 7 8]), dp: true }
}

/// Kernels by rows; by what they prefetch: nothing, one line, or `lines` lines per pair of K.
macro_rules! table {
    ($kernel:ident, $weights:ident, $lines:literal, [$($rows:literal)*]) => {
        [$([$kernel::<$weights, $rows, 0>, $kernel::<$weights, $rows, 1>, $kernel::<$weights, $rows, $lines>],)*]
    };
}
use table;

/// How a pair of K rests in a panel.
trait Weights {
    /// Bytes of a pair.
    const BYTES: usize;

    /// The 32 columns of the even K and of the odd K, widened.
    ///
    /// # Safety
    /// AVX-512 is available, and `from` points to a pair.
    unsafe fn pair(from: *const u8) -> [[__m512; 2]; 2];
}

struct Bf16;
struct F16;
struct F32;

impl Weights for Bf16 {
    const BYTES: usize = 128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn pair(from: *const u8) -> [[__m512; 2]; 2] {
        let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        // SAFETY: the caller's promise.
        let words = unsafe { [_mm512_load_si512(from.cast()), _mm512_load_si512(from.add(64).cast())] };
        [
            words.map(|words| _mm512_castsi512_ps(_mm512_and_si512(words, high))),
            words.map(|words| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))),
        ]
    }
}

impl Weights for F16 {
    const BYTES: usize = 128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn pair(from: *const u8) -> [[__m512; 2]; 2] {
        // SAFETY: the caller's promise.
        let at = |offset| unsafe { _mm512_cvtph_ps(_mm256_load_si256(from.add(offset).cast())) };
        [[at(0), at(32)], [at(64), at(96)]]
    }
}

impl Weights for F32 {
    const BYTES: usize = 256;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn pair(from: *const u8) -> [[__m512; 2]; 2] {
        // SAFETY: the caller's promise.
        let at = |offset| unsafe { _mm512_load_ps(from.add(offset).cast()) };
        [[at(0), at(64)], [at(128), at(192)]]
    }
}

/// Fused multiply-adds of f32 activations: the even K of each pair, then the odd one.
///
/// # Safety
/// AVX-512 is available; `tile` describes `R` rows of f32, weights `W` and `R` rows of accumulators.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn fma<W: Weights, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller's promise; prefetching an address needs none.
    unsafe {
        let mut sums = load::<R>(tile);
        let x = rows::<R, f32>(tile);
        for pair in 0..tile.inputs / 2 {
            let [even, odd] = W::pair(tile.weights.add(pair * W::BYTES));
            prefetch::<P>(tile, pair);
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = _mm512_set1_ps(*x.add(2 * pair));
                *sums = [_mm512_fmadd_ps(x, even[0], sums[0]), _mm512_fmadd_ps(x, even[1], sums[1])];
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = _mm512_set1_ps(*x.add(2 * pair + 1));
                *sums = [_mm512_fmadd_ps(x, odd[0], sums[0]), _mm512_fmadd_ps(x, odd[1], sums[1])];
            }
        }
        if tile.inputs % 2 == 1 {
            let k = tile.inputs - 1;
            let [even, _] = W::pair(tile.weights.add(k / 2 * W::BYTES));
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = _mm512_set1_ps(*x.add(k));
                *sums = [_mm512_fmadd_ps(x, even[0], sums[0]), _mm512_fmadd_ps(x, even[1], sums[1])];
            }
        }
        store(tile, &sums);
    }
}

/// Dot products of swapped pairs. The instruction adds the product of the upper elements (the even K), rounds,
/// then adds that of the lower ones (the odd K), and rounds: two fused multiply-adds, except that it takes
/// denormals for zero.
///
/// # Safety
/// AVX-512 BF16 is available; `tile` describes `R` rows of swapped pairs, weights in bf16 and `R` rows of
/// accumulators.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn dp<W: Weights, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller's promise; all vectors of 64 bytes hold any bits.
    unsafe {
        let bf16 = |words| std::mem::transmute::<__m512i, __m512bh>(words);
        let mut sums = load::<R>(tile);
        let x = rows::<R, i32>(tile);
        for pair in 0..tile.inputs.div_ceil(2) {
            let weights = tile.weights.add(pair * W::BYTES);
            let left = bf16(_mm512_load_si512(weights.cast()));
            let right = bf16(_mm512_load_si512(weights.add(64).cast()));
            prefetch::<P>(tile, pair);
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = bf16(_mm512_set1_epi32(*x.add(pair)));
                *sums = [_mm512_dpbf16_ps(sums[0], x, left), _mm512_dpbf16_ps(sums[1], x, right)];
            }
        }
        store(tile, &sums);
    }
}

/// Each row's activations. The compiler must not know that they lie evenly apart: it would compute every
/// address anew, on the ports that multiply.
#[inline]
fn rows<const R: usize, T>(tile: &Tile) -> [*const T; R] {
    let mut rows = [tile.x.cast(); R];
    for (row, x) in rows.iter_mut().enumerate() {
        *x = black_box(tile.x.wrapping_add(row * tile.x_stride)).cast();
    }
    rows
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn load<const R: usize>(tile: &Tile) -> [[__m512; 2]; R] {
    for row in 0..R {
        for end in tile.place.ends(row, tile.stride) {
            _mm_prefetch::<_MM_HINT_T0>(end.cast());
        }
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    if !tile.first {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the tile has `R` rows of accumulators, aligned to 64 bytes.
            *sums = unsafe {
                let from = tile.accumulators.add(row * 32);
                [_mm512_load_ps(from), _mm512_load_ps(from.add(16))]
            };
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn store<const R: usize>(tile: &Tile, sums: &[[__m512; 2]; R]) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the tile has `R` rows of accumulators, aligned to 64 bytes.
        unsafe {
            let to = tile.accumulators.add(row * 32);
            _mm512_store_ps(to, sums[0]);
            _mm512_store_ps(to.add(16), sums[1]);
        }
    }
}

/// Fetches the pair's lines of weights into L2, see [`Prefetch`](super::kernel::Prefetch).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn prefetch<const P: usize>(tile: &Tile, pair: usize) {
    for line in 0..P {
        let line = if P == 1 { pair >> tile.halving } else { pair * P + line };
        _mm_prefetch::<_MM_HINT_T1>(tile.ahead.wrapping_add(line * 64).cast());
    }
}
