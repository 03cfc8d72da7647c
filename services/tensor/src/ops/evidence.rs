//! What is reported of rows of logits.

use crate::cpu::evidence::{self, Scratch};
use crate::cuda::evidence::CudaEvidence;
use crate::error::{check_below, check_eq, check_type};
use crate::{Device, Dtype, Tensor, TensorError};

/// The most best ids of a row.
const MOST_BEST: usize = 1024;

/// Logit processors, applied in the order of the fields, each a separate IEEE f32 operation.
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

/// A row whose evidence is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvidenceRequest<'a> {
    /// Its row of the logits.
    pub row: usize,
    /// The row of the slots that keeps it as it is.
    pub slot: usize,
    /// How it is processed.
    pub processors: Processors<'a>,
    /// How many best ids are wanted.
    pub top_k: usize,
    /// The temperature of the processed row's log-sum-exp, where one is wanted.
    pub temperature: Option<f64>,
    /// How many best raw logits are wanted beside the raw row's log-sum-exp, where these are.
    pub logprobs: Option<usize>,
}

/// What is reported of a row. "Raw" is before the processors, "processed" after them.
///
/// The best are the greatest, greatest first, of equals the lower id first, NaN last; all, if there are fewer than are
/// wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowEvidence {
    /// The first id whose raw logit is NaN or infinite. The rest is told all the same.
    pub non_finite: Option<u32>,
    /// The best ids of the processed row.
    pub ids: Vec<u32>,
    /// Their processed logits.
    pub processed: Vec<f32>,
    /// Their raw logits.
    pub raw: Vec<f32>,
    /// ln Σ exp(x / temperature) of the processed row: −∞ if all are −∞, NaN if one is NaN or +∞.
    pub processed_log_sum_exp: Option<f64>,
    /// ln Σ exp(x) of the raw row.
    pub raw_log_sum_exp: Option<f64>,
    /// The best ids of the raw row.
    pub raw_best_ids: Vec<u32>,
    /// Their raw logits.
    pub raw_best: Vec<f32>,
}

/// What [`EvidenceMemory`] has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceRoom {
    /// Rows of a call that are worked on at once; more take several passes.
    pub rows: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// The most best ids of a row, 1,024 at most.
    pub top_k: usize,
    /// The longest context of a row.
    pub ids: usize,
}

/// Memory that evidence is made in, taken once.
#[derive(Debug)]
pub struct EvidenceMemory {
    room: EvidenceRoom,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host(Scratch),
    Card(Box<CudaEvidence>),
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

    /// Whether no row is changed.
    pub fn is_plain(&self) -> bool {
        self.bias.is_empty() && self.allowed.is_empty() && !self.has_penalties()
    }
}

impl Device {
    /// Memory for evidence.
    pub fn evidence_memory(&self, room: EvidenceRoom) -> Result<EvidenceMemory, TensorError> {
        if room.top_k > MOST_BEST {
            let (op, what) = ("evidence", "the most best ids");
            return Err(TensorError::Setting { op, what, rule: "at most 1024" });
        }
        let place = match self {
            Device::Cpu(_) => Place::Host(Scratch::new(room.vocab)),
            Device::Cuda(cuda) => Place::Card(Box::new(cuda.evidence_memory(room)?)),
        };
        Ok(EvidenceMemory { room, place })
    }

    /// Keeps rows of logits in their slots and tells their evidence, in the order of the requests. Waits for the
    /// device.
    pub fn evidence(
        &self,
        logits: &Tensor,
        slots: &mut Tensor,
        requests: &[EvidenceRequest<'_>],
        memory: &mut EvidenceMemory,
    ) -> Result<Vec<RowEvidence>, TensorError> {
        let (op, room) = ("evidence", memory.room);
        check_rows(op, "the logits", logits, room.vocab)?;
        check_rows(op, "the slots", slots, room.vocab)?;
        for request in requests {
            check_below(op, "row", request.row, logits.rows())?;
            check_below(op, "slot", request.slot, slots.rows())?;
            check_below(op, "the best ids' number", request.top_k, room.top_k + 1)?;
            check_below(op, "the best raw logits' number", request.logprobs.unwrap_or(0), room.top_k + 1)?;
            if request.temperature.is_some_and(|temperature| !(temperature > 0.0 && temperature.is_finite()))
            {
                return Err(TensorError::Setting { op, what: "temperature", rule: "finite and above 0" });
            }
            check_processors(op, &request.processors, room)?;
        }
        match (self, &mut memory.place) {
            (Device::Cpu(cpu), Place::Host(scratch)) => {
                let (logits, slots) = (logits.elements::<f32>()?, slots.elements_mut::<f32>()?);
                let rows = requests.iter().map(|request| {
                    let raw = &logits[request.row * room.vocab..][..room.vocab];
                    slots[request.slot * room.vocab..][..room.vocab].copy_from_slice(raw);
                    evidence::evidence(cpu, raw, request, scratch)
                });
                Ok(rows.collect())
            }
            (Device::Cuda(cuda), Place::Card(memory)) => cuda.evidence(logits, slots, requests, memory),
            _ => Err(TensorError::OtherDevice),
        }
    }

    /// Row `row` of `rows` after the processors, as little-endian f32. Waits for the device.
    pub fn process_row(
        &self,
        rows: &Tensor,
        row: usize,
        processors: &Processors<'_>,
        memory: &mut EvidenceMemory,
    ) -> Result<Vec<u8>, TensorError> {
        let (op, room) = ("process_row", memory.room);
        check_rows(op, "the rows", rows, room.vocab)?;
        check_below(op, "row", row, rows.rows())?;
        check_processors(op, processors, room)?;
        match (self, &mut memory.place) {
            (Device::Cpu(cpu), Place::Host(scratch)) => {
                let raw = &rows.elements::<f32>()?[row * room.vocab..][..room.vocab];
                Ok(bytemuck::cast_slice(scratch.process(cpu, raw, processors)).to_vec())
            }
            (Device::Cuda(cuda), Place::Card(memory)) => cuda.process_row(rows, row, processors, memory),
            _ => Err(TensorError::OtherDevice),
        }
    }
}

fn check_rows(op: &'static str, what: &'static str, rows: &Tensor, vocab: usize) -> Result<(), TensorError> {
    check_type(op, what, rows.dtype(), Dtype::F32)?;
    check_eq(op, "the columns", rows.cols(), vocab)
}

fn check_processors(
    op: &'static str,
    processors: &Processors<'_>,
    room: EvidenceRoom,
) -> Result<(), TensorError> {
    check_below(op, "the biases' number", processors.bias.len(), room.vocab + 1)?;
    for &(id, _) in processors.bias {
        check_below(op, "biased id", id as usize, room.vocab)?;
    }
    if processors.has_penalties() {
        check_below(op, "the context's length", processors.ids.len(), room.ids + 1)?;
        for &id in processors.ids {
            check_below(op, "token id", id as usize, room.vocab)?;
        }
    }
    if !processors.allowed.is_empty() {
        check_eq(op, "the mask's bytes", processors.allowed.len(), room.vocab.div_ceil(8))?;
    }
    Ok(())
}
