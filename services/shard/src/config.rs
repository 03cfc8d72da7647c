//! What a shard can be told.

mod values;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use asterism_model::split::Sizing;
use asterism_process::config::{Bytes, Settings};
use asterism_process::listen::loopback;
use asterism_tensor::{Compute, Dtype, KvType};

pub use self::values::{ComputeType, DeviceName, LayerRange, Weights};

/// Port of the first stage; the others usually follow.
const DEFAULT_PORT: u16 = 7070;
/// Rows of a step that a device of each kind computes at about its full speed.
const CPU_MAX_ROWS: usize = 512;
const CUDA_MAX_ROWS: usize = 2048;
/// The most evidence rows of a step. More sequences decode in several steps.
const MOST_EVIDENCE_ROWS: usize = 128;
/// Raw logits rows kept for each evidence row, as about two steps' evidence is under way at a time.
const SLOTS_PER_EVIDENCE_ROW: usize = 2;

/// The configuration of a shard.
#[derive(Clone, Debug, clap::Args)]
pub struct ShardConfig {
    /// Where to listen. Whoever reaches this address may take the shard over, so it is loopback unless told otherwise.
    #[arg(long, env = "ASTERISM_LISTEN", default_value_t = loopback(DEFAULT_PORT), value_name = "HOST:PORT")]
    pub listen: SocketAddr,
    /// Where the stage before this one reaches it, if that is not where the gateway does.
    #[arg(long, env = "ASTERISM_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The model's folder or GGUF file.
    #[arg(long, env = "ASTERISM_MODEL", value_name = "PATH")]
    pub model: PathBuf,
    /// Where the weights come from: `checkpoint`, or `synthetic:SEED` for weights made up by config.json alone.
    #[arg(long, env = "ASTERISM_WEIGHTS", default_value_t = Weights::Checkpoint, value_name = "SOURCE")]
    pub weights: Weights,
    /// Name of the pipeline; all its shards have the same.
    #[arg(long, env = "ASTERISM_PIPELINE", default_value = "default", value_name = "NAME")]
    pub pipeline: String,
    /// Which stage this is, from 0.
    #[arg(long, env = "ASTERISM_STAGE", default_value_t = 0, value_name = "N")]
    pub stage: u32,
    /// How many stages the pipeline has.
    #[arg(long, env = "ASTERISM_STAGES", default_value_t = 1, value_name = "N")]
    pub stages: u32,
    /// Its layers, as `16..32`; unless given, an even share by time.
    #[arg(long, env = "ASTERISM_LAYERS", value_name = "FROM..TO")]
    pub layers: Option<LayerRange>,
    /// What computes: `cpu`, or a card as `cuda:0`.
    #[arg(long, env = "ASTERISM_DEVICE", default_value_t = DeviceName::Cpu, value_name = "DEVICE")]
    pub device: DeviceName,
    /// Threads that compute on the CPU; unless given, one for each core.
    #[arg(long, env = "ASTERISM_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Memory for weights, buffers and KV; unless given, most of what is free on a card, and on the CPU as much as a few of the
    /// longest sequences take.
    #[arg(long, env = "ASTERISM_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// The type of activations and KV; unless given, f32 on the CPU and bf16 on a card.
    #[arg(long, env = "ASTERISM_COMPUTE", value_name = "TYPE")]
    pub compute: Option<ComputeType>,
    /// Refuse on a card what could make a row's numbers depend on other rows. On the CPU nothing does.
    #[arg(long, env = "ASTERISM_DETERMINISTIC")]
    pub deterministic: bool,
    /// The most rows of a step; unless given, 512 on the CPU and 2048 on a card.
    #[arg(long, env = "ASTERISM_MAX_ROWS", value_name = "N")]
    pub max_rows: Option<usize>,
    /// Positions of the longest sequence; unless given, those of the model's config.
    #[arg(long, env = "ASTERISM_MAX_CONTEXT", value_name = "N")]
    pub max_context: Option<usize>,
    /// Where to serve Prometheus metrics over HTTP, on `/metrics`; unless given, nowhere.
    #[arg(long, env = "ASTERISM_METRICS_LISTEN", value_name = "HOST:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

impl ShardConfig {
    /// The only stage of `model`, on a free loopback port, all else as by default.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            listen: loopback(0),
            advertise: None,
            model: model.into(),
            weights: Weights::Checkpoint,
            pipeline: "default".to_owned(),
            stage: 0,
            stages: 1,
            layers: None,
            device: DeviceName::Cpu,
            threads: None,
            memory: None,
            compute: None,
            deterministic: false,
            max_rows: None,
            max_context: None,
            metrics_listen: None,
        }
    }

    /// What the default configuration takes memory for, besides weights and KV.
    pub fn sizing_defaults(
        device: DeviceName,
        compute: Option<ComputeType>,
        weights: Dtype,
        max_context: usize,
    ) -> Sizing {
        Self { device, compute, ..Self::new("") }.sizing(weights, max_context)
    }

    /// The same for this configuration.
    pub(crate) fn sizing(&self, weights: Dtype, max_positions: usize) -> Sizing {
        let max_rows = self.max_rows();
        let evidence_rows = max_rows.min(MOST_EVIDENCE_ROWS);
        Sizing {
            device: self.device.kind(),
            compute: self.compute(),
            kv_type: self.kv_type(),
            weights,
            max_rows,
            evidence_rows,
            logits_slots: SLOTS_PER_EVIDENCE_ROW * evidence_rows,
            max_context: self.max_context.unwrap_or(max_positions),
        }
    }

    /// The type of activations.
    pub fn compute(&self) -> Compute {
        self.compute.unwrap_or(self.device.compute()).into()
    }

    /// The type that KV rests in: that of activations.
    fn kv_type(&self) -> KvType {
        KvType::of(self.compute())
    }

    /// The most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.max_rows.unwrap_or(match self.device {
            DeviceName::Cpu => CPU_MAX_ROWS,
            DeviceName::Cuda(_) => CUDA_MAX_ROWS,
        })
    }

    /// F: the steps in flight that a pipeline of so many stages makes use of.
    pub(crate) fn steps_in_flight(&self) -> u32 {
        if self.stages == 1 { 2 } else { self.stages.saturating_add(2) }
    }
}

