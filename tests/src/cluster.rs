//! A gateway and its shards in this process, over loopback sockets or through memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use asterism_gateway::GatewayConfig;
use asterism_gateway::driver::{EvidenceSink, PipelineState};
use asterism_gateway::scheduler::Speculation;
use asterism_gateway::service::{Gateway, Listeners, RunningGateway, Surroundings};
use asterism_process::config::Bytes;
use asterism_process::inproc::{self, Registry};
use asterism_process::listen::{Address, Listener, bind, loopback};
use asterism_proto::shard::v1::Evidence;
use asterism_proto::v1::GenerateRequest;
use asterism_proto::v1::inference_client::InferenceClient;
use asterism_shard::{ComputeType, RunningShard, Shard, ShardConfig};
use prost::Message as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::answer::{self, Answer, Client};

/// How long a killed shard's port may stay taken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The model's folder.
    pub checkpoint: PathBuf,
    /// Shards of the pipeline.
    pub shards: usize,
    /// Threads of each.
    pub threads: usize,
    /// Activations and KV.
    pub compute: ComputeType,
    /// The most rows of a step: small, so that prompts are chunked.
    pub max_rows: usize,
    /// Memory of each shard.
    pub memory: Option<Bytes>,
    /// Positions of the longest sequence.
    pub max_context: Option<u32>,
    /// Requests that may wait.
    pub queue_requests: u32,
    /// Between gateway and shards, and between shards.
    pub transport: Transport,
    /// Whether ids are proposed that may follow.
    pub speculation: Speculation,
}

/// What gateway and shards speak through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Loopback sockets.
    Sockets,
    /// The memory of this process.
    Memory,
}

impl Transport {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Sockets, Self::Memory];
}

/// The evidence of each request, in order of position, as the bytes that crossed the wire.
pub type SeenEvidence = BTreeMap<String, Vec<Vec<u8>>>;

/// The rows that tokens of each request were drawn from, in order.
pub type SeenRows = BTreeMap<String, Vec<SeenRow>>;

/// A row whose evidence was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenRow {
    /// Of the epoch.
    pub step: u64,
    /// In its sequence.
    pub position: u32,
}

#[derive(Debug, Default)]
struct Seen {
    evidence: SeenEvidence,
    rows: SeenRows,
}

/// A running system. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    setup: Setup,
    shards: Vec<Option<RunningShard>>,
    addresses: Vec<Address>,
    registry: Registry,
    gateway: RunningGateway,
    seen: Arc<Mutex<Seen>>,
}

impl Setup {
    /// One thread each, f32.
    pub fn new(checkpoint: impl Into<PathBuf>, shards: usize) -> Self {
        Self {
            checkpoint: checkpoint.into(),
            shards,
            threads: 1,
            compute: ComputeType::F32,
            max_rows: 48,
            memory: None,
            max_context: None,
            queue_requests: 1024,
            transport: Transport::Sockets,
            speculation: Speculation::Auto,
        }
    }

    fn shard(&self, stage: usize) -> ShardConfig {
        ShardConfig {
            stage: u32::try_from(stage).expect("a stage"),
            stages: u32::try_from(self.shards).expect("stages"),
            threads: NonZeroUsize::new(self.threads),
            compute: Some(self.compute),
            max_rows: Some(self.max_rows),
            memory: self.memory,
            max_context: self.max_context.map(|tokens| tokens as usize),
            metrics_listen: Some(loopback(0)),
            ..ShardConfig::new(&self.checkpoint)
        }
    }

    /// The gateway's configuration in front of these shards.
    pub fn gateway(&self, shards: &[Address]) -> GatewayConfig {
        GatewayConfig {
            listen: loopback(0),
            http_listen: loopback(0),
            max_context: self.max_context,
            queue_requests: self.queue_requests,
            speculation: self.speculation,
            ..GatewayConfig::new(&self.checkpoint, shards.iter().map(ToString::to_string))
        }
    }
}

