//! For a card: tensors are read part by part by the threads that send them, and checked by what the card has hashed of them.

use std::error::Error;
use std::sync::atomic::AtomicU64;

use asterism_tensor::{Dtype, Elements, PART, SentPart};

use super::{Loading, Tensors, Weights, advance, dtype, missing};
use crate::ModelError;
use crate::arch::Source;
use crate::manifest::Manifest;
use crate::weights::{Checkpoint, TensorReader};

/// A checkpoint whose tensors are checked as they are loaded.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    checkpoint: &'a Checkpoint,
    manifest: &'a Manifest,
    /// Told of bytes that were read.
    advance: &'a (dyn Fn(u64) -> Result<(), ModelError> + Sync),
}

/// One of its tensors.
struct Checked<'a> {
    reader: TensorReader<'a>,
    kept: Kept<'a>,
}

/// Loads all, `total` bytes.
pub(super) fn load(
    loading: &Loading<'_>,
    (checkpoint, manifest): (&Checkpoint, &Manifest),
    total: u64,
) -> Result<Weights, ModelError> {
    let done = AtomicU64::new(0);
    let advance = |bytes| advance(loading.watch, &done, bytes, total);
    let kept = Kept { checkpoint, manifest, advance: &advance };
    loading.device.send_weights(|sender| loading.pack(Tensors::Sent(sender, kept), &|_| Ok(())))
}

impl<'a> Kept<'a> {
    /// A tensor's type, and its elements for whoever sends them.
    pub fn elements(&self, source: &Source) -> Result<(Dtype, Box<dyn Elements + 'a>), ModelError> {
        let (dtype, checked) = self.checked(source)?;
        Ok((dtype, Box::new(checked)))
    }

    /// A tensor's type and elements, read at once.
    pub fn read(&self, source: &Source) -> Result<(Dtype, Vec<u8>), ModelError> {
        let (dtype, checked) = self.checked(source)?;
        let mut bytes = vec![0; checked.reader.bytes()];
        for (index, part) in bytes.chunks_mut(PART).enumerate() {
            checked.verify(checked.reader.read(index * PART, part)?)?;
            (self.advance)(part.len() as u64)?;
        }
        Ok((dtype, bytes))
    }

    fn checked(&self, source: &Source) -> Result<(Dtype, Checked<'a>), ModelError> {
        let dtype = dtype(self.checkpoint, source)?;
        let reader = self.checkpoint.reader(&source.name).ok_or_else(|| missing(source))?;
        Ok((dtype, Checked { reader, kept: *self }))
    }
}

impl Checked<'_> {
    /// Compares the hash of the whole, once there is one.
    fn verify(&self, hash: Option<String>) -> Result<(), ModelError> {
        hash.map_or(Ok(()), |hash| self.kept.manifest.verify_hash(&self.reader.info().name, hash))
    }
}

impl Elements for Checked<'_> {
    fn bytes(&self) -> usize {
        self.reader.bytes()
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.reader.copy(offset, to)?;
        Ok((self.kept.advance)(to.len() as u64)?)
    }

    fn is_checked(&self) -> bool {
        true
    }

    fn check(&self, offset: usize, part: SentPart<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.verify(self.reader.sent(offset, part))?)
    }
}

#[cfg(test)]
mod tests;
