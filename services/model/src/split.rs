//! Which layers each stage has, and what then fits: arithmetic only.
//!
//! A pipeline is as fast as its slowest stage and holds as many tokens as its fullest. Layers are divided so that the slowest stage
//! takes the least time on its device ([`Sizing::cost`] over the device's bandwidth), among the splits that hold at least half of
//! the tokens that any split holds.

mod sizing;

use std::ops::Range;

use asterism_tensor::BLOCK_ROWS;

use crate::ModelError;
use crate::spec::{DecoderSpec, Head};
pub(crate) use sizing::table_entries;
pub use sizing::{DeviceKind, Sizing, StageSize};

/// Of the tokens that the roomiest split holds, the part that a split must hold to be chosen for its speed.
const LEAST_ROOM: f64 = 0.5;

/// A device that a stage is planned for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceSize {
    /// Bytes that the stage may use.
    pub memory: u64,
    /// How fast it reads weights, in bytes a second; between devices of one split only the ratio matters.
    pub bandwidth: f64,
}

/// What matters most about a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// That its slowest stage is fast.
    #[default]
    Speed,
    /// That it holds as many tokens as any does.
    Room,
}

/// A split of a model over stages.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The stages, in order.
    pub stages: Vec<StageSize>,
    /// How long each takes, in parts of the slowest one's time.
    pub times: Vec<f64>,
}

/// Splits the model over devices. If any split fits, this one does.
///
/// # Errors
/// No split fits, or there are more devices than layers, or none.
pub fn split(
    spec: &DecoderSpec,
    sizing: &Sizing,
    devices: &[DeviceSize],
    prefer: Prefer,
) -> Result<Split, ModelError> {
    let roomiest = roomiest(spec, sizing, devices)?;
    let room = |stage: usize, layers: &Range<usize>| sizing.room(spec, layers, devices[stage].memory);
    let most =
        roomiest.iter().enumerate().map(|(stage, layers)| room(stage, layers)).fold(f64::INFINITY, f64::min);
    let ranges = match prefer {
        Prefer::Speed if most >= BLOCK_ROWS as f64 => {
            let least = (LEAST_ROOM * most).max(BLOCK_ROWS as f64);
            minimize(spec.layers, devices.len(), |stage, layers| match room(stage, &layers) {
                room if room >= least => sizing.time(spec, &layers, &devices[stage]),
                _ => f64::INFINITY,
            })?
        }
        _ => roomiest,
    };
    let times: Vec<f64> =
        ranges.iter().zip(devices).map(|(layers, device)| sizing.time(spec, layers, device)).collect();
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let stages =
        ranges.into_iter().zip(devices).map(|(layers, device)| sizing.stage(spec, layers, device.memory));
    let stages = stages.collect::<Result<_, _>>().map_err(|error| match error {
        ModelError::DoesNotFit { layers, weights, buffers, least_kv, memory, .. } => {
            let enough = enough(spec, sizing, devices);
            ModelError::DoesNotFit { layers, weights, buffers, least_kv, memory, enough }
        }
        other => other,
    })?;
    Ok(Split { stages, times: times.into_iter().map(|time| time / slowest).collect() })
}

/// The layers of each of `stages` stages on equal devices, so that the slowest takes the least time.
///
/// # Errors
/// There are more stages than layers, or none.
pub fn even(spec: &DecoderSpec, sizing: &Sizing, stages: usize) -> Result<Vec<Range<usize>>, ModelError> {
    minimize(spec.layers, stages, |_, layers| sizing.cost(spec, &layers))
}

/// The layers of each device, so that as many tokens fit as can; where none do, what the fullest device lacks is least.
fn roomiest(
    spec: &DecoderSpec,
    sizing: &Sizing,
    devices: &[DeviceSize],
) -> Result<Vec<Range<usize>>, ModelError> {
    minimize(spec.layers, devices.len(), |stage, layers| {
        let memory = devices[stage].memory;
        match sizing.room(spec, &layers, memory) {
            room if room >= BLOCK_ROWS as f64 => 1.0 / room,
            _ => 1.0 + sizing.least_bytes(spec, &layers) as f64 / memory.max(1) as f64,
        }
    })
}

/// The least number of devices, each as large as the largest given, over which the model fits.
fn enough(spec: &DecoderSpec, sizing: &Sizing, devices: &[DeviceSize]) -> Option<usize> {
    let largest = devices.iter().copied().max_by_key(|device| device.memory)?;
    (1..=spec.layers).find(|&count| {
        roomiest(spec, sizing, &vec![largest; count]).is_ok_and(|ranges| {
            ranges.into_iter().all(|layers| sizing.stage(spec, layers, largest.memory).is_ok())
        })
    })
}

/// Cuts the layers into stages so that the largest `load` of one is least, then the sum of their squares.
fn minimize(
    layers: usize,
    stages: usize,
    load: impl Fn(usize, Range<usize>) -> f64,
) -> Result<Vec<Range<usize>>, ModelError> {
    if stages == 0 || stages > layers {
        return Err(ModelError::WrongStages { stages, layers });
    }
    // best[stage][end]: (largest load, sum of squares, start of the stage) of the first stages up to layer `end`.
    let mut best = vec![vec![(f64::INFINITY, f64::INFINITY, 0); layers + 1]; stages];
    for stage in 0..stages {
        let starts = if stage == 0 { 0..1 } else { stage..layers };
        for start in starts {
            let (largest, squares) = match stage.checked_sub(1) {
                Some(previous) => (best[previous][start].0, best[previous][start].1),
                None => (0.0, 0.0),
            };
            for (end, known) in best[stage].iter_mut().enumerate().skip(start + 1) {
                let load = load(stage, start..end);
                let candidate = (largest.max(load), squares + load * load, start);
                if (candidate.0, candidate.1) < (known.0, known.1) {
                    *known = candidate;
                }
            }
        }
    }
    let mut ranges = Vec::with_capacity(stages);
    let mut end = layers;
    for stage in best.iter().rev() {
        let start = stage[end].2;
        ranges.push(start..end);
        end = start;
    }
    ranges.reverse();
    Ok(ranges)
}

impl Split {
    /// Tokens whose KV fits on every stage.
    pub fn kv_tokens(&self) -> u64 {
        self.stages.iter().map(|stage| stage.kv_tokens).min().unwrap_or_default()
    }
}

/// Weights of the whole model, the head counted once where it is the embedding.
pub fn parameters(spec: &DecoderSpec) -> u64 {
    let heads = if spec.head == Head::Own { 2 } else { 1 };
    spec.layer_weights() * spec.layers as u64 + heads * spec.embedding_weights() + spec.hidden as u64
}

#[cfg(test)]
mod tests;
