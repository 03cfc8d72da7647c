//! Why an epoch is over.

use super::beats::Stuck;
use super::flight::WrongReport;
use super::streams::StageLost;

/// Why an epoch is over.
#[derive(Debug, thiserror::Error)]
pub enum EpochEnd {
    /// A stage's stream ended.
    #[error("{address}: {message}")]
    Stage {
        /// The stage's shard.
        address: String,
        /// Why.
        message: String,
    },
    /// A stage that takes no plans.
    #[error(transparent)]
    Lost(#[from] StageLost),
    /// A stage that does not get on.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// A stage that says what it was not asked.
    #[error("stage {stage}: {wrong}")]
    Report {
        /// 0-based.
        stage: usize,
        /// What it said.
        wrong: WrongReport,
    },
    /// A shard left, after its work was done.
    #[error("{address} has drained")]
    Drained {
        /// The shard.
        address: String,
    },
    /// The gateway shuts down.
    #[error("the gateway is shutting down")]
    Left,
}
