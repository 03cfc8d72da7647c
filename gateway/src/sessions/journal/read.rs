//! Reading the journal back. Nothing is changed on the disk.
//!
//! The newest segment has all that lives, as its first record says what lived when it was begun; an older one counts only while
//! the newer is not whole yet. So what a killed process or a power cut may leave behind is
//!
//! - a newest segment whose first record is torn: the segment before it counts;
//! - a last record that is torn: it is left out, and said;
//! - after a power cut, records that were not on the disk yet, of which the disk kept later sectors but not earlier ones,
//!   so that a hole of zeros, up to a sector's end, stands before whole records: all is left out from there on, and said.
//!
//! Anything else is damage. A record tells how much of its segment was surely on the disk when it was written, so a hole in
//! that is never taken for a power cut's.

use super::disk::Disk;
use super::error::{Damage, JournalError};
use super::format::{self, Kind, MAGIC, Record, VERSION};
use super::kept::Kept;
use super::segments;

/// What a power cut loses is whole sectors of so many bytes, or a multiple.
const SECTOR: usize = 512;

/// What was read back.
#[derive(Debug, Default)]
pub struct ReadBack {
    /// What lives.
    pub kept: Kept,
    /// The number of the newest segment that is whole; 0: there is none.
    pub newest: u64,
}

/// What stands in a segment.
enum Content {
    /// What lived at its end, as far as it is whole.
    Whole(Kept),
    /// Its first record is torn.
    Torn,
}

/// Reads all that lives.
///
/// # Errors
/// [`JournalError::Damaged`]; [`JournalError::Read`].
pub fn read(disk: &dyn Disk) -> Result<ReadBack, JournalError> {
    let numbers = segments::list(disk)?;
    for &number in &numbers {
        let file = segments::name(number);
        let bytes = disk
            .read(&file)
            .map_err(|error| JournalError::Read { file: file.clone(), why: error.to_string() })?;
        match (Segment { file, number, bytes: &bytes }).read()? {
            Content::Whole(kept) => return Ok(ReadBack { kept, newest: number }),
            Content::Torn => {}
        }
    }
    // A segment's predecessor is removed once it is on the disk itself.
    match numbers.last() {
        Some(&oldest) if oldest != segments::FIRST => {
            Err(Segment { file: segments::name(oldest), number: oldest, bytes: &[] }.damaged(
                0,
                0,
                Damage::Begin,
            ))
        }
        _ => Ok(ReadBack::default()),
    }
}

struct Segment<'a> {
    file: String,
    number: u64,
    bytes: &'a [u8],
}

impl Segment<'_> {
    fn read(&self) -> Result<Content, JournalError> {
        let mut kept = Kept::default();
        let (mut at, mut whole) = (0, 0);
        while at < self.bytes.len() {
            let Some(record) = Record::read(&self.bytes[at..]) else {
                self.check_torn(at, whole)?;
                break;
            };
            self.take(record, &mut kept, whole == 0).map_err(|damage| self.damaged(at, whole, damage))?;
            at += record.length();
            whole += 1;
        }
        Ok(if whole == 0 { Content::Torn } else { Content::Whole(kept) })
    }

    /// Adds what a whole record says.
    fn take(&self, record: Record<'_>, kept: &mut Kept, is_first: bool) -> Result<(), Damage> {
        let mut payload = record.payload;
        if record.kind == Kind::Begin as u32 {
            let (version, number, entries) = format::read_begin(payload).ok_or(Damage::Meaning)?;
            if version != VERSION {
                return Err(Damage::Version(version));
            }
            if !is_first || number != self.number {
                return Err(Damage::Misplaced);
            }
            payload = entries;
        } else if record.kind != Kind::Change as u32 {
            return Err(Damage::Meaning);
        } else if is_first {
            return Err(Damage::Misplaced);
        }
        while !payload.is_empty() {
            kept.read(format::read_entry(&mut payload).ok_or(Damage::Meaning)?)?;
        }
        Ok(())
    }

    /// Whether the record at `at`, which is not whole, and all that follows may be what a kill or a power cut left.
    ///
    /// # Errors
    /// It may not.
    fn check_torn(&self, at: usize, whole: u64) -> Result<(), JournalError> {
        let (mut followers, mut synced, mut hole_end, mut from) = (0, 0, self.bytes.len(), at + 1);
        while let Some(found) = find(&self.bytes[from..]) {
            from += found;
            match Record::read(&self.bytes[from..]) {
                Some(record) => {
                    if followers == 0 {
                        hole_end = from;
                    }
                    followers += 1;
                    synced = synced.max(record.synced);
                    from += record.length();
                }
                None => from += 1,
            }
        }
        if followers > 0 && (synced as usize > at || !self.has_hole(at, hole_end)) {
            return Err(self.damaged(at, whole, Damage::Record { followers }));
        }
        let (file, bytes) = (&self.file, self.bytes.len() - at);
        tracing::warn!(%file, at, bytes, followers, "the journal's torn end is cut off");
        Ok(())
    }

    /// Whether these bytes may have a hole, which ends with a sector.
    fn has_hole(&self, from: usize, to: usize) -> bool {
        (from / SECTOR + 1..=to / SECTOR).any(|sectors| self.bytes[sectors * SECTOR - 1] == 0)
    }

    fn damaged(&self, at: usize, whole: u64, damage: Damage) -> JournalError {
        JournalError::Damaged { file: self.file.clone(), offset: at as u64, damage, whole }
    }
}

/// Where the next record may begin.
fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}
