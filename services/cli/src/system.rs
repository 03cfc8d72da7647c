//! All services of a model in one process, over real loopback sockets.

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use asterism_gateway::{Gateway, GatewayConfig, GatewayError, Listeners, RunningGateway};
use asterism_process::config::Bytes;
use asterism_process::listen::{ListenError, bind, loopback};
use asterism_shard::{ComputeType, RunningShard, Shard, ShardConfig, ShardError};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::gateway::ended;

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's folder.
    pub model: PathBuf,
    /// How many shards the model is split over.
    pub shards: NonZeroUsize,
    /// Threads of each shard; unless given, the cores are shared out.
    pub threads: Option<NonZeroUsize>,
    /// Memory of each shard.
    pub memory: Option<Bytes>,
    /// The type of activations and KV.
    pub compute: ComputeType,
    /// Where the gateway listens for gRPC.
    pub listen: SocketAddr,
    /// Where the gateway listens for HTTP.
    pub http_listen: SocketAddr,
}

/// A gateway and its shards. Dropping it shuts everything down.
#[derive(Debug)]
pub struct System {
    gateway: RunningGateway,
    /// Each tells its stage and how it ended.
    shards: JoinSet<(usize, Result<(), ShardError>)>,
    /// Lets the shards leave.
    leave: CancellationToken,
}

/// Which service failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A shard.
    #[error("shard {0}: {1}")]
    Shard(usize, ShardError),
    /// A shard left without being told to.
    #[error("shard {0} has ended")]
    Left(usize),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
}

impl Plan {
    /// A plan for `shards` shards of the model in this folder, on free ports, all else as by default.
    pub fn new(model: impl Into<PathBuf>, shards: NonZeroUsize) -> Self {
        Self {
            model: model.into(),
            shards,
            threads: None,
            memory: None,
            compute: ComputeType::F32,
            listen: loopback(0),
            http_listen: loopback(0),
        }
    }

    /// Threads of each shard.
    pub fn threads(&self) -> NonZeroUsize {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.or(NonZeroUsize::new(cores.get() / self.shards)).unwrap_or(NonZeroUsize::MIN)
    }

    fn shard(&self, stage: usize) -> ShardConfig {
        ShardConfig {
            stage: stage as u32,
            stages: self.shards.get() as u32,
            threads: Some(self.threads()),
            memory: self.memory,
            compute: self.compute,
            ..ShardConfig::new(&self.model)
        }
    }
}

impl System {
    /// Loads all stages at once and starts the gateway.
    ///
    /// # Errors
    /// The first service that cannot start.
    pub async fn start(plan: &Plan) -> Result<Self, SystemError> {
        let config = GatewayConfig {
            listen: plan.listen,
            http_listen: plan.http_listen,
            ..GatewayConfig::new(&plan.model, Vec::new())
        };
        // A taken port is told before anything is loaded.
        let listeners = Listeners::bind(&config).await?;
        let leave = CancellationToken::new();
        let started = (0..plan.shards.get()).map(|stage| start_shard(plan.shard(stage), leave.clone()));
        let started = try_join_all(started).await?;
        let addresses = started.iter().map(|shard| shard.address.to_string()).collect();
        let mut shards = JoinSet::new();
        for (stage, shard) in started.into_iter().enumerate() {
            shards.spawn(async move { (stage, shard.finished().await) });
        }
        let gateway = Gateway::start(GatewayConfig { shards: addresses, ..config }, listeners).await?;
        Ok(Self { gateway, shards, leave })
    }

    /// Where the gateway listens for gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.gateway.grpc_address
    }

    /// Where the gateway listens for HTTP.
    pub fn http(&self) -> SocketAddr {
        self.gateway.http_address
    }

    /// Waits until the gateway drives all shards; false if it ended before.
    pub async fn ready(&self) -> bool {
        self.gateway.ready().await
    }

    /// Serves until `shutdown` is done, then lets running answers end: the gateway leaves first, then the shards.
    ///
    /// # Errors
    /// The service that ended by itself, or could not end in order.
    pub async fn until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), SystemError> {
        let served = tokio::select! {
            () = shutdown => Ok(()),
            // Why, is told when it is stopped.
            () = ended(&self.gateway) => Ok(()),
            Some(shard) = self.shards.join_next() => match shard {
                Ok((stage, Err(error))) => Err(SystemError::Shard(stage, error)),
                Ok((stage, Ok(()))) => Err(SystemError::Left(stage)),
                Err(_) => Ok(()),
            },
        };
        let gateway = self.gateway.stop().await;
        self.leave.cancel();
        let mut left = Ok(());
        while let Some(shard) = self.shards.join_next().await {
            if let Ok((stage, Err(error))) = shard {
                left = left.and(Err(SystemError::Shard(stage, error)));
            }
        }
        served.and(gateway.map_err(SystemError::from)).and(left)
    }
}

async fn start_shard(config: ShardConfig, leave: CancellationToken) -> Result<RunningShard, SystemError> {
    let stage = config.stage as usize;
    let (listener, _) = bind(config.listen).await?;
    Shard::start(config, listener, leave).await.map_err(|error| SystemError::Shard(stage, error))
}
