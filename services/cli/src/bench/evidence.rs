//! What the last stage reports of a step's rows, as a shard makes it.

use asterism_model::{ModelError, Stage};
use asterism_tensor::{
    Device, Dtype, EvidenceMemory, EvidenceRequest, EvidenceRoom, RowEvidence, Tensor, TensorError,
};

/// Memory for evidence.
#[derive(Debug)]
pub struct Evidence {
    slots: Tensor,
    memory: EvidenceMemory,
}

impl Evidence {
    /// For steps of so many rows.
    pub fn new(device: &Device, room: EvidenceRoom) -> Result<Self, TensorError> {
        let mut slots = device.tensor(Dtype::F32, room.rows, room.vocab)?;
        slots.set_rows(room.rows)?;
        Ok(Self { slots, memory: device.evidence_memory(room)? })
    }

    /// The evidence of the latest step of `stage`. Waits for the device.
    pub fn of(
        &mut self,
        stage: &Stage,
        requests: &[EvidenceRequest<'_>],
    ) -> Result<Vec<RowEvidence>, ModelError> {
        let Some(logits) = stage.logits() else { return Ok(Vec::new()) };
        Ok(stage.device().evidence(logits, &mut self.slots, requests, &mut self.memory)?)
    }
}
