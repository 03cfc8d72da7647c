//! What a shard can be told.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use asterism_model::split::Sizing;
use asterism_process::config::{Bytes, Settings};
use asterism_process::listen::loopback;
use asterism_tensor::{Compute, Dtype};

/// Port of the first stage; the others usually follow.
const DEFAULT_PORT: u16 = 7070;
const DEFAULT_MAX_ROWS: usize = 512;
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
    /// Name of the pipeline; all its shards have the same.
    #[arg(long, env = "ASTERISM_PIPELINE", default_value = "default", value_name = "NAME")]
    pub pipeline: String,
    /// Which stage this is, from 0.
    #[arg(long, env = "ASTERISM_STAGE", default_value_t = 0, value_name = "N")]
    pub stage: u32,
    /// How many stages the pipeline has.
    #[arg(long, env = "ASTERISM_STAGES", default_value_t = 1, value_name = "N")]
    pub stages: u32,
    /// Its layers, as `16..32`; unless given, the model is split evenly by bytes.
    #[arg(long, env = "ASTERISM_LAYERS", value_name = "FROM..TO")]
    pub layers: Option<LayerRange>,
    /// Threads that compute; unless given, one for each core.
    #[arg(long, env = "ASTERISM_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Memory for weights, buffers and KV; unless given, as much as a few of the longest sequences take.
    #[arg(long, env = "ASTERISM_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// The type of activations and KV.
    #[arg(long, env = "ASTERISM_COMPUTE", default_value = "f32", value_name = "TYPE")]
    pub compute: ComputeType,
    /// The most rows of a step.
    #[arg(long, env = "ASTERISM_MAX_ROWS", default_value_t = DEFAULT_MAX_ROWS, value_name = "N")]
    pub max_rows: usize,
    /// Positions of the longest sequence; unless given, those of the model's config.
    #[arg(long, env = "ASTERISM_MAX_CONTEXT", value_name = "N")]
    pub max_context: Option<usize>,
}

/// The type of activations and KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeType {
    /// Single precision.
    F32,
    /// Rounded to bfloat16.
    Bf16,
}

/// A range of layers, written `16..32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRange(pub Range<usize>);

impl ShardConfig {
    /// The only stage of `model`, on a free loopback port, all else as by default.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            listen: loopback(0),
            advertise: None,
            model: model.into(),
            pipeline: "default".to_owned(),
            stage: 0,
            stages: 1,
            layers: None,
            threads: None,
            memory: None,
            compute: ComputeType::F32,
            max_rows: DEFAULT_MAX_ROWS,
            max_context: None,
        }
    }

    /// What the default configuration takes memory for, besides weights and KV.
    pub fn sizing_defaults(compute: Compute, weights: Dtype, max_context: usize) -> Sizing {
        let evidence_rows = evidence_rows(DEFAULT_MAX_ROWS);
        Sizing {
            compute,
            weights,
            max_rows: DEFAULT_MAX_ROWS,
            evidence_rows,
            logits_slots: SLOTS_PER_EVIDENCE_ROW * evidence_rows,
            max_context,
        }
    }

    /// The same for this configuration.
    pub(crate) fn sizing(&self, weights: Dtype, max_positions: usize) -> Sizing {
        let evidence_rows = evidence_rows(self.max_rows);
        Sizing {
            compute: self.compute.into(),
            weights,
            max_rows: self.max_rows,
            evidence_rows,
            logits_slots: SLOTS_PER_EVIDENCE_ROW * evidence_rows,
            max_context: self.max_context.unwrap_or(max_positions),
        }
    }

    /// F: the steps in flight that a pipeline of so many stages makes use of.
    pub(crate) fn steps_in_flight(&self) -> u32 {
        if self.stages == 1 { 2 } else { self.stages.saturating_add(2) }
    }
}

fn evidence_rows(max_rows: usize) -> usize {
    max_rows.min(MOST_EVIDENCE_ROWS)
}

impl Settings for ShardConfig {
    fn check(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut must = |right: bool, mistake: String| {
            if !right {
                mistakes.push(mistake);
            }
        };
        let Self { stage, stages, max_rows, max_context, .. } = *self;
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

impl From<ComputeType> for Compute {
    fn from(compute: ComputeType) -> Self {
        match compute {
            ComputeType::F32 => Self::F32,
            ComputeType::Bf16 => Self::Bf16,
        }
    }
}

impl FromStr for LayerRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bounds = text
            .split_once("..")
            .and_then(|(start, end)| Some(start.trim().parse().ok()?..end.trim().parse().ok()?));
        match bounds {
            Some(range) if range.start < range.end => Ok(Self(range)),
            _ => Err(format!("{text:?} is no range of layers (write 16..32)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_layers_parse() {
        assert_eq!("16..32".parse(), Ok(LayerRange(16..32)));
        for text in ["", "16", "16..", "..", "5..5", "6..5", "a..b", "0..-1", "1..=3"] {
            assert!(text.parse::<LayerRange>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn all_mistakes_between_keys_are_told() {
        let right = ShardConfig::new("model");
        assert_eq!(right.check(), Vec::<String>::new());
        let wrong = ShardConfig {
            stage: 3,
            stages: 2,
            max_rows: 0,
            max_context: Some(0),
            advertise: Some("here".to_owned()),
            ..right
        };
        assert_eq!(wrong.check().len(), 4, "{:?}", wrong.check());
    }
}
