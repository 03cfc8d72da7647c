//! `asterism split`: which layers go to which device, and what fits beside them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use asterism_model::split::{DeviceSize, Prefer, Sizing, Split, parameters, split};
use asterism_model::{Checkpoint, DecoderSpec, ModelError, bytes};
use asterism_process::config::Bytes;
use asterism_shard::{ComputeType, DeviceName, ShardConfig};
use asterism_tensor::Dtype;
use serde_json::Value;

/// Plan which layers each shard holds.
///
/// Needs the model's config.json only. Layers are divided so that all stages take about the same time, the head's share counted;
/// of devices that differ, one with more bandwidth gets more of them, as far as its memory goes. Says for every stage its
/// layers, its time beside the slowest one's, the bytes of its weights and buffers, and how many tokens of KV fit in what is
/// left; a pipeline holds as many as its fullest stage. Where the model does not fit it says so with the numbers and exits
/// with 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  asterism split --model ./TeleChat-52B --devices 4x40GB
  asterism split --model config.json --devices 40GB --shards 4 --context 32768
  asterism split --model config.json --devices 80GB,80GB,40GB --prefer room
  asterism split --model config.json --devices 2x80GB@3.35TB/s,80GB@2TB/s
  asterism split --model config.json --devices 2x16GiB --kind cpu

A size is what the shard may use: leave room for what else runs on the device (a CUDA context takes about 1 GB).")]
pub struct Arguments {
    /// The model's folder, or its config.json alone.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// The memory of the devices and, where they differ in it, their bandwidth, in the pipeline's order.
    #[arg(long, value_name = "[Nx]SIZE[@SIZE/s],…", value_delimiter = ',', required = true)]
    devices: Vec<Devices>,
    /// What matters most.
    #[arg(long, default_value = "speed")]
    prefer: Preference,
    /// What the devices are.
    #[arg(long, default_value = "cuda")]
    kind: Kind,
    /// How many shards (default: one for each device).
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// The type of activations and KV (default: bf16 on cards, f32 on CPUs).
    #[arg(long, value_name = "TYPE")]
    compute: Option<ComputeType>,
    /// The longest sequence (default: the model's number of positions).
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
}

/// What devices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Processors.
    Cpu,
    /// NVIDIA cards.
    Cuda,
}

/// What matters most about a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Preference {
    /// The time of the slowest stage, as far as half of the room is left.
    Speed,
    /// The tokens of KV that fit.
    Room,
}

/// Some equal devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Devices {
    count: Option<usize>,
    memory: Bytes,
    /// Bytes a second.
    bandwidth: Option<Bytes>,
}

/// Why there is no split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The config cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// The config is no JSON.
    #[error("{0} is not JSON: {1}")]
    Json(PathBuf, serde_json::Error),
    /// More or fewer shards than devices.
    #[error("{shards} shards for {devices} devices: a shard is on one device")]
    Count {
        /// Shards asked for.
        shards: usize,
        /// Devices named.
        devices: usize,
    },
    /// Some devices' bandwidth is known and that of others is not.
    #[error("--devices names the bandwidth of {named} of {devices} devices: name all or none")]
    Bandwidths {
        /// Devices with a bandwidth.
        named: usize,
        /// Devices named.
        devices: usize,
    },
    /// It does not fit, or is no model that is known.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Prints the split as a table.
pub fn run(arguments: Arguments) -> Result<(), SplitError> {
    let config = read_config(&arguments.model)?;
    let spec = DecoderSpec::from_config(&config)?;
    let devices = devices(&arguments.devices, arguments.shards)?;
    let sizing = arguments.sizing(&spec, &config);
    println!(
        "{}: {} layers, {} parameters, {} in memory as {}, computed in {}, sequences up to {} tokens\n",
        spec.family.name(),
        spec.layers,
        count(parameters(&spec)),
        bytes(sizing.weight_bytes(&spec, &(0..spec.layers))),
        sizing.resting(),
        sizing.compute,
        sizing.max_context,
    );
    let split = split(&spec, &sizing, &devices, arguments.prefer.into())?;
    print!("{}", Table(&split));
    if split.kv_tokens() < sizing.max_context as u64 {
        println!("so no sequence can be as long as {} tokens", sizing.max_context);
    }
    Ok(())
}

impl Arguments {
    fn sizing(&self, spec: &DecoderSpec, config: &Value) -> Sizing {
        let device = match self.kind {
            Kind::Cpu => DeviceName::Cpu,
            Kind::Cuda => DeviceName::Cuda(0),
        };
        let max_context = self.context.unwrap_or(spec.max_positions);
        ShardConfig::sizing_defaults(device, self.compute, stored_dtype(config), max_context)
    }
}

/// Each shard's device.
fn devices(devices: &[Devices], shards: Option<usize>) -> Result<Vec<DeviceSize>, SplitError> {
    let each = |it: &Devices, otherwise| vec![(it.memory, it.bandwidth); it.count.unwrap_or(otherwise)];
    let all: Vec<(Bytes, Option<Bytes>)> = match devices {
        [only] => each(only, shards.unwrap_or(1)),
        several => several.iter().flat_map(|devices| each(devices, 1)).collect(),
    };
    if let Some(shards) = shards.filter(|&shards| shards != all.len()) {
        return Err(SplitError::Count { shards, devices: all.len() });
    }
    let named = all.iter().filter(|(_, bandwidth)| bandwidth.is_some()).count();
    if named != 0 && named != all.len() {
        return Err(SplitError::Bandwidths { named, devices: all.len() });
    }
    // Where nothing is said they are as fast as each other.
    let device = |(memory, bandwidth): (Bytes, Option<Bytes>)| DeviceSize {
        memory: memory.0,
        bandwidth: bandwidth.map_or(1.0, |bandwidth| bandwidth.0 as f64),
    };
    Ok(all.into_iter().map(device).collect())
}

