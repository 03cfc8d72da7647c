//! The table that token ids are looked up in.

use crate::cpu::bf16;
use crate::error::{TensorError, check_eq};
use crate::storage::Storage;
use crate::{Compute, Dtype};

/// Embedding rows `[vocab, cols]`, row-major as stored. Under [`Compute::Bf16`] other types are rounded once,
/// here.
#[derive(Debug)]
pub struct Embedding {
    dtype: Dtype,
    vocab: usize,
    cols: usize,
    storage: Storage,
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
        let mut storage = Storage::host(size)?;
        if kept == dtype {
            storage.write(0, bytes)?;
        } else {
            let elements = storage.elements_mut::<u16>()?.iter_mut();
            for (to, from) in elements.zip(bytes.chunks_exact(dtype.bytes())) {
                *to = bf16::round(crate::tensor::widen(dtype, from));
            }
        }
        Ok(Embedding { dtype: kept, vocab, cols, storage })
    }

    /// A table whose elements are in `storage` already.
    pub(crate) fn with(dtype: Dtype, [vocab, cols]: [usize; 2], storage: Storage) -> Embedding {
        Embedding { dtype, vocab, cols, storage }
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
        self.storage.bytes()
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The stored elements, of the type [`Embedding::dtype`], where the CPU computes.
    pub(crate) fn elements<E: bytemuck::Pod>(&self) -> Result<&[E], TensorError> {
        self.storage.elements()
    }

    /// The address of its first row, where a card computes.
    pub(crate) fn address(&self) -> Result<u64, TensorError> {
        Ok(self.storage.card()?.address())
    }
}
