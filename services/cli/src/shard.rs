//! `asterism shard`: one stage of a pipeline as a process of its own.

use std::error::Error;

use asterism_process::config::Layered;
use asterism_process::{listen, shutdown};
use asterism_shard::{Shard, ShardConfig, ShardError};

/// Hold one stage of a model on one device.
///
/// Loads its own layers only, then waits for a gateway to drive it. Needs no address of any peer: the gateway tells it
/// where the next stage is. Its first line on standard output is the address that it listens on: `grpc HOST:PORT`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism shard --model /models/telechat-52b --stage 0 --stages 4
  asterism shard --model /models/telechat-52b --stage 1 --stages 4 --listen 10.0.0.2:7070 --threads 32 --memory 64GiB
  asterism shard --model /models/telechat-52b --device cuda:0
  asterism shard --config shard.toml --stage 2

There are no keys and no TLS yet: whoever reaches this port may take the shard over.")]
pub struct Arguments {
    #[command(flatten)]
    config: Layered<ShardConfig>,
}

/// Serves until a signal.
pub async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let config = arguments.config.load()?;
    let shutdown = shutdown::on_signal()?;
    let (listener, address) = listen::bind(config.listen).await?;
    println!("grpc {address}");
    match Shard::start(config, listener, shutdown).await {
        Ok(shard) => Ok(shard.finished().await?),
        // As it was told to.
        Err(ShardError::Stopped) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
