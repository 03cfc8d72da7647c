//! `asterism convert`: any checkpoint that is read becomes a clean one.

use std::path::PathBuf;

use asterism_model::convert::{self, ConvertOptions, WeightDtype};
use asterism_model::{Checkpoint, ModelError, bytes};
use indicatif::{ProgressBar, ProgressStyle};

/// Write a checkpoint as clean safetensors with its manifest.
///
/// Reads a folder with safetensors or pytorch_model.bin files (one, or several with an index), or a GGUF file of a llama
/// model (F32, F16, BF16, Q8_0, Q4_0, Q4_1), which becomes one of the TeleChat-52B architecture. Pickles are read as
/// tensors only: nothing in them is ever run. The manifest holds every tensor's hash; shards check what they load
/// against it, and start without reading the whole checkpoint first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism convert ./TeleChat-52B /models/telechat-52b
  asterism convert model.Q8_0.gguf ./model-bf16 --dtype bf16")]
pub struct Arguments {
    /// The folder or GGUF file to read.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The folder to write; it appears once it is whole.
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The type of all weights, rounded to nearest even where it is narrower (default: as each is).
    #[arg(long)]
    dtype: Option<Dtype>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dtype {
    Bf16,
    F16,
    F32,
}

/// Converts, and says what was written.
pub fn run(arguments: Arguments) -> Result<(), ModelError> {
    let checkpoint = Checkpoint::open(&arguments.input)?;
    let dtype = arguments.dtype.map(|dtype| match dtype {
        Dtype::Bf16 => WeightDtype::Bf16,
        Dtype::F16 => WeightDtype::F16,
        Dtype::F32 => WeightDtype::F32,
    });
    let options = ConvertOptions { dtype, ..ConvertOptions::default() };
    let written = convert::convert(&checkpoint, &arguments.output, options, &mut progress())?;
    println!("{}", arguments.output.display());
    println!("{} tensors, {}", written.manifest.tensors.len(), bytes(written.bytes));
    println!("checkpoint {}", written.manifest.checkpoint_id);
    Ok(())
}

/// Shows bytes written of all bytes on standard error, where that is a terminal.
pub fn progress() -> impl FnMut(u64, u64) {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {binary_bytes} of {binary_total_bytes}") {
        bar.set_style(style);
    }
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    }
}
