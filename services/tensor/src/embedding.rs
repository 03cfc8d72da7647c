//! The table that token ids are looked up in.

use crate::cpu::bf16;
use crate::cpu::memory::Memory;
use crate::error::{TensorError, check_eq};
use crate::{Compute, Dtype};

/// Embedding rows `[vocab, cols]`, row-major as stored. Under [`Compute::Bf16`] other types are rounded once,
/// here.
#[derive(Debug)]
pub struct Embedding {
    dtype: Dtype,
    vocab: usize,
    cols: usize,
    memory: Memory,
}

impl Embedding {
    /// Copies the little-endian elements in `bytes`.
    pub(crate) fn from_bytes(
        dtype: Dtype,
        [vocab, cols]: [usize; 2],
        bytes: &[u8],
        compute: Compute,
    ) -> Result<Embedding, TensorError> {
        let elements = vocab.saturating_mul(cols);
        check_eq(
            "embedding",
            "the table's size in bytes",
            bytes.len(),
            elements.saturating_mul(dtype.bytes()),
        )?;
        let kept = match compute {
            Compute::F32 => dtype,
            Compute::Bf16 => Dtype::Bf16,
        };
        let size = elements.saturating_mul(kept.bytes());
        let mut memory =
            Memory::zeroed(size).map_err(|source| TensorError::Memory { bytes: size, source })?;
        if kept == dtype {
            memory.as_mut_slice::<u8>()[..size].copy_from_slice(bytes);
        } else {
            for (to, from) in memory.as_mut_slice::<u16>().iter_mut().zip(bytes.chunks_exact(dtype.bytes())) {
                *to = bf16::round(crate::tensor::widen(dtype, from));
            }
        }
        Ok(Embedding { dtype: kept, vocab, cols, memory })
    }

    /// Rows of the table: the number of token ids.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The stored elements, of the type [`Embedding::dtype`].
    pub(crate) fn elements<E: bytemuck::Pod>(&self) -> &[E] {
        self.memory.as_slice()
    }
}
