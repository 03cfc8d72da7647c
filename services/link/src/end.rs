//! The end of an edge.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::LinkError;

/// The end of an edge, to wait for. Told once, by whichever part notices first.
#[derive(Clone, Debug)]
pub struct EdgeEnd {
    ended: CancellationToken,
    error: Arc<OnceLock<LinkError>>,
}

impl EdgeEnd {
    /// Of an edge that this side ends by `cancel`.
    pub(crate) fn under(cancel: &CancellationToken) -> Self {
        Self { ended: cancel.child_token(), error: Arc::default() }
    }

    /// Returns once the edge has ended: why.
    pub async fn wait(&self) -> LinkError {
        self.ended.cancelled().await;
        self.error.get().cloned().unwrap_or(LinkError::Cancelled)
    }

    /// The edge ends now; the first reason counts.
    pub(crate) fn tell(&self, error: LinkError) {
        // Set before the token, so that whoever wakes by it finds the reason.
        let _ = self.error.set(error);
        self.ended.cancel();
    }
}
