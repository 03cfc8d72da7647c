//! A sequence that was admitted, with the tokens that it has gained: all that a replay needs.

use super::queue::Turn;
use super::{NewSequence, SequenceId, StepId};
use crate::speculation::Speculator;

/// Epoch ends under a sequence's rows, with no token gained between, after which it is replayed alone, and after which it is
/// given up.
pub(super) const SUSPECT: u32 = 2;
const GIVEN_UP: u32 = 3;

#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) sequence: NewSequence,
    /// Its place among those that were admitted: the greatest is preempted first and replayed last.
    pub(super) turn: Turn,
    /// The tokens of its answer so far, given ones first.
    pub(super) drawn: Vec<u32>,
    /// The latest step of this epoch with rows of it; 0: none.
    pub(super) last_step: StepId,
    /// Proposes what may follow.
    pub(super) speculator: Speculator,
    /// Epochs that ended under its rows since it last gained a token.
    strikes: u32,
}

impl Admitted {
    pub(super) fn new(turn: Turn, mut sequence: NewSequence) -> Self {
        let drawn = std::mem::take(&mut sequence.given);
        Self { sequence, turn, drawn, last_step: 0, speculator: Speculator::default(), strikes: 0 }
    }

    pub(super) fn id(&self) -> SequenceId {
        self.sequence.id
    }

    pub(super) fn prompt_len(&self) -> u32 {
        self.sequence.prompt.len() as u32
    }

    /// Tokens of prompt and answer so far: positions 0 .. `len` are known.
    pub(super) fn len(&self) -> u32 {
        self.prompt_len() + self.drawn.len() as u32
    }

    /// The ids of known positions.
    pub(super) fn token_ids(&self, positions: std::ops::Range<u32>) -> Vec<u32> {
        let all = self.sequence.prompt.iter().chain(&self.drawn);
        all.skip(positions.start as usize).take(positions.len()).copied().collect()
    }

    /// Blocks for all known positions, and one more if its answer may need that.
    pub(super) fn room(&self) -> u32 {
        self.sequence.room(self.len())
    }

    /// Takes in the next token of its answer; whether more are wanted.
    pub(super) fn gain(&mut self, token: u32) -> bool {
        self.drawn.push(token);
        self.strikes = 0;
        (self.drawn.len() as u64) < u64::from(self.sequence.max_tokens)
    }

    /// Whether its next token is not the last that is wanted.
    pub(super) fn wants_more_than_one(&self) -> bool {
        self.drawn.len() as u64 + 1 < u64::from(self.sequence.max_tokens)
    }

    /// An epoch ended under its rows. False: too often; it is given up.
    pub(super) fn strike(&mut self) -> bool {
        self.strikes += 1;
        self.strikes < GIVEN_UP
    }

    /// Whether it may be what ends epochs, and is to run alone until it gains a token.
    pub(super) fn is_suspect(&self) -> bool {
        self.strikes >= SUSPECT
    }
}
