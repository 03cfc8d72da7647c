//! `asterism bench`: speeds beside the limits that this machine has, measured in the same run.

mod card;
mod evidence;
mod geometry;
mod load;
mod local;
mod pipeline;
mod streams;

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use asterism_process::config::Bytes;
use asterism_shard::{ComputeType, DeviceName, Weights};
use asterism_tensor::Compute;

use self::card::CardPlan;
use self::geometry::Geometry;
use self::pipeline::Times;
use self::streams::StreamPlan;
use crate::up::model_folder;

/// Measure this machine, or a running server.
///
/// `bench load` puts a server under load; all else measures this machine.
///
/// On the CPU, `--local` runs the model in this process and prints, at one and at two threads: tokens/s of decode (one
/// sequence) beside the memory's read bandwidth, measured in turn with tokens, since every token reads every weight once;
/// tokens/s of prefill beside the time that its multiplications take at the peak rates of the instructions that do them; and
/// what a second shard adds to a token's time, through memory and through loopback sockets.
///
/// On a card it runs whole steps in this process: decode of several sequences beside the time that copying the same bytes
/// (weights and KV) would take, prefill beside the rate of a large multiplication, and the loading of a checkpoint beside the
/// slower of reading and uploading. With `--streams`, also through the gateway, with the sampling that the model's
/// generation_config names, and nothing computed ahead. All figures are medians. Keep the machine quiet meanwhile.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  asterism bench load --rate 4 --html load.html
  asterism bench --local
  asterism bench --local --model ./model --compute bf16
  asterism bench --device cuda:0 --model ./TeleChat-52B --weights synthetic:1
  asterism bench --device cuda:0 --model ./TeleChat-52B --weights synthetic:1 --layers 32 --rows 32,64 --context 1024
  asterism bench --device cuda:0 --model ./TeleChat-52B --weights synthetic:1 --streams 1,8,16,24 --prompt 512 --new 128")]
pub struct Arguments {
    #[command(subcommand)]
    of_a_server: Option<OfAServer>,
    /// The model on this machine's CPU, in this process.
    #[arg(long)]
    local: bool,
    /// The model's folder, or `demo`.
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    model: PathBuf,
    /// Where the weights come from: `checkpoint`, or `synthetic:SEED` for weights made up by config.json alone.
    #[arg(long, value_name = "SOURCE", default_value_t = Weights::Checkpoint)]
    weights: Weights,
    /// What computes: `cpu`, or a card as `cuda:0`.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// The type of activations and KV (default: f32 on the CPU, bf16 on a card).
    #[arg(long, value_name = "TYPE")]
    compute: Option<ComputeType>,
    /// Refuse on a card what could make a row's numbers depend on other rows.
    #[arg(long)]
    deterministic: bool,
    /// Memory for weights, buffers and KV on a card (default: most of what is free).
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Layers of the model, if not as many as config.json says. Synthetic weights only.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Sequences that decode at once on a card.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,16,24")]
    rows: Vec<usize>,
    /// Tokens of each, the one that is fed included.
    #[arg(long, value_name = "TOKENS", default_value = "576")]
    context: usize,
    /// Prompts that are read on a card, as SEQUENCESxTOKENS.
    #[arg(long, value_name = "NxTOKENS,…", value_delimiter = ',', default_value = "1x512,1x2048,4x2048")]
    prefill: Vec<card::Prompts>,
    /// The most rows of a step on a card.
    #[arg(long, value_name = "N", default_value = "2048")]
    max_rows: usize,
    /// Answers at once through the gateway.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    streams: Vec<usize>,
    /// Shards behind the gateway.
    #[arg(long, value_name = "N", default_value = "1")]
    shards: NonZeroUsize,
    /// Tokens of each prompt through the gateway.
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    prompt: usize,
    /// Tokens of each answer.
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    new: usize,
}

#[derive(Debug, clap::Subcommand)]
enum OfAServer {
    Load(Box<load::Arguments>),
}

const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// How often everything is measured.
const ROUNDS: usize = 5;

/// Measures and prints.
pub async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    if let Some(OfAServer::Load(arguments)) = arguments.of_a_server {
        return Ok(load::run(*arguments).await?);
    }
    if arguments.layers.is_some() && arguments.weights == Weights::Checkpoint {
        return Err("--layers needs --weights synthetic:SEED: a checkpoint has the layers it has".into());
    }
    let folder = model_folder(&arguments.model).await?;
    let geometry = Geometry::new(&folder, arguments.layers)?;
    match arguments.device {
        DeviceName::Cpu if arguments.streams.is_empty() => local(&arguments, &folder).await,
        DeviceName::Cpu => streams::measure(&arguments.stream_plan(&geometry), None).await,
        DeviceName::Cuda(_) => {
            let plan = arguments.card_plan(&geometry);
            let figures = tokio::task::spawn_blocking(move || card::measure(&plan)).await??;
            if arguments.streams.is_empty() {
                return Ok(());
            }
            streams::measure(&arguments.stream_plan(&geometry), Some(&figures)).await
        }
    }
}

/// The processor at one and at two threads.
async fn local(arguments: &Arguments, model: &Path) -> Result<(), Box<dyn Error>> {
    let compute = arguments.compute.unwrap_or(ComputeType::F32);
    println!("{} in {}\n", model.display(), Compute::from(compute));
    println!("threads  work         tokens/s   ms/token   of the limit");
    for threads in [NonZeroUsize::MIN, TWO] {
        let model = model.to_path_buf();
        let speeds = tokio::task::spawn_blocking(move || local::measure(&model, compute, threads)).await??;
        print!("{speeds}");
    }
    println!("\nshards       decode through a gateway, one thread each");
    let Times { one, memory, sockets } = pipeline::measure(model, compute).await?;
    println!("1            {:.3} ms/token", ms(one));
    for (name, two) in [("2, memory", memory), ("2, sockets", sockets)] {
        println!("{name:<11}  {:.3} ms/token: {:+.3} ms by the second shard", ms(two), ms(two) - ms(one));
    }
    Ok(())
}

impl Arguments {
    fn card_plan(&self, geometry: &Geometry) -> CardPlan {
        // What the gateway is measured at is measured here too.
        let mut rows = self.rows.clone();
        rows.extend(&self.streams);
        rows.sort_unstable();
        rows.dedup();
        CardPlan {
            model: geometry.folder().to_owned(),
            weights: self.weights,
            device: self.device,
            compute: self.compute.unwrap_or(self.device.compute()).into(),
            deterministic: self.deterministic,
            memory: self.memory.map(|memory| memory.0),
            rows,
            context: self.context,
            prefill: self.prefill.clone(),
            max_rows: self.max_rows,
        }
    }

    fn stream_plan(&self, geometry: &Geometry) -> StreamPlan {
        StreamPlan {
            model: geometry.folder().to_owned(),
            weights: self.weights,
            device: self.device,
            compute: self.compute,
            deterministic: self.deterministic,
            memory: self.memory,
            max_rows: self.max_rows,
            shards: self.shards,
            streams: self.streams.clone(),
            prompt: self.prompt,
            new: self.new,
        }
    }
}

/// The middle of several measurements.
fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Milliseconds of a duration.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
