//! Carries one stage's output to the next.
//!
//! An edge joins two neighbouring stages for one epoch. One tensor crosses it a step, in step order, as its bytes. A credit is
//! one whole step's buffer on the receiving side: a sender begins a step only with a credit, and gets it back once the
//! step's input has been consumed. The receiver takes frames in whether or not anyone waits for them, so that no cycle of
//! stages can wait on itself.
//!
//! Every wait ends with the edge: by its [`Edge::cancel`] token, by the peer's going away, or by a peer that breaks the
//! rules. An edge that has ended does not come back, and nothing is sent twice; the epoch ends with it.
//!
//! Nothing here knows what the bytes mean.

mod end;
mod error;
mod frame;
mod grpc;

use std::time::Duration;

use asterism_process::inproc::Registry;
use asterism_proto::shard::v1::Holder;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub use self::end::EdgeEnd;
pub use self::error::{FrameError, LinkError};
pub use self::frame::{Assembler, Bounds, cut};
pub use self::grpc::{CreditStream, GrpcAcceptor, GrpcReceiver, GrpcSender};

/// What both ends know of an edge before it opens.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Whose epoch it belongs to.
    pub holder: Holder,
    /// Steps in flight, F: the credits of the receiver.
    pub credits: u32,
    /// Bytes of the largest step.
    pub largest: u64,
    /// Ends the edge from this side.
    pub cancel: CancellationToken,
}

/// One step's tensor, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepBytes {
    /// The step it belongs to.
    pub step: u64,
    /// `[rows, hidden]`, row-major, little-endian.
    pub bytes: Bytes,
}

/// Where the receiving end is.
#[derive(Clone, Debug)]
pub struct Peer {
    /// As [`Dial`](asterism_process::dial::Dial) takes it.
    pub address: String,
    /// Where an address of this process is known.
    pub registry: Registry,
}

/// How an edge carries its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Frames in a gRPC stream from stage to stage.
    Grpc,
}

/// The sending end of an edge.
#[derive(Debug)]
pub enum Sender {
    /// Over gRPC.
    Grpc(GrpcSender),
}

/// The receiving end of an edge.
#[derive(Debug)]
pub enum Receiver {
    /// Over gRPC.
    Grpc(GrpcReceiver),
}

/// What a receiving end needs before the peer opens the edge.
#[derive(Debug)]
pub enum Acceptor {
    /// Takes the peer's `Activations` call.
    Grpc(GrpcAcceptor),
}

// === impl LinkKind ===

impl LinkKind {
    /// Prepares the receiving end: what the peer's call goes to, and what the device thread reads from.
    pub fn accept(self, edge: Edge) -> (Acceptor, Receiver) {
        match self {
            Self::Grpc => {
                let (acceptor, receiver) = grpc::accept(edge);
                (Acceptor::Grpc(acceptor), Receiver::Grpc(receiver))
            }
        }
    }

    /// Opens the sending end to the shard at `peer`, and returns once the peer has granted its first credits.
    ///
    /// # Errors
    /// The peer does not answer before `deadline`, or refuses.
    pub async fn open(self, peer: &Peer, edge: Edge, deadline: Duration) -> Result<Sender, LinkError> {
        match self {
            Self::Grpc => Ok(Sender::Grpc(grpc::open(peer, edge, deadline).await?)),
        }
    }
}

// === impl Sender ===

impl Sender {
    /// Sends one step, as soon as there is a credit.
    ///
    /// # Errors
    /// The step is larger than the edge allows, or the edge has ended.
    pub async fn send(&mut self, step: StepBytes) -> Result<(), LinkError> {
        match self {
            Self::Grpc(sender) => sender.send(step).await,
        }
    }

    /// The edge's end, from whichever side, to wait for.
    pub fn end(&self) -> &EdgeEnd {
        match self {
            Self::Grpc(sender) => sender.end(),
        }
    }
}

// === impl Receiver ===

impl Receiver {
    /// The next whole step.
    ///
    /// # Errors
    /// The edge has ended; why.
    pub async fn receive(&mut self) -> Result<StepBytes, LinkError> {
        match self {
            Self::Grpc(receiver) => receiver.receive().await,
        }
    }

    /// The next step, if it is whole already. Never waits; an edge that has ended is told by [`Receiver::receive`] alone.
    pub fn try_receive(&mut self) -> Option<StepBytes> {
        match self {
            Self::Grpc(receiver) => receiver.try_receive(),
        }
    }

    /// Gives the credit of one received step back.
    pub fn consumed(&mut self) {
        match self {
            Self::Grpc(receiver) => receiver.consumed(),
        }
    }

    /// The edge's end, from whichever side, to wait for.
    pub fn end(&self) -> &EdgeEnd {
        match self {
            Self::Grpc(receiver) => receiver.end(),
        }
    }
}
