//! Shards on free ports or within this process, and a driver that sends one plan at a time.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use asterism_process::channel::{CONTROL_MESSAGE_LIMIT, Traffic};
use asterism_process::dial::Dial;
use asterism_process::inproc::{PlanIntake, Registry, RunCall, RunDoor};
use asterism_process::listen::{Listener, bind, loopback};
use asterism_proto::shard::v1::shard_client::ShardClient;
use asterism_proto::shard::v1::{
    Evidence, Holder, JoinRequest, LinkKind, RunRequest, RunResponse, StepPlan, StepReport, run_request,
    run_response,
};
use asterism_shard::{ComputeType, RunningShard, Shard, ShardConfig, ShardError};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// Longer than any test takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The outcome of something that must not hang.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it hangs")
}

/// A tiny checkpoint of six layers.
pub fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-52b")
}

/// A shard of the tiny model, on one thread.
pub fn config() -> ShardConfig {
    let threads = Some(std::num::NonZeroUsize::MIN);
    ShardConfig { max_rows: Some(32), max_context: Some(256), threads, ..ShardConfig::new(tiny()) }
}

/// Starts a shard on a free port.
pub async fn start(config: ShardConfig, shutdown: CancellationToken) -> Result<RunningShard, ShardError> {
    let (listener, _) = bind(loopback(0)).await.expect("a free port");
    soon(Shard::start(config, listener, shutdown)).await
}

/// How shards are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over loopback sockets.
    Sockets,
    /// Through memory; `Run` through its door.
    Door,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sockets, Self::Door];
}

/// The shards of a pipeline.
pub struct Pipeline {
    pub shards: Vec<RunningShard>,
    pub addresses: Vec<String>,
    way: Way,
    registry: Registry,
    /// Asks all shards to stop.
    pub shutdown: CancellationToken,
}

impl Pipeline {
    /// The tiny model over `stages` shards.
    pub async fn start(stages: u32, change: impl Fn(ShardConfig) -> ShardConfig) -> Self {
        Self::start_by(Way::Sockets, stages, change).await
    }

    async fn start_by(way: Way, stages: u32, change: impl Fn(ShardConfig) -> ShardConfig) -> Self {
        let (shards, addresses) = (Vec::new(), Vec::new());
        let (registry, shutdown) = (Registry::default(), CancellationToken::new());
        let mut pipeline = Self { shards, addresses, way, registry, shutdown };
        for stage in 0..stages {
            pipeline.add(change(ShardConfig { stage, stages, ..config() })).await;
        }
        pipeline
    }

    /// Starts a shard, at an address of its own, in its place.
    pub async fn add(&mut self, config: ShardConfig) {
        let stage = config.stage as usize;
        let listener: Listener = match self.way {
            Way::Sockets => bind(loopback(0)).await.expect("a free port").0.into(),
            Way::Door => {
                let free = |life| self.registry.listen(format!("{stage}-{life}")).ok();
                (0..).find_map(free).expect("a free name").into()
            }
        };
        let started = soon(Shard::start(config, listener, self.shutdown.clone())).await;
        let started = started.expect("the shard starts");
        self.addresses.insert(stage, started.address.to_string());
        self.shards.insert(stage, started);
    }

    /// Kills a shard.
    pub fn kill(&mut self, stage: usize) {
        self.addresses.remove(stage);
        drop(self.shards.remove(stage));
    }

    pub async fn plain(stages: u32) -> Self {
        Self::by(Way::Sockets, stages).await
    }

    pub async fn by(way: Way, stages: u32) -> Self {
        Self::start_by(way, stages, |config| config).await
    }

    /// Reaches a stage.
    pub async fn client(&self, stage: usize) -> Client {
        reach(&self.addresses[stage], &self.registry).await
    }

    pub async fn computing(stages: u32, compute: ComputeType, threads: usize) -> Self {
        let threads = std::num::NonZeroUsize::new(threads);
        Self::start(stages, |config| ShardConfig { compute: Some(compute), threads, ..config }).await
    }
}

/// A shard, as its driver reaches it.
pub struct Client {
    calls: ShardClient<Channel>,
    door: Option<Arc<dyn RunDoor>>,
}

impl Deref for Client {
    type Target = ShardClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.calls
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.calls
    }
}

pub async fn client(address: &str) -> Client {
    reach(address, &Registry::default()).await
}

async fn reach(address: &str, registry: &Registry) -> Client {
    let dial = Dial::new(address, Traffic::Internal, registry).expect("an address");
    let connected = soon(dial.connect()).await.expect("a server");
    let calls = ShardClient::new(connected).max_decoding_message_size(CONTROL_MESSAGE_LIMIT);
    Client { calls, door: registry.run_door(address) }
}

pub fn holder(epoch: u64, driver_id: &str) -> Holder {
    Holder { epoch, driver_id: driver_id.to_owned() }
}

/// A join of the last stage.
pub fn join(holder: Holder) -> JoinRequest {
    JoinRequest {
        holder: Some(holder),
        take_over: false,
        link: LinkKind::Grpc.into(),
        downstream_address: String::new(),
        steps_in_flight: 2,
    }
}

/// One stage's `Run`.
pub struct Run {
    plans: Plans,
    answers: Answers,
}

enum Plans {
    Wire(mpsc::Sender<RunRequest>),
    Door(PlanIntake),
}

pub type Answers = BoxStream<'static, Result<RunResponse, Status>>;

