//! Why a store did not open, or a step was not done.

use serde_json::Value;
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::sessions::record::{SessionId, TurnId};
use crate::sessions::store::{Conflict, StoreError};

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is none. It is not shown, as there may be a password in it.
    #[error("the database's URL cannot be read: {0}")]
    Url(String),
    /// The server does not answer, does not let the gateway in, or does not do what it is asked.
    #[error("the database {database} cannot be used: {why}")]
    Unusable {
        /// Where it is.
        database: String,
        /// As it is told.
        why: String,
    },
    /// A later version changed its tables.
    #[error("the database {database} has migration {found}; this version knows those up to {known}")]
    Newer {
        /// Where it is.
        database: String,
        /// The migration.
        found: i64,
        /// The latest known one.
        known: i64,
    },
}

impl OpenError {
    /// Why migrations were not made.
    pub fn of_migrations(database: &str, error: MigrateError, known: i64) -> Self {
        let database = database.to_owned();
        match error {
            MigrateError::VersionMissing(found) => Self::Newer { database, found, known },
            error => Self::Unusable { database, why: error.to_string() },
        }
    }
}

/// Why a step was not done.
#[derive(Debug)]
pub enum Failure {
    /// It is refused, or cannot be done.
    Refused(StoreError),
    /// This gateway was given up, and is not to run turns under the name that it had.
    Fenced,
    /// Others did something at the same time; nothing of the step is done, and it may be tried at once.
    Collided(String),
    /// The server was not reached.
    Away(String),
    /// The server did not say whether it did it.
    Lost(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Fenced => Self::Unreachable("this gateway was taken for dead".to_owned()),
            Failure::Collided(why) | Failure::Away(why) | Failure::Lost(why) => Self::Unreachable(why),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let why = error.to_string();
        match error {
            E::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => Self::of_code(error.code(), error.detail(), why),
                None => Self::Lost(why),
            },
            E::PoolTimedOut | E::PoolClosed => Self::Away(why),
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::WorkerCrashed => Self::Lost(why),
            _ => Self::Refused(StoreError::Damaged(why)),
        }
    }
}

impl Failure {
    /// What a SQLSTATE means.
    fn of_code(code: &str, detail: Option<&str>, why: String) -> Self {
        match code {
            "YS008" => Self::Fenced,
            _ if code.starts_with("YS") => {
                let refused = refused(code, detail.unwrap_or_default());
                Self::Refused(refused.unwrap_or(StoreError::Damaged(why)))
            }
            // Unique names, deadlocks, serialization: whoever came first is seen now.
            "23505" | "40P01" | "40001" => Self::Collided(why),
            // A full disk, a server that only reads.
            "53100" | "25006" => Self::Refused(StoreError::Unwritable(why)),
            // Broken connections, too few resources, a server that goes, a statement that took too long.
            _ if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => Self::Lost(why),
            // A disk that fails, rights that were taken away, a pooler that is lost: whoever looks after the server mends it.
            _ => Self::Away(why),
        }
    }
}

/// The refusals of the migrations' functions.
fn refused(code: &str, detail: &str) -> Option<StoreError> {
    let detail: Value = serde_json::from_str(detail).ok()?;
    let id = |name: &str| detail[name].as_str()?.parse::<Uuid>().ok();
    let session = || id("session").map(SessionId);
    let number = |name: &str| detail[name].as_u64();
    let count = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
    Some(match code {
        "YS001" => StoreError::NoSession(session()?),
        "YS002" => StoreError::NoTurn(TurnId(id("turn")?)),
        "YS003" => StoreError::SessionExists(session()?),
        "YS004" => StoreError::TurnExists(TurnId(id("turn")?)),
        "YS005" => {
            let why = match detail["why"].as_str()? {
                "running" => Conflict::Running,
                _ => Conflict::Version,
            };
            StoreError::Conflict { session: session()?, version: number("version")?, why }
        }
        "YS006" => {
            StoreError::TooFewTurns { session: session()?, has: count("has")?, wanted: count("wanted")? }
        }
        "YS007" => {
            let what = if detail["what"] == "sessions" { "sessions" } else { "bytes" };
            StoreError::Quota { what, kept: number("kept")?, most: number("most")? }
        }
        "YS009" => StoreError::Taken(TurnId(id("turn")?)),
        _ => return None,
    })
}
