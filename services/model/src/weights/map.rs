//! A file as memory.
#![allow(unsafe_code, reason = "a memory map is only sound while nobody changes the file")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::ModelError;

/// A read-only memory map of a whole file, shared by all tensors in it.
#[derive(Clone, Debug)]
pub(crate) struct Mapped(Arc<Mmap>);

impl Mapped {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
        if !file.metadata().map_err(|e| ModelError::io(path, e))?.is_file() {
            return Err(ModelError::malformed(path, "not a file"));
        }
        // SAFETY: the map is read-only and private to this process. Checkpoints are immutable by contract: `convert`
        // writes new folders and renames them into place. A file that is changed all the same gives other bytes, which
        // the manifest's hashes find; one that is cut short while mapped ends the process by SIGBUS, not by bad reads.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, e))?;
        Ok(Self(Arc::new(map)))
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The `len` bytes from `offset` on, if the file has them.
    pub fn slice(&self, offset: usize, len: usize) -> Option<&[u8]> {
        self.0.get(offset..offset.checked_add(len)?)
    }
}
