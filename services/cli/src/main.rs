//! The binary `asterism`: every command is a file here, and only this crate knows both services.

mod bench;
mod chat;
mod convert;
mod gateway;
mod pull;
mod shard;
mod split;
mod system;
mod up;

use std::error::Error;
use std::process::ExitCode;

use asterism_process::telemetry::{self, Telemetry};
use clap::Parser as _;

/// Plans, evidence and events are made on one thread and dropped on another, many for each step while a card waits: what an
/// allocator of arenas does worst.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves large language models as a chain of layer shards under one gateway.
///
/// A shard holds some of a model's layers on one device; the gateway in front of them takes requests over gRPC and the
/// OpenAI dialect of HTTP, and drives the shards as one model.
#[derive(Debug, clap::Parser)]
#[command(
    version,
    after_help = "\
Begin with:
  asterism up                    a small real model, two shards and a gateway on this machine
  asterism chat                  talk to it, in a second terminal

On several machines:
  asterism shard --model DIR --stage 0 --stages 2 --listen 10.0.0.1:7070
  asterism shard --model DIR --stage 1 --stages 2 --listen 10.0.0.2:7070
  asterism gateway --model DIR --shards 10.0.0.1:7070,10.0.0.2:7070

`asterism COMMAND --help` explains a command and gives examples."
)]
struct Asterism {
    #[command(flatten)]
    telemetry: Telemetry,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Up(up::Arguments),
    Chat(chat::Arguments),
    Gateway(gateway::Arguments),
    Shard(shard::Arguments),
    Pull(pull::Arguments),
    Convert(convert::Arguments),
    Split(split::Arguments),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let asterism = Asterism::parse();
    match run(asterism) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(asterism: Asterism) -> Result<ExitCode, Box<dyn Error>> {
    telemetry::init(&asterism.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Dropped before the runtime, which the last spans still need.
    let _export = match &asterism.command {
        Command::Up(_) | Command::Gateway(_) | Command::Shard(_) => {
            let _entered = runtime.enter();
            telemetry::export(&asterism.telemetry)?
        }
        _ => None,
    };
    match asterism.command {
        Command::Up(arguments) => runtime.block_on(up::run(arguments))?,
        Command::Chat(arguments) => return Ok(runtime.block_on(chat::run(arguments))?),
        Command::Gateway(arguments) => runtime.block_on(gateway::run(arguments))?,
        Command::Shard(arguments) => runtime.block_on(shard::run(arguments))?,
        Command::Pull(arguments) => pull::run(arguments)?,
        Command::Convert(arguments) => convert::run(arguments)?,
        Command::Split(arguments) => split::run(arguments)?,
        Command::Bench(arguments) => runtime.block_on(bench::run(arguments))?,
    }
    Ok(ExitCode::SUCCESS)
}
