//! A contiguous range of layers on one device, with its KV blocks.
//!
//! The first stage has the embedding too, the last one the final norm and the head. A row's numbers depend on that row's sequence
//! alone: not on the batch, on how the prompt was cut into spans, on the split into stages or on the threads. On a card rows of a
//! prompt and rows that were drawn have kernels of their own, and a row keeps its kind when it is computed again.

mod batch;
mod forward;
mod head;
mod info;
mod load;
mod ropes;
mod size;
mod warm;

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use asterism_tensor::{Device, Dtype, Graphs, KvPool, RowsRoom, Tensor};

pub use self::batch::{Batch, Input, Output, Span};
pub use self::forward::Beat;
use self::forward::Body;
use self::head::Head;
pub use self::info::{LoadTimes, StageInfo, StageOptions};
use self::load::Loading;
pub(crate) use self::load::{Loader, advance};
use self::ropes::Ropes;
pub use self::size::default_memory;
use crate::ModelError;
use crate::layer::Buffers;
use crate::manifest::Manifest;
use crate::spec::DecoderSpec;
use crate::split::{DeviceKind, Sizing};
use crate::weights::{Checkpoint, WeightSource};

/// Told of a long task's bytes, done so far and in all, from several threads, so a little out of order. It says whether to go on.
pub type Watch<'a> = dyn Fn(u64, u64) -> ControlFlow<()> + Sync + 'a;

/// Watches nothing.
pub fn unwatched(_done: u64, _all: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A stage, ready to compute. It owns its device; one thread works with it.
#[derive(Debug)]
pub struct Stage {
    info: StageInfo,
    device: Device,
    body: Body,
    /// Recorded steps of decode rows, by their number of rows.
    graphs: Graphs,
}

impl Stage {
    /// Loads a stage onto `device`: its own tensors only, checked against the manifest as they are read.
    pub fn load(
        device: Device,
        source: WeightSource<'_>,
        options: StageOptions,
        watch: &Watch<'_>,
    ) -> Result<Self, ModelError> {
        let spec = DecoderSpec::from_config(&source.config()?)?;
        let Range { start, end } = options.layers;
        if start >= end || end > spec.layers {
            return Err(ModelError::WrongLayers { start, end, layers: spec.layers });
        }
        let stored = match source {
            WeightSource::Checkpoint(checkpoint) => stored_weights(&spec, checkpoint, start)?,
            WeightSource::Synthetic(_) => Dtype::Bf16,
        };
        let sizing = options.sizing((&device).into(), stored);
        let memory = size::memory(&device, &options)?;
        if let Some(memory) = memory {
            sizing.stage(&spec, options.layers.clone(), memory)?;
        }
        let mut times = LoadTimes::default();
        let mut lap = Instant::now();
        let mut took = || std::mem::replace(&mut lap, Instant::now()).elapsed();

        let StageOptions { layers, compute, .. } = &options;
        let loading = Loading { device: &device, spec: &spec, layers, compute: *compute, watch };
        let (checkpoint_id, weights) = match source {
            WeightSource::Checkpoint(checkpoint) => {
                let manifest = Manifest::of(checkpoint, watch)?;
                times.manifest = took();
                let weights = loading.checkpoint(checkpoint, &manifest)?;
                (manifest.checkpoint_id, weights)
            }
            WeightSource::Synthetic(synthetic) => (synthetic.checkpoint_id(), loading.synthetic(synthetic)?),
        };
        device.synchronize()?;
        times.weights = took();
        warm::plan(&device, &weights, &options)?;
        times.plans = took();

        let kv_blocks = size::kv_blocks(&spec, &sizing, &options, (memory, weights.bytes))?;
        let kv = device.kv_pool(sizing.kv_spec(&spec, options.layers.len()), kv_blocks)?;
        let buffers = Buffers::new(&device, &spec, options.compute, options.max_rows)?;
        let head = weights.head.map(|head| Head::new(&device, &spec, &options, head)).transpose()?;
        let mut info = StageInfo {
            layers: options.layers.clone(),
            compute: options.compute,
            kv_type: options.kv_type,
            checkpoint_id,
            device: described(&device),
            row_classes: device.matmul_plans().is_some_and(|plans| plans.are_deterministic()),
            path: device.path(options.compute),
            kv_blocks,
            max_rows: options.max_rows,
            evidence_rows: options.evidence_rows,
            logits_slots: options.logits_slots,
            max_context: options.max_context,
            weight_bytes: weights.bytes,
            buffer_bytes: sizing.buffer_bytes(&spec, &options.layers),
            kv_bytes: kv_blocks as u64 * sizing.block_bytes(&spec, options.layers.len()),
            times,
            spec,
        };
        let ropes = Ropes::new(&device, &info)?;
        let rows = device.rows(RowsRoom { rows: options.max_rows, blocks: info.table_entries() })?;
        let ids = device.indices(options.max_rows)?;
        let body = Body {
            embedding: weights.embedding,
            layers: weights.layers,
            head,
            kv,
            ropes,
            buffers,
            rows,
            ids,
        };
        info.times.memory = took();
        let mut stage = Self { info, device, body, graphs: Graphs::default() };
        stage.info.times.graphs = stage.record()?;
        Ok(stage)
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
        self.body.head.as_ref().map(|head| &head.logits)
    }

    /// The latest step's residual stream, `[rows, hidden]`: what goes to the next stage.
    pub fn hidden(&self) -> &Tensor {
        &self.body.buffers.residual
    }

    /// Appends the latest step's residual stream to `out`: what the next stage takes as [`Input::Hidden`]. Waits for the device.
    pub fn read_hidden(&self, out: &mut Vec<u8>) -> Result<(), ModelError> {
        Ok(self.hidden().read_bytes(out)?)
    }

    /// The keys and values, keys rotated with the table of their block.
    pub fn kv(&self) -> &KvPool {
        &self.body.kv
    }
}

/// The device in words, and what its multiplications promise.
fn described(device: &Device) -> String {
    match device.matmul_plans() {
        None => device.describe(),
        Some(plans) if plans.are_deterministic() => format!("{}, deterministic", device.describe()),
        Some(_) => format!("{}, not deterministic", device.describe()),
    }
}

impl StageOptions {
    fn sizing(&self, device: DeviceKind, weights: Dtype) -> Sizing {
        Sizing {
            device,
            compute: self.compute,
            kv_type: self.kv_type,
            weights,
            max_rows: self.max_rows,
            evidence_rows: self.evidence_rows,
            logits_slots: self.logits_slots,
            max_context: self.max_context,
        }
    }
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