impl From<Preference> for Prefer {
    fn from(preference: Preference) -> Self {
        match preference {
            Preference::Speed => Self::Speed,
            Preference::Room => Self::Room,
        }
    }
}

fn read_config(model: &Path) -> Result<Value, SplitError> {
    let gguf = model.extension().is_some_and(|extension| extension == "gguf");
    let file = if model.is_dir() { model.join("config.json") } else { model.to_owned() };
    if gguf || !file.exists() {
        return Ok(Checkpoint::open(model)?.config()?);
    }
    let text = std::fs::read_to_string(&file).map_err(|error| SplitError::Read(file.clone(), error))?;
    serde_json::from_str(&text).map_err(|error| SplitError::Json(file, error))
}

/// The type that weights are stored in, as the config says; checkpoints whose config is silent are bf16.
fn stored_dtype(config: &Value) -> Dtype {
    match config.get("torch_dtype").and_then(Value::as_str) {
        Some("float32") => Dtype::F32,
        Some("float16") => Dtype::F16,
        _ => Dtype::Bf16,
    }
}

/// A number of parameters as people read it.
fn count(parameters: u64) -> String {
    match parameters as f64 {
        many if many >= 1e9 => format!("{:.1} B", many / 1e9),
        few => format!("{:.0} M", few / 1e6),
    }
}

/// A split as people read it.
struct Table<'a>(&'a Split);

impl std::fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "stage  layers   time   weights     buffers     memory      KV per token  KV tokens")?;
        for (index, (stage, time)) in self.0.stages.iter().zip(&self.0.times).enumerate() {
            // As `asterism shard --layers` takes them: the last is not among them.
            let layers = format!("{}..{}", stage.layers.start, stage.layers.end);
            let time = format!("{:.0} %", 100.0 * time);
            let per_token = bytes(stage.block_bytes / asterism_tensor::BLOCK_ROWS as u64);
            let [weights, buffers, memory] =
                [stage.weight_bytes, stage.buffer_bytes, stage.memory].map(bytes);
            writeln!(
                f,
                "{index:<5}  {layers:<7}  {time:<5}  {weights:<10}  {buffers:<10}  {memory:<10}  {per_token:<12}  {}",
                stage.kv_tokens
            )?;
        }
        writeln!(
            f,
            "\n{} tokens of KV fit in the pipeline, prompts and answers of all sequences together",
            self.0.kv_tokens()
        )
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, size) = match text.split_once(['x', '×']) {
            Some((count, size)) => match count.trim().parse() {
                Ok(count @ 1..=4096) => (Some(count), size),
                _ => return Err(format!("{count:?} is no number of devices")),
            },
            None => (None, text),
        };
        let (memory, bandwidth) = match size.split_once('@') {
            Some((memory, bandwidth)) => (memory, Some(self::bandwidth(bandwidth)?)),
            None => (size, None),
        };
        let memory = memory.parse().map_err(|error| format!("{error}, or several devices as 4x40GB"))?;
        Ok(Self { count, memory, bandwidth })
    }
}

/// Bytes a second.
fn bandwidth(text: &str) -> Result<Bytes, String> {
    let bytes = text.strip_suffix("/s").and_then(|bytes| bytes.parse().ok());
    bytes
        .filter(|&Bytes(bytes)| bytes > 0)
        .ok_or_else(|| format!("{text:?} is no bandwidth (write 3.35TB/s)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Devices> {
        text.split(',').map(|part| part.parse().unwrap()).collect()
    }

    #[test]
    fn devices_are_written_in_several_ways() {
        let gb = 1_000_000_000;
        for (text, shards, expected) in [
            ("40GB", None, vec![(40, 1.0)]),
            ("40GB", Some(3), vec![(40, 1.0); 3]),
            ("2x80GB", None, vec![(80, 1.0); 2]),
            ("2x80GB,40GB", Some(3), vec![(80, 1.0), (80, 1.0), (40, 1.0)]),
            ("80GB@2TB/s,40GB@900GB/s", None, vec![(80, 2e12), (40, 9e11)]),
            ("40GB@2TB/s", Some(2), vec![(40, 2e12); 2]),
        ] {
            let expected =
                expected.into_iter().map(|(memory, bandwidth)| DeviceSize { memory: memory * gb, bandwidth });
            assert_eq!(devices(&parsed(text), shards).unwrap(), expected.collect::<Vec<_>>(), "{text}");
        }
        for wrong in
            ["x40GB", "0x40GB", "4x", "forty", "-1x40GB", "40GB@", "40GB@2TB", "40GB@0B/s", "40GB@fast"]
        {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_that_do_not_go_together_are_refused() {
        let error = |text, shards| devices(&parsed(text), shards).unwrap_err().to_string();
        assert_eq!(error("2x80GB", Some(3)), "3 shards for 2 devices: a shard is on one device");
        let half = "--devices names the bandwidth of 2 of 3 devices: name all or none";
        assert_eq!(error("2x80GB@2TB/s,40GB", None), half);
    }
}
