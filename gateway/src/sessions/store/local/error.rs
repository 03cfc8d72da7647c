//! Why a store did not open, or a step was not done.

use crate::sessions::journal::JournalError;
use crate::sessions::store::StoreError;

/// Why a store did not open. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file can neither be read nor made.
    #[error("{file} cannot be opened: {why}")]
    Unusable {
        /// The file.
        file: String,
        /// As the system says it.
        why: String,
    },
    /// Another process has it.
    #[error("{0} is open in another process")]
    InUse(String),
    /// It is not what was written.
    #[error("{file} is damaged and was left as it is: {why}; {journal}")]
    Damaged {
        /// The file.
        file: String,
        /// In what way.
        why: String,
        /// How the journal beside it is.
        journal: String,
    },
    /// A later version wrote it.
    #[error("{file} has format {found}; this version knows those up to {known}")]
    Newer {
        /// The file.
        file: String,
        /// Its format.
        found: u64,
        /// The latest known one.
        known: u64,
    },
    /// The journal does not open; the sessions beside it are whole.
    #[error("{0}; {1} beside it is whole, and nothing was changed")]
    Journal(JournalError, String),
}

/// Why a step was not done.
#[derive(Debug)]
pub enum Failure {
    /// The step is refused, before it changed anything.
    Refused(StoreError),
    /// What is stored contradicts itself, and the step may have changed something.
    Damaged(String),
    /// The database does not go on.
    Lost(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Corrupted(why) => Self::Damaged(why),
            error => Self::Lost(error.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {
        $(impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                redb::Error::from(error).into()
            }
        })+
    };
}

from_redb!(StorageError, TableError, TransactionError, CommitError, DatabaseError);

impl From<prost::DecodeError> for Failure {
    fn from(error: prost::DecodeError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Damaged(why) => Self::Damaged(why),
            Failure::Lost(why) => Self::Unreachable(why),
        }
    }
}
