//! The `Run` streams to all stages of an epoch: plans out to every stage at once, reports and beats back.
//!
//! Sending plans and reading reports are independent tasks, so neither can wait for the other. Dropping [`Streams`]
//! closes them all, which ends the epoch on every shard.

use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{
    Beat, Holder, RunRequest, RunResponse, StepPlan, StepReport, run_request, run_response,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
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
    events: mpsc::Receiver<(usize, StageEvent)>,
    sender: mpsc::Sender<(usize, StageEvent)>,
    readers: JoinSet<()>,
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
        // All reports that can be under way, and some beats: a reader that waits here only delays its own stage's beat.
        let (sender, events) = mpsc::channel(stages * (steps_in_flight + 4));
        Self { plans: Vec::with_capacity(stages), events, sender, readers: JoinSet::new(), steps_in_flight }
    }

    /// Opens `Run` on a stage and waits until it accepts the holder. Stages must be opened in descending order.
    ///
    /// # Errors
    /// The stage's refusal.
    pub async fn open(
        &mut self,
        stage: usize,
        client: &mut ShardClient<Channel>,
        holder: &Holder,
    ) -> Result<(), Status> {
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
        self.readers.spawn(read(stage, responses, self.sender.clone()));
        Ok(())
    }

    /// Sends one plan to every stage.
    ///
    /// # Errors
    /// A stage is lost; the epoch must end, as the stages may now differ in what they know.
    pub fn send(&self, plan: &StepPlan) -> Result<(), StageLost> {
        for (stage, plans) in self.plans.iter().enumerate() {
            let request = RunRequest { message: Some(run_request::Message::Plan(plan.clone())) };
            plans.try_send(request).map_err(|_| StageLost { stage })?;
        }
        Ok(())
    }

    /// The next event of any stage: (stage, event). Safe to drop while it waits.
    pub async fn next(&mut self) -> (usize, StageEvent) {
        // `sender` is kept, so the channel never closes.
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

async fn read(
    stage: usize,
    mut responses: Streaming<RunResponse>,
    events: mpsc::Sender<(usize, StageEvent)>,
) {
    loop {
        let event = match responses.message().await {
            Ok(Some(RunResponse { message: Some(run_response::Message::Report(report)) })) => {
                StageEvent::Report(report)
            }
            Ok(Some(RunResponse { message: Some(run_response::Message::Beat(beat)) })) => {
                StageEvent::Beat(beat)
            }
            Ok(Some(_)) => StageEvent::Ended(Status::internal("a message that does not belong here")),
            Ok(None) => StageEvent::Ended(Status::unavailable("the stream ended")),
            Err(status) => StageEvent::Ended(status),
        };
        let ended = matches!(event, StageEvent::Ended(_));
        if events.send((stage, event)).await.is_err() || ended {
            return;
        }
    }
}
