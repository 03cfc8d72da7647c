//! What is done to rows of logits.

use crate::cpu::{evidence, process};
use crate::error::{check_below, check_eq, check_type};
use crate::{Device, Dtype, Tensor, TensorError};

/// One of a row's best ids.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token id.
    pub id: u32,
    /// Its logit in the row that was searched.
    pub logit: f32,
}

/// Logit processors, applied in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Processors<'a> {
    /// Added to the logits of these ids.
    pub bias: &'a [(u32, f32)],
    /// Of each distinct id of the context a negative logit is multiplied by it, another divided; 1: off.
    pub repetition: f32,
    /// Subtracted from each distinct id of the output; 0: off.
    pub presence: f32,
    /// Subtracted from each id of the output, times its number of occurrences; 0: off.
    pub frequency: f32,
    /// One bit an id, lowest first: ids whose bit is not set get −∞. Empty: all are allowed.
    pub allowed: &'a [u8],
    /// The context by position: prompt, then output. Only read where a penalty is on.
    pub ids: &'a [u32],
    /// How many of `ids` are the prompt.
    pub prompt_len: usize,
}

impl Processors<'_> {
    /// Processors that change nothing.
    pub const NONE: Processors<'static> = Processors {
        bias: &[],
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        allowed: &[],
        ids: &[],
        prompt_len: 0,
    };

    /// Whether the context matters.
    pub fn has_penalties(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }
}

/// One row of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The tensor, f32.
    pub tensor: &'a Tensor,
    /// The row.
    pub index: usize,
}

impl Device {
    /// Row `index` of `out` ← `row` after the processors.
    pub fn process(
        &self,
        row: Row<'_>,
        processors: &Processors<'_>,
        out: &mut Tensor,
        index: usize,
    ) -> Result<(), TensorError> {
        let op = "process";
        let raw = row.values(op)?;
        for &(id, _) in processors.bias {
            check_below(op, "biased id", id as usize, raw.len())?;
        }
        if processors.has_penalties() {
            for &id in processors.ids {
                check_below(op, "token id", id as usize, raw.len())?;
            }
        }
        if !processors.allowed.is_empty() {
            check_eq(op, "the mask's bytes", processors.allowed.len(), raw.len().div_ceil(8))?;
        }
        let out = row_mut(op, out, index, raw.len())?;
        let Device::Cpu(cpu) = self else { return Err(TensorError::OtherDevice) };
        process::process(cpu, raw, processors, out);
        Ok(())
    }

    /// Row `index` of `out` ← `row`.
    pub fn copy_row(&self, row: Row<'_>, out: &mut Tensor, index: usize) -> Result<(), TensorError> {
        let op = "copy_row";
        let raw = row.values(op)?;
        row_mut(op, out, index, raw.len())?.copy_from_slice(raw);
        Ok(())
    }

    /// The `k` greatest of `row` into `best`, greatest first, of equals the lower id first, NaN last; all, if
    /// there are fewer.
    pub fn top_k(&self, row: Row<'_>, k: usize, best: &mut Vec<Candidate>) -> Result<(), TensorError> {
        let row = row.values("top_k")?;
        let Device::Cpu(cpu) = self else { return Err(TensorError::OtherDevice) };
        evidence::top_k(cpu, row, k, best);
        Ok(())
    }

    /// The logits of `ids` in `row` into `logits`, in the order of the ids.
    pub fn pick(&self, row: Row<'_>, ids: &[u32], logits: &mut Vec<f32>) -> Result<(), TensorError> {
        let op = "pick";
        let row = row.values(op)?;
        for &id in ids {
            check_below(op, "token id", id as usize, row.len())?;
        }
        logits.clear();
        logits.extend(ids.iter().map(|&id| row[id as usize]));
        Ok(())
    }

    /// ln Σ exp(x / temperature) of `row`, in f64. −∞ if all are −∞, NaN if one is NaN or +∞.
    pub fn log_sum_exp(&self, row: Row<'_>, temperature: f64) -> Result<f64, TensorError> {
        let op = "log_sum_exp";
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(TensorError::Setting { op, what: "temperature", rule: "finite and above 0" });
        }
        let row = row.values(op)?;
        let Device::Cpu(cpu) = self else { return Err(TensorError::OtherDevice) };
        Ok(evidence::log_sum_exp(cpu, row, temperature))
    }

    /// The first id of `row` whose logit is NaN or infinite.
    pub fn first_non_finite(&self, row: Row<'_>) -> Result<Option<u32>, TensorError> {
        let row = row.values("first_non_finite")?;
        let Device::Cpu(cpu) = self else { return Err(TensorError::OtherDevice) };
        Ok(evidence::first_non_finite(cpu, row).map(|id| id as u32))
    }
}

impl<'a> Row<'a> {
    fn values(self, op: &'static str) -> Result<&'a [f32], TensorError> {
        check_type(op, "the row", self.tensor.dtype(), Dtype::F32)?;
        check_below(op, "row", self.index, self.tensor.rows())?;
        let cols = self.tensor.cols();
        Ok(&self.tensor.elements()?[self.index * cols..][..cols])
    }
}

fn row_mut<'a>(
    op: &'static str,
    out: &'a mut Tensor,
    index: usize,
    cols: usize,
) -> Result<&'a mut [f32], TensorError> {
    check_type(op, "the output", out.dtype(), Dtype::F32)?;
    check_eq(op, "the output's columns", out.cols(), cols)?;
    check_below(op, "output row", index, out.rows())?;
    Ok(&mut out.elements_mut()?[index * cols..][..cols])
}
