//! `asterism gateway`: the gateway as a process of its own.

use std::error::Error;

use asterism_gateway::{Gateway, GatewayConfig, Listeners, RunningGateway};
use asterism_process::config::Layered;
use asterism_process::shutdown;

/// Take requests and drive a pipeline of shards.
///
/// Serves gRPC (asterism.v1.Inference and Sessions, health, reflection) and the OpenAI dialect over HTTP. Waits for its shards,
/// whatever the order of starting, and answers UNAVAILABLE meanwhile; SIGTERM lets running answers end. Its first lines
/// on standard output are the addresses that it listens on: `grpc HOST:PORT` and `http HOST:PORT`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism gateway --model /models/telechat-52b --shards 10.0.0.1:7070,10.0.0.2:7070
  asterism gateway --config gateway.toml --take-over       claim the pipeline from another gateway
  asterism gateway --config gateway.toml --sessions /var/lib/asterism      conversations outlive the process
  asterism gateway --config gateway.toml --sessions postgres://asterism@db/asterism     several gateways share them
  asterism gateway --config gateway.toml --listen 0.0.0.0:7050 --http-listen 0.0.0.0:8050

There are no keys and no TLS yet: whoever reaches these ports may use the model.")]
pub struct Arguments {
    #[command(flatten)]
    config: Layered<GatewayConfig>,
}

/// Serves until a signal.
pub async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let config = arguments.config.load()?;
    let shutdown = shutdown::on_signal()?;
    let listeners = Listeners::bind(&config).await?;
    let gateway = Gateway::start(config, listeners).await?;
    println!("grpc {}\nhttp {}", gateway.grpc_address, gateway.http_address);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = ended(&gateway) => {}
    }
    Ok(gateway.stop().await?)
}

/// Returns once the gateway has ended by itself; why, is told when it is stopped.
pub async fn ended(gateway: &RunningGateway) {
    let mut state = gateway.state();
    while state.changed().await.is_ok() {}
}
