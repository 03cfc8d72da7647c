//! The tokens of running turns, written before they leave.
//!
//! A [`Journal`] takes the tokens of all turns of a step in one small write to the end of a file. That outlives a killed
//! process; a power cut may take what came since the last sync, which is at most [`Settings::sync_every`] ago. It knows
//! nothing of sessions: a turn that was committed elsewhere is forgotten here.
//!
//! The file is a *segment*, of which `format.rs` has the layout. Once it has grown, a new one begins with all that lives,
//! and those before are removed as soon as it is on the disk; so what is kept is bounded by what lives. One thread writes:
//! what waits when it wakes becomes one record. Another brings what was written to the disk.
//!
//! A change that fails has no effect, also after a restart: what was written of its record is cut off or, where that fails
//! too, left without its end, of which no reader takes anything. Writing goes on as soon as there is space. After a failed
//! sync one change is refused, so that it is known, and all that lives is written anew.

mod disk;
mod error;
mod folder;
mod format;
mod kept;
mod log;
mod read;
mod segments;
mod syncing;
#[cfg(test)]
mod tests;
mod writing;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use self::disk::{Disk, DiskFile};
pub use self::error::{Damage, JournalError};
pub use self::folder::FolderDisk;
use self::log::{Change, Log};
use self::syncing::{Syncer, Syncing};
use self::writing::{Command, Outside, QUEUED};
use super::TurnId;
use super::store::Appended;

/// Keeps the tokens of running turns. Dropping it waits until all that was taken in is on the disk.
#[derive(Debug)]
pub struct Journal {
    commands: mpsc::Sender<Command>,
    outside: Arc<Outside>,
    syncing: Arc<Syncing>,
    writer: Option<JoinHandle<()>>,
    syncer: Option<JoinHandle<()>>,
}

/// How a journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// By so many bytes at least a segment grows.
    pub segment_bytes: u64,
    /// From the beginning of one sync to the beginning of the next, while there is something to sync.
    pub sync_every: Duration,
}

/// A turn that lived when its journal was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its name.
    pub turn: TurnId,
    /// All its tokens.
    pub token_ids: Vec<u32>,
    /// Whether it is to end with them.
    pub stop: bool,
}

impl Default for Settings {
    fn default() -> Self {
        // 40 ms and the sync itself make 50.
        Self { segment_bytes: 4 << 20, sync_every: Duration::from_millis(40) }
    }
}

impl Journal {
    /// Reads back what lives on `disk`, which nobody else writes to, and goes on there. Reading changes nothing. Turns that
    /// need not live any more are to be forgotten.
    ///
    /// # Errors
    /// [`JournalError::Damaged`], [`JournalError::Read`] and [`JournalError::Thread`]. A full disk is none.
    pub fn open(disk: Arc<dyn Disk>, settings: Settings) -> Result<(Self, Vec<Recovered>), JournalError> {
        let read = read::read(&*disk)?;
        let recovered = read.kept.turns().map(|(turn, kept)| {
            let token_ids = kept.token_ids.clone();
            Recovered { turn, token_ids, stop: kept.stop }
        });
        let recovered = recovered.collect();
        let syncing = Arc::<Syncing>::default();
        let outside = Arc::<Outside>::default();
        let (commands, incoming) = mpsc::channel(QUEUED);
        let syncer = Syncer::new(Arc::clone(&disk), read.newest);
        let log = Log::new(disk, settings, read, Arc::clone(&syncing));
        let mut journal = Self { commands, outside, syncing, writer: None, syncer: None };
        journal.writer = Some(start("journal", {
            let outside = Arc::clone(&journal.outside);
            move || writing::run(log, incoming, &outside)
        })?);
        journal.syncer = Some(start("journal-sync", {
            let (syncing, outside) = (Arc::clone(&journal.syncing), Arc::clone(&journal.outside));
            move || syncer.run(&syncing, settings.sync_every, || outside.wake())
        })?);
        Ok((journal, recovered))
    }

    /// Adds tokens to turns. It resolves once the operating system has them; then they outlive a killed process. Tokens that a
    /// turn is known to have are passed over. Calls for the same turn are to be made one after another. Dropped before it
    /// resolves, it may have happened or not.
    ///
    /// # Errors
    /// None of it was written: [`JournalError::Write`], [`JournalError::Sync`], [`JournalError::Gap`],
    /// [`JournalError::OtherToken`], [`JournalError::TooMany`], [`JournalError::Closed`].
    pub fn append(
        &self,
        tokens: Vec<Appended>,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.change(Change::Append(tokens))
    }

    /// Notes that a turn is to end with the tokens that it has. A turn that is not known yet is from now on.
    ///
    /// # Errors
    /// It was not noted: [`JournalError::Write`], [`JournalError::Sync`], [`JournalError::Closed`].
    pub fn stop(&self, turn: TurnId) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        self.change(Change::Stop(turn))
    }

    /// The turn is committed elsewhere: its tokens are no longer needed. It takes effect after the changes that were sent
    /// before, never waits, and is not durable: a turn that is recovered all the same is to be forgotten again.
    pub fn forget(&self, turn: TurnId) {
        self.outside.forget(turn);
    }

    fn change(&self, change: Change) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let commands = self.commands.clone();
        async move {
            let (done, written) = oneshot::channel();
            commands.send(Command { change, done }).await.map_err(|_| JournalError::Closed)?;
            written.await.unwrap_or(Err(JournalError::Closed))
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.outside.close();
        // A thread that panicked has said so.
        let _ = self.writer.take().map(JoinHandle::join);
        self.syncing.close();
        let _ = self.syncer.take().map(JoinHandle::join);
    }
}

/// How a journal is that nobody writes to, for people.
pub fn told(disk: &dyn Disk) -> String {
    match read::read(disk) {
        Ok(read) => {
            format!("the journal beside it is whole, with {} running turns", read.kept.turns().count())
        }
        Err(error) => error.to_string(),
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, JournalError> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map_err(|error| JournalError::Thread(error.to_string()))
}
