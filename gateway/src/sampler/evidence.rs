//! What the last stage reports of a row, checked once at the edge.

use std::collections::HashSet;

use asterism_proto::list::{NotWhole, Number, unpack};
use asterism_proto::shard::v1;
use foldhash::fast::RandomState;

use super::sampling::Sampling;

/// The best of a row of logits, and what a draw and logprobs need of the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Of the row; the token drawn from it takes the next.
    pub(super) position: u32,
    /// The K best after processors, best first, ties by lower id.
    pub(super) ids: Vec<u32>,
    /// Their logits after processors; −∞ where masked, but never the first.
    pub(super) processed: Vec<f32>,
    /// Their logits before processors.
    pub(super) raw: Vec<f32>,
    /// ln Σ exp(processed / temperature) over the row.
    pub(super) processed_log_sum_exp: Option<f64>,
    /// ln Σ exp(raw) over the row.
    pub(super) raw_log_sum_exp: Option<f64>,
    /// The best (id, logit) before processors, best first.
    pub(super) raw_best: Vec<(u32, f32)>,
}

/// Why evidence cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvidenceError {
    /// The shard says so: a non-finite logit, or no id that the mask allows.
    #[error("the row at position {position} is unusable: {message}")]
    Unusable {
        /// Of the row.
        position: u32,
        /// The shard's words.
        message: String,
    },
    /// A list that is none.
    #[error("the {list} of the evidence: {why}")]
    List {
        /// Which.
        list: &'static str,
        /// What is wrong with its bytes.
        why: NotWhole,
    },
    /// Lists that belong together differ in length.
    #[error("evidence has {ids} ids, but {logits} {list} logits")]
    Lengths {
        /// Ids in the list.
        ids: usize,
        /// "processed", "raw" or "best raw".
        list: &'static str,
        /// Logits in the list.
        logits: usize,
    },
    /// Fewer or more entries than asked for.
    #[error("evidence has {found} {list} candidates, not {expected}")]
    Count {
        /// "processed" or "raw".
        list: &'static str,
        /// As sent.
        found: usize,
        /// As asked for.
        expected: &'static str,
    },
    /// An id that the vocabulary lacks.
    #[error("evidence names id {id}, beyond a vocabulary of {vocab}")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Ids of the vocabulary.
        vocab: u32,
    },
    /// A number that is not one.
    #[error("{what} of the evidence is {value}")]
    NotFinite {
        /// The number.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A list is not in descending order with ties by lower id.
    #[error("the {list} candidates of the evidence are out of order at rank {rank}")]
    OutOfOrder {
        /// "processed" or "raw".
        list: &'static str,
        /// 0-based.
        rank: usize,
    },
    /// An id stands twice among the candidates.
    #[error("evidence names id {id} twice")]
    Twice {
        /// The id.
        id: u32,
    },
    /// What the sampling needs is not there.
    #[error("evidence lacks {what}")]
    Missing {
        /// The field.
        what: &'static str,
    },
}

/// So many ids are few.
const FEW: usize = 16;

