//! A `Run` call: plans in, reports and beats out. Reading and writing are tasks of their own, so neither waits for the other.

use std::sync::Arc;
use std::time::Duration;

use asterism_proto::shard::v1::{
    Holder, RunRequest, RunResponse, StepPlan, StepReport, run_request, run_response,
};
use asterism_proto::{Failure, Reason};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::epoch::{Epoch, RunEnd};
use crate::plan::PlanRefusal;
use crate::report::Heart;

const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The answers of a `Run` call.
pub type RunStream = ReceiverStream<Result<RunResponse, Status>>;

/// Serves the call whose opening message was right.
pub fn serve<S>(epoch: Arc<Epoch>, end: RunEnd, heart: Arc<Heart>, messages: S) -> RunStream
where
    S: Stream<Item = Result<RunRequest, Status>> + Send + Unpin + 'static,
{
    let RunEnd { plans, reports } = end;
    let (answers, stream) = mpsc::channel(epoch.steps_in_flight as usize + 1);
    tokio::spawn(read(Arc::clone(&epoch), plans, messages));
    tokio::spawn(write(epoch, reports, heart, answers));
    ReceiverStream::new(stream)
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

type Answers = mpsc::Sender<Result<RunResponse, Status>>;

/// Sends reports as they come and a beat each second, until the driver goes away or the epoch ends.
async fn write(
    epoch: Arc<Epoch>,
    mut reports: mpsc::Receiver<StepReport>,
    heart: Arc<Heart>,
    answers: Answers,
) {
    let opened = run_response::Message::Opened(Holder::clone(&epoch.holder));
    let mut next = Some(opened);
    let mut beats = tokio::time::interval(BEAT_INTERVAL);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let why = loop {
        if let Some(message) = next.take() {
            tokio::select! {
                why = epoch.over() => break why,
                sent = answers.send(Ok(RunResponse { message: Some(message) })) => if sent.is_err() {
                    epoch.end(Failure::new(Reason::Cancelled, "the driver dropped its stream"));
                },
            }
        }
        next = tokio::select! {
            biased;
            why = epoch.over() => break why,
            report = reports.recv() => match report {
                Some(report) => Some(run_response::Message::Report(report)),
                None => break epoch.over().await,
            },
            _ = beats.tick() => Some(run_response::Message::Beat(heart.beat())),
            () = answers.closed() => {
                epoch.end(Failure::new(Reason::Cancelled, "the driver dropped its stream"));
                None
            }
        };
    };
    // Waits for room, which ends with the call at the latest.
    let _ = answers.send(Err(why.into())).await;
}
