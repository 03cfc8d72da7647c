//! `asterism up`: everything on this machine.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use asterism_gateway::scheduler::Speculation;
use asterism_gateway::sessions::Place;
use asterism_process::config::Bytes;
use asterism_process::shutdown;
use asterism_shard::{ComputeType, DeviceName, Weights};
use asterism_tensor::Compute;

use crate::pull;
use crate::system::{Plan, System};

/// Start shards and a gateway on this machine and serve a model.
///
/// Without arguments that is the demo model, a small real chat model that is fetched once, split over two shards. All
/// services run in this process and speak gRPC through its memory, as they would over sockets on several machines. Says how
/// to talk to them once they are ready; Ctrl-C lets running answers end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism up
  asterism up --model ./TeleChat-52B --shards 4 --compute bf16
  asterism up --model ./TeleChat-52B --device cuda:0 --shards 1
  asterism up --model ./TeleChat-52B --device cuda:0,cuda:1 --shards 4      two shards on each card
  asterism up --model ./TeleChat-52B --device cuda:0 --weights synthetic:1  needs config.json and tokenizer only
  asterism up --shards 3 --threads 1 --memory 1GiB
  asterism up --speculation off
  asterism up --listen 0.0.0.0:7050 --http-listen 0.0.0.0:8050      for a network you trust: there are no keys yet")]
pub struct Arguments {
    /// The model's folder, or `demo`.
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    model: PathBuf,
    /// Where the weights come from: `checkpoint`, or `synthetic:SEED` for weights made up by config.json alone.
    #[arg(long, value_name = "SOURCE", default_value_t = Weights::Checkpoint)]
    weights: Weights,
    /// How many shards the model's layers are split over.
    #[arg(long, value_name = "N", default_value = "2")]
    shards: NonZeroUsize,
    /// What the shards compute on, dealt in turn: `cpu`, or cards as `cuda:0,cuda:1`. Several shards may share a card.
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', default_value = "cpu")]
    device: Vec<DeviceName>,
    /// Threads of each shard on the CPU (default: the cores, shared out).
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Memory of each shard for weights, buffers and KV (default: its share of what is free on its card; on the CPU as much as a
    /// few of the longest sequences take).
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// The type of activations and KV (default: f32 on the CPU, bf16 on a card).
    #[arg(long, value_name = "TYPE")]
    compute: Option<ComputeType>,
    /// Refuse on a card what could make a row's numbers depend on other rows. On the CPU nothing does.
    #[arg(long)]
    deterministic: bool,
    /// Whether tokens that may follow in an answer are computed ahead: where that makes it faster, wherever there is room, or
    /// not at all. The answer is the same.
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    speculation: Speculation,
    /// Where conversations are kept: a folder, a PostgreSQL database as postgres://USER@HOST/DATABASE, or `memory`, which ends
    /// with the process (default: the user's data folder).
    #[arg(long, value_name = "FOLDER|postgres://…|memory")]
    sessions: Option<Place>,
    /// Where to listen for gRPC.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7050")]
    listen: SocketAddr,
    /// Where to listen for the OpenAI dialect over HTTP.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8050")]
    http_listen: SocketAddr,
}

/// Serves until a signal.
pub async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let model = model_folder(&arguments.model).await?;
    let shutdown = shutdown::on_signal()?;
    let Arguments { weights, shards, device, threads, memory, compute, deterministic, .. } = arguments;
    let Arguments { speculation, sessions, listen, http_listen, .. } = arguments;
    let plan = Plan {
        weights,
        devices: device,
        threads,
        memory,
        compute,
        deterministic,
        speculation,
        sessions: sessions.unwrap_or_else(kept),
        listen,
        http_listen,
        ..Plan::new(model, shards)
    };
    let system = tokio::select! {
        system = System::start(&plan) => system?,
        () = shutdown.cancelled() => return Ok(()),
    };
    tokio::select! {
        ready = system.ready() => if ready { println!("{}", Welcome { plan: &plan, system: &system }) },
        () = shutdown.cancelled() => {}
    }
    Ok(system.until(shutdown.cancelled()).await?)
}

/// Where the user's conversations are kept; in memory where there is no such place.
fn kept() -> Place {
    dirs::data_dir().map_or(Place::Memory, |data| Place::Folder(data.join("asterism").join("sessions")))
}

/// The folder that `--model` means; fetches the demo model if it is not there yet.
pub async fn model_folder(model: &Path) -> Result<PathBuf, Box<dyn Error>> {
    if model == Path::new("demo") {
        return Ok(tokio::task::spawn_blocking(pull::demo).await??);
    }
    Ok(model.to_owned())
}

/// How to talk to a system that is ready.
struct Welcome<'a> {
    plan: &'a Plan,
    system: &'a System,
}

impl std::fmt::Display for Welcome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (grpc, http) = (self.system.grpc(), self.system.http());
        let Plan { model, shards, .. } = self.plan;
        let devices: BTreeSet<String> =
            (0..shards.get()).map(|stage| self.plan.device(stage).to_string()).collect();
        let devices = Vec::from_iter(devices).join(", ");
        let compute = self.plan.compute.unwrap_or(self.plan.device(0).compute());
        let compute = Compute::from(compute);
        write!(f, "ready: {} in {compute}, shards: {shards} on {devices}", model.display())?;
        if self.plan.devices.contains(&DeviceName::Cpu) {
            write!(f, ", threads of each: {}", self.plan.threads())?;
        }
        writeln!(f, "\n")?;
        writeln!(f, "grpc {grpc}")?;
        writeln!(f, "http {http}\n")?;
        writeln!(f, "In another terminal:")?;
        writeln!(f, "  {} chat --address {grpc}", std::env::args().next().as_deref().unwrap_or("asterism"))?;
        writeln!(f, "  curl http://{http}/v1/chat/completions -H 'content-type: application/json' \\")?;
        writeln!(
            f,
            "    -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Who are you?\"}}], \"stream\": true}}'"
        )?;
        write!(f, "\nCtrl-C ends it.")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        up: Arguments,
    }

    #[test]
    fn speculation_is_a_flag_of_three_values() {
        let speculation = |line: &str| {
            let command = Command::try_parse_from(["up"].into_iter().chain(line.split_whitespace()));
            command.map(|command| command.up.speculation).map_err(|error| error.to_string())
        };
        assert_eq!(speculation(""), Ok(Speculation::Auto));
        assert_eq!(speculation("--speculation always"), Ok(Speculation::Always));
        assert_eq!(speculation("--speculation off"), Ok(Speculation::Off));
        let error = speculation("--speculation sometimes").unwrap_err();
        assert!(error.contains("--speculation") && error.contains("sometimes"), "{error}");
    }
}
