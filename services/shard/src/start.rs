//! The life of a shard: listen, load, serve, leave.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use asterism_process::awake::Wakefulness;
use asterism_process::channel::{self, CONTROL_MESSAGE_LIMIT, FRAME_MESSAGE_LIMIT, Traffic};
use asterism_process::config::{Mistakes, Settings as _};
use asterism_process::health::Health;
use asterism_process::inproc::Registry;
use asterism_process::listen::{Address, Listener};
use asterism_process::reactor::Reactor;
use asterism_process::{listen, metrics};
use asterism_proto::shard::v1::shard_server::{SERVICE_NAME, ShardServer};
use asterism_proto::{DESCRIPTORS, Failure, Reason};
use asterism_tensor::TensorError;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::ShardConfig;
use crate::describe;
use crate::device::{Command, DeviceThread};
use crate::error::ShardError;
use crate::load::{self, Loaded, Progress, StartTimes};
use crate::metrics::StageMetrics;
use crate::report::Heart;
use crate::service::{Ready, ShardService};
use crate::step::{Machine, is_ahead};

/// Commands that wait for the device thread.
const COMMAND_QUEUE: usize = 64;
/// How long a shard that was asked to stop waits for its driver to finish or move what runs.
const GRACE: Duration = Duration::from_secs(25);
/// How long open calls may hold up the end, after their epoch is over.
const FLUSH: Duration = Duration::from_secs(2);

/// The service; see [`Shard::start`].
#[derive(Debug)]
pub struct Shard;

/// A shard that serves. Dropping it ends it at once, as a crash would.
#[derive(Debug)]
pub struct RunningShard {
    /// Where it is reached.
    pub address: Address,
    /// Where it serves its metrics.
    pub metrics_address: Option<SocketAddr>,
    times: StartTimes,
    life: JoinHandle<Result<(), ShardError>>,
    _kill: DropGuard,
}

/// Runs a shard from its configuration until `shutdown` or a `Drain`.
///
/// # Errors
/// It could not start, or its device thread died.
pub async fn run(config: ShardConfig, shutdown: CancellationToken) -> Result<(), ShardError> {
    let (listener, _) = listen::bind(config.listen).await?;
    Shard::start(config, listener, shutdown).await?.finished().await
}

impl Shard {
    /// Loads the configured stage and serves it on `listener`; returns once it is loaded. Meanwhile health says
    /// NOT_SERVING and drivers are told UNAVAILABLE. A shard that listens within this process finds its neighbours there.
    ///
    /// # Errors
    /// The configuration is wrong, or the stage cannot be loaded.
    pub async fn start(
        config: ShardConfig,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
    ) -> Result<RunningShard, ShardError> {
        let listener = listener.into();
        let mistakes = config.check();
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes).into());
        }
        let io = |what| move |source| ShardError::Io { what, source };
        let address = listener.address().map_err(io("the listening socket"))?;
        let peers = listener.registry();
        let (progress, heart) = (Arc::<Progress>::default(), Arc::<Heart>::default());
        let service = ShardService::loading(Arc::clone(&progress), Arc::clone(&heart));
        listener.set_run_door(Arc::new(service.clone()));
        let (health, health_server) = Health::new(&[SERVICE_NAME]).await;
        let shard_server = ShardServer::new(service.clone())
            .max_decoding_message_size(CONTROL_MESSAGE_LIMIT.max(FRAME_MESSAGE_LIMIT));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let router = channel::server(Traffic::Internal).add_service(health_server).add_service(shard_server);
        let router = router.add_optional_service(reflection.ok());
        let serving = channel::serve(router, listener, stop.clone().cancelled_owned());
        let reactor =
            Reactor::start(&format!("shard-{}", config.stage)).map_err(io("the thread for calls"))?;
        let runtime = reactor.handle().clone();
        let server = reactor.run(serving);
        // From here on an early return stops the server too.
        let guard = stop.clone().drop_guard();

        let (stage_metrics, registry) = StageMetrics::new(&config);
        let metrics_address = match config.metrics_listen {
            None => None,
            Some(address) => {
                let (listener, address) = listen::bind(address).await?;
                tokio::spawn(metrics::serve(listener, Arc::new(registry), stop.clone()));
                Some(address)
            }
        };
        let mut wakefulness = None;
        if let Address::Tcp(address) = address {
            warn_who_may(address);
            wakefulness = Some(Wakefulness::of(&runtime));
        }
        let gone = Gone::default();
        let told = Told {
            progress: Arc::clone(&progress),
            heart: Arc::clone(&heart),
            metrics: stage_metrics,
            gone: gone.clone(),
        };
        let loading = spawn_device(config.clone(), (runtime, peers, wakefulness), told)
            .map_err(io("the device thread"))?;
        let ready = tokio::select! {
            () = shutdown.cancelled() => return Err(ShardError::Stopped),
            loaded = loading => loaded.map_err(|_| ShardError::DeviceThread)??,
        };
        let (ready, times) = ready;
        service.loaded(ready);
        health.ready().await;
        tracing::info!(%address, stage = config.stage, stages = config.stages, "ready");

        let life = Life { service, health, server, gone, stop: guard };
        let life = tokio::spawn(life.live(shutdown, kill.clone()));
        Ok(RunningShard { address, metrics_address, times, life, _kill: kill.drop_guard() })
    }
}

impl RunningShard {
    /// Where the time of its start went.
    pub fn times(&self) -> StartTimes {
        self.times
    }

