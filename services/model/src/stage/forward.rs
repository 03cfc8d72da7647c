//! A step through a stage: layer by layer, or as one recorded sequence.

use std::ops::ControlFlow;

use asterism_tensor::{Device, Embedding, Indices, KvPool, Rows, Tensor};

use super::head::{Head, evidence_indices};
use super::ropes::{PlacedSpan, Ropes};
use super::{Batch, Input, Output, Stage, StageInfo};
use crate::ModelError;
use crate::layer::{Buffers, Layer, Work};
use crate::spec::DecoderSpec;

/// A recorded step has one of these numbers of rows; those that are left over are padding.
const BUCKETS: [usize; 15] = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128];

/// How far a step has come. The first beat of a step is before the stage's first layer; then one follows each layer, or, where
/// all layers run as one, the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Layers of this stage that are done; on a card, that were given to it.
    pub layers_done: usize,
}

/// A stage's weights, its KV and the activations of the step at work.
#[derive(Debug)]
pub(super) struct Body {
    pub embedding: Option<Embedding>,
    pub layers: Vec<Layer>,
    pub head: Option<Head>,
    pub kv: KvPool,
    pub ropes: Ropes,
    pub buffers: Buffers,
    pub rows: Rows,
    pub ids: Indices,
}

impl Stage {
    /// Runs a batch through all layers. `on_beat` hears how far it is and may stop the step; its KV rows are then undefined.
    /// Nothing is computed for a batch that is refused.
    ///
    /// On a card this returns before the work is done: reading the logits or the residual stream waits for it.
    pub fn forward(
        &mut self,
        batch: &Batch<'_>,
        input: Input<'_>,
        on_beat: &mut dyn FnMut(Beat) -> ControlFlow<()>,
    ) -> Result<Output, ModelError> {
        batch.check(&self.info, &input)?;
        let Self { info, device, body, graphs } = self;
        let first = info.layers.start;
        let mut beat = |layers_done| match on_beat(Beat { layers_done }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ModelError::Stopped { layer: first + layers_done }),
        };
        let placed = body.ropes.place(device, batch, info)?;
        let bucket = bucket(device, info, batch, &placed);
        body.place(device, &placed)?;
        body.take(device, batch, input, bucket)?;
        beat(0)?;
        let Some(bucket) = bucket else {
            body.begin(device, &info.spec)?;
            let layers = body.layers.len();
            let last = (info.is_last() && batch.evidence_rows() < batch.rows()).then(|| layers - 1);
            for index in 0..last.unwrap_or(layers) {
                body.layer(device, &info.spec, index)?;
                beat(index + 1)?;
            }
            let Some(last) = last else { return body.end(device, &info.spec, batch) };
            let output = body.last_layer(device, &info.spec, batch, last)?;
            beat(layers)?;
            return Ok(output);
        };
        device.replay(graphs, bucket as u64, &mut || body.whole(device, &info.spec))?;
        let output = body.shown(batch.rows())?;
        beat(body.layers.len())?;
        Ok(output)
    }

    /// The same layer by layer, and shows the residual stream of all rows before the first layer and after each. For tests and
    /// audits: the numbers are the same, the additions between layers are made one by one.
    pub fn observe(
        &mut self,
        batch: &Batch<'_>,
        input: Input<'_>,
        seen: &mut dyn FnMut(usize, &Tensor),
    ) -> Result<Output, ModelError> {
        batch.check(&self.info, &input)?;
        let Self { info, device, body, .. } = self;
        let placed = body.ropes.place(device, batch, info)?;
        body.place(device, &placed)?;
        body.take(device, batch, input, None)?;
        body.begin(device, &info.spec)?;
        seen(0, &body.buffers.residual);
        for index in 0..body.layers.len() {
            body.layer(device, &info.spec, index)?;
            body.buffers.settle(device)?;
            seen(index + 1, &body.buffers.residual);
        }
        body.end(device, &info.spec, batch)
    }
}

