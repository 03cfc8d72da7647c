//! Telling the driver that readers went away, from `Drop`, where nothing may wait.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::scheduler::SequenceId;

/// Sequences whose readers are gone. Bounded by the requests there are: each is named by its reader at most once, and by whoever
/// cannot tell it something.
#[derive(Clone, Debug, Default)]
pub struct Cancelled {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    sequences: Mutex<Vec<SequenceId>>,
    wake: Notify,
}

/// Cancels its sequence when dropped.
#[derive(Debug)]
pub struct CancelOnDrop {
    cancelled: Cancelled,
    sequence: Option<SequenceId>,
}

impl Cancelled {
    /// A guard for a sequence.
    pub fn guard(&self, sequence: SequenceId) -> CancelOnDrop {
        CancelOnDrop { cancelled: self.clone(), sequence: Some(sequence) }
    }

    /// Returns once somebody has gone. Safe to drop while it waits.
    pub async fn wait(&self) {
        self.shared.wake.notified().await;
    }

    /// Those who have gone since the last call.
    pub fn take(&self) -> Vec<SequenceId> {
        std::mem::take(&mut *self.shared.sequences.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CancelOnDrop {
    /// The sequence is over; nothing is left to cancel.
    pub fn disarm(mut self) {
        self.sequence = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(sequence) = self.sequence.take() {
            let shared = &self.cancelled.shared;
            shared.sequences.lock().unwrap_or_else(PoisonError::into_inner).push(sequence);
            shared.wake.notify_one();
        }
    }
}
