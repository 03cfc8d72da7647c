//! A contiguous range of layers on one device, with its KV blocks.
//!
//! The first stage has the embedding too, the last one the final norm and the head. A row's numbers depend on that row's sequence
//! alone: not on the batch, on how the prompt was cut into spans, on the split into stages or on the threads.

mod batch;
mod load;
mod ropes;

use std::ops::{ControlFlow, Range};

use asterism_tensor::{BLOCK_ROWS, Compute, Device, Dtype, Embedding, Indices, KvPool, Matrix, Rows, RowsRoom, Tensor, Vector};

pub use self::batch::{Batch, Input, Output, Span};
pub(crate) use self::load::Loader;
use self::ropes::{PlacedSpan, Ropes};
use crate::layer::{Buffers, Layer, Work};
use crate::manifest::Manifest;
use crate::spec::DecoderSpec;
use crate::split::Sizing;
use crate::weights::Checkpoint;
use crate::{BatchError, ModelError};

/// Without a memory budget the pool holds so many longest sequences …
const DEFAULT_SEQUENCES: usize = 4;
/// … but not more tokens than this, unless one sequence is longer.
const DEFAULT_TOKENS: usize = 32_768;
/// Planners keep a few bytes for each block, so their number has a bound.
const MOST_BLOCKS: usize = 1 << 22;
/// Block tables are kept for so many of the longest sequences in a step.
const MOST_SPANS: usize = 128;

/// Which part of a model to load, and how.
#[derive(Clone, Debug)]
pub struct StageOptions {
    /// The stage's layers.
    pub layers: Range<usize>,
    /// The type of activations and KV.
    pub compute: Compute,
    /// Bytes for weights, buffers and KV together. `None`: KV for a few sequences, whatever the rest takes.
    pub memory: Option<u64>,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Logits rows that the shard will keep beside; they are counted into the memory.
    pub logits_slots: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
}

/// What a stage is, for whoever plans its work.
#[derive(Clone, Debug)]
pub struct StageInfo {
    /// The whole model.
    pub spec: DecoderSpec,
    /// The stage's layers.
    pub layers: Range<usize>,
    /// The type of activations and KV.
    pub compute: Compute,
    /// SHA-256 over config.json and the manifest, in hexadecimal.
    pub checkpoint_id: String,
    /// The device in words.
    pub device: String,
    /// The instruction path, where several give different bits.
    pub path: String,
    /// Blocks in the KV pool, of [`BLOCK_ROWS`] rows each.
    pub kv_blocks: usize,
    /// The most rows of a step.
    pub max_rows: usize,
    /// The most evidence rows of a step.
    pub evidence_rows: usize,
    /// Logits rows that were counted into the memory.
    pub logits_slots: usize,
    /// Positions of the longest sequence.
    pub max_context: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of activations, logits and tables.
    pub buffer_bytes: u64,
    /// Bytes of the KV pool.
    pub kv_bytes: u64,
}

/// How far a step has come. The first beat of a step is before the stage's first layer, then one follows each layer.
#[derive(Clone, Copy, Debug)]
pub struct Beat<'a> {
    /// Layers of this stage that are done.
    pub layers_done: usize,
    /// The residual stream of all rows, `[rows, hidden]`.
    pub residual: &'a Tensor,
}

/// A stage, ready to compute. It owns its device; one thread works with it.
#[derive(Debug)]
pub struct Stage {
    info: StageInfo,
    device: Device,
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    head: Option<Head>,
    kv: KvPool,
    ropes: Ropes,
    buffers: Buffers,
    rows: Rows,
    ids: Indices,
}

/// The final norm and the head, and their buffers.
#[derive(Debug)]
struct Head {
    norm: Vector,
    matrix: Matrix,
    wanted: Indices,
    rows: Tensor,
    normed: Tensor,
    logits: Tensor,
}

impl StageInfo {
    /// Whether the stage has the embedding.
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the stage has the head.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.spec.layers
    }

    /// Bytes of one row of the residual stream.
    pub fn row_bytes(&self) -> usize {
        self.spec.hidden * self.compute.dtype().bytes()
    }
}

