//! The final norm and the head.

use asterism_tensor::{Device, Dtype, Indices, Matrix, Tensor, Vector};

use super::{Batch, StageOptions};
use crate::ModelError;
use crate::layer::Buffers;
use crate::spec::DecoderSpec;

/// The last stage's end: from the residual stream to logits.
#[derive(Debug)]
pub(super) struct Head {
    norm: Vector,
    matrix: Matrix,
    /// The evidence rows among all rows.
    wanted: Indices,
    /// `[evidence rows, hidden]`: their residual.
    rows: Tensor,
    /// `[evidence rows, hidden]`: what is still to be added to it.
    delta: Tensor,
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
        let rows = || device.tensor(options.compute.dtype(), options.evidence_rows, spec.hidden);
        Ok(Self {
            norm,
            matrix,
            wanted: device.indices(options.evidence_rows)?,
            rows: rows()?,
            delta: rows()?,
            normed: rows()?,
            logits: device.tensor(Dtype::F32, options.evidence_rows, spec.vocab)?,
        })
    }

    /// Logits of the batch's evidence rows; how many those are.
    pub fn some(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        batch: &Batch<'_>,
        buffers: &mut Buffers,
    ) -> Result<usize, ModelError> {
        let wanted = evidence_indices(batch);
        if wanted.is_empty() {
            self.logits.set_rows(0)?;
            return Ok(0);
        }
        device.write_indices(&wanted, wanted.len(), &mut self.wanted)?;
        device.gather_rows(&buffers.residual, &self.wanted, &mut self.rows)?;
        let mut delta = None;
        if buffers.pending {
            device.gather_rows(&buffers.delta, &self.wanted, &mut self.delta)?;
            delta = Some(&self.delta);
        }
        device.add_rms_norm(&mut self.rows, delta, &self.norm, spec.norm_epsilon, &mut self.normed)?;
        device.head(&self.normed, &self.matrix, spec.logit_scale, &mut self.logits)?;
        Ok(wanted.len())
    }

    /// Logits of every row, which is evidence.
    pub fn all(
        &mut self,
        device: &Device,
        spec: &DecoderSpec,
        buffers: &mut Buffers,
    ) -> Result<(), ModelError> {
        let Buffers { residual, delta, pending, .. } = buffers;
        let carried = std::mem::take(pending).then_some(&*delta);
        device.add_rms_norm(residual, carried, &self.norm, spec.norm_epsilon, &mut self.normed)?;
        device.head(&self.normed, &self.matrix, spec.logit_scale, &mut self.logits)?;
        Ok(())
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
