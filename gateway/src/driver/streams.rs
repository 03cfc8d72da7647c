//! The `Run` streams to all stages of an epoch: plans out to every stage at once, reports and beats back.
//!
//! Plans are queued and reports are read by whoever asks for the next, so neither can wait for the other. Dropping
//! [`Streams`] closes them all, which ends the epoch on every shard. A stage within this process is spoken to through its
//! [door](RunDoor), all others over their connections.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use asterism_process::inproc::{PlanIntake, RunCall, RunDoor};
use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{
    Beat, Holder, RunRequest, RunResponse, StepPlan, StepReport, run_request, run_response,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

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
    plans: Vec<Plans>,
    /// `None`: it is over.
    responses: Vec<Option<Responses>>,
    /// The stage that is looked at first next time.
    turn: usize,
    steps_in_flight: usize,
}

/// Where a stage's plans go.
enum Plans {
    Wire(mpsc::Sender<RunRequest>),
    Door(PlanIntake),
}

type Responses = BoxStream<'static, Result<RunResponse, Status>>;

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

    /// Opens `Run` on a stage, through its door if it has one, and waits until it accepts the holder. Stages must be opened in
    /// descending order.
    ///
    /// # Errors
    /// The stage's refusal.
    pub async fn open(
        &mut self,
        client: &mut ShardClient<Channel>,
        door: Option<Arc<dyn RunDoor>>,
        holder: &Holder,
    ) -> Result<(), Status> {
        let (plans, mut responses) = match door {
            Some(door) => {
                let RunCall { plans, responses } = door.open(holder)?;
                (Plans::Door(plans), responses)
            }
            None => call(client, holder, self.steps_in_flight).await?,
        };
        match responses.next().await.transpose()?.and_then(|response| response.message) {
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

    /// Sends one plan to every stage. Over a connection it is on its way once other tasks have run.
    ///
    /// # Errors
    /// A stage is lost; the epoch must end, as the stages may now differ in what they know.
    pub fn send(&self, plan: StepPlan) -> Result<(), StageLost> {
        let Some((last, others)) = self.plans.split_last() else { return Ok(()) };
        for (stage, plans) in others.iter().enumerate() {
            plans.send(stage, plan.clone())?;
        }
        last.send(others.len(), plan)
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

/// Calls `Run` over a stage's connection.
async fn call(
    client: &mut ShardClient<Channel>,
    holder: &Holder,
    steps_in_flight: usize,
) -> Result<(Plans, Responses), Status> {
    // A plan with ends only may go beside the F steps with rows, and the opening message comes first.
    let (plans, requests) = mpsc::channel(steps_in_flight + 2);
    let open = RunRequest { message: Some(run_request::Message::Open(holder.clone())) };
    plans.try_send(open).map_err(|_| Status::internal("no room for the opening message"))?;
    let responses = client.run(ReceiverStream::new(requests)).await?.into_inner();
    Ok((Plans::Wire(plans), responses.boxed()))
}

impl Plans {
    fn send(&self, stage: usize, plan: StepPlan) -> Result<(), StageLost> {
        match self {
            Self::Wire(requests) => {
                let request = RunRequest { message: Some(run_request::Message::Plan(plan)) };
                requests.try_send(request).map_err(|_| StageLost { stage })
            }
            Self::Door(intake) => {
                intake(plan);
                Ok(())
            }
        }
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

#[cfg(test)]
mod tests;