impl Body {
    fn place(&mut self, device: &Device, placed: &[PlacedSpan<'_>]) -> Result<(), ModelError> {
        let spans: Vec<_> = placed.iter().map(PlacedSpan::as_attention).collect();
        Ok(device.place(&spans, &self.kv, self.ropes.tables(), &mut self.rows)?)
    }

    /// Takes in what the rows start from, padded to a bucket where there is one.
    fn take(
        &mut self,
        device: &Device,
        batch: &Batch<'_>,
        input: Input<'_>,
        bucket: Option<usize>,
    ) -> Result<(), ModelError> {
        let rows = bucket.unwrap_or_else(|| batch.rows());
        match input {
            Input::Hidden(bytes) => {
                self.buffers.residual.write_bytes(bytes)?;
                self.buffers.residual.set_rows(rows)?;
            }
            Input::Staged(staged) => {
                staged.write_to(&mut self.buffers.residual)?;
                self.buffers.residual.set_rows(rows)?;
            }
            Input::Tokens => {
                let ids: Vec<u32> = batch.spans.iter().flat_map(|span| span.token_ids).copied().collect();
                device.write_indices(&ids, rows, &mut self.ids)?;
            }
        }
        Ok(())
    }

    /// The residual stream before the first layer.
    fn begin(&mut self, device: &Device, spec: &DecoderSpec) -> Result<(), ModelError> {
        let Self { embedding, ids, buffers, .. } = self;
        buffers.pending = false;
        if let Some(embedding) = embedding {
            device.embed(ids, embedding, spec.embedding_scale, &mut buffers.residual)?;
        }
        Ok(())
    }

    fn layer(&mut self, device: &Device, spec: &DecoderSpec, index: usize) -> Result<(), ModelError> {
        let Self { layers, kv, ropes, buffers, rows, .. } = self;
        let Some(layer) = layers.get(index) else { return Ok(()) };
        layer.forward(&Work { device, spec, index, rows, tables: ropes.tables() }, kv, buffers)
    }

    /// The last layer and the head, where not all rows are evidence.
    fn last_layer(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        batch: &Batch<'_>,
        index: usize,
    ) -> Result<Output, ModelError> {
        let Self { layers, head, kv, ropes, buffers, rows, .. } = self;
        let (Some(head), Some(layer)) = (head, layers.get(index)) else {
            return Ok(Output::Logits { rows: 0 });
        };
        let work = Work { device, spec, index, rows, tables: ropes.tables() };
        let rows = head.last_layer(layer, &work, (kv, buffers), &evidence_indices(batch))?;
        Ok(Output::Logits { rows })
    }

    /// What the stage gives out, after all layers.
    fn end(&mut self, device: &Device, spec: &DecoderSpec, batch: &Batch<'_>) -> Result<Output, ModelError> {
        let Self { head, buffers, .. } = self;
        let rows = batch.rows();
        let Some(head) = head else {
            buffers.settle(device)?;
            return Ok(Output::Hidden { rows });
        };
        if batch.evidence_rows() == rows {
            head.all(device, spec, buffers)?;
            return Ok(Output::Logits { rows });
        }
        buffers.settle(device)?;
        let rows = head.some(device, spec, &buffers.residual, &evidence_indices(batch))?;
        Ok(Output::Logits { rows })
    }

    /// All of a step whose rows, if this is the last stage, are all evidence.
    fn whole(&mut self, device: &Device, spec: &DecoderSpec) -> Result<(), ModelError> {
        self.begin(device, spec)?;
        for index in 0..self.layers.len() {
            self.layer(device, spec, index)?;
        }
        match &mut self.head {
            None => self.buffers.settle(device),
            Some(head) => head.all(device, spec, &mut self.buffers),
        }
    }

    /// After a recorded step: only the first `rows` rows count.
    fn shown(&mut self, rows: usize) -> Result<Output, ModelError> {
        match &mut self.head {
            None => {
                self.buffers.residual.set_rows(rows)?;
                Ok(Output::Hidden { rows })
            }
            Some(head) => {
                head.logits.set_rows(rows)?;
                Ok(Output::Logits { rows })
            }
        }
    }
}

/// The numbers of rows for which a step is recorded.
pub(super) fn buckets(info: &StageInfo) -> Vec<usize> {
    let most = if info.is_last() { info.max_rows.min(info.evidence_rows) } else { info.max_rows };
    let mut buckets: Vec<usize> = BUCKETS.into_iter().map(|rows| rows.min(most)).collect();
    buckets.dedup();
    buckets
}

/// The rows of the recorded step that does this batch: on a card, where every row is of the decode kind and, on the last stage,
/// evidence. The CPU, whose steps take long, does layer after layer, so that each is heard of.
fn bucket(device: &Device, info: &StageInfo, batch: &Batch<'_>, placed: &[PlacedSpan<'_>]) -> Option<usize> {
    let rows = batch.rows();
    let all = !info.is_last() || batch.evidence_rows() == rows;
    let plain = batch.is_decode() && !placed.iter().any(PlacedSpan::crosses_tables);
    match device {
        Device::Cuda(_) if all && plain => buckets(info).into_iter().find(|bucket| *bucket >= rows),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
