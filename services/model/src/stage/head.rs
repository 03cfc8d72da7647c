//! The final norm and the head.

use asterism_tensor::{Device, Dtype, Indices, KvPool, Matrix, Tensor, Vector};

use super::{Batch, StageOptions};
use crate::ModelError;
use crate::layer::{Buffers, Layer, Work};
use crate::spec::DecoderSpec;

/// The last stage's end: from the residual stream to logits.
#[derive(Debug)]
pub(super) struct Head {
    norm: Vector,
    matrix: Matrix,
    /// The evidence rows among all rows.
    wanted: Indices,
    /// `[evidence rows, hidden]`: their residual.
    residual: Tensor,
    /// `[evidence rows, q width]`: what they attended in the last layer.
    attended: Tensor,
    /// `[evidence rows, hidden]`
    normed: Tensor,
    /// `[evidence rows, vocab]`, f32: raw, after the muP scale.
    pub logits: Tensor,
}

impl Head {
    pub fn new(
        device: &Device,
        spec: &DecoderSpec,
        options: &StageOptions,
        (norm, matrix): (Vector, Matrix),
    ) -> Result<Self, ModelError> {
        let rows = |cols| device.tensor(options.compute.dtype(), options.evidence_rows, cols);
        Ok(Self {
            norm,
            matrix,
            wanted: device.indices(options.evidence_rows)?,
            residual: rows(spec.hidden)?,
            attended: rows(spec.q_width())?,
            normed: rows(spec.hidden)?,
            logits: device.tensor(Dtype::F32, options.evidence_rows, spec.vocab)?,
        })
    }

    /// The last layer and the logits, where only some rows are evidence, if any: the others go no further than their keys and
    /// values. How many rows of logits there are.
    pub fn last_layer(
        &mut self,
        layer: &Layer,
        work: &Work<'_>,
        (kv, buffers): (&mut KvPool, &mut Buffers),
        wanted: &[u32],
    ) -> Result<usize, ModelError> {
        layer.store(work, kv, buffers)?;
        if wanted.is_empty() {
            self.logits.set_rows(0)?;
            return Ok(0);
        }
        layer.attend(work, kv, buffers)?;
        let device = work.device;
        device.write_indices(wanted, wanted.len(), &mut self.wanted)?;
        device.gather_rows(&buffers.residual, &self.wanted, &mut self.residual)?;
        device.gather_rows(&buffers.attended, &self.wanted, &mut self.attended)?;
        layer.project(work, &self.attended, &mut self.residual, &mut buffers.scratch)?;
        self.logits(device, work.spec, Some(&buffers.scratch.delta))?;
        Ok(wanted.len())
    }

    /// The same after all layers were done for all rows, with nothing pending.
    pub fn some(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        residual: &Tensor,
        wanted: &[u32],
    ) -> Result<usize, ModelError> {
        if wanted.is_empty() {
            self.logits.set_rows(0)?;
            return Ok(0);
        }
        device.write_indices(wanted, wanted.len(), &mut self.wanted)?;
        device.gather_rows(residual, &self.wanted, &mut self.residual)?;
        self.logits(device, spec, None)?;
        Ok(wanted.len())
    }

    /// Logits of every row, which is evidence.
    pub fn all(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        buffers: &mut Buffers,
    ) -> Result<(), ModelError> {
        let Buffers { residual, pending, scratch, .. } = buffers;
        let carried = std::mem::take(pending).then_some(&scratch.delta);
        device.add_rms_norm(residual, carried, &self.norm, spec.norm_epsilon, &mut self.normed)?;
        device.head(&self.normed, &self.matrix, spec.logit_scale, &mut self.logits)?;
        Ok(())
    }

    fn logits(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        delta: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        device.add_rms_norm(&mut self.residual, delta, &self.norm, spec.norm_epsilon, &mut self.normed)?;
        device.head(&self.normed, &self.matrix, spec.logit_scale, &mut self.logits)?;
        Ok(())
    }
}

/// Indices of the evidence rows among all rows.
pub(super) fn evidence_indices(batch: &Batch<'_>) -> Vec<u32> {
    let mut indices = Vec::with_capacity(batch.evidence_rows());
    let mut row = 0;
    for span in batch.spans {
        indices.extend(span.evidence.iter().map(|position| (row + position - span.first_position) as u32));
        row += span.token_ids.len();
    }
    indices
}
