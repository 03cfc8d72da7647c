//! Segments: their names, and what is known of one that is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, DiskFile};
use super::error::JournalError;

/// The number of a journal's first segment.
pub const FIRST: u64 = 1;

const SUFFIX: &str = ".journal";

/// A segment that is written.
#[derive(Debug)]
pub struct Segment {
    /// Its place in the journal.
    pub number: u64,
    /// Where it is.
    pub file: Arc<dyn DiskFile>,
    synced: AtomicU64,
}

impl Segment {
    /// One of which nothing is on the disk yet.
    pub fn new(number: u64, file: Arc<dyn DiskFile>) -> Self {
        Self { number, file, synced: AtomicU64::new(0) }
    }

    /// The name of its file.
    pub fn name(&self) -> String {
        name(self.number)
    }

    /// How many of its bytes are surely on the disk.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// So many are.
    pub fn set_synced(&self, bytes: u64) {
        self.synced.store(bytes, Ordering::Release);
    }
}

/// The name of a segment's file.
pub fn name(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

/// The numbers of all segments, the newest first. Other files are left alone.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(disk: &dyn Disk) -> Result<Vec<u64>, JournalError> {
    let names =
        disk.list().map_err(|error| JournalError::Read { file: String::new(), why: error.to_string() })?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|file| file.strip_suffix(SUFFIX)?.parse().ok().filter(|number| name(*number) == *file))
        .collect();
    numbers.sort_unstable_by(|left, right| right.cmp(left));
    Ok(numbers)
}
