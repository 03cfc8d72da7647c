//! Packed weights: one layout for every row count and every instruction set.
//!
//! A matrix of `inputs` (K) by `outputs` (N) is cut into *panels* of [`PANEL`] = 32 output columns, one after
//! the other, each holding its columns for all K. Within a panel K ascends in *pairs* (an odd K is padded with
//! zeros, as are columns beyond N):
//!
//! | stored | bytes of a pair | layout of a pair |
//! |---|---|---|
//! | bf16 | 128 | 32 words of 32 bits, one per column: `w[k]` in the high half, `w[k + 1]` in the low |
//! | f16 | 128 | 32 × `w[k]`, then 32 × `w[k + 1]` |
//! | f32 | 256 | 32 × `w[k]`, then 32 × `w[k + 1]` |
//!
//! So a thread reads its panels as one ascending stream of whole cache lines. `vdpbf16ps` adds the high
//! product of a word first: with the pair stored this way round it sums in ascending K like everything else.
//!
//! For [`Compute::F32`] weights rest as they came and are widened in registers; for [`Compute::Bf16`] all are
//! rounded to bf16 once, denormals flushed to zero.

use crate::cpu::bf16;
use crate::cpu::memory::Memory;
use crate::cpu::pack;
use crate::cpu::pool::Pool;
use crate::{Compute, Dtype, MatrixBuilder, TensorError};

/// Output columns of a panel.
pub const PANEL: usize = 32;

/// Weights packed for multiplication, with an optional bias.
#[derive(Debug)]
pub struct PackedMatrix {
    inputs: usize,
    outputs: usize,
    compute: Compute,
    stored: Dtype,
    memory: Memory,
    /// One value per column of all panels, zero beyond `outputs`.
    bias: Option<Box<[f32]>>,
}

// === impl PackedMatrix ===

impl PackedMatrix {
    /// Input size K: the length of an activation row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output size N.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The compute type it was packed for.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The type its weights rest in.
    pub fn stored(&self) -> Dtype {
        self.stored
    }

    /// Memory of the packed weights in bytes: what one pass over them reads.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Memory that a matrix would take, in bytes.
    pub fn bytes_of(inputs: usize, outputs: usize, stored: Dtype) -> usize {
        outputs.div_ceil(PANEL).saturating_mul(panel_bytes(inputs, stored))
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Bytes of one panel, a multiple of 128.
    pub fn panel_bytes(&self) -> usize {
        panel_bytes(self.inputs, self.stored)
    }

    /// The packed bytes of panel `index`.
    pub fn panel(&self, index: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        &self.memory.as_slice::<u8>()[index * bytes..][..bytes]
    }

    /// The bias of panel `index`'s columns, if there is one.
    pub fn panel_bias(&self, index: usize) -> Option<&[f32; PANEL]> {
        self.bias.as_deref().and_then(|bias| bias.as_chunks().0.get(index))
    }
}

/// Bytes of a panel with `inputs` rows.
fn panel_bytes(inputs: usize, stored: Dtype) -> usize {
    inputs.next_multiple_of(2).saturating_mul(PANEL * stored.bytes())
}

// === impl MatrixBuilder ===

impl MatrixBuilder<'_> {
    /// Packs everything, the panels split over the pool's threads.
    pub(crate) fn build(self, pool: &Pool) -> Result<PackedMatrix, TensorError> {
        let outputs = self.check()?;
        let stored = self.stored();
        let bias = self.bias.map(|bias| pad_bias(bias, outputs, self.compute)).transpose()?;
        let bytes = PackedMatrix::bytes_of(self.inputs, outputs, stored);
        let mut memory = Memory::zeroed(bytes).map_err(|source| TensorError::Memory { bytes, source })?;
        let target = pack::Target { inputs: self.inputs, compute: self.compute, stored };
        pack::pack(pool, &self.groups, &target, memory.as_mut_slice());
        Ok(PackedMatrix { inputs: self.inputs, outputs, compute: self.compute, stored, memory, bias })
    }
}

/// `bias` for all panels' columns, rounded for bf16.
fn pad_bias(mut bias: Vec<f32>, outputs: usize, compute: Compute) -> Result<Box<[f32]>, TensorError> {
    if bias.len() != outputs {
        return Err(TensorError::Bias { columns: outputs, got: bias.len() });
    }
    if compute == Compute::Bf16 {
        for value in &mut bias {
            *value = bf16::widen(bf16::round(*value));
        }
    }
    bias.resize(outputs.next_multiple_of(PANEL), 0.0);
    Ok(bias.into_boxed_slice())
}

#[cfg(test)]
mod tests;
