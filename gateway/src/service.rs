//! The gateway as a running service: its doors and its driver, and how they come up and go down together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use asterism_process::channel::{self, Traffic};
use asterism_process::health::Health;
use asterism_process::inproc::Registry;
use asterism_process::listen::{ListenError, bind};
use asterism_proto::DESCRIPTORS;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api;
use crate::config::GatewayConfig;
use crate::driver::{Driver, DriverError, DriverSettings, EvidenceSink, PipelineState};
use crate::engine::Engine;
use crate::sessions::keeper::OpenError;
use crate::sessions::store::{Quota, Store};
use crate::sessions::{Sessions, keeper};
use crate::tenants::Tenants;
use crate::text::{ModelText, TextError, TextOptions};

/// The services that answer health checks by name.
const SERVICES: &[&str] = &["asterism.v1.Inference", "asterism.v1.Sessions"];
/// How long the doors may take to close once every answer has ended.
const CLOSING: Duration = Duration::from_secs(2);

/// The gateway.
#[derive(Clone, Copy, Debug)]
pub struct Gateway;

/// The sockets of the two doors.
#[derive(Debug)]
pub struct Listeners {
    /// For the public gRPC service.
    pub grpc: TcpListener,
    /// For the OpenAI dialect.
    pub http: TcpListener,
}

/// What a gateway has beside its configuration.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Shards within this process, which `inproc:NAME` in the configuration means.
    pub registry: Registry,
    /// Sees every row of evidence.
    pub sink: Option<EvidenceSink>,
    /// Keeps sessions in the place of the configured one.
    pub store: Option<Arc<dyn Store>>,
}

/// A gateway that serves; dropping it shuts it down.
#[derive(Debug)]
pub struct RunningGateway {
    /// Of the public gRPC service.
    pub grpc_address: SocketAddr,
    /// Of the OpenAI dialect.
    pub http_address: SocketAddr,
    state: watch::Receiver<PipelineState>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), GatewayError>>,
    _shutdown_on_drop: DropGuard,
}

