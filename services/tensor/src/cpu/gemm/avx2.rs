//! 256-bit kernels. Up to 3 rows keep all 32 columns of a panel in accumulators; 4 to 6 rows pass over it
//! twice, with 16 columns each time.
#![allow(unsafe_code, reason = "kernels take pointers and run instructions found at run time")]

use std::arch::x86_64::*;

use crate::Dtype;

use super::kernel::{Kernels, Multiply, Tile};

/// The kernels for f32 activations and weights stored as `stored`; AVX2, FMA and F16C must be available.
pub fn kernels(stored: Dtype) -> Kernels {
    let table: &'static [[Multiply; 3]] = match stored {
        Dtype::Bf16 => &table!(Bf16, 2),
        Dtype::F16 => &table!(F16, 2),
        Dtype::F32 => &table!(F32, 4),
    };
    Kernels { table, dp: false }
}

/// Kernels for 1 to 6 rows; by what they prefetch: nothing, one line, or `lines` lines per pair of K.
macro_rules! table {
    ($weights:ident, $lines:literal) => {
        table!($weights, $lines, [whole 1, whole 2, whole 3, halves 4, halves 5, halves 6])
    };
    ($weights:ident, $lines:literal, [$($kernel:ident $rows:literal),*]) => {
        [$([$kernel::<$weights, $rows, 0>, $kernel::<$weights, $rows, 1>, $kernel::<$weights, $rows, $lines>],)*]
    };
}
use table;

/// How a pair of K rests in a panel.
trait Weights {
    /// Bytes of a pair.
    const BYTES: usize;

    /// Eight columns, the `eighth`-th eight of a pair: of the even K and of the odd K, widened.
    ///
    /// # Safety
    /// AVX2 and F16C are available, and `from` points to a pair.
    unsafe fn pair(from: *const u8, eight: usize) -> [__m256; 2];
}

struct Bf16;
struct F16;
struct F32;

impl Weights for Bf16 {
    const BYTES: usize = 128;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair(from: *const u8, eight: usize) -> [__m256; 2] {
        let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        // SAFETY: the caller's promise.
        let words = unsafe { _mm256_load_si256(from.add(eight * 32).cast()) };
        [
            _mm256_castsi256_ps(_mm256_and_si256(words, high)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)),
        ]
    }
}

impl Weights for F16 {
    const BYTES: usize = 128;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair(from: *const u8, eight: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        let at = |offset| unsafe { _mm256_cvtph_ps(_mm_load_si128(from.add(offset + eight * 16).cast())) };
        [at(0), at(64)]
    }
}

impl Weights for F32 {
    const BYTES: usize = 256;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair(from: *const u8, eight: usize) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        let at = |offset| unsafe { _mm256_load_ps(from.add(offset + eight * 32).cast()) };
        [at(0), at(128)]
    }
}

/// All columns in one pass.
///
/// # Safety
/// As [`columns`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn whole<W: Weights, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { columns::<W, R, 4, P>(tile, 0) }
}

/// Two passes; the first prefetches.
///
/// # Safety
/// As [`columns`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves<W: Weights, const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        columns::<W, R, 2, P>(tile, 0);
        columns::<W, R, 2, 0>(tile, 2);
    }
}

/// Fused multiply-adds for `E` eights of columns from the `first` on: the even K of each pair, then the odd.
///
/// # Safety
/// AVX2, FMA and F16C are available; `tile` describes `R` rows of f32, weights `W` and `R` rows of
/// accumulators; `first + E ≤ 4`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn columns<W: Weights, const R: usize, const E: usize, const P: usize>(tile: &Tile, first: usize) {
    // SAFETY: the caller's promise; prefetching an address needs none.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); E]; R];
        if !tile.first {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (eight, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_load_ps(tile.accumulators.add(row * 32 + (first + eight) * 8));
                }
            }
        }
        for row in 0..R {
            for end in tile.place.ends(row, tile.stride) {
                _mm_prefetch::<_MM_HINT_T0>(end.cast());
            }
        }
        for pair in 0..tile.inputs / 2 {
            let weights = tile.weights.add(pair * W::BYTES);
            for line in 0..P {
                let line = if P == 1 { pair >> tile.halving } else { pair * P + line };
                _mm_prefetch::<_MM_HINT_T1>(tile.ahead.wrapping_add(line * 64).cast());
            }
            let x = tile.x.cast::<f32>().add(2 * pair);
            for half in 0..2 {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(half).byte_add(row * tile.x_stride));
                    for (eight, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm256_fmadd_ps(x, W::pair(weights, first + eight)[half], *sum);
                    }
                }
            }
        }
        if tile.inputs % 2 == 1 {
            let k = tile.inputs - 1;
            let weights = tile.weights.add(k / 2 * W::BYTES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*tile.x.cast::<f32>().add(k).byte_add(row * tile.x_stride));
                for (eight, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(x, W::pair(weights, first + eight)[0], *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (eight, sum) in sums.iter().enumerate() {
                _mm256_store_ps(tile.accumulators.add(row * 32 + (first + eight) * 8), *sum);
            }
        }
    }
}
