//! Where sessions are kept, and what looks after them meanwhile.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Sessions;
use super::store::Store;
use super::store::local::{LocalStore, OpenError};
use super::store::memory::MemoryStore;

/// How often it is looked for sessions to forget, and for turns that run under nobody.
const ROUND: Duration = Duration::from_secs(60);

/// Where sessions are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In memory: they end with the process.
    #[default]
    Memory,
    /// In a folder of this machine.
    Folder(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "memory" => Self::Memory,
            folder => Self::Folder(PathBuf::from(folder)),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => formatter.write_str("memory"),
            Self::Folder(folder) => folder.display().fmt(formatter),
        }
    }
}

impl Place {
    /// Opens the store there.
    ///
    /// # Errors
    /// Another gateway has it, or what is there is damaged; nothing was changed then.
    pub fn open(&self) -> Result<Arc<dyn Store>, OpenError> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryStore::default()),
            Self::Folder(folder) => Arc::new(LocalStore::open(folder)?),
        })
    }
}

/// Looks after sessions until `shutdown`: takes up turns that run under nobody, and forgets what was kept long enough.
pub async fn keep(sessions: Sessions, retention: Option<Duration>, shutdown: CancellationToken) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        match sessions.claim().await {
            Ok(0) => {}
            Ok(turns) => tracing::info!(turns, "turns go on that were interrupted"),
            Err(error) => tracing::warn!(%error, "interrupted turns cannot be taken up now"),
        }
        let Some(retention) = retention else { continue };
        match sessions.expire(retention).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "sessions were kept long enough and are forgotten"),
            Err(error) => tracing::warn!(%error, "old sessions cannot be forgotten now"),
        }
    }
}
