//! A `Run` call: plans in, reports and beats out. Reading and writing are independent, so neither waits for the other.
//!
//! It is the same call over a connection and through the door that a driver in the same process uses; the latter hands its plans
//! to the [`Intake`] itself.

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

/// Where a call's plans go: to the device thread, or, where one is too many, into the epoch's end. Dropping it, as the driver's
/// closing its side does, ends the epoch.
pub struct Intake {
    epoch: Arc<Epoch>,
    plans: mpsc::Sender<StepPlan>,
}

/// Both sides of the call whose holder was right. Must be called in the runtime that asks for the answers.
pub fn open(epoch: Arc<Epoch>, end: RunEnd, heart: Arc<Heart>) -> (Intake, RunStream) {
    let RunEnd { plans, reports } = end;
    let intake = Intake { epoch: Arc::clone(&epoch), plans };
    let mut beats = tokio::time::interval(BEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let over = {
        let epoch = Arc::clone(&epoch);
        Box::pin(async move { epoch.over().await })
    };
    let opened = Some(epoch.holder.clone());
    (intake, RunStream { epoch, over, opened, reports, heart, beats, is_over: false })
}

/// Takes in the plans of a connection's messages until they or the epoch end.
pub async fn read<S>(intake: Intake, mut messages: S)
where
    S: Stream<Item = Result<RunRequest, Status>> + Unpin,
{
    let why = loop {
        let message = tokio::select! {
            biased;
            _ = intake.epoch.over() => return,
            message = messages.next() => message,
        };
        match message {
            Some(Ok(RunRequest { message: Some(run_request::Message::Plan(plan)) })) => intake.take(plan),
            Some(Ok(_)) => break Failure::new(Reason::InvalidArgument, "a message that is no plan"),
            Some(Err(status)) if status.code() == Code::InvalidArgument => break Failure::from(status),
            Some(Err(status)) => {
                break Failure::new(
                    Reason::Cancelled,
                    format!("the driver's stream broke: {}", status.message()),
                );
            }
            None => return,
        }
    };
    intake.epoch.end(why);
}

impl Intake {
    /// Queues a plan.
    pub fn take(&self, plan: StepPlan) {
        let why = match self.plans.try_send(plan) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(_)) => {
                PlanRefusal::Queue { most: self.plans.max_capacity() }.into()
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Failure::new(Reason::Internal, "the device thread is gone")
            }
        };
        self.epoch.end(why);
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // Changes nothing where it is over.
        self.epoch.end(Failure::new(Reason::Cancelled, "the driver closed its stream"));
    }
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
