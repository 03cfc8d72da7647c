//! Which of a span's rows were fed the right ids: tokens drawn, held against the proposal.

use super::control::Outcome;
use super::speculator::Proposal;

/// A span of one decode row and a proposal behind it, on its way through the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    first_position: u32,
    proposal: Proposal,
    /// Proposed ids that were drawn.
    accepted: u32,
    over: bool,
}

/// What a row's evidence is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The next token is drawn from it.
    Now,
    /// It may be, once the tokens before are drawn.
    Later,
    /// The row was fed what the text does not say, or is not of this span.
    Never,
}

/// What a drawn token says of the rows after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was proposed: the next row was right, and its evidence counts.
    Holds,
    /// It is something else, or the last: it is the next to feed.
    Over,
}

impl Verification {
    /// Of the span whose first row, at `first_position`, holds a drawn token.
    pub fn new(first_position: u32, proposal: Proposal) -> Self {
        Self { first_position, proposal, accepted: 0, over: false }
    }

    /// What a row's evidence is for.
    pub fn wanted(&self, position: u32) -> Wanted {
        match position.checked_sub(self.first_position) {
            Some(row) if self.over || row < self.accepted || row as usize > self.proposal.ids.len() => {
                Wanted::Never
            }
            Some(row) if row == self.accepted => Wanted::Now,
            Some(_) => Wanted::Later,
            None => Wanted::Never,
        }
    }

    /// Takes in the token drawn from the evidence that is wanted now.
    pub fn drawn(&mut self, id: u32) -> Verdict {
        let proposed = self.proposal.ids.get(self.accepted as usize);
        self.over |= proposed != Some(&id);
        if self.over {
            return Verdict::Over;
        }
        self.accepted += 1;
        Verdict::Holds
    }

    /// Whether no more of its evidence is wanted.
    #[cfg(test)]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Positions below it hold committed ids on every stage once the step is done; the next span begins there.
    pub fn fed(&self) -> u32 {
        self.first_position + 1 + self.accepted
    }

    /// How the proposal fared.
    pub fn outcome(&self) -> Outcome {
        let proposed = self.proposal.ids.len() as u32;
        Outcome { proposed, accepted: self.accepted, price: self.proposal.price }
    }
}
