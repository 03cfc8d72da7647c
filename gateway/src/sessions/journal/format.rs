//! How segments look.
//!
//! A segment is a file of records, one after another. Its first is a *begin* record, every other a *change*. All numbers are
//! little-endian.
//!
//! | a record's header | bytes |
//! |---|---|
//! | `AsJr` | 4 |
//! | kind: 1 begin, 2 change | 4 |
//! | bytes of the payload | 4 |
//! | how many of the segment's bytes were surely on the disk when the record was written | 4 |
//! | CRC-32 of the payload | 4 |
//! | CRC-32 of the 20 bytes before | 4 |
//!
//! A begin record's payload is the format's version (4 bytes), the segment's number (8 bytes) and entries: all that lived
//! when it was begun. A change's payload is entries: what was added.
//!
//! | an entry | bytes |
//! |---|---|
//! | turn | 16 |
//! | index of the first token: as many as the turn has by all entries before | 4 |
//! | number of tokens | 4 |
//! | note: 0 none; 1 the turn is to end with the tokens that it has; 2 it is forgotten | 1 |
//! | tokens | 4 each |
//!
//! A header has the same layout in every version.

use uuid::Uuid;

use crate::sessions::TurnId;

/// The version that is written and read.
pub const VERSION: u32 = 1;

/// Bytes of a header.
pub const HEADER: usize = 24;

/// Bytes of an entry beside its tokens.
const ENTRY: usize = 25;

/// What every record begins with.
pub const MAGIC: [u8; 4] = *b"AsJr";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first of a segment.
    Begin = 1,
    /// Any other.
    Change = 2,
}

/// One turn's part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Whose.
    pub turn: TurnId,
    /// How many tokens it has by all entries before.
    pub first: u32,
    /// What becomes of it.
    pub note: Note,
    /// What it has more.
    pub tokens: Tokens<'a>,
}

/// What becomes of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing new.
    None = 0,
    /// It is to end with the tokens that it has.
    Stop = 1,
    /// It is forgotten.
    Forget = 2,
}

/// Tokens as they are written, four bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens<'a>(&'a [[u8; 4]]);

/// A record that has its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// As written; no [`Kind`] where a later version wrote it.
    pub kind: u32,
    /// How many of the segment's bytes were surely on the disk when it was written.
    pub synced: u32,
    /// What it says.
    pub payload: &'a [u8],
}

// === impl Record ===

impl<'a> Record<'a> {
    /// The record that `bytes` begin with, if it is whole.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let (fields, _) = header.as_chunks::<4>();
        let [magic, kind, length, synced, payload_crc, header_crc] = *fields else { return None };
        if magic != MAGIC || crc32fast::hash(&header[..HEADER - 4]) != u32::from_le_bytes(header_crc) {
            return None;
        }
        let payload = rest.get(..usize::try_from(u32::from_le_bytes(length)).ok()?)?;
        if crc32fast::hash(payload) != u32::from_le_bytes(payload_crc) {
            return None;
        }
        Some(Self { kind: u32::from_le_bytes(kind), synced: u32::from_le_bytes(synced), payload })
    }

    /// Its bytes in the segment.
    pub fn length(&self) -> usize {
        HEADER + self.payload.len()
    }
}

// === impl Tokens ===

impl Tokens<'_> {
    /// How many.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// As numbers.
    pub fn ids(self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|id| u32::from_le_bytes(*id))
    }
}

/// The version and number that a begin record's payload begins with, and the entries after them.
pub fn read_begin(payload: &[u8]) -> Option<(u32, u64, &[u8])> {
    let (version, rest) = payload.split_first_chunk()?;
    let (number, entries) = rest.split_first_chunk()?;
    Some((u32::from_le_bytes(*version), u64::from_le_bytes(*number), entries))
}

/// Takes the next entry off a payload; `None`: there is none that makes sense.
pub fn read_entry<'a>(payload: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (turn, rest) = payload.split_first_chunk()?;
    let (first, rest) = rest.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let ([note], rest) = rest.split_first_chunk()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(4)?;
    let (tokens, rest) = rest.split_at_checked(bytes)?;
    let note = [Note::None, Note::Stop, Note::Forget].into_iter().find(|known| *known as u8 == *note)?;
    *payload = rest;
    let turn = TurnId(Uuid::from_bytes(*turn));
    Some(Entry { turn, first: u32::from_le_bytes(*first), note, tokens: Tokens(tokens.as_chunks().0) })
}

/// One record while it is written.
#[derive(Debug, Default)]
pub struct RecordWriter {
    /// The header, empty until the record is finished, and the payload.
    bytes: Vec<u8>,
}

impl RecordWriter {
    /// Begins an empty change.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADER, 0);
    }

    /// Begins a segment's first record.
    pub fn begin(&mut self, number: u64) {
        self.clear();
        self.bytes.extend(VERSION.to_le_bytes());
        self.bytes.extend(number.to_le_bytes());
    }

    /// Adds an entry. Its tokens are as many as a `u32` can count.
    pub fn entry(&mut self, turn: TurnId, first: u32, note: Note, ids: &[u32]) {
        self.bytes.reserve(ENTRY + 4 * ids.len());
        self.bytes.extend(turn.0.as_bytes());
        self.bytes.extend(first.to_le_bytes());
        self.bytes.extend((ids.len() as u32).to_le_bytes());
        self.bytes.push(note as u8);
        self.bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    }

    /// Its bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all but its first bytes.
    pub fn truncate(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
    }

    /// Whether it says nothing yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() <= HEADER
    }

    /// The finished record; `synced` bytes of the segment are on the disk.
    pub fn finish(&mut self, kind: Kind, synced: u64) -> &[u8] {
        let Some((header, payload)) = self.bytes.split_first_chunk_mut::<HEADER>() else { return &[] };
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&u32::try_from(synced).unwrap_or(u32::MAX).to_le_bytes());
        header[16..20].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        let crc = crc32fast::hash(&header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }
}
