//! A `Run` call: plans in, reports and beats out. Reading and writing are independent, so neither waits for the other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use asterism_proto::shard::v1::{
    Holder, RunRequest, RunResponse, StepPlan, StepReport, run_request, run_response,
};
use asterism_proto::{Failure, Reason};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::{Code, Status};

use crate::epoch::{Epoch, RunEnd};
use crate::plan::PlanRefusal;
use crate::report::Heart;

const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The answers of a `Run` call: that it is open, reports as they come and a beat each second until the epoch ends, why it did as
/// the call's status. Dropping it, which the driver's going away does, ends the epoch.
pub struct RunStream {
    epoch: Arc<Epoch>,
    /// The epoch's end.
    over: Pin<Box<dyn Future<Output = Failure> + Send>>,
    opened: Option<Holder>,
    reports: mpsc::Receiver<StepReport>,
    heart: Arc<Heart>,
    beats: Interval,
    is_over: bool,
}

/// Serves the call whose opening message was right.
pub fn serve<S>(epoch: Arc<Epoch>, end: RunEnd, heart: Arc<Heart>, messages: S) -> RunStream
where
    S: Stream<Item = Result<RunRequest, Status>> + Send + Unpin + 'static,
{
    let RunEnd { plans, reports } = end;
    tokio::spawn(read(Arc::clone(&epoch), plans, messages));
    let mut beats = tokio::time::interval(BEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let over = {
        let epoch = Arc::clone(&epoch);
        Box::pin(async move { epoch.over().await })
    };
    let opened = Some(epoch.holder.clone());
    RunStream { epoch, over, opened, reports, heart, beats, is_over: false }
}

/// Queues plans until the stream or the epoch ends.
async fn read<S>(epoch: Arc<Epoch>, plans: mpsc::Sender<StepPlan>, mut messages: S)
where
    S: Stream<Item = Result<RunRequest, Status>> + Unpin,
{
    let why = loop {
        let message = tokio::select! {
            _ = epoch.over() => return,
            message = messages.next() => message,
        };
        let plan = match message {
            Some(Ok(RunRequest { message: Some(run_request::Message::Plan(plan)) })) => plan,
            Some(Ok(_)) => break Failure::new(Reason::InvalidArgument, "a message that is no plan"),
            Some(Err(status)) if status.code() == Code::InvalidArgument => break Failure::from(status),
            Some(Err(status)) => {
                break Failure::new(
                    Reason::Cancelled,
                    format!("the driver's stream broke: {}", status.message()),
                );
            }
            None => break Failure::new(Reason::Cancelled, "the driver closed its stream"),
        };
        match plans.try_send(plan) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                break PlanRefusal::Queue { most: plans.max_capacity() }.into();
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                break Failure::new(Reason::Internal, "the device thread is gone");
            }
        }
    };
    epoch.end(why);
}

impl RunStream {
    /// What there is to say: what was done goes before the end.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<run_response::Message, Failure>> {
        if let Some(holder) = self.opened.take() {
            return Poll::Ready(Ok(run_response::Message::Opened(holder)));
        }
        // Where the device thread has dropped its end, the epoch is about to be over.
        if let Poll::Ready(Some(report)) = self.reports.poll_recv(context) {
            return Poll::Ready(Ok(run_response::Message::Report(report)));
        }
        if let Poll::Ready(why) = self.over.as_mut().poll(context) {
            return Poll::Ready(Err(why));
        }
        self.beats.poll_tick(context).map(|_| Ok(run_response::Message::Beat(self.heart.beat())))
    }
}

impl Stream for RunStream {
    type Item = Result<RunResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let message = std::task::ready!(self.poll_message(context));
        self.is_over = message.is_err();
        Poll::Ready(Some(match message {
            Ok(message) => Ok(RunResponse { message: Some(message) }),
            Err(why) => Err(why.into()),
        }))
    }
}

impl Drop for RunStream {
    fn drop(&mut self) {
        // Changes nothing where it is over.
        self.epoch.end(Failure::new(Reason::Cancelled, "the driver dropped its stream"));
    }
}
