//! What the last stage reports of a row, and the raw rows that it keeps.

use asterism_proto::list::pack;
use asterism_proto::shard::v1::Evidence;
use asterism_tensor::{
    Device, Dtype, EvidenceMemory, EvidenceRequest, EvidenceRoom, Processors, RowEvidence, Tensor,
    TensorError,
};
use bytes::Bytes;

use crate::setting::Setting;

/// Memory of the last stage for rows of logits.
#[derive(Debug)]
pub struct LogitsRows {
    /// `[slots, vocab]`: raw rows that are kept.
    slots: Tensor,
    memory: EvidenceMemory,
}

/// A row whose evidence is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// Its position.
    pub position: usize,
    /// Its row of the logits.
    pub row: usize,
    /// The slot that keeps it.
    pub slot: usize,
    /// How many best ids to report.
    pub top_k: usize,
    /// How it is processed.
    pub context: Context<'a>,
}

/// What a row is processed with.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The processors.
    pub setting: &'a Setting,
    /// The ids of positions 0 to the row's own; only read where penalties are on.
    pub ids: &'a [u32],
    /// How many of them are the prompt.
    pub prompt_len: usize,
}

/// A whole row, as bytes of little-endian f32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeRow {
    /// After the processors.
    pub processed: Bytes,
    /// Before them; empty unless asked for.
    pub raw: Bytes,
}

impl LogitsRows {
    /// Memory for `slots` kept rows, and for the evidence of a step.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(device: &Device, room: EvidenceRoom, slots: usize) -> Result<Self, TensorError> {
        let mut kept = device.tensor(Dtype::F32, slots, room.vocab)?;
        kept.set_rows(slots)?;
        Ok(Self { slots: kept, memory: device.evidence_memory(room)? })
    }

    /// Keeps the wanted rows as they are and makes their evidence, in their order. A row that cannot be used is an error
    /// within its evidence.
    ///
    /// # Errors
    /// The device refused the operation.
    pub fn evidence(
        &mut self,
        device: &Device,
        logits: &Tensor,
        wanted: &[Wanted<'_>],
    ) -> Result<Vec<Evidence>, TensorError> {
        let requests: Vec<EvidenceRequest<'_>> = wanted.iter().map(Wanted::request).collect();
        let rows = device.evidence(logits, &mut self.slots, &requests, &mut self.memory)?;
        Ok(wanted.iter().zip(&rows).map(|(wanted, row)| wanted.evidence(row)).collect())
    }

    /// The kept row in `slot`, processed anew, or as it is where there is no context.
    ///
    /// # Errors
    /// The device refused the operation.
    pub fn fetch(
        &mut self,
        device: &Device,
        slot: usize,
        context: Option<Context<'_>>,
    ) -> Result<Bytes, TensorError> {
        let processors = context.map_or(Processors::NONE, |context| context.processors());
        device.process_row(&self.slots, slot, &processors, &mut self.memory).map(Bytes::from)
    }
}

impl<'a> Context<'a> {
    fn processors(&self) -> Processors<'a> {
        self.setting.processors(self.ids, self.prompt_len)
    }
}

impl<'a> Wanted<'a> {
    fn request(&self) -> EvidenceRequest<'a> {
        EvidenceRequest {
            row: self.row,
            slot: self.slot,
            processors: self.context.processors(),
            top_k: self.top_k,
            temperature: self.context.setting.temperature,
            logprobs: self.context.setting.logprobs,
        }
    }

    /// What the row tells, or why it cannot be used.
    fn evidence(&self, row: &RowEvidence) -> Evidence {
        let of_row = Evidence {
            sequence: self.sequence,
            position: u32::try_from(self.position).unwrap_or(u32::MAX),
            ..Evidence::default()
        };
        if let Some(error) = unusable(row) {
            return Evidence { error: Some(error), ..of_row };
        }
        Evidence {
            ids: pack(&row.ids),
            processed: pack(&row.processed),
            raw: pack(&row.raw),
            processed_log_sum_exp: row.processed_log_sum_exp,
            raw_log_sum_exp: row.raw_log_sum_exp,
            raw_best_ids: pack(&row.raw_best_ids),
            raw_best: pack(&row.raw_best),
            ..of_row
        }
    }
}

/// Why no token can be drawn from a row.
fn unusable(row: &RowEvidence) -> Option<String> {
    if let Some(id) = row.non_finite {
        return Some(format!("the logit of token id {id} is not finite"));
    }
    match row.processed.first() {
        Some(best) if best.is_finite() => {}
        Some(&f32::NEG_INFINITY) => return Some("no token id is allowed".to_owned()),
        _ => return Some("the processors' result is not finite".to_owned()),
    }
    let sum = row.processed_log_sum_exp.filter(|sum| !sum.is_finite())?;
    Some(format!("the log-sum-exp of the processed row is {sum}"))
}

#[cfg(test)]
mod tests;
