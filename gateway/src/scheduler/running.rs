//! One admitted sequence on its way from its first prompt row to its end.

use std::sync::Arc;

use super::blocks::Block;
use super::queue::Turn;
use super::step::{Span, Start};
use super::{NewSequence, StepId};

#[derive(Debug)]
pub(super) struct Running {
    pub(super) sequence: NewSequence,
    /// Its place among prompts.
    pub(super) turn: Turn,
    /// Room for the prompt and the whole answer.
    pub(super) blocks: Vec<Arc<Block>>,
    /// Positions 0 .. `fed` have been planned.
    pub(super) fed: u32,
    /// Tokens drawn.
    pub(super) generated: u32,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Rows of the prompt are left to plan.
    Prefilling,
    /// Evidence was asked for in this step, and no token drawn from it yet.
    Awaiting { step: StepId },
    /// This token is the next to feed; the lowest `since` has waited longest.
    Ready { token: u32, since: u64 },
}

impl Running {
    pub(super) fn new(turn: Turn, sequence: NewSequence, blocks: Vec<Arc<Block>>) -> Self {
        Self { sequence, turn, blocks, fed: 0, generated: 0, state: State::Prefilling }
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.state == State::Prefilling
    }

    /// Whether the stages know it.
    pub(super) fn has_begun(&self) -> bool {
        self.fed > 0
    }

    fn prompt_len(&self) -> u32 {
        self.sequence.prompt.len() as u32
    }

    /// Rows of the prompt that are not planned.
    pub(super) fn prompt_rows_left(&self) -> u32 {
        self.prompt_len().saturating_sub(self.fed)
    }

    /// Plans the next `rows` rows of the prompt for `step`, with evidence if they are its last.
    pub(super) fn feed_prompt(&mut self, rows: u32, step: StepId) -> Span {
        let end = self.prompt_len().min(self.fed + rows);
        let token_ids = self.sequence.prompt[self.fed as usize..end as usize].to_vec();
        if end == self.prompt_len() {
            self.state = State::Awaiting { step };
        }
        self.feed(token_ids)
    }

    /// Plans the row of a drawn token for `step`.
    pub(super) fn feed_token(&mut self, token: u32, step: StepId) -> Span {
        self.state = State::Awaiting { step };
        self.feed(vec![token])
    }

    fn feed(&mut self, token_ids: Vec<u32>) -> Span {
        let first_position = self.fed;
        self.fed += token_ids.len() as u32;
        let evidence = if self.is_prefilling() { 0..0 } else { self.fed - 1..self.fed };
        let start = (first_position == 0).then(|| Start {
            prompt_len: self.prompt_len(),
            blocks: self.blocks.iter().map(|block| block.id()).collect(),
        });
        Span {
            sequence: self.sequence.id,
            first_position,
            token_ids,
            evidence,
            top_k: self.sequence.evidence.top_k,
            setting_id: self.sequence.evidence.setting_id,
            start,
        }
    }
}
