//! The receiving end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use asterism_proto::shard::v1::{ActivationsRequest, ActivationsResponse, activations_request};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{Assembler, Bounds, Edge, EdgeEnd, FrameError, LinkError, StepBytes};

/// Takes the peer's call once it comes. Dropping it before that ends the edge.
#[derive(Debug)]
pub struct GrpcAcceptor {
    edge: Edge,
    steps: mpsc::Sender<StepBytes>,
    credits: CreditQueue,
    owed: Arc<AtomicU32>,
    end: EdgeEnd,
    call: Option<mpsc::Receiver<Result<ActivationsResponse, Status>>>,
}

type CreditQueue = mpsc::Sender<Result<ActivationsResponse, Status>>;

/// Hands whole steps out in order. Dropping it ends the edge.
#[derive(Debug)]
pub struct GrpcReceiver {
    steps: mpsc::Receiver<StepBytes>,
    credits: CreditQueue,
    owed: Arc<AtomicU32>,
    end: EdgeEnd,
}

/// The answers of an `Activations` call.
#[derive(Debug)]
pub struct CreditStream {
    answers: mpsc::Receiver<Result<ActivationsResponse, Status>>,
}

/// Both halves of a receiving end.
pub(crate) fn accept(edge: Edge) -> (GrpcAcceptor, GrpcReceiver) {
    let end = EdgeEnd::under(&edge.cancel);
    let room = edge.credits.max(1) as usize;
    let (steps, received) = mpsc::channel(room);
    // All credits may return at once, beside the first answer and the last.
    let (credits, answers) = mpsc::channel(room + 2);
    let owed = Arc::new(AtomicU32::new(edge.credits));
    let receiver =
        GrpcReceiver { steps: received, credits: credits.clone(), owed: Arc::clone(&owed), end: end.clone() };
    (GrpcAcceptor { edge, steps, credits, owed, end, call: Some(answers) }, receiver)
}

impl GrpcAcceptor {
    /// Serves the call whose opening message was right: takes frames in from now on, and answers with credits.
    pub fn serve<S>(mut self, messages: S) -> CreditStream
    where
        S: Stream<Item = Result<ActivationsRequest, Status>> + Send + Unpin + 'static,
    {
        // Never empty: only this method takes it, and it takes the acceptor itself.
        let answers = self.call.take().unwrap_or_else(|| mpsc::channel(1).1);
        let first = ActivationsResponse { credits: self.edge.credits };
        if self.credits.try_send(Ok(first)).is_err() {
            self.end.tell(LinkError::Broken { reason: "the call ended before it began".to_owned() });
        }
        tokio::spawn(self.drain(messages));
        CreditStream { answers }
    }

    async fn drain<S>(self, mut messages: S)
    where
        S: Stream<Item = Result<ActivationsRequest, Status>> + Send + Unpin + 'static,
    {
        let bounds = Bounds { epoch: self.edge.holder.epoch, largest: self.edge.largest };
        let mut assembler = Assembler::new(bounds);
        let error = loop {
            let message = tokio::select! {
                error = self.end.wait() => break error,
                message = messages.next() => message,
            };
            match message {
                Some(Ok(message)) => {
                    if let Err(error) = self.take(&mut assembler, message) {
                        break error;
                    }
                }
                Some(Err(status)) => break LinkError::Broken { reason: status.message().to_owned() },
                None => break LinkError::Broken { reason: "the sending stage ended it".to_owned() },
            }
        };
        self.end.tell(error.clone());
        let status = match &error {
            LinkError::Frame(_) => Status::invalid_argument(error.to_string()),
            _ => Status::aborted(error.to_string()),
        };
        let _ = self.credits.try_send(Err(status));
    }

    /// One message of the peer's. Never waits: whoever has a credit has room.
    fn take(&self, assembler: &mut Assembler, message: ActivationsRequest) -> Result<(), LinkError> {
        let Some(activations_request::Message::Frame(frame)) = message.message else {
            return Err(FrameError::NotAFrame.into());
        };
        let step = frame.step;
        let begins = assembler.begins_with(&frame);
        if begins && self.owed.load(Ordering::Acquire) == 0 {
            return Err(FrameError::NoCredit { step }.into());
        }
        let whole = assembler.push(frame)?;
        if begins {
            self.owed.fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(whole) = whole {
            self.steps.try_send(whole).map_err(|_| FrameError::NoCredit { step })?;
        }
        Ok(())
    }
}

impl Drop for GrpcAcceptor {
    fn drop(&mut self) {
        self.end.tell(LinkError::Cancelled);
    }
}

impl GrpcReceiver {
    pub(crate) async fn receive(&mut self) -> Result<StepBytes, LinkError> {
        // Steps that are whole are handed out first; what the edge ended with comes after them.
        tokio::select! {
            biased;
            step = self.steps.recv() => match step {
                Some(step) => Ok(step),
                None => Err(self.end.wait().await),
            },
            error = self.end.wait() => Err(error),
        }
    }

    pub(crate) fn try_receive(&mut self) -> Option<StepBytes> {
        self.steps.try_recv().ok()
    }

    pub(crate) fn consumed(&mut self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
        // Fails only if the peer is gone, which `receive` tells.
        let _ = self.credits.try_send(Ok(ActivationsResponse { credits: 1 }));
    }

    pub(crate) fn end(&self) -> &EdgeEnd {
        &self.end
    }
}

impl Drop for GrpcReceiver {
    fn drop(&mut self) {
        self.end.tell(LinkError::Cancelled);
    }
}

impl Stream for CreditStream {
    type Item = Result<ActivationsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(cx)
    }
}