    /// Returns once the shard has ended.
    ///
    /// # Errors
    /// It ended by itself: its server or its device thread failed.
    pub async fn finished(self) -> Result<(), ShardError> {
        // A panic of the task is reported as what it takes down with it.
        self.life.await.unwrap_or(Err(ShardError::DeviceThread))
    }
}

/// Until keys and TLS come, the address is the only guard.
fn warn_who_may(address: SocketAddr) {
    const WHO: &str =
        "whoever reaches this address may take the shard over: there are no keys and no TLS yet";
    if address.ip().is_loopback() {
        tracing::info!(%address, "{WHO}");
    } else {
        tracing::warn!(%address, "{WHO}");
    }
}

/// That the device thread has ended, and why if it says so.
#[derive(Clone, Debug, Default)]
struct Gone {
    told: CancellationToken,
    why: Arc<Mutex<Option<TensorError>>>,
}

impl Gone {
    /// Returns once the thread has ended.
    async fn ended(&self) -> ShardError {
        self.told.cancelled().await;
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).take();
        why.map_or(ShardError::DeviceThread, ShardError::DeviceFailed)
    }
}

/// What the device thread tells of itself.
struct Told {
    progress: Arc<Progress>,
    heart: Arc<Heart>,
    metrics: StageMetrics,
    gone: Gone,
}

/// Starts the thread that loads the stage and then owns its device. Its streams run on `runtime`, to peers that `registry` knows
/// or that are elsewhere; it is kept awake while a card's step is under way.
fn spawn_device(
    config: ShardConfig,
    (runtime, registry, wakefulness): (Handle, Registry, Option<Wakefulness>),
    Told { progress, heart, metrics, gone }: Told,
) -> std::io::Result<oneshot::Receiver<Result<(Ready, StartTimes), ShardError>>> {
    let (told, loaded) = oneshot::channel();
    let guard = gone.told.drop_guard();
    thread::Builder::new().name(format!("stage-{}", config.stage)).spawn(move || {
        // Tells the process when this thread ends, for whatever reason.
        let _gone = guard;
        let loaded = load::load(&config, &progress, &|| told.is_closed());
        let Loaded { stage, edges, logits, logits_slots, times } = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return drop(told.send(Err(error))),
        };
        let info = stage.info();
        tracing::info!(
            layers = ?info.layers,
            device = info.device,
            kv_blocks = info.kv_blocks,
            weights = asterism_model::bytes(info.weight_bytes),
            buffers = asterism_model::bytes(info.buffer_bytes),
            kv = asterism_model::bytes(info.kv_bytes),
            checkpoint = info.checkpoint_id,
            "loaded"
        );
        for (part, took) in times.parts() {
            tracing::info!(part, seconds = took.as_secs_f64(), "start");
        }
        if let Some(kernels) = stage.device().kernel_report() {
            let (compiled, cached) = (kernels.compiled, kernels.cached);
            tracing::info!(compiled, cached, seconds = kernels.time.as_secs_f64(), "kernels");
            if let Some(why) = kernels.not_kept {
                tracing::warn!(why, "kernels cannot be kept: the next start compiles them again");
            }
        }
        if let Some(plans) = stage.device().matmul_plans().filter(|plans| !plans.are_deterministic()) {
            let (unequal, verified) = (plans.unequal, plans.verified);
            tracing::warn!(unequal, verified, "some multiplications depend on how many rows they have");
        }
        let pool = info.kv_blocks * asterism_tensor::BLOCK_ROWS;
        if pool < info.max_context {
            let longest = info.max_context;
            tracing::warn!(pool, longest, "the KV pool holds fewer tokens than the longest sequence has");
        }
        let room = describe::room(info, logits_slots);
        let (commands, queue) = mpsc::channel::<Command>(COMMAND_QUEUE);
        let description = describe::describe(&config, info, logits_slots);
        let largest = info.max_rows as u64 * info.row_bytes() as u64;
        let wakefulness = wakefulness.filter(|_| is_ahead(&stage));
        let machine = Machine { stage, edges, logits, heart, metrics, runtime, registry, wakefulness };
        if told.send(Ok((Ready { description, largest, commands }, times))).is_ok()
            && let Err(error) = (DeviceThread { machine, room, commands: queue }).run()
        {
            tracing::error!(%error, "the device has failed");
            *gone.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    })?;
    Ok(loaded)
}

/// A shard between its start and its end.
struct Life {
    service: ShardService,
    health: Health,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    gone: Gone,
    stop: DropGuard,
}

impl Life {
    async fn live(mut self, shutdown: CancellationToken, kill: CancellationToken) -> Result<(), ShardError> {
        let drained = self.service.drained();
        let ended = tokio::select! {
            () = kill.cancelled() => Ok(()),
            () = drained.cancelled() => Ok(()),
            why = self.gone.ended() => Err(why),
            served = &mut self.server => return served.map_err(|_| ShardError::DeviceThread)?.map_err(Into::into),
            () = shutdown.cancelled() => {
                tracing::info!("draining: no new driver is taken, the present one may finish");
                self.health.not_ready().await;
                tokio::select! {
                    () = kill.cancelled() => {}
                    () = drained.cancelled() => {}
                    () = self.service.leave() => {}
                    () = tokio::time::sleep(GRACE) => tracing::warn!("the driver did not leave in {GRACE:?}"),
                }
                Ok(())
            }
        };
        self.health.not_ready().await;
        self.service.end_epoch(Failure::new(Reason::Unavailable, "the shard is stopping"));
        drop(self.stop);
        // Watchers of health and idle connections would hold the server up for ever.
        if tokio::time::timeout(FLUSH, &mut self.server).await.is_err() {
            self.server.abort();
        }
        tracing::info!("stopped");
        ended
    }
}