impl Settings for ShardConfig {
    fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut must = |right: bool, mistake: String| {
            if !right {
                mistakes.push(mistake);
            }
        };
        let Self { stage, stages, max_context, .. } = *self;
        let max_rows = self.max_rows();
        must((1..=1024).contains(&stages), format!("stages is {stages}, expected 1 to 1024"));
        must(stage < stages.max(1), format!("stage is {stage}, but there are {stages} stages, from 0"));
        must((1..=65_536).contains(&max_rows), format!("max_rows is {max_rows}, expected 1 to 65536"));
        if let Some(context) = max_context {
            must(
                (1..=1 << 24).contains(&context),
                format!("max_context is {context}, expected 1 to 16777216"),
            );
        }
        if let Some(advertise) = &self.advertise
            && let Err(error) =
                asterism_process::channel::endpoint(advertise, asterism_process::channel::Traffic::Internal)
        {
            must(false, format!("advertise: {error}"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_device() {
        let cpu = ShardConfig::new("model");
        assert_eq!((cpu.compute(), cpu.max_rows()), (Compute::F32, 512));
        let card = ShardConfig { device: DeviceName::Cuda(1), ..ShardConfig::new("model") };
        assert_eq!((card.compute(), card.max_rows()), (Compute::Bf16, 2048));
        let told = ShardConfig { compute: Some(ComputeType::F32), max_rows: Some(64), ..card };
        assert_eq!((told.compute(), told.max_rows()), (Compute::F32, 64));
        assert_eq!(told.sizing(Dtype::F16, 99).max_context, 99);
    }

    #[test]
    fn all_mistakes_between_keys_are_told() {
        let right = ShardConfig::new("model");
        assert_eq!(right.check(), Vec::<String>::new());
        let wrong = ShardConfig {
            stage: 3,
            stages: 2,
            max_rows: Some(0),
            max_context: Some(0),
            advertise: Some("here".to_owned()),
            ..right
        };
        assert_eq!(wrong.check().len(), 4, "{:?}", wrong.check());
    }
}
