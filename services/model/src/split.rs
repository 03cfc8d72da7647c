//! Which layers each stage has, and what then fits: arithmetic only.

use std::ops::Range;

use asterism_tensor::{BLOCK_ROWS, Compute, Device, Dtype, KvPool, KvSpec, Matrix};

use crate::ModelError;
use crate::rope;
use crate::spec::{DecoderSpec, Head};

/// Sequences of a step that share their blocks may name more of them than there are; not more than this.
const MOST_TABLE_ENTRIES: usize = 1 << 22;

/// Partial results of a step's attention on a card.
const CARD_PARTIALS: usize = 512;
/// What else a card's kernels work with: sums that wait, candidates of the evidence.
const CARD_SCRATCH: usize = 96 << 20;

/// What a stage's memory depends on besides its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// What the stages are on.
    pub device: DeviceKind,
    /// The type of activations and KV.
    pub compute: Compute,
    /// The type of the stored weights. (In bf16 compute all rest as bf16.)
    pub weights: Dtype,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Logits rows that the last stage keeps.
    pub logits_slots: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
}

/// What kind of device a stage is on: weights and buffers rest differently on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A processor: weights rest as they are stored and are widened in registers.
    Cpu,
    /// A card: weights rest in the compute type, and buffers have a few rows more than are used.
    Cuda,
}

/// A split of a model over stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The stages, in order.
    pub stages: Vec<StageSize>,
}

/// A stage and its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSize {
    /// Its layers.
    pub layers: Range<usize>,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of activations, logits and tables.
    pub buffer_bytes: u64,
    /// Bytes of one block of KV over its layers.
    pub block_bytes: u64,
    /// Bytes of memory given to it.
    pub memory: u64,
    /// Tokens whose KV fits beside the rest.
    pub kv_tokens: u64,
}

/// Splits the model over devices of `memory` bytes each. Equal devices get [`even`] stages if those fit. Else the fullest device is
/// as empty as can be, so if any split fits, this one does.
pub fn split(spec: &DecoderSpec, sizing: &Sizing, memory: &[u64]) -> Result<Split, ModelError> {
    let sized = |ranges: Vec<Range<usize>>| {
        let stages =
            ranges.into_iter().zip(memory).map(|(layers, &memory)| sizing.stage(spec, layers, memory));
        stages.collect::<Result<_, _>>().map(|stages| Split { stages })
    };
    if memory.windows(2).all(|pair| pair[0] == pair[1])
        && let Ok(split) = sized(even(spec, sizing, memory.len())?)
    {
        return Ok(split);
    }
    sized(fullest(spec, sizing, memory)?).map_err(|error| match error {
        ModelError::DoesNotFit { layers, weights, buffers, least_kv, memory: given, .. } => {
            let enough = enough(spec, sizing, memory);
            ModelError::DoesNotFit { layers, weights, buffers, least_kv, memory: given, enough }
        }
        other => other,
    })
}

/// The layers of each of `stages` equal stages, even by bytes of weights, the embedding and the head included: a step takes about
/// the same time on each.
pub fn even(spec: &DecoderSpec, sizing: &Sizing, stages: usize) -> Result<Vec<Range<usize>>, ModelError> {
    minimize(spec.layers, stages, |_, layers| sizing.weight_bytes(spec, &layers) as f64)
}

/// The layers of each device, so that the largest share of its memory that one needs is the least.
fn fullest(spec: &DecoderSpec, sizing: &Sizing, memory: &[u64]) -> Result<Vec<Range<usize>>, ModelError> {
    minimize(spec.layers, memory.len(), |stage, layers| {
        let bytes = sizing.weight_bytes(spec, &layers)
            + sizing.buffer_bytes(spec, &layers)
            + sizing.block_bytes(spec, layers.len());
        bytes as f64 / memory[stage].max(1) as f64
    })
}

