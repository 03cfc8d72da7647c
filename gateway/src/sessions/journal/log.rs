//! What the writing thread does: changes become records, records go to segments. No threads, no clock.

use std::io;
use std::sync::Arc;

use super::Settings;
use super::disk::Disk;
use super::error::JournalError;
use super::format::{Kind, Note, RecordWriter};
use super::kept::{Kept, Undo};
use super::read::ReadBack;
use super::segments::{self, Segment};
use super::syncing::Syncing;
use crate::sessions::TurnId;
use crate::sessions::store::Appended;

/// The most tokens that one change may have.
const MOST_TOKENS: usize = 1 << 20;

/// A new segment begins once one has grown by this many times what its first record has, so that copying what lives costs
/// little beside what was written meanwhile.
const GROWTH: u64 = 4;

/// What is to be written.
#[derive(Clone, Debug)]
pub enum Change {
    /// Turns have more tokens.
    Append(Vec<Appended>),
    /// A turn is to end.
    Stop(TurnId),
}

/// The writing end of the journal.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    settings: Settings,
    syncing: Arc<Syncing>,
    kept: Kept,
    /// The number of the newest segment that is whole; 0: there is none.
    newest: u64,
    /// The segment that is written; `None`: the next change begins one.
    open: Option<Open>,
    record: RecordWriter,
    /// Turns that were forgotten since the last record, and how many tokens they had.
    forgotten: Vec<(TurnId, u32)>,
    /// A failed sync that no change was told of.
    unreported: Option<JournalError>,
}

#[derive(Debug)]
struct Open {
    segment: Arc<Segment>,
    /// Its bytes.
    length: u64,
    /// With so many, a new one begins.
    full_at: u64,
}

impl Log {
    /// Goes on with what was read back. Nothing is written before the first change.
    pub fn new(disk: Arc<dyn Disk>, settings: Settings, read: ReadBack, syncing: Arc<Syncing>) -> Self {
        let ReadBack { kept, newest } = read;
        let (record, forgotten) = Default::default();
        Self { disk, settings, syncing, kept, newest, open: None, record, forgotten, unreported: None }
    }

    /// Writes changes as one record, in one write. Each is told for itself whether it was taken in; one that was not has no
    /// effect, and if the write fails, none has.
    pub fn write(&mut self, changes: &[Change]) -> Vec<Result<(), JournalError>> {
        if let Err(error) = self.be_ready() {
            return vec![Err(error); changes.len()];
        }
        self.record.clear();
        for (turn, tokens) in &self.forgotten {
            self.record.entry(*turn, *tokens, Note::Forget, &[]);
        }
        let mut undos = Vec::new();
        let mut results: Vec<_> = changes.iter().map(|change| self.take(change, &mut undos)).collect();
        if let Err(error) = self.write_record() {
            self.undo(&mut undos, 0);
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.clone());
            }
        }
        results
    }

    /// A turn's tokens are no longer needed. The next record says so, too.
    pub fn forget(&mut self, turn: TurnId) {
        self.forgotten.extend(self.kept.forget(turn).map(|tokens| (turn, tokens)));
    }

    /// After a failed sync, writes all that lives to a new segment: what the system still has of the old one may never reach
    /// the disk, though later syncs say nothing of it. The next change is told.
    pub fn repair(&mut self) {
        if let Some(failure) = self.syncing.take_failure() {
            self.open = None;
            self.unreported = Some(failure);
        }
        if self.open.is_none()
            && self.unreported.is_some()
            && let Err(error) = self.begin()
        {
            tracing::warn!(%error, "the next change tries again");
        }
    }

    /// Makes sure that there is a segment to write to.
    fn be_ready(&mut self) -> Result<(), JournalError> {
        self.repair();
        if let Some(failure) = self.unreported.take() {
            return Err(failure);
        }
        match &mut self.open {
            None => self.begin(),
            Some(open) if open.length < open.full_at => Ok(()),
            Some(open) => {
                // Should it fail, the old one still has room.
                open.full_at = open.length + self.settings.segment_bytes;
                if let Err(error) = self.begin() {
                    tracing::warn!(%error, "the journal goes on in its old segment");
                }
                Ok(())
            }
        }
    }

    /// Begins a segment with all that lives.
    fn begin(&mut self) -> Result<(), JournalError> {
        let number = self.newest + 1;
        let name = segments::name(number);
        self.record.begin(number);
        self.kept.write(&mut self.record);
        let bytes = self.record.finish(Kind::Begin, 0);
        let write = || {
            let file = self.disk.create(&name)?;
            if number == segments::FIRST {
                // So that no later one is ever found alone before it is whole.
                self.disk.sync()?;
            }
            file.append(bytes)?;
            Ok(file)
        };
        let file = write().map_err(|error: io::Error| {
            // It is not whole, so it does not count; but what there is of it takes room.
            let _ = self.disk.create(&name);
            JournalError::Write { file: name.clone(), why: error.to_string() }
        })?;
        let length = bytes.len() as u64;
        let segment = Arc::new(Segment::new(number, file));
        self.syncing.written(&segment, length);
        self.newest = number;
        let full_at = length + self.settings.segment_bytes.max(GROWTH * length);
        self.open = Some(Open { segment, length, full_at });
        self.forgotten.clear();
        Ok(())
    }

    /// Adds one change to the record, or nothing of it.
    fn take(&mut self, change: &Change, undos: &mut Vec<Undo>) -> Result<(), JournalError> {
        let (written, undone) = (self.record.len(), undos.len());
        let taken = match change {
            Change::Append(appended) => self.append(appended, undos),
            Change::Stop(turn) => {
                undos.extend(self.kept.stop(*turn, &mut self.record));
                Ok(())
            }
        };
        if taken.is_err() {
            self.undo(undos, undone);
            self.record.truncate(written);
        }
        taken
    }

    fn append(&mut self, appended: &[Appended], undos: &mut Vec<Undo>) -> Result<(), JournalError> {
        let tokens = appended.iter().map(|added| added.token_ids.len()).sum();
        if tokens > MOST_TOKENS {
            return Err(JournalError::TooMany { tokens, most: MOST_TOKENS });
        }
        for added in appended {
            undos.extend(self.kept.append(added, &mut self.record)?);
        }
        Ok(())
    }

    /// Takes the last changes back, all but the first so many.
    fn undo(&mut self, undos: &mut Vec<Undo>, first: usize) {
        undos.drain(first..).rev().for_each(|undo| self.kept.undo(undo));
    }

    /// Writes the record, if it says something. If that fails, what was written of it is cut off; if that fails too, the
    /// segment is left with a torn end, of which no reader takes anything, and the next change begins a new one.
    fn write_record(&mut self) -> Result<(), JournalError> {
        let Some(open) = self.open.as_mut().filter(|_| !self.record.is_empty()) else { return Ok(()) };
        let bytes = self.record.finish(Kind::Change, open.segment.synced());
        if let Err(error) = open.segment.file.append(bytes) {
            let file = open.segment.name();
            if let Err(error) = open.segment.file.truncate(open.length) {
                tracing::warn!(file, %error, "a torn record cannot be cut off; the journal goes on in a new segment");
                self.open = None;
            }
            return Err(JournalError::Write { file, why: error.to_string() });
        }
        self.forgotten.clear();
        open.length += bytes.len() as u64;
        self.syncing.written(&open.segment, open.length);
        Ok(())
    }
}