impl Stage {
    /// Loads a stage onto `device`: its own tensors only, checked against the manifest while they are packed. `progress` is told
    /// the bytes done so far and in all, from several threads.
    pub fn load(
        device: Device,
        checkpoint: &Checkpoint,
        options: StageOptions,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        let spec = DecoderSpec::from_config(&checkpoint.config()?)?;
        let Range { start, end } = options.layers;
        if start >= end || end > spec.layers {
            return Err(ModelError::WrongLayers { start, end, layers: spec.layers });
        }
        let sizing = options.sizing(stored_weights(&spec, checkpoint, start)?);
        if let Some(memory) = options.memory {
            sizing.stage(&spec, options.layers.clone(), memory)?;
        }
        let manifest = Manifest::of(checkpoint, progress)?;
        let loader = Loader::new(&device, checkpoint, &manifest, options.compute);
        let weights = loader.load(&spec, &options.layers, progress)?;

        let kv_blocks = kv_blocks(&spec, &sizing, &options, weights.bytes)?;
        let kv = device.kv_pool(sizing.kv_spec(&spec, options.layers.len()), kv_blocks)?;
        let buffers = Buffers::new(&device, &spec, options.compute, options.max_rows)?;
        let head = match weights.head {
            Some((norm, matrix)) => Some(Head::new(&device, &spec, &options, (norm, matrix))?),
            None => None,
        };
        let info = StageInfo {
            layers: options.layers.clone(),
            compute: options.compute,
            checkpoint_id: manifest.checkpoint_id,
            device: device.describe(),
            path: device.path(options.compute),
            kv_blocks,
            max_rows: options.max_rows,
            evidence_rows: options.evidence_rows,
            logits_slots: options.logits_slots,
            max_context: options.max_context,
            weight_bytes: weights.bytes,
            buffer_bytes: sizing.buffer_bytes(&spec, &options.layers),
            kv_bytes: kv_blocks as u64 * sizing.block_bytes(&spec, options.layers.len()),
            spec,
        };
        let ropes = Ropes::new(&device, &info)?;
        // Every row may belong to a sequence of its own, and each may be as long as any.
        let sequences = options.max_rows.min(MOST_SPANS);
        let blocks = (sequences * options.max_context.div_ceil(BLOCK_ROWS)).max(kv_blocks);
        let rows = device.rows(RowsRoom { rows: options.max_rows, blocks })?;
        let ids = device.indices(options.max_rows)?;
        Ok(Self {
            info,
            device,
            embedding: weights.embedding,
            layers: weights.layers,
            head,
            kv,
            ropes,
            buffers,
            rows,
            ids,
        })
    }

    /// What it is.
    pub fn info(&self) -> &StageInfo {
        &self.info
    }

    /// The device it is on, for operations on its logits.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The raw logits `[evidence rows, vocab]` of the latest step, after the muP scale; `None` but on the last stage.
    pub fn logits(&self) -> Option<&Tensor> {
        self.head.as_ref().map(|head| &head.logits)
    }

    /// The latest step's residual stream, `[rows, hidden]`: what goes to the next stage.
    pub fn hidden(&self) -> &Tensor {
        &self.buffers.residual
    }

    /// Appends the latest step's residual stream to `out`: what the next stage takes as [`Input::Hidden`].
    pub fn read_hidden(&self, out: &mut Vec<u8>) -> Result<(), ModelError> {
        Ok(self.buffers.residual.read_bytes(out)?)
    }

    /// The keys and values, keys rotated with the table of their block.
    pub fn kv(&self) -> &KvPool {
        &self.kv
    }

    /// Runs a batch through all layers. `on_beat` hears of each layer and may stop the step; its KV rows are then undefined.
    /// Nothing is computed for a batch that is refused.
    pub fn forward(
        &mut self,
        batch: &Batch<'_>,
        input: Input<'_>,
        on_beat: &mut dyn FnMut(Beat<'_>) -> ControlFlow<()>,
    ) -> Result<Output, ModelError> {
        batch.check(&self.info, &input)?;
        let spec = &self.info.spec;
        let placed = self.ropes.place(&self.device, batch, &self.info)?;
        let spans: Vec<_> = placed.iter().map(PlacedSpan::as_attention).collect();
        self.device.place(&spans, &self.kv, self.ropes.tables(), &mut self.rows)?;
        match (input, &self.embedding) {
            (Input::Hidden(bytes), _) => self.buffers.residual.write_bytes(bytes)?,
            (Input::Staged(staged), _) => staged.write_to(&mut self.buffers.residual)?,
            (Input::Tokens, Some(embedding)) => {
                let ids: Vec<u32> = batch.spans.iter().flat_map(|span| span.token_ids).copied().collect();
                self.device.write_indices(&ids, ids.len(), &mut self.ids)?;
                self.device.embed(&self.ids, embedding, spec.embedding_scale, &mut self.buffers.residual)?;
            }
            (Input::Tokens, None) => return Err(BatchError::InputKind.into()),
        }
        let mut beat = |layers_done: usize, residual: &Tensor| match on_beat(Beat { layers_done, residual }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(ModelError::Stopped { layer: self.info.layers.start + layers_done })
            }
        };
        beat(0, &self.buffers.residual)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let work = Work { device: &self.device, spec, index, rows: &self.rows, tables: self.ropes.tables() };
            layer.forward(&work, &mut self.kv, &mut self.buffers)?;
            beat(index + 1, &self.buffers.residual)?;
        }
        match &mut self.head {
            None => Ok(Output::Hidden { rows: batch.rows() }),
            Some(head) => head.forward(&self.device, spec, &evidence_indices(batch), &self.buffers.residual),
        }
    }
}

