//! The gRPC service: who is obeyed, and which channel a call goes to. It computes nothing and waits for no device.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use asterism_link::{Acceptor, CreditStream, LinkKind};
use asterism_process::inproc::{RunCall, RunDoor};
use asterism_proto::shard::v1::shard_server::Shard;
use asterism_proto::shard::v1::{
    ActivationsRequest, DescribeRequest, DescribeResponse, DrainRequest, DrainResponse, FetchLogitsRequest,
    FetchLogitsResponse, Holder, JoinRequest, JoinResponse, LinkKind as WireLinkKind, RunRequest,
    activations_request, run_request,
};
use asterism_proto::{Failure, Reason};
use futures::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::device::{Command, Fetch, Join};
use crate::epoch::{Epoch, EpochSpec};
use crate::fence::{Claim, Fence};
use crate::load::Progress;
use crate::report::Heart;
use crate::run::{self, Intake, RunStream};

/// How long a stream may take to say whose it is.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// How often a leaving shard looks whether its holder is gone, beside the end of its epoch.
const LEAVE_INTERVAL: Duration = Duration::from_millis(500);

/// The service, before and after its stage is loaded.
#[derive(Clone, Debug)]
pub struct ShardService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    progress: Arc<Progress>,
    heart: Arc<Heart>,
    /// Cancelled once a `Drain` is done.
    drained: CancellationToken,
    ready: OnceLock<Ready>,
    seat: Mutex<Seat>,
}

/// What the service knows once the stage is loaded.
#[derive(Debug)]
pub struct Ready {
    /// All but who holds it.
    pub description: DescribeResponse,
    /// Bytes of the largest step on an edge.
    pub largest: u64,
    /// To the device thread.
    pub commands: mpsc::Sender<Command>,
}

/// Who drives, and the epoch as it runs.
#[derive(Debug, Default)]
struct Seat {
    fence: Fence,
    epoch: Option<Arc<Epoch>>,
}

impl Seat {
    /// The fence, which learns here of an epoch that has ended by itself.
    fn fence(&mut self) -> &mut Fence {
        if self.epoch.as_ref().is_some_and(|epoch| epoch.is_over()) {
            self.fence.end();
            self.epoch = None;
        }
        &mut self.fence
    }
}

impl ShardService {
    /// A service whose stage is not loaded yet.
    pub fn loading(progress: Arc<Progress>, heart: Arc<Heart>) -> Self {
        let (drained, ready, seat) = (CancellationToken::new(), OnceLock::new(), Mutex::default());
        Self { shared: Arc::new(Shared { progress, heart, drained, ready, seat }) }
    }

    /// The stage is loaded; from now on drivers are served.
    pub fn loaded(&self, ready: Ready) {
        // Told once, by whoever starts the shard.
        let _ = self.shared.ready.set(ready);
    }

    /// Cancelled once a driver has drained the shard.
    pub fn drained(&self) -> CancellationToken {
        self.shared.drained.clone()
    }

    /// Takes no new driver from now on, and returns once none drives.
    pub async fn leave(&self) {
        self.shared.heart.drain();
        loop {
            let epoch = {
                let mut seat = self.seat();
                if !seat.fence().lives(Instant::now()) {
                    return;
                }
                seat.epoch.clone()
            };
            let Some(epoch) = epoch else { return };
            // A holder that opened no Run stops living without its epoch's end.
            let _ = tokio::time::timeout(LEAVE_INTERVAL, epoch.over()).await;
        }
    }

