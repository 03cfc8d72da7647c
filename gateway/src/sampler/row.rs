//! A whole row of logits, fetched where evidence was not enough.

use asterism_proto::shard::v1;

use super::sampling::Sampling;

/// A row of logits after processors, and before them where logprobs are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// By id; −∞ where masked, finite somewhere.
    pub(super) processed: Vec<f32>,
    /// By id, finite.
    pub(super) raw: Option<Vec<f32>>,
}

/// Why a fetched row cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RowError {
    /// Not one f32 for each id.
    #[error("the {row} row has {bytes} bytes, not 4 for each of {vocab} ids")]
    Length {
        /// "processed" or "raw".
        row: &'static str,
        /// As sent.
        bytes: usize,
        /// Ids of the vocabulary.
        vocab: u32,
    },
    /// A logit that is not a number, or infinite where it may not be.
    #[error("id {id} of the {row} row has the logit {logit}")]
    NotFinite {
        /// "processed" or "raw".
        row: &'static str,
        /// The id.
        id: usize,
        /// Its logit.
        logit: f32,
    },
    /// All are masked.
    #[error("no id of the row is allowed")]
    NothingAllowed,
}

impl Row {
    /// Checks what a shard sent as a row of `vocab` logits whose token `sampling` draws.
    pub fn parse(wire: &v1::FetchLogitsResponse, sampling: &Sampling, vocab: u32) -> Result<Self, RowError> {
        let processed = numbers("processed", &wire.processed, vocab)?;
        check_logits("processed", &processed, |logit| logit.is_finite() || logit == f32::NEG_INFINITY)?;
        if processed.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            return Err(RowError::NothingAllowed);
        }
        let raw = match sampling.logprobs() {
            Some(_) => {
                let raw = numbers("raw", &wire.raw, vocab)?;
                check_logits("raw", &raw, f32::is_finite)?;
                Some(raw)
            }
            None => None,
        };
        Ok(Self { processed, raw })
    }
}

fn numbers(row: &'static str, bytes: &[u8], vocab: u32) -> Result<Vec<f32>, RowError> {
    let (logits, rest) = bytes.as_chunks::<4>();
    if logits.len() != vocab as usize || !rest.is_empty() {
        return Err(RowError::Length { row, bytes: bytes.len(), vocab });
    }
    Ok(logits.iter().map(|&logit| f32::from_le_bytes(logit)).collect())
}

fn check_logits(row: &'static str, logits: &[f32], is_fine: impl Fn(f32) -> bool) -> Result<(), RowError> {
    match logits.iter().position(|&logit| !is_fine(logit)) {
        Some(id) => Err(RowError::NotFinite { row, id, logit: logits[id] }),
        None => Ok(()),
    }
}

/// A row's ids and logits, best first, ties by lower id.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
}

impl Ranks {
    /// Sorts a row that holds no NaN.
    pub fn of(row: &[f32]) -> Self {
        let mut keys: Vec<u64> = row.iter().zip(0u32..).map(|(&logit, id)| key(logit, id)).collect();
        keys.sort_unstable();
        let ids: Vec<u32> = keys.into_iter().map(|key| key as u32).collect();
        let logits = ids.iter().map(|&id| row[id as usize]).collect();
        Self { ids, logits }
    }
}

/// Smaller is better: the logit's bits in descending order, then the id.
fn key(logit: f32, id: u32) -> u64 {
    // Both zeros are equal; adding +0 makes them one.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | u64::from(id)
}
