//! `asterism bench`: speeds beside the limits that this machine has, measured in the same run.

mod local;
mod pipeline;

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use asterism_shard::ComputeType;
use asterism_tensor::Compute;

use crate::up::model_folder;

/// Measure this machine.
///
/// `--local` runs the model in this process and prints, at one and at two threads: tokens/s of decode (one sequence)
/// beside the memory's read bandwidth, since every token reads every weight once; tokens/s of prefill beside the peak rate
/// of the instruction that multiplies; and what a second shard adds to a token's time, through real loopback sockets.
/// All figures are medians. Keep the machine quiet meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism bench --local
  asterism bench --local --model ./model --compute bf16")]
pub struct Arguments {
    /// In this process and on its own sockets.
    #[arg(long, required = true)]
    local: bool,
    /// The model's folder, or `demo`.
    #[arg(long, value_name = "DIR|demo", default_value = "demo")]
    model: PathBuf,
    /// The type of activations and KV.
    #[arg(long, default_value = "f32")]
    compute: ComputeType,
}

const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

/// How often everything is measured.
const ROUNDS: usize = 5;

/// Measures and prints.
pub async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let model = model_folder(&arguments.model).await?;
    println!("{} in {}\n", model.display(), Compute::from(arguments.compute));
    println!("threads  work         tokens/s   ms/token   of the limit");
    for threads in [NonZeroUsize::MIN, TWO] {
        let (model, compute) = (model.clone(), arguments.compute);
        let speeds = tokio::task::spawn_blocking(move || local::measure(&model, compute, threads)).await??;
        print!("{speeds}");
    }
    println!("\nshards   decode through a gateway and sockets, one thread each");
    let [one, two] = pipeline::measure(&model, arguments.compute).await?.map(|time| time.as_secs_f64() * 1e3);
    println!("1        {one:.3} ms/token");
    println!("2        {two:.3} ms/token: {:+.3} ms by the second shard", two - one);
    Ok(())
}

/// The middle of several measurements.
fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}