    /// Ends the present epoch; no other begins.
    pub fn end_epoch(&self, why: Failure) {
        self.shared.heart.drain();
        let epoch = {
            let mut seat = self.seat();
            seat.fence().end();
            seat.epoch.take()
        };
        if let Some(epoch) = epoch {
            epoch.end(why);
        }
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.shared.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> Result<&Ready, Failure> {
        self.shared.ready.get().ok_or_else(|| {
            let percent = self.shared.progress.percent();
            Failure::new(Reason::Unavailable, format!("the stage is being loaded, {percent} %"))
        })
    }

    /// The present epoch, if `holder` is its driver.
    fn present(&self, holder: Option<&Holder>) -> Result<Arc<Epoch>, Failure> {
        let holder = holder.ok_or_else(|| Failure::invalid("holder", "holder is missing"))?;
        let mut seat = self.seat();
        seat.fence().check(holder)?;
        let over = || Failure::new(Reason::FailedPrecondition, format!("epoch {} is over", holder.epoch));
        seat.epoch.clone().ok_or_else(over)
    }

    /// Opens the one `Run` of the present epoch, if `holder` is its driver: where its plans go, and its answers.
    fn open_run(&self, holder: &Holder) -> Result<(Intake, RunStream), Failure> {
        self.ready()?;
        let (epoch, end) = {
            let mut seat = self.seat();
            seat.fence().open_run(holder)?;
            let epoch = seat.epoch.clone();
            let end = epoch.as_ref().and_then(|epoch| epoch.take_run());
            epoch.zip(end).ok_or_else(device_gone)?
        };
        Ok(run::open(epoch, end, Arc::clone(&self.shared.heart)))
    }

    async fn command(&self, command: Command) -> Result<(), Failure> {
        self.ready()?.commands.send(command).await.map_err(|_| device_gone())
    }

    /// Makes the claimed epoch the present one and passes it to the device thread, in the same order.
    async fn claim(
        &self,
        claim: Claim,
        join: &JoinRequest,
    ) -> Result<oneshot::Receiver<Result<(), Failure>>, Failure> {
        let ready = self.ready()?;
        let downstream = self.check_join(join)?;
        let permit = ready.commands.reserve().await.map_err(|_| device_gone())?;
        let mut seat = self.seat();
        if self.shared.heart.is_draining() {
            return Err(Failure::new(Reason::Unavailable, "the shard is draining"));
        }
        seat.fence().claim(&claim, Instant::now())?;
        let Holder { epoch, driver_id } = &claim.holder;
        tracing::info!(epoch, driver_id, take_over = claim.take_over, "joined");
        if let Some(before) = seat.epoch.take() {
            let why = format!("epoch {epoch} of driver {driver_id} has begun");
            before.end(Failure::new(Reason::FailedPrecondition, why));
        }
        let link = LinkKind::Grpc;
        let (epoch, ends) = Epoch::begin(EpochSpec {
            holder: claim.holder,
            steps_in_flight: join.steps_in_flight,
            largest: ready.largest,
            has_upstream: ready.description.stage > 0,
            link,
        });
        let epoch = Arc::new(epoch);
        seat.epoch = Some(Arc::clone(&epoch));
        let (done, answer) = oneshot::channel();
        permit.send(Command::Join(Join { epoch, ends, downstream, link, largest: ready.largest, done }));
        Ok(answer)
    }

    /// What a `Join` asks for, against what this shard is: where the next stage listens, if there is one.
    fn check_join(&self, join: &JoinRequest) -> Result<Option<String>, Failure> {
        let description = &self.ready()?.description;
        match join.link() {
            WireLinkKind::Grpc => {}
            WireLinkKind::Nccl => return Err(Failure::invalid("link", "this shard has no NCCL links")),
            WireLinkKind::Unspecified => return Err(Failure::invalid("link", "link is missing or unknown")),
        }
        let (found, most) = (join.steps_in_flight, description.max_steps_in_flight);
        if !(1..=most).contains(&found) {
            let message = format!("steps_in_flight is {found}, expected 1 to {most}");
            return Err(Failure::invalid("steps_in_flight", message));
        }
        let is_last = description.stage + 1 == description.stages;
        match (join.downstream_address.as_str(), is_last) {
            ("", true) => Ok(None),
            ("", false) => {
                Err(Failure::invalid("downstream_address", "the address of the next stage is missing"))
            }
            (_, true) => Err(Failure::invalid("downstream_address", "there is no stage after the last")),
            (address, false) => Ok(Some(address.to_owned())),
        }
    }
}

fn device_gone() -> Failure {
    Failure::new(Reason::Internal, "the device thread is gone")
}

/// The first message of a stream, which must come soon.
async fn opening<T>(messages: &mut Streaming<T>) -> Result<T, Status> {
    let first = tokio::time::timeout(OPEN_DEADLINE, messages.message()).await;
    let first = first.map_err(|_| {
        Failure::new(Reason::DeadlineExceeded, format!("no opening message within {OPEN_DEADLINE:?}"))
    })??;
    Ok(first.ok_or_else(|| {
        Failure::new(Reason::InvalidArgument, "the stream ended before its opening message")
    })?)
}

fn not_an_opening() -> Failure {
    Failure::invalid("open", "the first message must open the stream")
}

#[tonic::async_trait]
impl Shard for ShardService {
    type RunStream = RunStream;
    type ActivationsStream = CreditStream;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let ready = self.ready()?;
        let mut seat = self.seat();
        let fence = seat.fence();
        Ok(Response::new(DescribeResponse {
            holder: fence.holder().cloned(),
            holder_lives: fence.lives(Instant::now()),
            draining: self.shared.heart.is_draining(),
            ..ready.description.clone()
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let join = request.into_inner();
        let holder = join.holder.clone().ok_or_else(|| Failure::invalid("holder", "holder is missing"))?;
        let claim = Claim { holder, take_over: join.take_over };
        let answer = self.claim(claim, &join).await?;
        answer.await.map_err(|_| device_gone())??;
        Ok(Response::new(JoinResponse { edge: bytes::Bytes::new() }))
    }

    async fn run(
        &self,
        request: Request<Streaming<RunRequest>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        self.ready()?;
        let mut messages = request.into_inner();
        let Some(run_request::Message::Open(holder)) = opening(&mut messages).await?.message else {
            return Err(not_an_opening().into());
        };
        let (intake, responses) = self.open_run(&holder)?;
        tokio::spawn(run::read(intake, messages));
        Ok(Response::new(responses))
    }

    async fn activations(
        &self,
        request: Request<Streaming<ActivationsRequest>>,
    ) -> Result<Response<CreditStream>, Status> {
        self.ready()?;
        let mut messages = request.into_inner();
        let Some(activations_request::Message::Open(holder)) = opening(&mut messages).await?.message else {
            return Err(not_an_opening().into());
        };
        let epoch = self.present(Some(&holder))?;
        let taken = || Failure::new(Reason::FailedPrecondition, "this stage takes no activations now");
        let Acceptor::Grpc(acceptor) = epoch.take_acceptor().ok_or_else(taken)?;
        Ok(Response::new(acceptor.serve(messages)))
    }

    async fn fetch_logits(
        &self,
        request: Request<FetchLogitsRequest>,
    ) -> Result<Response<FetchLogitsResponse>, Status> {
        self.ready()?;
        let FetchLogitsRequest { holder, step, sequence, position, raw_too } = request.into_inner();
        let epoch = self.present(holder.as_ref())?.holder.epoch;
        let (done, row) = oneshot::channel();
        let position = position as usize;
        self.command(Command::Fetch(Fetch { epoch, step, sequence, position, raw_too, done })).await?;
        let row = row.await.map_err(|_| device_gone())??;
        Ok(Response::new(FetchLogitsResponse { processed: row.processed, raw: row.raw }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.ready()?;
        self.present(request.into_inner().holder.as_ref())?;
        self.shared.heart.drain();
        let (done, drained) = oneshot::channel();
        self.command(Command::Drain(done)).await?;
        drained.await.map_err(|_| device_gone())?;
        self.shared.drained.cancel();
        Ok(Response::new(DrainResponse {}))
    }
}

impl RunDoor for ShardService {
    fn open(&self, holder: &Holder) -> Result<RunCall, Status> {
        let (intake, responses) = self.open_run(holder)?;
        Ok(RunCall { plans: Box::new(move |plan| intake.take(plan)), responses: responses.boxed() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drivers_are_told_that_the_stage_is_being_loaded() {
        let service = ShardService::loading(Arc::default(), Arc::default());
        let status = service.describe(Request::new(DescribeRequest {})).await.expect_err("not loaded");
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unavailable, "the stage is being loaded, 0 %")
        );
        let join = JoinRequest {
            holder: Some(Holder { epoch: 1, driver_id: "a".to_owned() }),
            ..JoinRequest::default()
        };
        let status = service.join(Request::new(join)).await.expect_err("not loaded");
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
