//! What a stage takes of its device: bytes of weights, buffers and KV, and time.

use std::ops::Range;

use asterism_tensor::{BLOCK_ROWS, Compute, Device, Dtype, KvPool, KvSpec, KvType, Matrix};

use super::DeviceSize;
use crate::ModelError;
use crate::rope;
use crate::spec::DecoderSpec;

/// Sequences of a step that share their blocks may name more of them than there are; not more than this.
const MOST_TABLE_ENTRIES: usize = 1 << 22;

/// Partial results of a step's attention on a card.
const CARD_PARTIALS: usize = 512;
/// What else a card's kernels work with: sums that wait, candidates of the evidence.
const CARD_SCRATCH: usize = 96 << 20;

/// The part of a pipeline's time that is decode steps'; prompts have the rest. Both run well on stages that are even at this
/// share, and one of them badly on stages that are even for the other alone, where the head is as large as many layers.
const DECODE_SHARE: f64 = 0.25;

/// What a stage's memory depends on besides its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// What the stages are on.
    pub device: DeviceKind,
    /// The type of activations.
    pub compute: Compute,
    /// The type that KV rests in.
    pub kv_type: KvType,
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

impl From<&Device> for DeviceKind {
    fn from(device: &Device) -> Self {
        match device {
            Device::Cpu(_) => Self::Cpu,
            Device::Cuda(_) => Self::Cuda,
        }
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

    /// Tokens whose KV fits beside a stage's weights and buffers; 0 where not even those fit.
    pub(super) fn room(&self, spec: &DecoderSpec, layers: &Range<usize>, memory: u64) -> f64 {
        let fixed = self.weight_bytes(spec, layers).saturating_add(self.buffer_bytes(spec, layers));
        let block = self.block_bytes(spec, layers.len()).max(1);
        memory.saturating_sub(fixed) as f64 / block as f64 * BLOCK_ROWS as f64
    }

    /// Bytes without which a stage cannot run: weights, buffers and one block of KV.
    pub(super) fn least_bytes(&self, spec: &DecoderSpec, layers: &Range<usize>) -> u64 {
        let weights = self.weight_bytes(spec, layers);
        weights
            .saturating_add(self.buffer_bytes(spec, layers))
            .saturating_add(self.block_bytes(spec, layers.len()))
    }

    /// How long a stage takes on a device, in seconds for a step that reads its weights once.
    pub(super) fn time(&self, spec: &DecoderSpec, layers: &Range<usize>, device: &DeviceSize) -> f64 {
        self.cost(spec, layers) / device.bandwidth
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
        let embedding = match layers.start {
            0 => spec.embedding_weights() * self.resting().bytes() as u64,
            _ => 0,
        };
        let head = if layers.end == spec.layers { self.head_bytes(spec) } else { 0 };
        self.layer_bytes(spec) * layers.len() as u64 + embedding + head
    }

    /// What a stage costs in time, as bytes of weights that its rows go through.
    ///
    /// The embedding takes memory but next to no time, since only the rows' vectors are read. The head and, in the last layer, all
    /// that follows its attention are for rows with evidence: every row of a decode step, one of a prompt.
    pub fn cost(&self, spec: &DecoderSpec, layers: &Range<usize>) -> f64 {
        let all = (self.layer_bytes(spec) * layers.len() as u64) as f64;
        if layers.end < spec.layers {
            return all;
        }
        let head = DECODE_SHARE * self.head_bytes(spec) as f64;
        let not_for_prompts = (1.0 - DECODE_SHARE) * self.after_attention_bytes(spec) as f64;
        all - not_for_prompts + head
    }

    fn layer_bytes(&self, spec: &DecoderSpec) -> u64 {
        let qkv = spec.q_width() + 2 * spec.kv_width();
        let bias = if spec.biases.qkv { vector(qkv) } else { 0 };
        vector(spec.hidden) + self.matrix(spec.hidden, qkv) + bias + self.after_attention_bytes(spec)
    }

    /// A layer's projection of what was attended, and its MLP.
    fn after_attention_bytes(&self, spec: &DecoderSpec) -> u64 {
        let (hidden, inner) = (spec.hidden, spec.inner);
        let bias = |present: bool, len| if present { vector(len) } else { 0 };
        self.matrix(spec.q_width(), hidden)
            + bias(spec.biases.attention_out, hidden)
            + vector(hidden)
            + self.matrix(hidden, 2 * inner)
            + bias(spec.biases.gate_up, 2 * inner)
            + self.matrix(inner, hidden)
            + bias(spec.biases.down, hidden)
    }

    /// The final norm and the head.
    fn head_bytes(&self, spec: &DecoderSpec) -> u64 {
        vector(spec.hidden) + self.matrix(spec.hidden, spec.vocab)
    }

    fn matrix(&self, inputs: usize, outputs: usize) -> u64 {
        Matrix::bytes_of(inputs, outputs, self.resting()) as u64
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
        let Self { compute, kv_type, .. } = *self;
        KvSpec { layers, kv_heads: spec.kv_heads, head_dim: spec.head_dim, compute, kv_type }
    }
}

/// A norm's weights or a bias.
fn vector(len: usize) -> u64 {
    (len * size_of::<f32>()) as u64
}

/// Entries of the block tables of a step's sequences, of which there may be one a row, as long as any may be.
pub(crate) fn table_entries(max_rows: usize, max_context: usize) -> usize {
    max_rows.saturating_mul(max_context.div_ceil(BLOCK_ROWS)).min(MOST_TABLE_ENTRIES)
}
