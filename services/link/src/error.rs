//! What goes wrong on an edge.

use std::time::Duration;

use asterism_process::channel::AddressError;

/// Why an edge did not open, or ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer's address does not parse.
    #[error(transparent)]
    Address(#[from] std::sync::Arc<AddressError>),
    /// The peer was not there in time.
    #[error("no edge to {address} within {deadline:?}: {reason}")]
    NoAnswer {
        /// Of the peer.
        address: String,
        /// How long was waited.
        deadline: Duration,
        /// What happened meanwhile.
        reason: String,
    },
    /// The peer refused the edge.
    #[error("{address} refused the edge: {reason}")]
    Refused {
        /// Of the peer.
        address: String,
        /// In the peer's words.
        reason: String,
    },
    /// The peer ended the edge, or the connection broke.
    #[error("the edge broke: {reason}")]
    Broken {
        /// In the peer's or the transport's words.
        reason: String,
    },
    /// The peer sent something that an edge does not carry.
    #[error("the peer broke the rules of the edge: {0}")]
    Frame(#[from] FrameError),
    /// This side ended the edge.
    #[error("the edge was closed")]
    Cancelled,
    /// A step that does not fit the receiver's buffers; nothing was sent.
    #[error("step {step} has {bytes} bytes, the edge carries 1 to {largest}")]
    StepSize {
        /// The step.
        step: u64,
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        largest: u64,
    },
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Of another epoch than the edge.
    #[error("a frame of epoch {found} on an edge of epoch {epoch}")]
    Epoch {
        /// The frame's.
        found: u64,
        /// The edge's.
        epoch: u64,
    },
    /// Not after the steps before, or in the middle of another one.
    #[error("a frame of step {found} while step {expected} or a later one was due")]
    Order {
        /// The frame's.
        found: u64,
        /// The least that would have been right.
        expected: u64,
    },
    /// A step of no bytes, or of more than the edge carries.
    #[error("step {step} is said to have {total} bytes, the edge carries 1 to {largest}")]
    Total {
        /// The step.
        step: u64,
        /// What the frame says.
        total: u64,
        /// The largest allowed.
        largest: u64,
    },
    /// Another size than an earlier frame of the step said.
    #[error("step {step} is said to have {found} bytes, and {total} before")]
    TotalChanged {
        /// The step.
        step: u64,
        /// What this frame says.
        found: u64,
        /// What the first frame said.
        total: u64,
    },
    /// Not where the frame before ended.
    #[error("a frame at offset {found} of step {step}, {expected} was due")]
    Offset {
        /// The step.
        step: u64,
        /// The frame's.
        found: u64,
        /// Bytes that are there.
        expected: u64,
    },
    /// A payload of no bytes, or of more than the step still lacks.
    #[error("a frame of {found} bytes at offset {offset} of step {step}, which has {total}")]
    Payload {
        /// The step.
        step: u64,
        /// The frame's.
        offset: u64,
        /// Bytes of the payload.
        found: u64,
        /// Bytes of the step.
        total: u64,
    },
    /// A step begun without a credit for it.
    #[error("step {step} was sent without a credit")]
    NoCredit {
        /// The step.
        step: u64,
    },
    /// A message that is neither the opening one nor a frame, or an opening one in the middle.
    #[error("a message that is no frame")]
    NotAFrame,
}
