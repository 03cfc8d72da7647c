//! Disks in memory, whose power can be cut and whose space can end.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use crate::sessions::journal::{Disk, DiskFile};

/// A disk of one file. Its clones are one.
#[derive(Clone, Debug, Default)]
pub struct OneFile(Arc<Mutex<Bytes>>);

#[derive(Debug, Default)]
struct Bytes {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Change>,
    syncs: u32,
    faults: Faults,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// With this sync, and before it has any effect, the power is cut: from then on nothing is done.
    pub cut_at_sync: Option<u32>,
    /// So many writes are done, and none after them.
    pub writes_left: Option<u32>,
    /// Syncs fail.
    pub syncs_fail: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                to.resize(to.len().max(offset + data.len()), 0);
                to[*offset..offset + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => to.resize(*length, 0),
        }
    }
}

impl OneFile {
    /// With these bytes, all synced.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Bytes { now: bytes.clone(), synced: bytes, ..Bytes::default() })))
    }

    pub fn set(&self, faults: Faults) {
        self.0.lock().unwrap().faults = faults;
    }

    pub fn syncs(&self) -> u32 {
        self.0.lock().unwrap().syncs
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().now.clone()
    }

    /// Whether the power was cut.
    pub fn is_dead(&self) -> bool {
        self.0.lock().unwrap().is_dead()
    }

    /// What the disk has once its power is back: what was synced and, of what was not, the writes that `keep` picks.
    pub fn after_power_cut(&self, mut keep: impl FnMut() -> bool) -> Self {
        let bytes = self.0.lock().unwrap();
        let mut left = bytes.synced.clone();
        bytes.unsynced.iter().filter(|_| keep()).for_each(|change| change.apply(&mut left));
        Self::of(left)
    }
}

impl Bytes {
    fn is_dead(&self) -> bool {
        self.faults.cut_at_sync.is_some_and(|at| self.syncs >= at)
    }

    fn alive(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.alive()?;
        if let Some(left) = &mut self.faults.writes_left {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        change.apply(&mut self.now);
        self.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for OneFile {
    fn len(&self) -> io::Result<u64> {
        let bytes = self.0.lock().unwrap();
        bytes.alive()?;
        Ok(bytes.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        bytes.alive()?;
        let there = bytes.now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().change(Change::Length(length as usize))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().change(Change::Write(offset as usize, data.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        bytes.alive()?;
        if bytes.faults.syncs_fail {
            return Err(io::Error::other("the sync failed"));
        }
        bytes.syncs += 1;
        bytes.alive()?;
        bytes.synced = bytes.now.clone();
        bytes.unsynced.clear();
        Ok(())
    }
}

/// A folder whose files outlive a killed process. Its clones are one.
#[derive(Clone, Debug, Default)]
pub struct Folder(Arc<Mutex<BTreeMap<String, OneFile>>>);

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let files = self.0.lock().unwrap();
        Ok(files.get(name).ok_or(io::ErrorKind::NotFound)?.bytes())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OneFile::default();
        self.0.lock().unwrap().insert(name.to_owned(), file.clone());
        Ok(Arc::new(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for OneFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let end = StorageBackend::len(self)?;
        self.write(end, bytes)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
