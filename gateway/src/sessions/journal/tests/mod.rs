//! The journal on a disk that fails, is killed and loses its power.

mod damage;
mod disk;
mod faults;
mod properties;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use self::disk::{Death, Faults, MemoryDisk};
use super::kept::KeptTurn;
use super::log::{Change, Log};
use super::read::read;
use super::syncing::{Syncer, Syncing};
use super::{Damage, Disk, JournalError, Settings};
use crate::sessions::TurnId;
use crate::sessions::store::Appended;

/// Turns and what is known of them.
type Turns = BTreeMap<TurnId, KeptTurn>;

/// A journal without threads.
struct Opened {
    log: Log,
    syncing: Arc<Syncing>,
    syncer: Syncer,
}

impl Opened {
    /// Opens what is on `disk`; and what was read back.
    fn new(disk: &MemoryDisk, segment_bytes: u64) -> Result<(Self, Turns), JournalError> {
        let read = read(disk)?;
        let turns = read.kept.turns().map(|(turn, kept)| (turn, kept.clone())).collect();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let syncing = Arc::<Syncing>::default();
        let syncer = Syncer::new(Arc::clone(&shared), read.newest);
        let settings = Settings { segment_bytes, ..Settings::default() };
        let log = Log::new(shared, settings, read, Arc::clone(&syncing));
        Ok((Self { log, syncing, syncer }, turns))
    }

    fn write(&mut self, change: Change) -> Result<(), JournalError> {
        self.log.write(&[change]).pop().unwrap()
    }

    /// Syncs what there is; whether that went well.
    fn sync(&mut self) -> bool {
        self.syncing.take_work().is_none_or(|work| match self.syncer.sync(&work) {
            Ok(()) => true,
            Err(failure) => !self.syncing.fail(&work, failure),
        })
    }
}

fn turn(number: u128) -> TurnId {
    TurnId(Uuid::from_u128(number))
}

fn tokens(turn: TurnId, first: u32, token_ids: &[u32]) -> Change {
    Change::Append(vec![Appended { turn, first, token_ids: token_ids.to_vec() }])
}

fn kept(token_ids: &[u32]) -> KeptTurn {
    KeptTurn { token_ids: token_ids.to_vec(), stop: false }
}

/// What a reader finds.
fn found(disk: &MemoryDisk) -> Result<Turns, JournalError> {
    Opened::new(disk, 1).map(|(_, turns)| turns)
}

#[test]
fn what_is_written_at_once_is_one_record() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1])).unwrap();
    let bytes = || disk.files().into_values().next().unwrap();
    let before = bytes().len();
    let changes = [tokens(turn(1), 1, &[2, 3]), Change::Stop(turn(2)), tokens(turn(3), 0, &[4])];
    assert_eq!(opened.log.write(&changes), [Ok(()), Ok(()), Ok(())]);
    let written = &bytes()[before..];
    assert_eq!(super::format::Record::read(written).unwrap().length(), written.len());
}
