//! The specification, for any processor: plain fused multiply-adds, one accumulator per output, K ascending.
#![allow(unsafe_code, reason = "kernels take pointers")]

use crate::Dtype;
use crate::cpu::bf16;
use crate::cpu::matrix::PANEL;

use super::kernel::{Kernels, Multiply, Tile};

/// The kernels for f32 activations and weights stored as `stored`.
pub fn kernels(stored: Dtype) -> Kernels {
    let table: &'static [[Multiply; 3]] = match stored {
        Dtype::Bf16 => &table!(multiply_bf16),
        Dtype::F16 => &table!(multiply_f16),
        Dtype::F32 => &table!(multiply_f32),
    };
    Kernels { table, dp: false }
}

macro_rules! table {
    ($kernel:ident) => {
        [[$kernel::<1>; 3], [$kernel::<2>; 3], [$kernel::<3>; 3], [$kernel::<4>; 3]]
    };
}
use table;

/// # Safety
/// As [`multiply`].
unsafe fn multiply_bf16<const R: usize>(tile: &Tile) {
    // SAFETY: the caller's promise. In a pair, the even K is the word's high half.
    unsafe {
        multiply::<R>(tile, |k, column| {
            let word = *tile.weights.cast::<u32>().add(k / 2 * PANEL + column);
            bf16::widen(if k % 2 == 0 { (word >> 16) as u16 } else { word as u16 })
        });
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn multiply_f16<const R: usize>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        multiply::<R>(tile, |k, column| {
            half::f16::from_bits(*tile.weights.cast::<u16>().add(k * PANEL + column)).to_f32()
        });
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn multiply_f32<const R: usize>(tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { multiply::<R>(tile, |k, column| *tile.weights.cast::<f32>().add(k * PANEL + column)) }
}

/// # Safety
/// `tile` describes `R` rows of f32 activations, weights that `weight` can read at every `(k, column)` of
/// the block, and room for `R` rows of accumulators.
#[inline(always)]
unsafe fn multiply<const R: usize>(tile: &Tile, weight: impl Fn(usize, usize) -> f32) {
    for row in 0..R {
        // SAFETY: the caller's promise.
        let (x, sums) = unsafe {
            let x = tile.x.add(row * tile.x_stride).cast::<f32>();
            let sums = tile.accumulators.add(row * PANEL).cast::<[f32; PANEL]>();
            (std::slice::from_raw_parts(x, tile.inputs), &mut *sums)
        };
        if tile.first {
            *sums = [0.0; PANEL];
        }
        for (k, x) in x.iter().enumerate() {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum = x.mul_add(weight(k, column), *sum);
            }
        }
    }
}
