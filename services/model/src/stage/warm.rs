//! What a card finds out and records while a stage is loaded, so that no step compiles, tunes or takes memory.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use asterism_tensor::{BLOCK_ROWS, Device, Dtype, Matrix};

use super::forward::buckets;
use super::load::Weights;
use super::{Batch, Input, Span, Stage, StageOptions};
use crate::ModelError;
use crate::layer::Layer;

/// One stage of a process at a time finds out and records: times taken beside each other's work would be wrong, and a library
/// that loads its code beside a recording may fail.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plans all multiplications by these weights. That needs memory for a while, so it comes before the rest is taken.
pub(super) fn plan(device: &Device, weights: &Weights, options: &StageOptions) -> Result<(), ModelError> {
    if matches!(device, Device::Cpu(_)) {
        return Ok(());
    }
    let _alone = alone();
    let layers: Vec<&Matrix> = weights.layers.iter().flat_map(Layer::matrices).collect();
    device.prepare_matmul(&layers, options.max_rows, options.compute.dtype())?;
    if let Some((_, head)) = &weights.head {
        device.prepare_matmul(&[head], options.evidence_rows, Dtype::F32)?;
    }
    Ok(())
}

impl Stage {
    /// On a card: runs a short prompt, then records a step for each bucket. What they leave in the first KV block does not
    /// matter, since no sequence has begun.
    pub(super) fn record(&mut self) -> Result<Duration, ModelError> {
        let began = Instant::now();
        if matches!(self.device, Device::Cpu(_)) {
            return Ok(began.elapsed());
        }
        let _alone = alone();
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