/// Why a gateway could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The model's folder.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Where sessions are kept.
    #[error("sessions cannot be kept: {0}")]
    Sessions(#[from] OpenError),
    /// The pipeline.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The public gRPC service.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The OpenAI dialect.
    #[error("the HTTP server failed: {0}")]
    Http(#[source] std::io::Error),
    /// Descriptors that the reflection service cannot read.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A task panicked.
    #[error("a task ended: {0}")]
    Task(#[from] JoinError),
}

/// Serves until `shutdown`, then lets running answers end.
///
/// # Errors
/// The gateway could not start, or its shards answered and do not make a pipeline.
pub async fn run(config: GatewayConfig, shutdown: CancellationToken) -> Result<(), GatewayError> {
    let listeners = Listeners::bind(&config).await?;
    let running = Gateway::start(config, listeners).await?;
    tracing::info!(grpc = %running.grpc_address, http = %running.http_address, "the gateway listens");
    let stop = running.shutdown.clone();
    tokio::select! {
        ended = running.wait() => ended,
        () = async { shutdown.cancelled().await; stop.cancel(); std::future::pending().await } => Ok(()),
    }
}

// === impl Listeners ===

impl Listeners {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// The first that cannot be bound.
    pub async fn bind(config: &GatewayConfig) -> Result<Self, ListenError> {
        Ok(Self { grpc: bind(config.listen).await?.0, http: bind(config.http_listen).await?.0 })
    }

    fn addresses(&self) -> Result<(SocketAddr, SocketAddr), GatewayError> {
        let address = |listener: &TcpListener| listener.local_addr().map_err(GatewayError::Http);
        Ok((address(&self.grpc)?, address(&self.http)?))
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts serving; answers UNAVAILABLE until the shards are there.
    ///
    /// # Errors
    /// The model's folder cannot be read, or an address is none.
    pub async fn start(config: GatewayConfig, listeners: Listeners) -> Result<RunningGateway, GatewayError> {
        Self::start_in(Surroundings::default(), config, listeners).await
    }

    /// As [`Gateway::start`], among other things of this process.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_in(
        surroundings: Surroundings,
        config: GatewayConfig,
        listeners: Listeners,
    ) -> Result<RunningGateway, GatewayError> {
        let Surroundings { registry, sink, store } = surroundings;
        let (grpc_address, http_address) = listeners.addresses()?;
        let options = TextOptions { chat_template: config.chat_template.clone() };
        let folder = config.model.clone();
        let text = tokio::task::spawn_blocking(move || ModelText::load(&folder, &options)).await??;
        let text = Arc::new(text);
        let shutdown = CancellationToken::new();
        let store = match store {
            Some(store) => store,
            None => config.sessions.open().await?,
        };
        let settings = DriverSettings {
            registry,
            sink,
            sessions: Some(Arc::clone(&store)),
            ..DriverSettings::of(&config)
        };
        let (driver, driving) = Driver::start(settings, Arc::clone(&text), shutdown.clone())?;
        let state = driver.state();
        let engine = Arc::new(Engine::new(config.name(), text, driver, Tenants::new(&config.tenants)));
        let quota = Quota { sessions: config.tenant_sessions, bytes: config.tenant_bytes };
        let sessions = Sessions::new(Arc::clone(&engine), store, quota);
        tokio::spawn(keeper::keep(sessions.clone(), config.retention, shutdown.clone()));
        let doors = Doors::open(listeners, engine, sessions.clone(), state.clone()).await?;
        let task = tokio::spawn(supervise(doors, driving, sessions, shutdown.clone()));
        let _shutdown_on_drop = shutdown.clone().drop_guard();
        Ok(RunningGateway { grpc_address, http_address, state, shutdown, task, _shutdown_on_drop })
    }
}

// === impl RunningGateway ===

impl RunningGateway {
    /// Waits until a pipeline is joined; false if the gateway ended before.
    pub async fn ready(&self) -> bool {
        let mut state = self.state.clone();
        state.wait_for(|state| matches!(state, PipelineState::Joined(_))).await.is_ok()
    }

    /// What the pipeline is doing, as it changes.
    pub fn state(&self) -> watch::Receiver<PipelineState> {
        self.state.clone()
    }

    /// Waits until it has ended by itself or by its token.
    ///
    /// # Errors
    /// Why it ended by itself.
    pub async fn wait(self) -> Result<(), GatewayError> {
        let Self { task, _shutdown_on_drop, .. } = self;
        task.await?
    }

    /// Lets running answers end, within the configured grace, and stops.
    ///
    /// # Errors
    /// What failed before or on the way.
    pub async fn stop(self) -> Result<(), GatewayError> {
        self.shutdown.cancel();
        self.wait().await
    }
}

/// The servers, and the token that closes them.
struct Doors {
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    http: JoinHandle<std::io::Result<()>>,
    health: Health,
    watch: JoinHandle<()>,
    close: CancellationToken,
}

impl Doors {
    async fn open(
        listeners: Listeners,
        engine: Arc<Engine>,
        sessions: Sessions,
        state: watch::Receiver<PipelineState>,
    ) -> Result<Self, GatewayError> {
        let close = CancellationToken::new();
        let (health, health_service) = Health::new(SERVICES).await;
        let grpc = channel::server(Traffic::Public)
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(api::grpc::service(Arc::clone(&engine)))
            .add_service(api::sessions::service(sessions))
            .serve_with_incoming_shutdown(channel::incoming(listeners.grpc), close.clone().cancelled_owned());
        let http = listeners.http.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY");
            }
        });
        let http = axum::serve(http, api::openai::router(engine))
            .with_graceful_shutdown(close.clone().cancelled_owned());
        Ok(Self {
            grpc: tokio::spawn(grpc),
            http: tokio::spawn(http.into_future()),
            watch: tokio::spawn(tell_health(health.clone(), state)),
            health,
            close,
        })
    }

    /// Takes nothing new in.
    async fn leave(&self) {
        self.watch.abort();
        self.health.not_ready().await;
        self.close.cancel();
    }

    /// Waits for what is still being written, but not for ever: a health watch ends only with its client.
    async fn closed(mut self) {
        let both = async { tokio::join!(&mut self.grpc, &mut self.http) };
        if tokio::time::timeout(CLOSING, both).await.is_err() {
            self.grpc.abort();
            self.http.abort();
        }
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    // The descriptors tell the shards' contract too, which is not served here.
    SERVICES.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}

async fn tell_health(health: Health, mut state: watch::Receiver<PipelineState>) {
    let mut told = false; // What a new [`Health`] says.
    loop {
        let joined = matches!(*state.borrow_and_update(), PipelineState::Joined(_));
        match (told, joined) {
            (false, true) => health.ready().await,
            (true, false) => health.not_ready().await,
            _ => {}
        }
        told = joined;
        if state.changed().await.is_err() {
            return;
        }
    }
}

async fn supervise(
    mut doors: Doors,
    mut driving: JoinHandle<Result<(), DriverError>>,
    sessions: Sessions,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = &mut driving => Some(ended.map_err(GatewayError::from).and_then(|ended| Ok(ended?))),
        ended = &mut doors.grpc => Some(ended.map_err(GatewayError::from).and_then(|ended| Ok(ended?))),
        ended = &mut doors.http => {
            Some(ended.map_err(GatewayError::from).and_then(|ended| ended.map_err(GatewayError::Http)))
        }
    };
    shutdown.cancel();
    doors.leave().await;
    match failed {
        Some(ended) => {
            driving.abort();
            ended
        }
        None => {
            let ended = driving.await?;
            sessions.ended().await;
            doors.closed().await;
            Ok(ended?)
        }
    }
}
