//! One tenant's waiting sequences, in the order of their admission.
//!
//! They stand by rank: the time of arrival, put forward by [`LEVEL`] for each level of priority. As time passes for all alike,
//! that order never changes, and nothing that comes more than that much later goes before: low priority waits longer, but
//! not for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::NewSequence;
use super::super::limits::tokens;

/// How much earlier a sequence counts as having come for each level of its priority.
const LEVEL: Duration = Duration::from_secs(10);

/// A place in the order of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::scheduler) struct Turn {
    /// In microseconds.
    rank: i128,
    arrival: u64,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeMap<Turn, NewSequence>,
    tokens: u64,
}

impl Turn {
    /// Of the `arrival`-th sequence of all.
    pub(super) fn new(sequence: &NewSequence, arrival: u64) -> Self {
        // Any two of these numbers are far from the type's limits.
        let micros = |time: Duration| i128::try_from(time.as_micros()).unwrap_or(i128::MAX >> 1);
        let forward = i128::from(sequence.priority) * micros(LEVEL);
        Self { rank: micros(sequence.arrived) - forward, arrival }
    }
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sequences.
    pub(super) fn len(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Their prompts and answers.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn sequences(&self) -> impl Iterator<Item = &NewSequence> {
        self.waiting.values()
    }

    pub(super) fn first(&self) -> Option<(Turn, &NewSequence)> {
        self.waiting.first_key_value().map(|(turn, sequence)| (*turn, sequence))
    }

    pub(super) fn insert(&mut self, turn: Turn, sequence: NewSequence) {
        self.tokens += tokens(&sequence);
        self.waiting.insert(turn, sequence);
    }

    pub(super) fn remove(&mut self, turn: Turn) -> Option<NewSequence> {
        let sequence = self.waiting.remove(&turn)?;
        self.tokens -= tokens(&sequence);
        Some(sequence)
    }
}
