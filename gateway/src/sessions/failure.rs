//! What a caller is told of what a store refuses.

use std::time::Duration;

use asterism_proto::{Failure, Reason};

use super::store::StoreError;

/// When a store may be tried again that cannot be written or reached.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NoSession(_) | StoreError::NoTurn(_) => Self::new(Reason::NotFound, message),
            StoreError::Conflict { version, .. } => {
                Self { etag: Some(version.to_string()), ..Self::new(Reason::Conflict, message) }
            }
            StoreError::Taken(_) => Self::new(Reason::Unavailable, message),
            StoreError::KeyReused(_) => {
                Self { field: Some("idempotency_key".to_owned()), ..Self::new(Reason::Conflict, message) }
            }
            StoreError::TooFewTurns { .. } => Self::invalid("turns", message),
            StoreError::Quota { .. } => Self::new(Reason::Exhausted, message),
            StoreError::Unwritable(_) | StoreError::Unreachable(_) => {
                Self { retry_after: Some(RETRY_AFTER), ..Self::new(Reason::Unavailable, message) }
            }
            // The gateway's own mistakes, and damage.
            StoreError::SessionExists(_)
            | StoreError::TurnExists(_)
            | StoreError::NotNext { .. }
            | StoreError::OtherToken { .. }
            | StoreError::Damaged(_) => Self::new(Reason::Internal, message),
        }
    }
}
