//! Where sessions are kept, and what looks after them meanwhile.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Sessions;
use super::store::Store;
use super::store::local::{self, LocalStore};
use super::store::memory::MemoryStore;
use super::store::postgres::{self, DatabaseUrl, PostgresStore};

/// How often it is looked for turns that run under nobody, and for those that another gateway noted to end.
const ROUND: Duration = Duration::from_secs(2);
/// After how many rounds it is looked for sessions to forget.
const EXPIRY: u32 = 30;

/// Where sessions are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In memory: they end with the process.
    #[default]
    Memory,
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a database, which several gateways may share.
    Postgres(DatabaseUrl),
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// That in a folder.
    #[error(transparent)]
    Folder(#[from] local::OpenError),
    /// That in a database.
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    /// The task that opens it.
    #[error("opening was given up: {0}")]
    Task(#[from] JoinError),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "memory" => Self::Memory,
            other => match DatabaseUrl::parse(other) {
                Some(url) => Self::Postgres(url),
                None => Self::Folder(PathBuf::from(other)),
            },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => formatter.write_str("memory"),
            Self::Folder(folder) => folder.display().fmt(formatter),
            Self::Postgres(url) => url.fmt(formatter),
        }
    }
}

impl Place {
    /// Opens the store there.
    ///
    /// # Errors
    /// Another gateway has the folder, what is there is damaged, the database cannot be used.
    pub async fn open(&self) -> Result<Arc<dyn Store>, OpenError> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryStore::default()),
            Self::Folder(folder) => {
                let folder = folder.clone();
                Arc::new(tokio::task::spawn_blocking(move || LocalStore::open(&folder)).await??)
            }
            Self::Postgres(url) => Arc::new(PostgresStore::open(url).await?),
        })
    }
}

/// Looks after sessions until `shutdown`: takes up turns that run under nobody, ends those that are noted to, and forgets what
/// was kept long enough.
pub async fn keep(sessions: Sessions, retention: Option<Duration>, shutdown: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in (0..EXPIRY).cycle() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        match sessions.claim().await {
            Ok(0) => {}
            Ok(turns) => tracing::info!(turns, "turns go on that were interrupted"),
            Err(error) => tracing::warn!(%error, "interrupted turns cannot be taken up now"),
        }
        if let Err(error) = sessions.heed_stops().await {
            tracing::warn!(%error, "it cannot be seen now which turns are to end");
        }
        let Some(retention) = retention.filter(|_| round == 0) else { continue };
        match sessions.expire(retention).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "sessions were kept long enough and are forgotten"),
            Err(error) => tracing::warn!(%error, "old sessions cannot be forgotten now"),
        }
    }
}
