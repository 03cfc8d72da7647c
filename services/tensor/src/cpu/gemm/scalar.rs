//! The specification, for any processor: plain fused multiply-adds, one accumulator per output, K ascending.

use crate::Dtype;
use crate::cpu::bf16;
use crate::cpu::matrix::PANEL;

use super::kernel::{Finish, Kernels, Multiply, Target, Tile};

/// The kernels for f32 activations and weights stored as `stored`.
pub fn kernels(stored: Dtype) -> Kernels {
    let table: &'static [[Multiply; 3]] = match stored {
        Dtype::Bf16 => &table!(multiply_bf16),
        Dtype::F16 => &table!(multiply_f16),
        Dtype::F32 => &table!(multiply_f32),
    };
    Kernels { table, finish }
}

macro_rules! table {
    ($kernel:ident) => {
        [
            [$kernel::<1>; 3],
            [$kernel::<2>; 3],
            [$kernel::<3>; 3],
            [$kernel::<4>; 3],
            [$kernel::<5>; 3],
            [$kernel::<6>; 3],
            [$kernel::<7>; 3],
            [$kernel::<8>; 3],
        ]
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

/// Bias, scale, rounding. One body for all instruction sets: inlined, it is compiled for each.
///
/// # Safety
/// `finish.target` has room for as many rows and columns as `finish` describes.
#[inline(always)]
pub unsafe fn finish(finish: &Finish<'_>) {
    for (row, sums) in finish.accumulators.iter().enumerate() {
        let mut values = *sums;
        if let Some(bias) = finish.bias {
            for (value, bias) in values.iter_mut().zip(bias) {
                *value += bias;
            }
        }
        for value in &mut values {
            *value *= finish.scale;
        }
        // SAFETY: the caller's promise.
        unsafe {
            match finish.target {
                Target::F32(out) => write(out.add(row * finish.stride), &values, finish.columns),
                Target::Bf16(out) => {
                    write(
                        out.add(row * finish.stride),
                        &values.map(|value| half::bf16::from_bits(bf16::round(value))),
                        finish.columns,
                    );
                }
            }
        }
    }
}

/// # Safety
/// `out` has room for `columns` values.
#[inline(always)]
unsafe fn write<T: Copy>(out: *mut T, values: &[T; PANEL], columns: usize) {
    // SAFETY: the caller's promise. The common case has a fixed length, so that it needs no loop.
    unsafe {
        if columns == PANEL {
            out.cast::<[T; PANEL]>().write_unaligned(*values);
        } else {
            std::ptr::copy_nonoverlapping(values.as_ptr(), out, columns);
        }
    }
}
