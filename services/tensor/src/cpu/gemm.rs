//! Matrix multiplication: `out[r, n] = round((Σₖ x[r, k] · w[k, n] + bias[n]) · scale)`.
//!
//! The specification ([`scalar`]): each output has one f32 accumulator that starts at zero and takes its
//! products by fused multiply-adds in ascending K. Then bias and scale, each one f32 operation, then the one
//! rounding to bf16 where the output is bf16. Every path computes exactly this, for any number of rows and
//! threads: outputs are split over threads at panel boundaries, long K is cut into blocks that hand the
//! accumulator on through memory, and nothing is ever added up from partial sums.
//!
//! For bf16 compute the activations are first brought into the order a kernel wants ([`prepare`]): with
//! `vdpbf16ps` (path `dp`) as swapped pairs, which makes that instruction two ascending fused multiply-adds;
//! else (path `fma`) widened to f32. The two differ only where a product or sum is below 2⁻¹²⁶: the
//! instruction flushes it to zero.
#![allow(unsafe_code, reason = "kernels take pointers; shapes are checked here")]

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::bf16;

use crate::cpu::disjoint::Disjoint;
use crate::cpu::isa::Isa;
use crate::cpu::matrix::{Matrix, PANEL};
use crate::cpu::memory::Memory;
use crate::cpu::pool::{Pool, Worker};
use crate::{Compute, TensorError};

use kernel::{Finish, Kernels, Prefetch, ROWS, Target, Tile};
use prepare::{Order, Prepared};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod prepare;
mod scalar;

/// K of one block: its part of a panel and of a tile's rows stays in L2 while the tiles pass over it.
const K_BLOCK: usize = 4096;

/// Tiles that a thread keeps accumulators for at once.
const TILES: usize = 16;

/// How far ahead in its stream of weights a single tile prefetches, in bytes.
const AHEAD: usize = 8 << 10;

/// Activation rows, `[rows, inputs]` without gaps.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    /// For [`Compute::F32`].
    F32(&'a [f32]),
    /// For [`Compute::Bf16`].
    Bf16(&'a [bf16]),
}

/// Output rows, `[rows, outputs]` without gaps.
#[derive(Debug)]
pub enum Outputs<'a> {
    /// The accumulators as they are.
    F32(&'a mut [f32]),
    /// Rounded once.
    Bf16(&'a mut [bf16]),
}

/// One multiplication.
#[derive(Debug)]
pub struct Matmul<'a> {
    /// Number of rows.
    pub rows: usize,
    /// The activations, of the matrix' compute type.
    pub x: Activations<'a>,
    /// The weights.
    pub matrix: &'a Matrix,
    /// Multiplies each output after the bias; 1 changes nothing.
    pub scale: f32,
    /// Where the outputs go.
    pub out: Outputs<'a>,
}

/// Multiplies on one instruction set; holds the memory in which activations are prepared.
#[derive(Debug)]
pub struct Gemm {
    isa: Isa,
    scratch: Mutex<Memory>,
}

/// What all threads of one multiplication share.
struct Plan<'a> {
    rows: usize,
    tiles: usize,
    x: Prepared,
    matrix: &'a Matrix,
    scale: f32,
    kernels: Kernels,
    out: Shared<'a>,
}

