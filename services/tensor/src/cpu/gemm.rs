//! PackedMatrix multiplication: `out[r, n] = round((Σₖ x[r, k] · w[k, n] + bias[n]) · scale)`.
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

use std::sync::{Mutex, PoisonError};

use half::bf16;

use crate::cpu::disjoint::Disjoint;
use crate::cpu::isa::Isa;
use crate::cpu::matrix::PackedMatrix;
use crate::cpu::memory::Memory;
use crate::cpu::pool::Pool;
use crate::{Compute, TensorError};

use plan::{Plan, Sink, Target};
use prepare::{Order, Prepare};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod finish;
mod kernel;
mod plan;
mod prepare;
mod scalar;

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
    pub matrix: &'a PackedMatrix,
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

// === impl Gemm ===

impl Gemm {
    /// Multiplies with `isa`, which this processor must have (else the richest it has is taken).
    pub fn new(isa: Isa) -> Result<Gemm, TensorError> {
        let isa = if isa.is_available() { isa } else { Isa::detect() };
        Ok(Gemm { isa, scratch: Mutex::new(memory(0)?) })
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
            Outputs::F32(out) => Target::F32(Disjoint::new(out)),
            Outputs::Bf16(out) => Target::Bf16(Disjoint::new(out)),
        };
        assert_eq!(Some(out.len()), rows.checked_mul(outputs), "outputs of a matmul");
        if rows == 0 || outputs == 0 {
            return Ok(());
        }

        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let order = Order::of(matrix.compute(), self.isa);
        grow(&mut scratch, prepare::bytes(order, rows, inputs))?;
        let prepare = Prepare::new(self.isa, x, inputs, scratch.as_mut_slice());
        let plan = Plan::new(rows, prepare.prepared(), matrix, self.isa, Sink { out, scale });
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

#[cfg(test)]
mod tests;