/// The least number of devices, each as large as the largest given, over which the model fits.
fn enough(spec: &DecoderSpec, sizing: &Sizing, memory: &[u64]) -> Option<usize> {
    let largest = memory.iter().copied().max()?;
    (1..=spec.layers).find(|&devices| {
        fullest(spec, sizing, &vec![largest; devices])
            .is_ok_and(|ranges| ranges.into_iter().all(|layers| sizing.stage(spec, layers, largest).is_ok()))
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

impl From<&Device> for DeviceKind {
    fn from(device: &Device) -> Self {
        match device {
            Device::Cpu(_) => Self::Cpu,
            Device::Cuda(_) => Self::Cuda,
        }
    }
}

impl Split {
    /// Tokens whose KV fits on every stage.
    pub fn kv_tokens(&self) -> u64 {
        self.stages.iter().map(|stage| stage.kv_tokens).min().unwrap_or_default()
    }
}

impl Sizing {
    /// The memory of a stage; an error with the numbers where not even one block of KV fits.
    pub fn stage(
        &self,
        spec: &DecoderSpec,
        layers: Range<usize>,
        memory: u64,
    ) -> Result<StageSize, ModelError> {
        let weight_bytes = self.weight_bytes(spec, &layers);
        let buffer_bytes = self.buffer_bytes(spec, &layers);
        let block_bytes = self.block_bytes(spec, layers.len());
        let blocks = memory.saturating_sub(weight_bytes.saturating_add(buffer_bytes)) / block_bytes.max(1);
        if blocks == 0 {
            return Err(ModelError::DoesNotFit {
                layers,
                weights: weight_bytes,
                buffers: buffer_bytes,
                least_kv: block_bytes,
                memory,
                enough: None,
            });
        }
        let kv_tokens = blocks * BLOCK_ROWS as u64;
        Ok(StageSize { layers, weight_bytes, buffer_bytes, block_bytes, memory, kv_tokens })
    }

    /// The type that weights have on the device.
    pub fn resting(&self) -> Dtype {
        match (self.compute, self.device) {
            (Compute::F32, DeviceKind::Cpu) => self.weights,
            (compute, _) => compute.dtype(),
        }
    }

    /// Bytes of the weights of a stage as they rest on the device.
    pub fn weight_bytes(&self, spec: &DecoderSpec, layers: &Range<usize>) -> u64 {
        let stored = self.resting();
        let matrix = |inputs, outputs| Matrix::bytes_of(inputs, outputs, stored) as u64;
        let vector = |len: usize| (len * size_of::<f32>()) as u64;
        let bias = |present: bool, len| if present { vector(len) } else { 0 };
        let (hidden, inner) = (spec.hidden, spec.inner);
        let qkv = spec.q_width() + 2 * spec.kv_width();
        let layer = matrix(hidden, qkv)
            + matrix(spec.q_width(), hidden)
            + matrix(hidden, 2 * inner)
            + matrix(inner, hidden)
            + 2 * vector(hidden)
            + bias(spec.biases.qkv, qkv)
            + bias(spec.biases.attention_out, hidden)
            + bias(spec.biases.gate_up, 2 * inner)
            + bias(spec.biases.down, hidden);
        let embedding = if layers.start == 0 { spec.embedding_weights() * stored.bytes() as u64 } else { 0 };
        let head = if layers.end == spec.layers { matrix(hidden, spec.vocab) + vector(hidden) } else { 0 };
        layer * layers.len() as u64 + embedding + head
    }

    /// Bytes of the activations, logits and rope tables of a stage.
    pub fn buffer_bytes(&self, spec: &DecoderSpec, layers: &Range<usize>) -> u64 {
        let element = self.compute.dtype().bytes();
        let mul = usize::saturating_mul;
        // Residual, normed, delta; q, k, v; what was attended; gate and up; their product.
        let row = 3 * spec.hidden + 2 * spec.q_width() + 2 * spec.kv_width() + 3 * spec.inner;
        let widest = spec.hidden.max(spec.q_width()).max(spec.inner);
        let row = row * element
            + match self.device {
                // The edge's copy, and a matmul's input once more in the order its kernel wants.
                DeviceKind::Cpu => spec.hidden * element + widest * size_of::<f32>(),
                // Two steps' inputs and two steps' outputs on their way.
                DeviceKind::Cuda => 4 * spec.hidden * element,
            };
        let activations = mul(self.padded(self.max_rows), row);
        let logits = if layers.end == spec.layers { self.logits_bytes(spec) } else { 0 };
        // On the CPU each table twice, in the orders that queries and stored keys want.
        let orders = match self.device {
            DeviceKind::Cpu => 2,
            DeviceKind::Cuda => 1,
        };
        let tables = rope::alpha_id(&spec.rope, self.max_context) + 1;
        let rope = mul(orders * tables * spec.head_dim * size_of::<f32>(), self.max_context);
        let scratch = match self.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => {
                let places = mul(3 * table_entries(self.max_rows, self.max_context), size_of::<u32>());
                mul(CARD_PARTIALS * spec.kv_heads.max(128), (spec.head_dim + 3) * size_of::<f32>())
                    .saturating_add(places)
                    .saturating_add(CARD_SCRATCH)
            }
        };
        [activations, logits, rope, scratch].into_iter().fold(0, usize::saturating_add) as u64
    }

    /// Logits of the evidence rows and those that are kept; on a card processed ones too.
    fn logits_bytes(&self, spec: &DecoderSpec) -> usize {
        let evidence = self.padded(self.evidence_rows);
        let processed = match self.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => evidence,
        };
        let rows = evidence.saturating_add(self.padded(self.logits_slots)).saturating_add(processed);
        let hidden = 3 * spec.hidden * self.compute.dtype().bytes();
        rows.saturating_mul(spec.vocab * size_of::<f32>()).saturating_add(evidence.saturating_mul(hidden))
    }

    /// Rows of memory for a tensor of `rows` rows.
    fn padded(&self, rows: usize) -> usize {
        match self.device {
            DeviceKind::Cpu => rows,
            DeviceKind::Cuda => Device::padded_rows(rows),
        }
    }

    /// Bytes of one block of KV over `layers` layers.
    pub fn block_bytes(&self, spec: &DecoderSpec, layers: usize) -> u64 {
        KvPool::bytes_per_block(&self.kv_spec(spec, layers)) as u64
    }

    pub(crate) fn kv_spec(&self, spec: &DecoderSpec, layers: usize) -> KvSpec {
        KvSpec { layers, kv_heads: spec.kv_heads, head_dim: spec.head_dim, compute: self.compute }
    }
}

/// Entries of the block tables of a step's sequences, of which there may be one a row, as long as any may be.
pub(crate) fn table_entries(max_rows: usize, max_context: usize) -> usize {
    max_rows.saturating_mul(max_context.div_ceil(BLOCK_ROWS)).min(MOST_TABLE_ENTRIES)
}

/// Weights of the whole model, the head counted once where it is the embedding.
pub fn parameters(spec: &DecoderSpec) -> u64 {
    let heads = if spec.head == Head::Own { 2 } else { 1 };
    spec.layer_weights() * spec.layers as u64 + heads * spec.embedding_weights() + spec.hidden as u64
}

#[cfg(test)]
mod tests;
