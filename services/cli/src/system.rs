//! All services of a model in one process.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use asterism_gateway::scheduler::Speculation;
use asterism_gateway::sessions::Place;
use asterism_gateway::{Gateway, GatewayConfig, GatewayError, Listeners, RunningGateway, Surroundings};
use asterism_model::stage::default_memory;
use asterism_process::config::Bytes;
use asterism_process::inproc::Registry;
use asterism_process::listen::{ListenError, Listener, bind, loopback};
use asterism_shard::{
    ComputeType, DeviceName, RunningShard, Shard, ShardConfig, ShardError, StartTimes, Weights,
};
use asterism_tensor::{Device, TensorError};
use futures::future::try_join_all;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::gateway::ended;

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's folder.
    pub model: PathBuf,
    /// Where its weights come from.
    pub weights: Weights,
    /// How many shards the model is split over.
    pub shards: NonZeroUsize,
    /// What they compute on, dealt in turn.
    pub devices: Vec<DeviceName>,
    /// Threads of each shard; unless given, the cores are shared out.
    pub threads: Option<NonZeroUsize>,
    /// Memory of each shard; unless given, an equal share of its card's.
    pub memory: Option<Bytes>,
    /// The type of activations and KV; unless given, the device's.
    pub compute: Option<ComputeType>,
    /// Refuse on cards what could make a row's numbers depend on other rows.
    pub deterministic: bool,
    /// The most rows of a step; unless given, the device's.
    pub max_rows: Option<usize>,
    /// How the services speak to each other.
    pub transport: Transport,
    /// Whether tokens that may follow in an answer are computed ahead.
    pub speculation: Speculation,
    /// Where sessions are kept.
    pub sessions: Place,
    /// Where the gateway listens for gRPC.
    pub listen: SocketAddr,
    /// Where the gateway listens for HTTP.
    pub http_listen: SocketAddr,
}

/// How the services of one process speak to each other. What they say is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through memory.
    Memory,
    /// Over loopback sockets, as the services of several processes do.
    Sockets,
}

/// A gateway and its shards. Dropping it shuts everything down.
#[derive(Debug)]
pub struct System {
    gateway: RunningGateway,
    /// Each tells its stage and how it ended.
    shards: JoinSet<(usize, Result<(), ShardError>)>,
    /// Lets the shards leave.
    leave: CancellationToken,
    times: Vec<StartTimes>,
}

/// Which service failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A name within this process.
    #[error(transparent)]
    Name(#[from] io::Error),
    /// A card.
    #[error(transparent)]
    Card(#[from] TensorError),
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
            weights: Weights::Checkpoint,
            shards,
            devices: vec![DeviceName::Cpu],
            threads: None,
            memory: None,
            compute: None,
            deterministic: false,
            max_rows: None,
            transport: Transport::Memory,
            speculation: Speculation::default(),
            sessions: Place::Memory,
            listen: loopback(0),
            http_listen: loopback(0),
        }
    }

    /// Threads of each shard.
    pub fn threads(&self) -> NonZeroUsize {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.threads.or(NonZeroUsize::new(cores.get() / self.shards)).unwrap_or(NonZeroUsize::MIN)
    }

    /// What a stage computes on.
    pub fn device(&self, stage: usize) -> DeviceName {
        self.devices.iter().cycle().nth(stage).copied().unwrap_or_default()
    }

    /// The configurations of all shards.
    ///
    /// # Errors
    /// A card whose memory is to be shared cannot be asked.
    fn configs(&self) -> Result<Vec<ShardConfig>, TensorError> {
        let stages = 0..self.shards.get();
        let mut sharing: HashMap<DeviceName, u64> = HashMap::new();
        for stage in stages.clone() {
            *sharing.entry(self.device(stage)).or_default() += 1;
        }
        let mut shares = HashMap::new();
        for (&device, &shards) in &sharing {
            // A shard that has its card to itself asks when all else is in place.
            if let (DeviceName::Cuda(ordinal), None, 2..) = (device, self.memory, shards) {
                let (free, _) = Device::card_memory(ordinal)?;
                shares.insert(device, Bytes(default_memory(free, shards)));
            }
        }
        let config = |stage| ShardConfig {
            stage: stage as u32,
            stages: self.shards.get() as u32,
            weights: self.weights,
            device: self.device(stage),
            threads: Some(self.threads()),
            memory: self.memory.or_else(|| shares.get(&self.device(stage)).copied()),
            compute: self.compute,
            deterministic: self.deterministic,
            max_rows: self.max_rows,
            ..ShardConfig::new(&self.model)
        };
        Ok(stages.map(config).collect())
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
            speculation: plan.speculation,
            sessions: plan.sessions.clone(),
            ..GatewayConfig::new(&plan.model, Vec::new())
        };
        // A taken port is told before anything is loaded.
        let listeners = Listeners::bind(&config).await?;
        let leave = CancellationToken::new();
        let registry = Registry::default();
        let started = plan.configs()?.into_iter().map(|config| {
            let registry = (plan.transport == Transport::Memory).then_some(&registry);
            start_shard(config, registry, leave.clone())
        });
        let started = try_join_all(started).await?;
        let times = started.iter().map(RunningShard::times).collect();
        let addresses = started.iter().map(|shard| shard.address.to_string()).collect();
        let mut shards = JoinSet::new();
        for (stage, shard) in started.into_iter().enumerate() {
            shards.spawn(async move { (stage, shard.finished().await) });
        }
        let surroundings = Surroundings { registry, ..Surroundings::default() };
        let config = GatewayConfig { shards: addresses, ..config };
        let gateway = Gateway::start_in(surroundings, config, listeners).await?;
        Ok(Self { gateway, shards, leave, times })
    }

    /// Where the gateway listens for gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.gateway.grpc_address
    }

    /// Where the gateway listens for HTTP.
    pub fn http(&self) -> SocketAddr {
        self.gateway.http_address
    }

    /// Where the time of each shard's start went.
    pub fn times(&self) -> &[StartTimes] {
        &self.times
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

/// Starts a shard within the registry, or without one on its configured address.
async fn start_shard(
    config: ShardConfig,
    registry: Option<&Registry>,
    leave: CancellationToken,
) -> Result<RunningShard, SystemError> {
    let stage = config.stage as usize;
    let listener = match registry {
        Some(registry) => registry.listen(format!("stage-{stage}"))?.into(),
        None => Listener::from(bind(config.listen).await?.0),
    };
    Shard::start(config, listener, leave).await.map_err(|error| SystemError::Shard(stage, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_dealt_in_turn() {
        let four = NonZeroUsize::MIN.saturating_add(3);
        let devices = vec![DeviceName::Cuda(1), DeviceName::Cuda(0), DeviceName::Cpu];
        let plan = Plan { devices, memory: Some(Bytes(1 << 30)), ..Plan::new("model", four) };
        let configs = plan.configs().unwrap();
        let devices: Vec<String> = configs.iter().map(|config| config.device.to_string()).collect();
        assert_eq!(devices, ["cuda:1", "cuda:0", "cpu", "cuda:1"]);
        assert!(configs.iter().all(|config| config.memory == Some(Bytes(1 << 30))));
        assert_eq!(configs[3].stage, 3);
        let cpu = Plan::new("model", four).configs().unwrap();
        assert!(cpu.iter().all(|config| config.memory.is_none() && config.device == DeviceName::Cpu));
    }
}
