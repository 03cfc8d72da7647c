//! What the last stage reports of a row, and the raw rows that it keeps.

use asterism_proto::shard::v1::Evidence;
use asterism_tensor::{Candidate, Device, Dtype, Row, Tensor, TensorError};
use bytes::Bytes;

use crate::setting::Setting;

/// Memory of the last stage for rows of logits.
#[derive(Debug)]
pub struct LogitsRows {
    /// `[slots, vocab]`: raw rows that are kept.
    slots: Tensor,
    /// `[1, vocab]`: the row at work, processed.
    processed: Tensor,
    best: Vec<Candidate>,
    logits: Vec<f32>,
}

/// A row whose evidence is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// Its position.
    pub position: usize,
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
    /// Memory for `slots` kept rows.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(device: &Device, vocab: usize, slots: usize) -> Result<Self, TensorError> {
        let rows = |count| -> Result<Tensor, TensorError> {
            let mut tensor = device.tensor(Dtype::F32, count, vocab)?;
            tensor.set_rows(count)?;
            Ok(tensor)
        };
        Ok(Self { slots: rows(slots)?, processed: rows(1)?, best: Vec::new(), logits: Vec::new() })
    }

    /// Keeps a raw row in `slot`.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn keep(&mut self, device: &Device, raw: Row<'_>, slot: usize) -> Result<(), TensorError> {
        device.copy_row(raw, &mut self.slots, slot)
    }

    /// The evidence of a raw row. A row that cannot be used is an error within its evidence.
    ///
    /// # Errors
    /// The device refused an operation.
    pub fn evidence(
        &mut self,
        device: &Device,
        raw: Row<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Evidence, TensorError> {
        let mut evidence = Evidence {
            sequence: wanted.sequence,
            position: u32::try_from(wanted.position).unwrap_or(u32::MAX),
            ..Evidence::default()
        };
        let unusable = |evidence: Evidence, error: String| Ok(Evidence { error: Some(error), ..evidence });
        if let Some(id) = device.first_non_finite(raw)? {
            return unusable(evidence, format!("the logit of token id {id} is not finite"));
        }
        let setting = wanted.context.setting;
        let processed = if setting.is_plain() {
            raw
        } else {
            self.process(device, raw, wanted.context)?;
            Row { tensor: &self.processed, index: 0 }
        };
        device.top_k(processed, wanted.top_k, &mut self.best)?;
        match self.best.first() {
            Some(best) if best.logit.is_finite() => {}
            Some(best) if best.logit == f32::NEG_INFINITY => {
                return unusable(evidence, "no token id is allowed".to_owned());
            }
            _ => return unusable(evidence, "the processors' result is not finite".to_owned()),
        }
        let ids: Vec<u32> = self.best.iter().map(|best| best.id).collect();
        if let Some(temperature) = setting.temperature {
            let sum = device.log_sum_exp(processed, temperature)?;
            if !sum.is_finite() {
                return unusable(evidence, format!("the log-sum-exp of the processed row is {sum}"));
            }
            evidence.processed_log_sum_exp = Some(sum);
        }
        evidence.processed = self.best.iter().map(|best| best.logit).collect();
        device.pick(raw, &ids, &mut self.logits)?;
        evidence.raw.clone_from(&self.logits);
        evidence.ids = ids;
        if let Some(logprobs) = setting.logprobs {
            evidence.raw_log_sum_exp = Some(device.log_sum_exp(raw, 1.0)?);
            device.top_k(raw, logprobs, &mut self.best)?;
            evidence.raw_best_ids = self.best.iter().map(|best| best.id).collect();
            evidence.raw_best = self.best.iter().map(|best| best.logit).collect();
        }
        Ok(evidence)
    }

    /// The kept row in `slot`, processed anew, and raw too if asked for.
    ///
    /// # Errors
    /// The device refused an operation.
    pub fn fetch(
        &mut self,
        device: &Device,
        slot: usize,
        context: Option<Context<'_>>,
    ) -> Result<Bytes, TensorError> {
        let raw = Row { tensor: &self.slots, index: slot };
        match context {
            Some(Context { setting, ids, prompt_len }) => {
                device.process(raw, &setting.processors(ids, prompt_len), &mut self.processed, 0)?;
            }
            None => device.copy_row(raw, &mut self.processed, 0)?,
        }
        let mut bytes = Vec::with_capacity(self.processed.row_bytes());
        self.processed.read_bytes(&mut bytes)?;
        Ok(bytes.into())
    }

    fn process(&mut self, device: &Device, raw: Row<'_>, context: Context<'_>) -> Result<(), TensorError> {
        let Context { setting, ids, prompt_len } = context;
        device.process(raw, &setting.processors(ids, prompt_len), &mut self.processed, 0)
    }
}

#[cfg(test)]
mod tests;
