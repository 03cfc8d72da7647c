//! A store in a folder: sessions and turns in a database, the tokens of running turns in a journal beside it.
//!
//! All steps that wait are one commit of the database, and so share its sync. A full or broken disk refuses steps before
//! anything of them is there; reads go on, and so do steps as soon as the disk takes them again.

mod database;
mod error;
mod overlay;
mod reads;
mod records;
mod rows;
mod running;
mod steps;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use redb::StorageBackend;

use self::database::unusable;
pub use self::error::OpenError;
use self::records::Records;
use self::running::Running;
use super::{
    Answer, Appended, BeginTurn, Begun, Change, Claimed, Fork, NewSession, Session, SessionId, Store,
    StoreError, Stored, Turn, TurnId,
};
use crate::sessions::journal::{self, FolderDisk, Journal, JournalError};

/// What one process locks in the folder.
const LOCK: &str = "lock";
/// The journal's folder in the folder.
const JOURNAL: &str = "journal";

/// Keeps sessions in a folder that no other process uses. Dropping it waits until all that was asked is on the disk.
#[derive(Debug)]
pub struct LocalStore {
    // Before the others, which its thread tells what it did.
    records: Records,
    running: Arc<Running>,
    journal: Arc<Journal>,
    // After all that writes into the folder.
    _lock: Option<File>,
}

impl LocalStore {
    /// Opens the store in `folder`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing was changed.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(folder).map_err(|error| unusable(folder, error))?;
        let lock = lock(folder)?;
        let (file, records) = database::open_file(folder)?;
        let journal = folder.join(JOURNAL);
        let journal = FolderDisk::open(&journal).map_err(|error| unusable(&journal, error))?;
        Ok(Self { _lock: Some(lock), ..Self::open_on(&file, records, Arc::new(journal))? })
    }

    /// Opens what lies on two disks.
    fn open_on(
        file: &str,
        records: Arc<dyn StorageBackend>,
        journal: Arc<dyn journal::Disk>,
    ) -> Result<Self, OpenError> {
        // Before the journal is written to.
        database::check(file, &records, || journal::told(&*journal))?;
        let opened = Journal::open(journal, journal::Settings::default());
        let (journal, recovered) = opened.map_err(|error| OpenError::Journal(error, file.to_owned()))?;
        let journal = Arc::new(journal);
        let running = Arc::new(Running::new(Arc::clone(&journal)));
        let (records, still_running) = Records::open(file, records, Box::new(Arc::clone(&running)))?;
        running.recover(&still_running, recovered);
        Ok(Self { records, running, journal, _lock: None })
    }
}

/// Keeps other processes away from a folder.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| unusable(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(folder.display().to_string())),
        Err(TryLockError::Error(error)) => Err(unusable(&path, error)),
    }
}

impl Store for LocalStore {
    fn create(&self, tenant: &str, session: NewSession) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        self.records.write(move |tables| tables.create(&tenant, &session))
    }

    fn session(&self, tenant: &str, id: SessionId) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        self.records.read(move |tables| tables.session(&tenant, id))
    }

    fn sessions(&self, tenant: &str, before: Option<SessionId>, most: u32) -> Stored<'_, Vec<Session>> {
        let tenant = tenant.to_owned();
        self.records.read(move |tables| tables.list(&tenant, before, most))
    }

    fn turns(&self, tenant: &str, id: SessionId, first: u32, most: u32) -> Stored<'_, Vec<Turn>> {
        let tenant = tenant.to_owned();
        self.records.read(move |tables| tables.turns(&tenant, id, first, most))
    }

    fn begin(&self, tenant: &str, id: SessionId, turn: BeginTurn) -> Stored<'_, Begun> {
        let tenant = tenant.to_owned();
        self.records.write(move |tables| tables.begin(&tenant, id, &turn))
    }

    fn discard(&self, turn: TurnId) -> Stored<'_, ()> {
        if !self.running.runs_here(turn) {
            return futures::future::ready(Ok(())).boxed();
        }
        self.records.write(move |tables| tables.discard(turn))
    }

    fn append(&self, mut tokens: Vec<Appended>) -> Stored<'_, Vec<TurnId>> {
        let left_out = self.running.retain(&mut tokens);
        if tokens.is_empty() {
            return futures::future::ready(Ok(left_out)).boxed();
        }
        self.journal.append(tokens).map(|written| Ok(written.map(|()| left_out)?)).boxed()
    }

    fn stop(&self, turn: TurnId) -> Stored<'_, ()> {
        if !self.running.runs(turn) {
            return futures::future::ready(Ok(())).boxed();
        }
        let running = Arc::clone(&self.running);
        self.journal.stop(turn).map(move |written| Ok(written.map(|()| running.stop(turn))?)).boxed()
    }

    fn stops(&self) -> Stored<'_, Vec<TurnId>> {
        futures::future::ready(Ok(self.running.stops())).boxed()
    }

    fn finish(&self, turn: TurnId, answer: Answer) -> Stored<'_, u64> {
        if self.running.runs(turn) && !self.running.runs_here(turn) {
            return futures::future::ready(Err(StoreError::Taken(turn))).boxed();
        }
        self.records.write(move |tables| tables.finish(turn, &answer))
    }

    fn tokens(&self, turn: TurnId, first: u32) -> Stored<'_, Option<Vec<u32>>> {
        futures::future::ready(Ok(self.running.tokens(turn, first))).boxed()
    }

    fn claim(&self) -> Stored<'_, Vec<Claimed>> {
        let running = Arc::clone(&self.running);
        self.records.read(move |tables| running.claim(|turn| tables.claimed(turn)))
    }

    fn fork(&self, tenant: &str, source: SessionId, fork: Fork) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        self.records.write(move |tables| tables.fork(&tenant, source, &fork))
    }

    fn truncate(&self, tenant: &str, id: SessionId, change: Change, turns: u32) -> Stored<'_, Session> {
        let tenant = tenant.to_owned();
        self.records.write(move |tables| tables.truncate(&tenant, id, change, turns))
    }

    fn delete(&self, tenant: &str, id: SessionId, change: Change) -> Stored<'_, ()> {
        let tenant = tenant.to_owned();
        self.records.write(move |tables| tables.delete(&tenant, id, change))
    }

    fn expire(&self, before_ms: u64, most: u32) -> Stored<'_, u32> {
        self.records.write(move |tables| tables.expire(before_ms, most))
    }
}

impl From<JournalError> for StoreError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Gap { turn, has, first } => Self::NotNext { turn, has, first },
            JournalError::OtherToken { turn, index } => Self::OtherToken { turn, index },
            JournalError::Write { .. } | JournalError::Sync { .. } | JournalError::TooMany { .. } => {
                Self::Unwritable(error.to_string())
            }
            JournalError::Damaged { .. } => Self::Damaged(error.to_string()),
            JournalError::Read { .. } | JournalError::Thread(_) | JournalError::Closed => {
                Self::Unreachable(error.to_string())
            }
        }
    }
}
