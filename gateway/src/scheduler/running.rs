//! One run of a sequence on the stages: from its first row to its end or its preemption.

use super::admitted::Admitted;
use super::blocks::{Block, BlockPool};
use super::limits::BLOCK_ROWS;
use super::step::{Span, Start};
use super::{RunId, StepId};
use crate::speculation::{Proposal, Verification};

#[derive(Debug)]
pub(super) struct Running {
    pub(super) admitted: Admitted,
    /// Its name for the stages.
    pub(super) run: RunId,
    pub(super) state: State,
    /// Its block table.
    pub(super) blocks: Vec<Block>,
    /// Its first blocks, which are in the index of prefixes.
    pub(super) shared: u32,
    /// Blocks of its table that the stages know.
    pub(super) told: u32,
    /// Positions 0 .. `fed` have been planned with ids of the text, or were found in the index.
    pub(super) fed: u32,
    /// The first position that was planned; `None` while the stages do not know it.
    begun_at: Option<u32>,
    /// Raw rows that the last stage keeps for it until its next span.
    kept_rows: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// Rows of the prompt, or of tokens that were drawn before a replay, are left to plan.
    Prefilling,
    /// Evidence was asked for in its latest step, and not all tokens are drawn that it may give.
    Awaiting(Verification),
    /// Its latest token is the next to feed; the lowest `since` has waited longest.
    Ready { since: u64 },
}

impl Running {
    pub(super) fn new(run: RunId, admitted: Admitted) -> Self {
        let state = State::Prefilling;
        Self {
            admitted,
            run,
            state,
            blocks: Vec::new(),
            shared: 0,
            told: 0,
            fed: 0,
            begun_at: None,
            kept_rows: 0,
        }
    }

    pub(super) fn is_prefilling(&self) -> bool {
        self.state == State::Prefilling
    }

    /// Whether it has decode rows or will have some: it is past its known rows, and the token that it waits for is not the
    /// last that is wanted.
    pub(super) fn is_decoding(&self) -> bool {
        match self.state {
            State::Prefilling => false,
            State::Awaiting(_) => self.admitted.wants_more_than_one(),
            State::Ready { .. } => true,
        }
    }

    /// Whether the stages know it.
    pub(super) fn has_begun(&self) -> bool {
        self.begun_at.is_some()
    }

    /// Known rows that are not planned.
    pub(super) fn rows_left(&self) -> u32 {
        self.admitted.len() - self.fed
    }

    /// Known rows that this run computes, planned ones too.
    pub(super) fn rows(&self) -> u32 {
        self.admitted.len() - self.begun_at.unwrap_or(self.fed)
    }

    /// Known rows that are not planned, as far as its blocks have room for them.
    pub(super) fn rows_with_room(&self) -> u32 {
        self.rows_left().min(self.held() * BLOCK_ROWS - self.fed)
    }

    /// Blocks that it holds.
    pub(super) fn held(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Raw rows of the last stage that are its own: at least the one that it will need.
    pub(super) fn slots(&self) -> u32 {
        self.kept_rows.max(1)
    }

    /// Takes blocks for its next `rows` rows, as far as there are any.
    pub(super) fn take_blocks(&mut self, rows: u32, pool: &BlockPool) {
        while self.held() * BLOCK_ROWS < self.fed + rows {
            let Some(block) = pool.take() else { return };
            self.blocks.push(block);
        }
    }

    /// Plans its next `rows` rows for `step`, with evidence if they are the last known. Behind the very last a proposal may
    /// stand, whose rows have evidence too.
    pub(super) fn feed(&mut self, rows: u32, proposal: Proposal, step: StepId) -> Span {
        let first_position = self.fed;
        self.fed = self.admitted.len().min(first_position + rows);
        let mut token_ids = self.admitted.token_ids(first_position..self.fed);
        let evidence = if self.rows_left() == 0 {
            let first = self.fed - 1;
            token_ids.extend(&proposal.ids);
            let evidence = first..self.fed + proposal.ids.len() as u32;
            self.state = State::Awaiting(Verification::new(first, proposal));
            evidence
        } else {
            0..0
        };
        self.kept_rows = evidence.len() as u32;
        let begins = !self.has_begun();
        self.begun_at.get_or_insert(first_position);
        let start = begins.then(|| Start {
            prompt_len: self.admitted.prompt_len(),
            prior_ids: self.admitted.token_ids(0..first_position),
        });
        self.admitted.last_step = step;
        let table_offset = self.told;
        self.told = self.held();
        let sequence = &self.admitted.sequence;
        Span {
            sequence: sequence.id,
            run: self.run,
            first_position,
            token_ids,
            table_offset,
            blocks: self.blocks.iter().skip(table_offset as usize).map(|block| block.id()).collect(),
            evidence,
            top_k: sequence.evidence.top_k,
            setting_id: sequence.evidence.setting_id,
            start,
        }
    }
}
