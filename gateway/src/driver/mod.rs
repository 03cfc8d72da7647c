//! Drives a pipeline: finds its shards and holds it as its one planner, sends plans to every stage at once, draws tokens
//! from the evidence that comes back, and passes them to the requests' readers.
//!
//! One task on a thread of its own does it all and never waits for a reader. It begins again, with a greater epoch, whenever a
//! stage is lost; what ran is then replayed and goes on, which its reader sees as a pause, and what waited goes on waiting.

mod answer;
mod backoff;
mod beats;
mod cancel;
mod desk;
mod drain;
mod end;
mod epoch;
mod fetch;
mod flight;
mod join;
mod journal;
mod membership;
mod mismatch;
mod pace;
mod plan;
mod requests;
mod runner;
mod streams;
mod timeline;
mod writer;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use asterism_process::channel::AddressError;
use asterism_process::inproc::Registry;
use asterism_process::reactor::Reactor;
use asterism_proto::shard::v1::Evidence;
use asterism_proto::{Failure, Reason};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use answer::{AnswerStream, BYTE_LIMIT};
use desk::{Command, Desk};
use drain::DrainMeter;
use join::Shards;
pub use journal::TAKEN;
pub use membership::{Capacity, Member, Pipeline};
pub use mismatch::Mismatch;
pub use requests::NewRequest;
use requests::Requests;
use runner::Runner;
pub use writer::{Stops, Writer};

use crate::config::GatewayConfig;
use crate::metrics::{Metrics, RequestRecord};
use crate::scheduler::{Limits, Loads, QueueLimits, RowKinds, Scheduler, Speculation};
use crate::sessions::store::Store;
use crate::tenants::Tenants;
use crate::text::ModelText;

/// Callers that may wait for the driver's ear at once.
const COMMANDS: usize = 64;

/// Talks to the driver's task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Driver {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<PipelineState>,
    metrics: Arc<Metrics>,
}

/// What a driver needs to know.
#[derive(Clone, Debug)]
pub struct DriverSettings {
    /// host:port of every shard, or where it is in the registry.
    pub shards: Vec<String>,
    /// Shards within this process.
    pub registry: Registry,
    /// Whether to take the pipeline from another driver, once.
    pub take_over: bool,
    /// The longest prompt plus answer; what the shards allow unless set.
    pub max_context: Option<u32>,
    /// What may wait.
    pub queue: QueueLimits,
    /// The tenants' weights, by [`TenantId`](crate::scheduler::TenantId).
    pub weights: Vec<NonZeroU32>,
    /// Whether ids are proposed that may follow in an answer.
    pub speculation: Speculation,
    /// How long a stage may work without finishing a layer.
    pub beat_limit: Duration,
    /// How long running answers may take to end at shutdown.
    pub grace: Duration,
    /// Sees every row of evidence.
    pub sink: Option<EvidenceSink>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Whose journal the tokens of turns are written to.
    pub sessions: Option<Arc<dyn Store>>,
}

/// What the pipeline is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipelineState {
    /// None is joined, and why.
    Waiting(String),
    /// One is, and takes requests.
    Joined(PipelineInfo),
    /// One is, and takes none any more, as the shard at this address will leave.
    Draining(String),
    /// The gateway shuts down.
    Leaving,
}

/// What a joined pipeline offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineInfo {
    /// This driver's claim.
    pub epoch: u64,
    /// SHA-256 of the model's config and tensors.
    pub checkpoint_id: String,
    /// Ids that the model knows.
    pub vocab_size: u32,
    /// The longest prompt plus answer, in tokens.
    pub max_context: u32,
    /// The type that it computes in.
    pub compute: &'static str,
}

/// Why a driver cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The shards do not make a pipeline.
    #[error("the shards do not make a pipeline: {}", lines(.0))]
    Mismatch(Vec<Mismatch>),
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Its thread cannot be started.
    #[error("the driver's thread: {0}")]
    Thread(std::io::Error),
}

