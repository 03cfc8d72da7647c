//! Why the journal did not do what it was asked.

use crate::sessions::TurnId;

/// Why the journal did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// What was written before is not what is there.
    #[error("the journal is damaged: {file} at byte {offset}: {damage}; {whole} records before it are whole")]
    Damaged {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// In what way.
        damage: Damage,
        /// How many records of the segment lie whole before it.
        whole: u64,
    },
    /// Reading failed.
    #[error("the journal cannot be read: {file}: {why}")]
    Read {
        /// The segment, or nothing where it is the folder.
        file: String,
        /// As the system says it.
        why: String,
    },
    /// Writing failed, as on a full disk. Nothing of what was to be written counts.
    #[error("the journal cannot be written: {file}: {why}")]
    Write {
        /// The segment.
        file: String,
        /// As the system says it.
        why: String,
    },
    /// What was written earlier could not be brought to the disk, so nothing more was taken in.
    #[error("the journal could not be brought to the disk: {file}: {why}")]
    Sync {
        /// The segment.
        file: String,
        /// As the system says it.
        why: String,
    },
    /// Tokens do not join those that the turn has.
    #[error("turn {turn} has {has} tokens in the journal; those from {first} on do not join them")]
    Gap {
        /// Whose.
        turn: TurnId,
        /// How many it has.
        has: usize,
        /// How many it was said to have.
        first: u32,
    },
    /// Tokens are others than those that the turn has.
    #[error("turn {turn} has another token {index} in the journal")]
    OtherToken {
        /// Whose.
        turn: TurnId,
        /// The place of the first that differs.
        index: usize,
    },
    /// More at once, or of all running turns, than the journal takes.
    #[error("{tokens} tokens are too many for the journal, which takes {most}")]
    TooMany {
        /// So many.
        tokens: usize,
        /// And no more than these.
        most: usize,
    },
    /// A thread could not be started.
    #[error("the journal's threads cannot be started: {0}")]
    Thread(String),
    /// The journal was closed before it was written.
    #[error("the journal is closed")]
    Closed,
}

/// In what way what is there is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A record does not have its checksum, and what follows shows that it was whole once.
    #[error("a record is not as it was written, though {followers} after it are")]
    Record {
        /// How many records after it are whole.
        followers: u64,
    },
    /// A segment's first record is not there, and nothing else has what it had.
    #[error("the first record is not as it was written, and no earlier segment is there in its place")]
    Begin,
    /// A record is not where it was written.
    #[error("a record stands where it does not belong")]
    Misplaced,
    /// A record that a later version wrote, or none at all.
    #[error("version {0} of the format is not known")]
    Version(u32),
    /// A record has its checksum, but no meaning.
    #[error("a record has a meaning that is not known")]
    Meaning,
    /// A turn's tokens do not join.
    #[error("turn {turn} has {has} tokens, and its next one is token {first}")]
    Gap {
        /// Whose.
        turn: TurnId,
        /// How many it has.
        has: usize,
        /// The index of the next.
        first: u32,
    },
}
