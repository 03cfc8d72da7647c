//! An edge over a long-lived gRPC stream, opened by the sending stage.

mod receive;
mod send;

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

pub(crate) use self::receive::accept;
pub use self::receive::{CreditStream, GrpcAcceptor, GrpcReceiver};
pub use self::send::GrpcSender;
pub(crate) use self::send::open;
use crate::LinkError;

/// How an edge ended, told once by whichever part notices first.
#[derive(Clone, Debug)]
struct End {
    ended: CancellationToken,
    error: Arc<OnceLock<LinkError>>,
}

impl End {
    /// Of an edge that this side ends by `cancel`.
    fn under(cancel: &CancellationToken) -> Self {
        Self { ended: cancel.child_token(), error: Arc::default() }
    }

    /// The edge ends now; the first reason counts.
    fn tell(&self, error: LinkError) {
        // Set before the token, so that whoever wakes by it finds the reason.
        let _ = self.error.set(error);
        self.ended.cancel();
    }

    /// Why the edge ended.
    fn error(&self) -> LinkError {
        self.error.get().cloned().unwrap_or(LinkError::Cancelled)
    }
}