impl Cluster {
    /// Starts all services and waits until the pipeline is joined.
    pub async fn start(setup: Setup) -> Self {
        let (mut shards, mut addresses) = (Vec::new(), Vec::new());
        let registry = Registry::default();
        for stage in 0..setup.shards {
            let listener = match setup.transport {
                Transport::Sockets => bind(loopback(0)).await.expect("a free port").0.into(),
                Transport::Memory => Listener::from(registry.listen(stage.to_string()).expect("a free name")),
            };
            let started = Shard::start(setup.shard(stage), listener, CancellationToken::new()).await;
            let started = started.expect("a shard starts");
            addresses.push(started.address.clone());
            shards.push(Some(started));
        }
        let seen = Arc::<Mutex<Seen>>::default();
        let sees = Arc::clone(&seen);
        let sink = EvidenceSink::new(move |row| {
            // Sequence ids count requests in order of arrival, which differs between runs.
            let bytes = Evidence { sequence: 0, ..row.evidence.clone() }.encode_to_vec();
            let seen_row = SeenRow { step: row.step, position: row.evidence.position };
            let mut seen = sees.lock().unwrap_or_else(PoisonError::into_inner);
            seen.evidence.entry(row.request_id.to_owned()).or_default().push(bytes);
            seen.rows.entry(row.request_id.to_owned()).or_default().push(seen_row);
        });
        let config = setup.gateway(&addresses);
        let listeners = Listeners::bind(&config).await.expect("free ports");
        let surroundings =
            Surroundings { registry: registry.clone(), sink: Some(sink), ..Surroundings::default() };
        let gateway = Gateway::start_in(surroundings, config, listeners).await.expect("a gateway starts");
        assert!(gateway.ready().await, "the pipeline is joined");
        Self { setup, shards, addresses, registry, gateway, seen }
    }

    /// Where the shards are reached, by stage.
    pub fn shards(&self) -> &[Address] {
        &self.addresses
    }

    /// Where a stage serves its metrics.
    pub fn metrics(&self, stage: usize) -> SocketAddr {
        let shard = self.shards[stage].as_ref().expect("a shard that runs");
        shard.metrics_address.expect("metrics are served")
    }

    /// What another gateway in front of these shards needs.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings { registry: self.registry.clone(), ..Surroundings::default() }
    }

    /// The gateway.
    pub fn gateway(&self) -> &RunningGateway {
        &self.gateway
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        let address = format!("http://{}", self.gateway.grpc_address);
        InferenceClient::connect(address).await.expect("the gateway listens")
    }

    /// Sends one request over a connection of its own and reads its whole answer.
    ///
    /// # Errors
    /// What the gateway answered instead.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Answer, Status> {
        answer::generate(self.client().await, request).await
    }

    /// All evidence since the last call.
    pub fn take_evidence(&self) -> SeenEvidence {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).evidence)
    }

    /// The rows of all evidence since the last call.
    pub fn take_rows(&self) -> SeenRows {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).rows)
    }

    /// A counter of the gateway, without prefix and suffix.
    pub async fn count(&self, name: &str) -> u64 {
        let url = format!("http://{}/metrics", self.gateway.http_address);
        let text = reqwest::get(url).await.expect("metrics").text().await.expect("text");
        let line = text.lines().find(|line| line.starts_with(&format!("asterism_{name}_total")));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok()).expect("a count")
    }

    /// Ends a shard as a crash would.
    pub async fn kill(&mut self, stage: usize) {
        drop(self.shards[stage].take());
        let mut state = self.gateway.state();
        let lost = state.wait_for(|state| !matches!(state, PipelineState::Joined(_))).await;
        assert!(lost.is_ok(), "the gateway outlives its shards");
    }

    /// Starts a killed shard again at its address and waits until the pipeline is joined.
    pub async fn revive(&mut self, stage: usize) {
        // Its server may take a moment to end, or somebody's connection was given the port meanwhile.
        let bound = async {
            loop {
                match self.listen(&self.addresses[stage]).await {
                    Some(listener) => return listener,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let listener = timeout(PATIENCE, bound).await.expect("the address is free again");
        let started = Shard::start(self.setup.shard(stage), listener, CancellationToken::new()).await;
        self.shards[stage] = Some(started.expect("a shard starts"));
        assert!(self.gateway.ready().await, "the pipeline is joined again");
    }

    /// Listens on an address again, if it is free.
    async fn listen(&self, address: &Address) -> Option<Listener> {
        match address {
            Address::Tcp(address) => Some(bind(*address).await.ok()?.0.into()),
            Address::Inproc(address) => {
                let name = address.strip_prefix(inproc::SCHEME)?;
                Some(self.registry.listen(name).ok()?.into())
            }
        }
    }
}