impl Evidence {
    /// Checks what a shard sent for a row of `vocab` logits whose token `sampling` draws.
    pub fn parse(wire: v1::Evidence, sampling: &Sampling, vocab: u32) -> Result<Self, EvidenceError> {
        if let Some(message) = wire.error {
            return Err(EvidenceError::Unusable { position: wire.position, message });
        }
        let (ids, raw_best_ids) = (list("ids", &wire.ids)?, list("best raw ids", &wire.raw_best_ids)?);
        let (processed, raw) = (list("processed", &wire.processed)?, list("raw", &wire.raw)?);
        let raw_best: Vec<f32> = list("best raw", &wire.raw_best)?;
        check_lengths(ids.len(), "processed", processed.len())?;
        check_lengths(ids.len(), "raw", raw.len())?;
        check_lengths(raw_best_ids.len(), "best raw", raw_best.len())?;
        if ids.is_empty() {
            return Err(EvidenceError::Count { list: "processed", found: 0, expected: "at least one" });
        }
        check_ids(&ids, vocab)?;
        check_ids(&raw_best_ids, vocab)?;
        check_logits("a processed logit", processed.iter().filter(|&&x| x != f32::NEG_INFINITY))?;
        check_logits("the best processed logit", processed.iter().take(1))?;
        check_logits("a raw logit", raw.iter().chain(&raw_best))?;
        check_order("processed", &ids, &processed)?;
        check_order("raw", &raw_best_ids, &raw_best)?;
        for (what, value) in [
            ("the processed log-sum-exp", wire.processed_log_sum_exp),
            ("the raw log-sum-exp", wire.raw_log_sum_exp),
        ] {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return Err(EvidenceError::NotFinite { what, value });
            }
        }
        if sampling.needs_log_sum_exp() && wire.processed_log_sum_exp.is_none() {
            return Err(EvidenceError::Missing { what: "the processed log-sum-exp" });
        }
        if let Some(logprobs) = sampling.logprobs() {
            if wire.raw_log_sum_exp.is_none() {
                return Err(EvidenceError::Missing { what: "the raw log-sum-exp" });
            }
            if raw_best.len() < logprobs as usize {
                let expected = "as many as logprobs";
                return Err(EvidenceError::Count { list: "raw", found: raw_best.len(), expected });
            }
        }
        Ok(Self {
            position: wire.position,
            ids,
            processed,
            raw,
            processed_log_sum_exp: wire.processed_log_sum_exp,
            raw_log_sum_exp: wire.raw_log_sum_exp,
            raw_best: raw_best_ids.into_iter().zip(raw_best).collect(),
        })
    }

    /// The position of the row; the token drawn from it takes the next.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// The logit before processors of one of the K best.
    pub(super) fn raw_of(&self, id: u32) -> Option<f32> {
        let rank = self.ids.iter().position(|&known| known == id)?;
        self.raw.get(rank).copied()
    }
}

fn list<N: Number>(list: &'static str, bytes: &[u8]) -> Result<Vec<N>, EvidenceError> {
    unpack(bytes).map_err(|why| EvidenceError::List { list, why })
}

fn check_lengths(ids: usize, list: &'static str, logits: usize) -> Result<(), EvidenceError> {
    if ids == logits { Ok(()) } else { Err(EvidenceError::Lengths { ids, list, logits }) }
}

/// All are of the vocabulary, none stands twice.
fn check_ids(ids: &[u32], vocab: u32) -> Result<(), EvidenceError> {
    if let Some(&id) = ids.iter().find(|&&id| id >= vocab) {
        return Err(EvidenceError::IdOutOfRange { id, vocab });
    }
    // The usual few are looked through faster than a table of them is made, while a card waits.
    let twice = if ids.len() <= FEW {
        ids.iter().enumerate().find(|(index, id)| ids[..*index].contains(id)).map(|(_, id)| id)
    } else {
        let mut seen = HashSet::with_capacity_and_hasher(ids.len(), RandomState::default());
        ids.iter().find(|&&id| !seen.insert(id))
    };
    match twice {
        Some(&id) => Err(EvidenceError::Twice { id }),
        None => Ok(()),
    }
}

fn check_logits<'a>(
    what: &'static str,
    mut logits: impl Iterator<Item = &'a f32>,
) -> Result<(), EvidenceError> {
    match logits.find(|logit| !logit.is_finite()) {
        Some(&logit) => Err(EvidenceError::NotFinite { what, value: logit.into() }),
        None => Ok(()),
    }
}

fn check_order(list: &'static str, ids: &[u32], logits: &[f32]) -> Result<(), EvidenceError> {
    let in_order = |rank: usize| {
        let (better, worse) = (logits[rank - 1], logits[rank]);
        better > worse || (better == worse && ids[rank - 1] < ids[rank])
    };
    match (1..logits.len()).find(|&rank| !in_order(rank)) {
        Some(rank) => Err(EvidenceError::OutOfOrder { list, rank }),
        None => Ok(()),
    }
}
