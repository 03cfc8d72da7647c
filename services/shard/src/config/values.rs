//! The values of a shard's keys, as people write them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use asterism_model::split::DeviceKind;
use asterism_tensor::Compute;

/// The type of activations and KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeType {
    /// Single precision.
    F32,
    /// Rounded to bfloat16.
    Bf16,
}

/// What computes, written `cpu` or `cuda:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// This processor.
    #[default]
    Cpu,
    /// The NVIDIA card of this number, as the driver counts them.
    Cuda(usize),
}

/// Where weights come from, written `checkpoint` or `synthetic:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// The model's files.
    #[default]
    Checkpoint,
    /// They are made up from this seed; the model's folder needs config.json only.
    Synthetic(u64),
}

/// A range of layers, written `16..32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRange(pub Range<usize>);

impl DeviceName {
    /// The compute type that suits it.
    pub fn compute(self) -> ComputeType {
        match self {
            Self::Cpu => ComputeType::F32,
            Self::Cuda(_) => ComputeType::Bf16,
        }
    }

    /// Its kind.
    pub fn kind(self) -> DeviceKind {
        match self {
            Self::Cpu => DeviceKind::Cpu,
            Self::Cuda(_) => DeviceKind::Cuda,
        }
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

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let card = text.strip_prefix("cuda:").map(str::parse);
        match (text, card) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err(format!("{text:?} is no device (write cpu, or a card as cuda:0)")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seed = text.strip_prefix("synthetic:").map(str::parse);
        match (text, seed) {
            ("checkpoint", _) => Ok(Self::Checkpoint),
            (_, Some(Ok(seed))) => Ok(Self::Synthetic(seed)),
            _ => Err(format!("{text:?} is no source of weights (write checkpoint or synthetic:1)")),
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Synthetic(seed) => write!(f, "synthetic:{seed}"),
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
    fn devices_are_written_as_they_are_read() {
        for device in [DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:0,cuda:1"] {
            assert!(text.parse::<DeviceName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sources_of_weights_are_written_as_they_are_read() {
        for weights in [Weights::Checkpoint, Weights::Synthetic(0), Weights::Synthetic(u64::MAX)] {
            assert_eq!(weights.to_string().parse(), Ok(weights));
        }
        for text in ["", "synthetic", "synthetic:", "synthetic:-1", "random:1", "Checkpoint"] {
            assert!(text.parse::<Weights>().is_err(), "{text:?}");
        }
    }
}
