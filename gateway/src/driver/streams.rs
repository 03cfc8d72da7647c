//! The `Run` streams to all stages of an epoch: plans out to every stage at once, reports and beats back.
//!
//! Plans are queued and reports are read by whoever asks for the next, so neither can wait for the other. Dropping
//! [`Streams`] closes them all, which ends the epoch on every shard.

use std::future::poll_fn;
use std::task::{Context, Poll};

use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{
    Beat, Holder, RunRequest, RunResponse, StepPlan, StepReport, run_request, run_response,
};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// What a stage's stream brought.
#[derive(Clone, Debug)]
pub enum StageEvent {
    /// A step is done there.
    Report(StepReport),
    /// It lives.
    Beat(Beat),
    /// The stream is over; nothing more comes from this stage.
    Ended(Status),
}

/// All stages' streams.
pub struct Streams {
    plans: Vec<mpsc::Sender<RunRequest>>,
    /// `None`: it is over.
    responses: Vec<Option<Streaming<RunResponse>>>,
    /// The stage that is looked at first next time.
    turn: usize,
    steps_in_flight: usize,
}

/// A stage takes no more plans: its stream is over, or it holds more than it agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stage {stage} takes no more plans")]
pub struct StageLost {
    /// 0-based.
    pub stage: usize,
}

impl Streams {
    /// No stream yet; stages open from the last to the first.
    pub fn new(stages: usize, steps_in_flight: u32) -> Self {
        let steps_in_flight = usize::try_from(steps_in_flight).unwrap_or(usize::MAX >> 8);
        let (plans, responses) = (Vec::with_capacity(stages), Vec::with_capacity(stages));
        Self { plans, responses, turn: 0, steps_in_flight }
    }

    /// Opens `Run` on a stage and waits until it accepts the holder. Stages must be opened in descending order.
    ///
    /// # Errors
    /// The stage's refusal.
    pub async fn open(&mut self, client: &mut ShardClient<Channel>, holder: &Holder) -> Result<(), Status> {
        // A plan with ends only may go beside the F steps with rows, and the opening message comes first.
        let (plans, requests) = mpsc::channel(self.steps_in_flight + 2);
        let open = RunRequest { message: Some(run_request::Message::Open(holder.clone())) };
        plans.try_send(open).map_err(|_| Status::internal("no room for the opening message"))?;
        let mut responses = client.run(ReceiverStream::new(requests)).await?.into_inner();
        match responses.message().await?.and_then(|response| response.message) {
            Some(run_response::Message::Opened(opened)) if opened == *holder => {}
            Some(run_response::Message::Opened(opened)) => {
                let Holder { epoch, driver_id } = opened;
                return Err(Status::failed_precondition(format!("opened for epoch {epoch} of {driver_id}")));
            }
            Some(_) => return Err(Status::internal("the stream did not begin with its opening")),
            None => return Err(Status::unavailable("the stream ended before its opening")),
        }
        self.plans.insert(0, plans);
        self.responses.insert(0, Some(responses));
        Ok(())
    }

    /// Sends one plan to every stage. It is on its way once other tasks have run.
    ///
    /// # Errors
    /// A stage is lost; the epoch must end, as the stages may now differ in what they know.
    pub fn send(&self, plan: StepPlan) -> Result<(), StageLost> {
        let Some((last, others)) = self.plans.split_last() else { return Ok(()) };
        let send = |stage, plans: &mpsc::Sender<RunRequest>, plan| {
            let request = RunRequest { message: Some(run_request::Message::Plan(plan)) };
            plans.try_send(request).map_err(|_| StageLost { stage })
        };
        for (stage, plans) in others.iter().enumerate() {
            send(stage, plans, plan.clone())?;
        }
        send(others.len(), last, plan)
    }

    /// The next event of any stage: (stage, event). Safe to drop while it waits.
    pub async fn next(&mut self) -> (usize, StageEvent) {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(usize, StageEvent)> {
        let stages = self.responses.len();
        for stage in (self.turn..stages).chain(0..self.turn) {
            let Some(open) = self.responses.get_mut(stage) else { continue };
            let Some(Poll::Ready(response)) = open.as_mut().map(|open| open.poll_next_unpin(context)) else {
                continue;
            };
            self.turn = (stage + 1) % stages;
            let event = StageEvent::of(response);
            if matches!(event, StageEvent::Ended(_)) {
                *open = None;
            }
            return Poll::Ready((stage, event));
        }
        Poll::Pending
    }
}

impl StageEvent {
    fn of(response: Option<Result<RunResponse, Status>>) -> Self {
        match response {
            Some(Ok(RunResponse { message: Some(run_response::Message::Report(report)) })) => {
                Self::Report(report)
            }
            Some(Ok(RunResponse { message: Some(run_response::Message::Beat(beat)) })) => Self::Beat(beat),
            Some(Ok(_)) => Self::Ended(Status::internal("a message that does not belong here")),
            None => Self::Ended(Status::unavailable("the stream ended")),
            Some(Err(status)) => Self::Ended(status),
        }
    }
}
