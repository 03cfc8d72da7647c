//! BLAKE3 on the card, of weights that have just come there.
#![allow(unsafe_code, reason = "starts kernels")]

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::launch::{Arg, Grid, Kernel};
use crate::weights::{PART, SUBTREE};

/// A subtree's value.
pub type Value = [u8; 32];

/// Subtrees of a part.
pub const MOST: usize = PART / SUBTREE;

/// BLAKE3's chunk, a leaf of its tree.
const CHUNK: usize = 1024;

/// `CHUNKS` of `kernels/blake3.cu`: threads of a block, one for each chunk of a subtree.
const CHUNKS: usize = 128;

/// What the kernel loads at once.
const LOAD: u64 = 16;

const _: () = assert!(CHUNKS * CHUNK == SUBTREE && PART.is_multiple_of(SUBTREE));

/// The kernel.
#[derive(Debug)]
pub struct Hashes(Kernel);

impl Hashes {
    /// Compiles it.
    pub fn new(card: &Card) -> Result<Hashes, TensorError> {
        Ok(Hashes(card.kernels(Theme::Blake3, &[])?.kernel("blake3_subtrees")?))
    }

    /// How many subtrees of a part at `address` can be hashed: those that are whole; none where the kernel cannot load.
    pub fn count(address: u64, bytes: usize) -> usize {
        if address.is_multiple_of(LOAD) { bytes / SUBTREE } else { 0 }
    }

    /// Enqueues on the compute stream what puts the values of the first `count` subtrees of a part, which begins at `offset` of
    /// its tensor and is at `from`, to `to`.
    ///
    /// # Safety
    /// Both are there, aligned to 16, until it is done; the card reaches `to`.
    pub unsafe fn enqueue(
        &self,
        card: &Card,
        (from, offset): (u64, usize),
        count: usize,
        to: u64,
    ) -> Result<(), TensorError> {
        let first_chunk = (offset / CHUNK) as u64;
        let arguments = [Arg::of(&from), Arg::of(&first_chunk), Arg::of(&to)];
        // SAFETY: the kernel's arguments in order, and the caller's promise.
        unsafe { card.launch(&self.0, Grid::line(count as u32, CHUNKS as u32), &arguments) }
    }
}
