//! The sending end.

use std::sync::Arc;
use std::time::Duration;

use asterism_process::channel::{FRAME_MESSAGE_LIMIT, FRAME_PAYLOAD_LIMIT, Traffic};
use asterism_process::dial::Dial;
use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{ActivationsRequest, ActivationsResponse, activations_request};
use futures::StreamExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{Edge, EdgeEnd, LinkError, Peer, StepBytes, cut};

/// Sends steps as frames of an `Activations` call. Dropping it ends the call.
#[derive(Debug)]
pub struct GrpcSender {
    frames: mpsc::Sender<ActivationsRequest>,
    credits: Arc<Semaphore>,
    edge: Edge,
    end: EdgeEnd,
}

/// Opens the call and waits for the first credits.
pub(crate) async fn open(peer: &Peer, edge: Edge, deadline: Duration) -> Result<GrpcSender, LinkError> {
    let no_answer = |reason: &str| LinkError::NoAnswer {
        address: peer.address.clone(),
        deadline,
        reason: reason.to_owned(),
    };
    let end = EdgeEnd::under(&edge.cancel);
    tokio::select! {
        () = edge.cancel.cancelled() => Err(LinkError::Cancelled),
        opened = tokio::time::timeout(deadline, call(peer, &edge, &end)) => {
            let (frames, answers, credits) = opened.map_err(|_| no_answer("the deadline passed"))??;
            let credits = Arc::new(Semaphore::new(credits as usize));
            tokio::spawn(take_credits(answers, edge.credits, Arc::clone(&credits), end.clone()));
            Ok(GrpcSender { frames, credits, edge, end })
        }
    }
}

type Call = (mpsc::Sender<ActivationsRequest>, Streaming<ActivationsResponse>, u32);

async fn call(peer: &Peer, edge: &Edge, end: &EdgeEnd) -> Result<Call, LinkError> {
    let Peer { address, registry } = peer;
    let refused = |reason: String| LinkError::Refused { address: address.clone(), reason };
    let dial = Dial::new(address, Traffic::Internal, registry).map_err(Arc::new)?;
    let connection = dial.connect().await.map_err(|error| refused(sources(&error)))?;
    let mut client = ShardClient::new(connection).max_encoding_message_size(FRAME_MESSAGE_LIMIT);

    // Room for every step that a credit allows, so that with a credit in hand a step is queued without waiting.
    let frames_per_step = usize::try_from(edge.largest).unwrap_or(usize::MAX).div_ceil(FRAME_PAYLOAD_LIMIT);
    let room = frames_per_step.saturating_mul(edge.credits as usize).saturating_add(1);
    let (frames, queue) = mpsc::channel(room.min(Semaphore::MAX_PERMITS));
    let open = activations_request::Message::Open(edge.holder.clone());
    let queued = frames.send(ActivationsRequest { message: Some(open) }).await;
    queued.map_err(|_| refused("the call ended".to_owned()))?;

    // The peer learns of this side's end by the end of its request stream.
    let queue = ReceiverStream::new(queue);
    let end = end.clone();
    let queue = queue.take_until(async move { end.wait().await });
    let answers = client.activations(queue).await;
    let mut answers = answers.map_err(|status| refused(status.message().to_owned()))?.into_inner();
    let first = answers.message().await.map_err(|status| refused(status.message().to_owned()))?;
    let credits = first.ok_or_else(|| refused("the call ended without credits".to_owned()))?.credits;
    if credits == 0 || credits > edge.credits {
        return Err(refused(format!("{credits} credits, expected 1 to {}", edge.credits)));
    }
    Ok((frames, answers, credits))
}

/// Takes credits in until the peer ends the call or this side closes the edge.
async fn take_credits(
    mut answers: Streaming<ActivationsResponse>,
    most: u32,
    credits: Arc<Semaphore>,
    end: EdgeEnd,
) {
    let error = loop {
        let answer = tokio::select! {
            error = end.wait() => break error,
            answer = answers.message() => answer,
        };
        match answer {
            Ok(Some(ActivationsResponse { credits: returned })) => {
                if credits.available_permits() + returned as usize > most as usize {
                    break LinkError::Broken { reason: format!("{returned} credits more than there are") };
                }
                credits.add_permits(returned as usize);
            }
            Ok(None) => break LinkError::Broken { reason: "the receiving stage ended it".to_owned() },
            Err(status) => break LinkError::Broken { reason: status.message().to_owned() },
        }
    };
    end.tell(error);
    credits.close();
}

impl GrpcSender {
    pub(crate) async fn send(&mut self, step: StepBytes) -> Result<(), LinkError> {
        let Edge { largest, ref holder, .. } = self.edge;
        if step.bytes.is_empty() || step.bytes.len() as u64 > largest {
            return Err(LinkError::StepSize { step: step.step, bytes: step.bytes.len(), largest });
        }
        let Ok(credit) = self.credits.acquire().await else { return Err(self.end.wait().await) };
        credit.forget();
        for frame in cut(holder.epoch, step) {
            let message = Some(activations_request::Message::Frame(frame));
            let queued = self.frames.send(ActivationsRequest { message });
            tokio::select! {
                error = self.end.wait() => return Err(error),
                queued = queued => if queued.is_err() {
                    return Err(self.end.wait().await);
                },
            }
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> &EdgeEnd {
        &self.end
    }
}

impl Drop for GrpcSender {
    fn drop(&mut self) {
        // Ends the task that waits for credits; the request stream ends with `frames`.
        self.end.tell(LinkError::Cancelled);
    }
}

/// An error with its causes, which say more than a transport error itself.
fn sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