impl StageOptions {
    fn sizing(&self, weights: Dtype) -> Sizing {
        Sizing {
            compute: self.compute,
            weights,
            max_rows: self.max_rows,
            evidence_rows: self.evidence_rows,
            logits_slots: self.logits_slots,
            max_context: self.max_context,
        }
    }
}

impl Head {
    fn new(
        device: &Device,
        spec: &DecoderSpec,
        options: &StageOptions,
        (norm, matrix): (Vector, Matrix),
    ) -> Result<Self, ModelError> {
        let rows = || device.tensor(options.compute.dtype(), options.evidence_rows, spec.hidden);
        let logits = device.tensor(Dtype::F32, options.evidence_rows, spec.vocab)?;
        let wanted = device.indices(options.evidence_rows)?;
        Ok(Self { norm, matrix, wanted, rows: rows()?, normed: rows()?, logits })
    }

    /// Logits of the rows `wanted` of the residual stream.
    fn forward(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        wanted: &[u32],
        residual: &Tensor,
    ) -> Result<Output, ModelError> {
        if wanted.is_empty() {
            self.logits.set_rows(0)?;
            return Ok(Output::Logits { rows: 0 });
        }
        device.write_indices(wanted, wanted.len(), &mut self.wanted)?;
        device.gather_rows(residual, &self.wanted, &mut self.rows)?;
        device.add_rms_norm(&mut self.rows, None, &self.norm, spec.norm_epsilon, &mut self.normed)?;
        device.head(&self.normed, &self.matrix, spec.logit_scale, &mut self.logits)?;
        Ok(Output::Logits { rows: wanted.len() })
    }
}

/// Indices of the evidence rows among all rows.
fn evidence_indices(batch: &Batch<'_>) -> Vec<u32> {
    let mut indices = Vec::with_capacity(batch.evidence_rows());
    let mut row = 0;
    for span in batch.spans {
        indices.extend(span.evidence.iter().map(|position| (row + position - span.first_position) as u32));
        row += span.token_ids.len();
    }
    indices
}

/// The type of the stage's first matrix, which stands for all in estimates.
fn stored_weights(spec: &DecoderSpec, checkpoint: &Checkpoint, layer: usize) -> Result<Dtype, ModelError> {
    let projection = spec.family.layer(spec, layer).qkv;
    for part in &projection.parts {
        part.check(checkpoint)?;
    }
    let info = projection.parts.first().and_then(|part| checkpoint.tensor(&part.name));
    Ok(info.and_then(|info| load::weight_dtype(info.dtype)).unwrap_or(Dtype::F32))
}

/// Blocks that fit beside the weights as loaded.
fn kv_blocks(
    spec: &DecoderSpec,
    sizing: &Sizing,
    options: &StageOptions,
    weight_bytes: u64,
) -> Result<usize, ModelError> {
    let Some(memory) = options.memory else {
        let tokens = (DEFAULT_SEQUENCES * options.max_context).min(DEFAULT_TOKENS).max(options.max_context);
        return Ok(tokens.div_ceil(BLOCK_ROWS));
    };
    let buffers = sizing.buffer_bytes(spec, &options.layers);
    let least_kv = sizing.block_bytes(spec, options.layers.len());
    let blocks = memory.saturating_sub(weight_bytes + buffers) / least_kv.max(1);
    if blocks == 0 {
        let layers = options.layers.clone();
        return Err(ModelError::DoesNotFit {
            layers,
            weights: weight_bytes,
            buffers,
            least_kv,
            memory,
            enough: None,
        });
    }
    Ok(usize::try_from(blocks).unwrap_or(MOST_BLOCKS).min(MOST_BLOCKS))
}
