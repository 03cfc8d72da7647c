//! What the journal needs of a disk.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// A folder of files, to which nobody else writes.
pub trait Disk: Debug + Send + Sync {
    /// The names of its files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A file's bytes.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Begins a file; one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns once a power cut takes no file that was begun before, nor brings back one that was removed.
    fn sync(&self) -> io::Result<()>;
}

/// A file that grows at its end.
pub trait DiskFile: Debug + Send + Sync {
    /// Hands bytes to the operating system, all in one call where it takes them. Some of them may have been written where it
    /// fails, never all.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts off all but the first `length` bytes.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Returns once a power cut takes nothing of what was appended before.
    fn sync(&self) -> io::Result<()>;
}
