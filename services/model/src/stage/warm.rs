//! What a card finds out and records while a stage is loaded, so that no step compiles, tunes or takes memory.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use asterism_tensor::{BLOCK_ROWS, Device, Dtype, Matrix};

use super::forward::buckets;
use super::{Batch, Input, Span, Stage};
use crate::ModelError;
use crate::layer::Layer;

impl Stage {
    /// Plans all multiplications.
    pub(super) fn plan(&self) -> Result<Duration, ModelError> {
        let began = Instant::now();
        let Self { info, device, body, .. } = self;
        let layers: Vec<&Matrix> = body.layers.iter().flat_map(Layer::matrices).collect();
        device.prepare_matmul(&layers, info.max_rows, info.compute.dtype())?;
        if let Some(head) = &body.head {
            device.prepare_matmul(&[head.matrix()], info.evidence_rows, Dtype::F32)?;
        }
        Ok(began.elapsed())
    }

    /// On a card: runs a short prompt, then records a step for each bucket. What they leave in the first KV block does not
    /// matter, since no sequence has begun.
    pub(super) fn record(&mut self) -> Result<Duration, ModelError> {
        let began = Instant::now();
        if matches!(self.device, Device::Cpu(_)) {
            return Ok(began.elapsed());
        }
        let rows = BLOCK_ROWS.min(self.info.max_rows).min(self.info.max_context);
        let last = [rows - 1];
        let prompt = vec![0; rows];
        self.trial(&[Span {
            first_position: 0,
            token_ids: &prompt,
            blocks: &[0],
            prompt_len: rows,
            evidence: &last,
        }])?;
        // All rows write the same to the same place.
        let drawn = Span { first_position: 0, token_ids: &[0], blocks: &[0], prompt_len: 0, evidence: &[0] };
        for rows in buckets(&self.info) {
            self.trial(&vec![drawn; rows])?;
        }
        self.device.synchronize()?;
        Ok(began.elapsed())
    }

    fn trial(&mut self, spans: &[Span<'_>]) -> Result<(), ModelError> {
        let batch = Batch { spans };
        let hidden = vec![0; batch.rows() * self.info.row_bytes()];
        let input = if self.info.is_first() { Input::Tokens } else { Input::Hidden(&hidden) };
        self.forward(&batch, input, &mut |_| ControlFlow::Continue(()))?;
        Ok(())
    }
}
