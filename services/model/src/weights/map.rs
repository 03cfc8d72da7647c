//! A file as memory.
#![allow(unsafe_code, reason = "a memory map is only sound while nobody changes the file")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::ModelError;

/// A read-only memory map of a whole file, shared by all tensors in it.
#[derive(Clone, Debug)]
pub(crate) struct Mapped(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: Mmap,
    #[cfg(unix)]
    file: File,
    path: PathBuf,
}

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
        let path = path.to_owned();
        Ok(Self(Arc::new(Inner {
            map,
            #[cfg(unix)]
            file,
            path,
        })))
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.0.map
    }

    /// The `len` bytes from `offset` on, if the file has them.
    pub fn slice(&self, offset: usize, len: usize) -> Option<&[u8]> {
        self.0.map.get(offset..offset.checked_add(len)?)
    }

    /// Copies the bytes from `offset` on to all of `to`, past the map: several threads copy what lies in memory faster that
    /// way, since no page has to be mapped, and a file that was cut short is an error.
    #[cfg(unix)]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0.file, to, offset as u64)
    }

    /// Copies the bytes from `offset` on to all of `to`.
    #[cfg(not(unix))]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        let from = self.slice(offset, to.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        to.copy_from_slice(from);
        Ok(())
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}
