//! Weights where they are kept, and how a device gets them part by part.

use std::error::Error;

use crate::cuda::Sender;
use crate::{Device, Dtype, Layout, TensorError};

/// Bytes of a part of a tensor; the last one may have fewer. A power of two.
pub const PART: usize = 4 << 20;

/// Bytes of a subtree of BLAKE3 that a card finds the value of: 128 of its chunks.
pub const SUBTREE: usize = 128 << 10;

/// A weight tensor's elements, row-major and little-endian, wherever they are kept.
pub trait Elements: Send + Sync {
    /// Their size in bytes.
    fn bytes(&self) -> usize;

    /// Reads the part that begins at `offset`, a multiple of [`PART`], into all of `to`. It is called once for every part, in
    /// any order and from several threads.
    ///
    /// # Errors
    /// Whatever ends the loading of all weights; it comes out of it as [`TensorError::Elements`].
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Whether the parts are checked.
    fn is_checked(&self) -> bool {
        false
    }

    /// Checks the part that begins at `offset`, once it has been sent. It is called once for every part that was read, in any order
    /// and from several threads, before the sending of weights returns.
    ///
    /// # Errors
    /// As for a part that cannot be read.
    fn check(&self, _offset: usize, _part: SentPart<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}

/// A part of a tensor that has been sent to a card, and what the card found of it.
#[derive(Clone, Copy, Debug)]
pub struct SentPart<'a> {
    /// The part.
    pub bytes: &'a [u8],
    /// The chaining values of its whole subtrees of [`SUBTREE`] bytes, hashed by BLAKE3 (not keyed) as parts of the whole tensor
    /// and not as its root; what follows the last has not been hashed. None where the card could not hash them.
    pub subtrees: &'a [[u8; 32]],
}

/// Output columns: all of a weight tensor that is kept somewhere. What [`crate::Columns`] is to one in memory.
pub struct KeptColumns<'a> {
    /// The elements.
    pub elements: Box<dyn Elements + 'a>,
    /// Their type.
    pub dtype: Dtype,
    /// The order of the tensor's two dimensions.
    pub layout: Layout,
    /// Its number of output columns N.
    pub outputs: usize,
}

impl Elements for &[u8] {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        to.copy_from_slice(&self[offset..offset + to.len()]);
        Ok(())
    }
}

impl Device {
    /// Runs `work`, which makes matrices and embeddings with a [`Sender`] and goes on at once, while threads of their own read their
    /// elements and send them to the card. When it returns, all of them are there, or on their way before anything that the
    /// device is given later.
    ///
    /// # Errors
    /// Those of `work`; elements could not be read, or the card failed; [`TensorError::OtherDevice`] on the CPU, which packs
    /// what is in memory ([`Device::matrix`]).
    pub fn send_weights<'a, T, E: From<TensorError>>(
        &self,
        work: impl FnOnce(&Sender<'_, 'a>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Device::Cpu(_) => Err(TensorError::OtherDevice.into()),
            Device::Cuda(cuda) => cuda.send_weights(crate::cuda::sending_threads(), work),
        }
    }
}
