//! Who waits for admission: the highest priority first, then the first to come.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::limits::tokens;
use super::{NewSequence, QueueLimits, Refusal, SequenceId};

/// A place in the order of admission.
pub(super) type Turn = (Reverse<i32>, u64);

#[derive(Debug)]
pub(super) struct Queue {
    limits: QueueLimits,
    waiting: BTreeMap<Turn, NewSequence>,
    turns: BTreeMap<SequenceId, Turn>,
    tokens: u64,
    arrivals: u64,
}

impl Queue {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self { limits, waiting: BTreeMap::new(), turns: BTreeMap::new(), tokens: 0, arrivals: 0 }
    }

    /// Sequences that wait.
    pub(super) fn len(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Their prompts and answers.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn push(&mut self, sequence: NewSequence) -> Result<(), Refusal> {
        if self.turns.contains_key(&sequence.id) {
            return Err(Refusal::Duplicate { sequence: sequence.id });
        }
        if self.len() >= self.limits.requests {
            return Err(Refusal::QueueFull { waiting: self.len() });
        }
        let (waiting, tokens, limit) = (self.tokens, tokens(&sequence), self.limits.tokens);
        if waiting > 0 && waiting.saturating_add(tokens) > limit {
            return Err(Refusal::QueueTokens { waiting, tokens, limit });
        }
        let turn = (Reverse(sequence.priority), self.arrivals);
        self.arrivals += 1;
        self.tokens += tokens;
        self.turns.insert(sequence.id, turn);
        self.waiting.insert(turn, sequence);
        Ok(())
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<&NewSequence> {
        self.waiting.first_key_value().map(|(_, sequence)| sequence)
    }

    /// Takes the first out.
    pub(super) fn pop(&mut self) -> Option<(Turn, NewSequence)> {
        let (turn, sequence) = self.waiting.pop_first()?;
        self.turns.remove(&sequence.id);
        self.tokens -= tokens(&sequence);
        Some((turn, sequence))
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some(turn) = self.turns.remove(&sequence) else { return false };
        if let Some(sequence) = self.waiting.remove(&turn) {
            self.tokens -= tokens(&sequence);
        }
        true
    }

    /// Takes out, and returns, all that do not pass a check.
    pub(super) fn retain(
        &mut self,
        check: impl Fn(&NewSequence) -> Result<(), Refusal>,
    ) -> Vec<(SequenceId, Refusal)> {
        let refused: Vec<_> = self
            .waiting
            .values()
            .filter_map(|sequence| Some((sequence.id, check(sequence).err()?)))
            .collect();
        for (sequence, _) in &refused {
            self.remove(*sequence);
        }
        refused
    }
}
