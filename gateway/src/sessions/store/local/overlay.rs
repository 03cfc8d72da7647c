//! A disk whose writes wait in memory until they are brought to it together.
//!
//! The database believes at once that its commits are on the disk, and so never sees a write fail, after which it would read
//! no more. [`Overlay::bring`] then brings a commit to the disk, its header last. Where that fails, what lies on the disk is
//! what was there before the commit: all else that was written lies in pages that are free in it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

const BLOCK: usize = 4096;
/// The most bytes of one write.
const RUN: usize = 1 << 20;

/// A disk, and what is to be written to it. Its clones are one.
#[derive(Clone, Debug)]
pub struct Overlay {
    disk: Arc<dyn StorageBackend>,
    held: Arc<RwLock<Held>>,
}

#[derive(Debug)]
struct Held {
    /// Nothing waits: each write goes to the disk as it comes.
    through: bool,
    len: u64,
    disk_len: u64,
    /// By their place, in blocks.
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// Nothing waits yet, and nothing is written before [`Overlay::bring`].
    ///
    /// # Errors
    /// The disk does not tell its length.
    pub fn new(disk: Arc<dyn StorageBackend>) -> io::Result<Self> {
        let len = disk.len()?;
        let held = Held { through: false, len, disk_len: len, blocks: BTreeMap::new() };
        Ok(Self { disk, held: Arc::new(RwLock::new(held)) })
    }

    /// From now on each write goes to the disk as it comes, or waits. What waited is forgotten.
    pub fn go_through(&self, through: bool) {
        let mut held = self.write_held();
        held.blocks.clear();
        held.through = through;
    }

    /// Brings all that waits to the disk, for good.
    ///
    /// # Errors
    /// The disk did not take it, and has what it had before. (After a failed sync that is sure only once a later one succeeds.)
    pub fn bring(&self) -> io::Result<()> {
        self.grow()?;
        let held = self.read_held();
        self.bring_pages(&held)?;
        if let Some(header) = held.blocks.get(&0) {
            let mut before = vec![0; BLOCK];
            self.read_disk(held.disk_len, 0, &mut before)?;
            let brought = self.disk.write(0, header).and_then(|()| self.disk.sync_data());
            if let Err(error) = brought {
                // Part of it may be there.
                let _ = self.disk.write(0, &before);
                return Err(error);
            }
        } else if !held.blocks.is_empty() {
            self.disk.sync_data()?;
        }
        drop(held);
        let mut held = self.write_held();
        held.blocks.clear();
        // What is cut off is in no page that is used: keeping it costs only space.
        if held.len < held.disk_len && self.disk.set_len(held.len).is_ok() {
            held.disk_len = held.len;
        }
        Ok(())
    }

    /// Whether the disk would take now what it did not take before. It changes only pages that are free.
    ///
    /// # Errors
    /// It would not.
    pub fn probe(&self) -> io::Result<()> {
        self.grow()?;
        self.bring_pages(&self.read_held())?;
        self.disk.sync_data()
    }

    /// A header that names new pages follows only when they are surely there.
    fn grow(&self) -> io::Result<()> {
        let mut held = self.write_held();
        if held.len > held.disk_len {
            self.disk.set_len(held.len)?;
            self.disk.sync_data()?;
            held.disk_len = held.len;
        }
        Ok(())
    }

    fn bring_pages(&self, held: &Held) -> io::Result<()> {
        let mut run = Vec::new();
        let mut start = 0;
        for (place, block) in held.blocks.range(1..) {
            let offset = place * BLOCK as u64;
            if run.len() + BLOCK > RUN || start + run.len() as u64 != offset {
                self.write_run(start, &run)?;
                run.clear();
                start = offset;
            }
            run.extend_from_slice(block);
        }
        self.write_run(start, &run)
    }

    fn write_run(&self, start: u64, run: &[u8]) -> io::Result<()> {
        if run.is_empty() { Ok(()) } else { self.disk.write(start, run) }
    }

    /// Reads what the disk has, and zeros past its end.
    fn read_disk(&self, disk_len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(disk_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (there, past) = out.split_at_mut(there);
        past.fill(0);
        if there.is_empty() { Ok(()) } else { self.disk.read(offset, there) }
    }

    fn read_held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_held(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks that bytes touch: each one's place, where it begins in the bytes, and which part of it they are.
fn touched(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % BLOCK as u64) as usize;
        let part = within..BLOCK.min(within + len - done);
        let touched = (done < len).then(|| (at / BLOCK as u64, done, part.clone()));
        done += part.len();
        touched
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.read_held().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = self.read_held();
        if offset + out.len() as u64 > held.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_disk(held.disk_len, offset, out)?;
        for (place, start, part) in touched(offset, out.len()) {
            if let Some(block) = held.blocks.get(&place) {
                out[start..start + part.len()].copy_from_slice(&block[part]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut held = self.write_held();
        let end = offset + data.len() as u64;
        if held.through {
            self.disk.write(offset, data)?;
            held.disk_len = held.disk_len.max(end);
            held.len = held.disk_len;
            return Ok(());
        }
        held.len = held.len.max(end);
        for (place, start, part) in touched(offset, data.len()) {
            let data = &data[start..start + part.len()];
            if part.len() < BLOCK && !held.blocks.contains_key(&place) {
                let mut block = vec![0; BLOCK].into_boxed_slice();
                self.read_disk(held.disk_len, place * BLOCK as u64, &mut block)?;
                held.blocks.insert(place, block);
            }
            if let Some(block) = held.blocks.get_mut(&place) {
                block[part].copy_from_slice(data);
            } else {
                held.blocks.insert(place, data.into());
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut held = self.write_held();
        if held.through {
            self.disk.set_len(len)?;
            held.disk_len = len;
        } else if len < held.len {
            held.blocks.split_off(&len.div_ceil(BLOCK as u64));
        } else {
            // What the disk still has past the end is no longer there.
            let stale = held.len.div_ceil(BLOCK as u64)..held.disk_len.min(len).div_ceil(BLOCK as u64);
            held.blocks.extend(stale.map(|place| (place, vec![0; BLOCK].into_boxed_slice())));
        }
        held.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.read_held().through { self.disk.sync_data() } else { Ok(()) }
    }
}
