//! A disk in memory whose process can be killed and whose power can be cut at any point.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// See the module. Copies are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    files: Vec<File>,
    /// Which file has which name.
    names: BTreeMap<String, usize>,
    /// The same, as a power cut would surely leave it.
    durable_names: BTreeMap<String, usize>,
    faults: Faults,
    death: Option<Death>,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct File {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

/// What does not work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Only so many more bytes can be appended.
    pub space: Option<usize>,
    /// Nothing can be cut off.
    pub truncate: bool,
    /// No file is brought to the disk.
    pub sync: bool,
    /// The folder is not brought to the disk.
    pub sync_folder: bool,
    /// Nothing is removed.
    pub remove: bool,
}

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// After so many changes of the disk.
    pub after: usize,
    /// So many bytes of the next are still written.
    pub torn: usize,
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    index: usize,
}

impl MemoryDisk {
    /// From now on these things do not work.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The process that uses it is killed some time; then nothing works.
    pub fn die(&self, death: Death) {
        self.state().death = Some(death);
    }

    /// Whether the process was killed.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// What the next process finds after this one was killed.
    pub fn after_kill(&self) -> Self {
        let State { files, names, durable_names, .. } = self.state().clone();
        Self(Arc::new(Mutex::new(State { files, names, durable_names, ..State::default() })))
    }

    /// What the next process finds after a power cut; `choose(n)` gives a number below `n`.
    pub fn after_power_cut(&self, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let State { files, names: now, durable_names, .. } = self.state().clone();
        let files: Vec<File> = files.into_iter().map(|file| file.after_power_cut(choose)).collect();
        let mut names = BTreeMap::new();
        for name in now.keys().chain(durable_names.keys()) {
            let (now, durable) = (now.get(name), durable_names.get(name));
            if let Some(index) = if choose(2) == 0 { now } else { durable } {
                names.insert(name.clone(), *index);
            }
        }
        let durable_names = names.clone();
        Self(Arc::new(Mutex::new(State { files, names, durable_names, ..State::default() })))
    }

    /// All files' bytes.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(name, index)| (name.clone(), state.files[*index].bytes.clone())).collect()
    }

    /// One that has these files.
    pub fn of(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let names: BTreeMap<_, _> = files.keys().cloned().zip(0..).collect();
        let files =
            files.values().map(|bytes| File { bytes: bytes.clone(), durable: bytes.clone() }).collect();
        let durable_names = names.clone();
        Self(Arc::new(Mutex::new(State { files, names, durable_names, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// Counts a change; `Err`: the process is killed before it, or has been.
    fn change(&mut self) -> Result<(), Option<Death>> {
        if self.dead {
            return Err(None);
        }
        let Some(death) = &mut self.death else { return Ok(()) };
        if death.after == 0 {
            self.dead = true;
            return Err(Some(*death));
        }
        death.after -= 1;
        Ok(())
    }

    fn give_back(&mut self, bytes: usize) {
        if let Some(space) = &mut self.faults.space {
            *space += bytes;
        }
    }
}

impl File {
    fn after_power_cut(self, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let Self { mut bytes, durable } = self;
        if !bytes.starts_with(&durable) {
            // Something was cut off since.
            let bytes = if choose(2) == 0 { bytes } else { durable };
            return Self { durable: bytes.clone(), bytes };
        }
        bytes.truncate(durable.len() + choose(bytes.len() - durable.len() + 1));
        let mut start = durable.len();
        while start < bytes.len() {
            let end = ((start / SECTOR + 1) * SECTOR).min(bytes.len());
            if choose(4) == 0 {
                bytes[start..end].fill(0);
            }
            start = end;
        }
        Self { durable: bytes.clone(), bytes }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let index = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[*index].bytes.clone())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.change().map_err(killed)?;
        let index = match state.names.get(name).copied() {
            Some(index) => {
                let bytes = std::mem::take(&mut state.files[index].bytes).len();
                state.give_back(bytes);
                index
            }
            None => {
                let index = state.files.len();
                state.files.push(File::default());
                state.names.insert(name.to_owned(), index);
                index
            }
        };
        Ok(Arc::new(MemoryFile { disk: self.clone(), index }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change().map_err(killed)?;
        if state.faults.remove {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let index = state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = state.files[index].bytes.len();
        state.give_back(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.change().map_err(killed)?;
        if state.faults.sync_folder {
            return Err(io::Error::other("the folder is not brought to the disk"));
        }
        state.durable_names = state.names.clone();
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let (length, result) = match state.change() {
            Ok(()) => match state.faults.space {
                Some(space) if space < bytes.len() => (space, Err(io::ErrorKind::StorageFull.into())),
                _ => (bytes.len(), Ok(())),
            },
            Err(Some(death)) => (death.torn.min(bytes.len()), Err(killed(None))),
            Err(None) => (0, Err(killed(None))),
        };
        if let Some(space) = &mut state.faults.space {
            *space = space.saturating_sub(length);
        }
        state.files[self.index].bytes.extend(&bytes[..length]);
        result
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change().map_err(killed)?;
        if state.faults.truncate {
            return Err(io::Error::other("nothing can be cut off"));
        }
        let before = state.files[self.index].bytes.len();
        state.files[self.index].bytes.truncate(length as usize);
        state.give_back(before - length as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.change().map_err(killed)?;
        if state.faults.sync {
            return Err(io::Error::other("the file is not brought to the disk"));
        }
        let file = &mut state.files[self.index];
        file.durable = file.bytes.clone();
        Ok(())
    }
}

fn killed(_: Option<Death>) -> io::Error {
    io::Error::other("the process was killed")
}