impl Run {
    pub async fn open(client: &mut Client, holder: &Holder) -> Result<Self, Status> {
        if let Some(door) = &client.door {
            let RunCall { plans, responses } = door.open(holder)?;
            return Self { plans: Plans::Door(plans), answers: responses }.opened(Some(holder)).await;
        }
        let (plans, requests) = mpsc::channel(64);
        Self::call(client, plans, requests, run_request::Message::Open(holder.clone())).await
    }

    /// Over a connection, with any first message.
    pub async fn call(
        client: &mut Client,
        plans: mpsc::Sender<RunRequest>,
        requests: mpsc::Receiver<RunRequest>,
        first: run_request::Message,
    ) -> Result<Self, Status> {
        let expected = match &first {
            run_request::Message::Open(holder) => Some(holder.clone()),
            run_request::Message::Plan(_) => None,
        };
        plans.send(RunRequest { message: Some(first) }).await.expect("there is room");
        let answers = soon(client.run(ReceiverStream::new(requests))).await?.into_inner().boxed();
        Self { plans: Plans::Wire(plans), answers }.opened(expected.as_ref()).await
    }

    /// It begins with its opening.
    async fn opened(mut self, expected: Option<&Holder>) -> Result<Self, Status> {
        match self.answer().await? {
            run_response::Message::Opened(opened) => {
                assert_eq!(Some(&opened), expected, "the first answer");
            }
            other => panic!("the first answer is {other:?}"),
        }
        Ok(self)
    }

    /// Any message; a door takes plans only.
    pub async fn send(&self, message: Option<run_request::Message>) {
        match (&self.plans, message) {
            (Plans::Wire(requests), message) => {
                requests.send(RunRequest { message }).await.expect("the call goes on");
            }
            (Plans::Door(intake), Some(run_request::Message::Plan(plan))) => intake(plan),
            (Plans::Door(_), other) => panic!("{other:?} is no plan"),
        }
    }

    pub async fn plan(&self, plan: StepPlan) {
        self.send(Some(run_request::Message::Plan(plan))).await;
    }

    async fn answer(&mut self) -> Result<run_response::Message, Status> {
        let answer = soon(self.answers.next()).await.transpose()?;
        answer.and_then(|answer| answer.message).ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// The next message that is no beat.
    pub async fn report(&mut self) -> Result<StepReport, Status> {
        loop {
            match self.answer().await? {
                run_response::Message::Report(report) => return Ok(report),
                run_response::Message::Beat(_) => {}
                run_response::Message::Opened(_) => panic!("opened twice"),
            }
        }
    }

    /// The next beat.
    pub async fn beat(&mut self) -> asterism_proto::shard::v1::Beat {
        loop {
            match self.answer().await.expect("the call goes on") {
                run_response::Message::Beat(beat) => return beat,
                run_response::Message::Report(_) => {}
                run_response::Message::Opened(_) => panic!("opened twice"),
            }
        }
    }

    /// The status that the stream ends with.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.report().await {
                return status;
            }
        }
    }

    /// Closes the driver's side only.
    pub fn close(self) -> Answers {
        self.answers
    }
}

/// Holds a pipeline.
pub struct Driver {
    pub holder: Holder,
    pub clients: Vec<Client>,
    pub runs: Vec<Run>,
    step: u64,
}

impl Driver {
    /// Joins all stages from the last to the first.
    pub async fn join(pipeline: &Pipeline, holder: Holder) -> Result<Self, Status> {
        Self::claim(pipeline, JoinRequest { steps_in_flight: 2, ..join(holder) }).await
    }

    pub async fn claim(pipeline: &Pipeline, request: JoinRequest) -> Result<Self, Status> {
        let holder = request.holder.clone().expect("a holder");
        let (mut clients, mut runs) = (Vec::new(), Vec::new());
        let mut downstream_address = String::new();
        for (stage, address) in pipeline.addresses.iter().enumerate().rev() {
            let mut client = pipeline.client(stage).await;
            soon(client.join(JoinRequest { downstream_address, ..request.clone() })).await?;
            runs.insert(0, Run::open(&mut client, &holder).await?);
            clients.insert(0, client);
            downstream_address = address.clone();
        }
        Ok(Self { holder, clients, runs, step: 0 })
    }

    /// The next plan, of these spans.
    pub fn plan(&mut self, spans: Vec<asterism_proto::shard::v1::Span>) -> StepPlan {
        self.step += 1;
        StepPlan {
            epoch: self.holder.epoch,
            step: self.step,
            ended: Vec::new(),
            spans,
            traceparent: String::new(),
        }
    }

    /// Sends a plan to every stage, and waits for every stage's report: the last one's evidence.
    pub async fn run(&mut self, plan: StepPlan) -> Result<Vec<Evidence>, Status> {
        self.send(plan.clone()).await;
        self.reported(&plan).await
    }

    /// Sends a plan to every stage.
    pub async fn send(&self, plan: StepPlan) {
        for run in &self.runs {
            run.plan(plan.clone()).await;
        }
    }

    /// Waits for every stage's next report, which is on this plan: the last one's evidence.
    pub async fn reported(&mut self, plan: &StepPlan) -> Result<Vec<Evidence>, Status> {
        let last = self.runs.len() - 1;
        let mut evidence = Vec::new();
        for (stage, run) in self.runs.iter_mut().enumerate() {
            let report = run.report().await?;
            assert_eq!((report.epoch, report.step), (plan.epoch, plan.step));
            assert!(report.times.is_some() && (stage == last || report.evidence.is_empty()));
            evidence = report.evidence;
        }
        Ok(evidence)
    }

    /// The same for a step of these spans.
    pub async fn step(&mut self, spans: Vec<asterism_proto::shard::v1::Span>) -> Vec<Evidence> {
        let plan = self.plan(spans);
        self.run(plan).await.expect("a good plan")
    }
}