enum Shared<'a> {
    F32(Disjoint<'a, f32>),
    Bf16(Disjoint<'a, bf16>),
}

/// Accumulators of a thread's tiles, `[tiles × ROWS, PANEL]`.
#[repr(align(64))]
struct Accumulators([f32; TILES * ROWS * PANEL]);

// === impl Gemm ===

impl Gemm {
    /// Multiplies with `isa`, which this processor must have (else the richest it has is taken).
    pub fn new(isa: Isa) -> Result<Gemm, TensorError> {
        let isa = if isa.is_available() { isa } else { Isa::detect() };
        Ok(Gemm { isa, scratch: Mutex::new(memory(0)?) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The name of the path that decides about bits below 2⁻¹²⁶ in `compute`: `dp`, `fma` or none.
    pub fn path(&self, compute: Compute) -> &'static str {
        match (compute, self.isa) {
            (Compute::F32, _) => "",
            (Compute::Bf16, Isa::Avx512Bf16) => "dp",
            (Compute::Bf16, _) => "fma",
        }
    }

    /// Sees to it that activations of `rows × inputs` need no new memory later.
    pub fn reserve(&self, rows: usize, inputs: usize) -> Result<(), TensorError> {
        let bytes = prepare::bytes(Order::of(Compute::Bf16, self.isa), rows, inputs);
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        grow(&mut scratch, bytes)
    }

    /// Multiplies on all threads of `pool`. Memory is only allocated where more activations come than ever
    /// before or than [`Gemm::reserve`] was told.
    ///
    /// # Panics
    /// If the lengths of `x` and `out` are not `rows` times the matrix' sizes, or `x` is not of its compute
    /// type: the caller checks shapes.
    pub fn matmul(&self, pool: &Pool, call: Matmul<'_>) -> Result<(), TensorError> {
        let Matmul { rows, x, matrix, scale, out } = call;
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        let x_len = match (x, matrix.compute()) {
            (Activations::F32(x), Compute::F32) => Some(x.len()),
            (Activations::Bf16(x), Compute::Bf16) => Some(x.len()),
            _ => None,
        };
        assert_eq!(x_len, rows.checked_mul(inputs), "activations of a matmul");
        let out = match out {
            Outputs::F32(out) => Shared::F32(Disjoint::new(out)),
            Outputs::Bf16(out) => Shared::Bf16(Disjoint::new(out)),
        };
        assert_eq!(Some(out.len()), rows.checked_mul(outputs), "outputs of a matmul");
        if rows == 0 || outputs == 0 {
            return Ok(());
        }

        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let order = Order::of(matrix.compute(), self.isa);
        grow(&mut scratch, prepare::bytes(order, rows, inputs))?;
        let prepare = prepare::Prepare::new(order, x, inputs, scratch.as_mut_slice());
        let kernels = kernel::kernels(self.isa, matrix.stored(), order);
        let plan = Plan {
            rows,
            tiles: rows.div_ceil(kernels.rows()),
            x: prepare.prepared(),
            matrix,
            scale,
            kernels,
            out,
        };
        pool.run(&|worker| {
            if order != Order::Plain {
                prepare.run(worker, rows);
                worker.barrier();
            }
            plan.run(worker);
        });
        Ok(())
    }
}

fn memory(bytes: usize) -> Result<Memory, TensorError> {
    Memory::zeroed(bytes).map_err(|source| TensorError::Memory { bytes, source })
}

fn grow(scratch: &mut Memory, bytes: usize) -> Result<(), TensorError> {
    if scratch.bytes() < bytes {
        *scratch = memory(bytes)?;
    }
    Ok(())
}

// === impl Plan ===

impl Plan<'_> {
    /// One thread's panels: per panel all rows, so that the weights are read once.
    fn run(&self, worker: Worker<'_>) {
        let mut accumulators = Accumulators([0.0; _]);
        let panels = worker.share(self.matrix.panels());
        for panel in panels.clone() {
            let next = (panel + 1 < panels.end).then(|| self.matrix.panel(panel + 1).as_ptr());
            for first in (0..self.tiles).step_by(TILES) {
                let tiles = first..self.tiles.min(first + TILES);
                for k in (0..self.matrix.inputs()).step_by(K_BLOCK) {
                    for tile in tiles.clone() {
                        self.multiply(tile, panel, k, next, &mut accumulators);
                    }
                }
                self.finish(tiles, panel, &accumulators);
            }
        }
    }

    /// The first row of `tile`: rows are spread evenly, 12 as 6 + 6, not 8 + 4.
    fn row(&self, tile: usize) -> usize {
        tile * self.rows / self.tiles
    }

    /// One tile, one panel, one block of K.
    fn multiply(
        &self,
        tile: usize,
        panel: usize,
        k: usize,
        next: Option<*const u8>,
        accumulators: &mut Accumulators,
    ) {
        let (row, end) = (self.row(tile), self.row(tile + 1));
        let pair = 2 * PANEL * self.matrix.stored().bytes();
        let weights = self.matrix.panel(panel)[k / 2 * pair..].as_ptr();
        let inputs = K_BLOCK.min(self.matrix.inputs() - k);
        let slot = tile % TILES * ROWS * PANEL;
        let (prefetch, ahead) =
            self.prefetch(tile, weights, next.map(|next| next.wrapping_add(k / 2 * pair)));
        let tile = Tile {
            x: self.x.at(row, k),
            x_stride: self.x.stride(),
            weights,
            inputs,
            accumulators: accumulators.0[slot..].as_mut_ptr(),
            first: k == 0,
            ahead,
        };
        // SAFETY: the kernels were chosen for an available instruction set and for this kind of weights and
        // activations. `x` has rows `row..end` of `inputs` elements from `k` on (of the padded, even number
        // where they are pairs), the panel has as many rows of weights, and the slot `end − row ≤ ROWS` rows.
        unsafe { self.kernels.multiply(end - row, prefetch)(&tile) }
    }

    /// What a tile fetches. A lone tile runs ahead in its own stream, except that one row of 16-bit weights
    /// is best left to the hardware. Of several tiles, which dwell on one panel, the first fetch the next.
    fn prefetch(&self, tile: usize, weights: *const u8, next: Option<*const u8>) -> (Prefetch, *const u8) {
        let lines = 2 * PANEL * self.matrix.stored().bytes() / 64;
        if self.tiles == 1 {
            let alone = self.rows == 1 && lines == 2;
            let prefetch = if alone { Prefetch::None } else { Prefetch::All };
            return (prefetch, weights.wrapping_add(AHEAD));
        }
        let Some(next) = next else { return (Prefetch::None, weights) };
        let part = self.matrix.inputs().min(K_BLOCK).div_ceil(2) * 64;
        if self.tiles < lines {
            (if tile == 0 { Prefetch::All } else { Prefetch::None }, next)
        } else if tile < lines {
            (Prefetch::One, next.wrapping_add(tile * part))
        } else {
            (Prefetch::None, weights)
        }
    }

    /// Writes the outputs of `tiles` for one panel.
    fn finish(&self, tiles: Range<usize>, panel: usize, accumulators: &Accumulators) {
        let outputs = self.matrix.outputs();
        let column = panel * PANEL;
        for tile in tiles {
            let (row, end) = (self.row(tile), self.row(tile + 1));
            let slot = tile % TILES * ROWS * PANEL;
            let accumulators = &accumulators.0[slot..][..(end - row) * PANEL];
            let at = row * outputs + column;
            let target = match &self.out {
                // SAFETY (both): `row < rows` and `column < outputs`, so this stays within the output.
                Shared::F32(out) => Target::F32(unsafe { out.as_mut_ptr().add(at) }),
                Shared::Bf16(out) => Target::Bf16(unsafe { out.as_mut_ptr().add(at) }),
            };
            let finish = Finish {
                accumulators: accumulators.as_chunks().0,
                bias: self.matrix.panel_bias(panel),
                scale: self.scale,
                columns: PANEL.min(outputs - column),
                target,
                stride: outputs,
            };
            // SAFETY: the instruction set is available; the rows and columns written lie within the output,
            // whose length `matmul` has checked, and this panel's columns are this thread's alone.
            unsafe { self.kernels.finish()(&finish) }
        }
    }
}

impl Shared<'_> {
    fn len(&self) -> usize {
        match self {
            Shared::F32(out) => out.len(),
            Shared::Bf16(out) => out.len(),
        }
    }
}

#[cfg(test)]
mod tests;
