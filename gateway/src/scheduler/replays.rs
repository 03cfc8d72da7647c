//! Sequences that were preempted, or that an epoch's end interrupted, until they are admitted again.

use std::collections::BTreeMap;

use super::SequenceId;
use super::admitted::Admitted;
use super::queue::Turn;

/// Bounded by those that can run at once.
#[derive(Debug, Default)]
pub(super) struct Replays {
    waiting: BTreeMap<Turn, Admitted>,
}

impl Replays {
    pub(super) fn len(&self) -> u32 {
        self.waiting.len() as u32
    }

    pub(super) fn contains(&self, sequence: SequenceId) -> bool {
        self.waiting.values().any(|admitted| admitted.id() == sequence)
    }

    pub(super) fn insert(&mut self, admitted: Admitted) {
        self.waiting.insert(admitted.turn, admitted);
    }

    /// Who goes next: suspects, as only an epoch's beginning gives them the pipeline alone, then by turn.
    pub(super) fn first(&self) -> Option<&Admitted> {
        let suspect = self.waiting.values().find(|admitted| admitted.is_suspect());
        suspect.or_else(|| self.waiting.values().next())
    }

    /// Takes that one out.
    pub(super) fn pop(&mut self) -> Option<Admitted> {
        let turn = self.first()?.turn;
        self.waiting.remove(&turn)
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, sequence: SequenceId) -> Option<Admitted> {
        let turn = self.waiting.values().find(|admitted| admitted.id() == sequence)?.turn;
        self.waiting.remove(&turn)
    }

    /// Takes all out.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Admitted> + use<> {
        std::mem::take(&mut self.waiting).into_values()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Admitted> {
        self.waiting.values()
    }
}