fn lines(mismatch: &[Mismatch]) -> String {
    mismatch.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Sees every row of evidence as it arrives: for tests and audits. It is called in the driver's task and must not wait.
#[derive(Clone)]
pub struct EvidenceSink(Arc<dyn Fn(SeenEvidence<'_>) + Send + Sync>);

/// A row of evidence, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct SeenEvidence<'e> {
    /// The request's id, which is the same in every run that names it.
    pub request_id: &'e str,
    /// Of the driver's claim.
    pub epoch: u64,
    /// Of the plan.
    pub step: u64,
    /// As the last stage sent it.
    pub evidence: &'e Evidence,
}

// === impl Driver ===

impl Driver {
    /// Starts a driver for a model, within a runtime; it runs until `shutdown` or until its shards turn out not to make a
    /// pipeline.
    ///
    /// # Errors
    /// An address is none, or there can be no thread for it.
    pub fn start(
        settings: DriverSettings,
        text: Arc<ModelText>,
        shutdown: CancellationToken,
    ) -> Result<(Self, JoinHandle<Result<(), DriverError>>), DriverError> {
        let reactor = Reactor::start("driver").map_err(DriverError::Thread)?;
        let shards = {
            // Their connections belong to the driver's thread.
            let _entered = reactor.handle().enter();
            Shards::new(&settings.shards, &settings.registry)?
        };
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (sender, state) =
            watch::channel(PipelineState::Waiting("the shards have not answered yet".to_owned()));
        let nothing = Limits {
            stages: 0,
            blocks: 0,
            rows: 0,
            evidence_rows: 0,
            logits_slots: 0,
            steps_in_flight: 0,
            max_context: 0,
            row_kinds: RowKinds::default(),
        };
        let metrics = Arc::clone(&settings.metrics);
        let mut requests = Requests::new(text, Arc::clone(&metrics));
        if let Some(store) = &settings.sessions {
            let outbox = journal::Outbox::default();
            tokio::spawn(journal::run(Arc::clone(store), outbox.waiting(), requests.cancelled().clone()));
            requests = requests.journaled(outbox);
        }
        let desk = Desk {
            requests,
            scheduler: Scheduler::new(nothing, settings.queue).weighted(settings.weights.clone()),
            drain: DrainMeter::default(),
            began: Instant::now(),
            settings,
            state: sender,
            commands: receiver,
            shutdown,
        };
        let id = Uuid::new_v4();
        let runner = Runner::new(desk, shards, id.to_string(), id.as_u64_pair().1);
        Ok((Self { commands, state, metrics }, reactor.run(runner.run())))
    }

    /// What the pipeline is doing, as it changes.
    pub fn state(&self) -> watch::Receiver<PipelineState> {
        self.state.clone()
    }

    /// What the joined pipeline offers.
    ///
    /// # Errors
    /// UNAVAILABLE: none is joined.
    pub fn pipeline(&self) -> Result<PipelineInfo, Failure> {
        self.state.borrow().joined().cloned()
    }

    /// Queues a request; dropping the answer cancels it.
    ///
    /// # Errors
    /// UNAVAILABLE, RESOURCE_EXHAUSTED where the queue is full, CONFLICT where its id is taken, INVALID_ARGUMENT where it
    /// could never fit.
    pub async fn submit(&self, request: NewRequest, record: RequestRecord) -> Result<AnswerStream, Failure> {
        self.ask(|reply| Command::Submit(Box::new((request, record)), reply)).await?
    }

    /// Ends a request by its id with what it has. False: there was none.
    ///
    /// # Errors
    /// UNAVAILABLE: the gateway shuts down.
    pub async fn abort(&self, id: String) -> Result<bool, Failure> {
        self.ask(|reply| Command::Abort(id, reply)).await
    }

    /// How much there is to do, and how much room is left.
    ///
    /// # Errors
    /// UNAVAILABLE: the gateway shuts down.
    pub async fn loads(&self) -> Result<Loads, Failure> {
        self.ask(Command::Loads).await
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Failure> {
        let gone = || Failure::new(Reason::Unavailable, "the gateway is shutting down");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

// === impl DriverSettings ===

impl DriverSettings {
    /// As configured, without a sink and without shards in this process.
    pub fn of(config: &GatewayConfig) -> Self {
        Self {
            shards: config.shards.clone(),
            registry: Registry::default(),
            take_over: config.take_over,
            max_context: config.max_context,
            queue: QueueLimits { requests: config.queue_requests, tokens: config.queue_tokens },
            weights: Tenants::new(&config.tenants).weights(),
            speculation: config.speculation,
            beat_limit: config.beat_limit,
            grace: config.grace,
            sink: None,
            metrics: Arc::new(Metrics::new(&config.name())),
            sessions: None,
        }
    }
}

// === impl EvidenceSink ===

impl EvidenceSink {
    /// Calls `see` with every row.
    pub fn new(see: impl Fn(SeenEvidence<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(see))
    }

    fn take(&self, seen: SeenEvidence<'_>) {
        (self.0)(seen);
    }
}

impl fmt::Debug for EvidenceSink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("EvidenceSink")
    }
}
