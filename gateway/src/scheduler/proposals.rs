//! Ids that are fed ahead of their drawing, see [`crate::speculation`].
//!
//! They take what a step has left once everybody has the rows that are due: rows, evidence rows, raw rows of the last stage
//! and blocks that nobody holds. Nothing waits for them, and nobody is preempted.

use std::time::Duration;

use super::plan::Wish;
use super::running::{Running, State};
use super::{BLOCK_ROWS, BlockPool, RowKinds, RunId, Scheduler, SequenceId, Speculation, Wanted};
use crate::speculation::{History, MOST_PROPOSED, Offer, Price, Proposal};

/// What a step has left for proposals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposing {
    /// Of a row.
    price: Price,
    /// Rows that no limit forbids.
    rows: u32,
}

impl Scheduler {
    /// What the evidence of a row is for; evidence that comes in order of position is never wanted before its time.
    pub fn wanted(&self, run: RunId, position: u32) -> Wanted {
        let running = self.sequence(run).and_then(|sequence| self.running.get(&sequence));
        match running.map(|running| &running.state) {
            Some(State::Awaiting(verification)) => verification.wanted(position),
            _ => Wanted::Never,
        }
    }

    /// Takes in how long the sequences of a step of decode rows alone waited for it.
    pub fn observe_decoding(&mut self, rows: u32, wait: Duration) {
        self.costs.observe(rows, wait);
    }

    /// Raw rows of the last stage that are kept or promised.
    pub(super) fn slots(&self) -> u32 {
        self.running.values().map(Running::slots).sum()
    }

    /// What is left once all wishes are granted.
    pub(super) fn proposing(&self, wishes: &[Wish]) -> Proposing {
        let (mut rows, mut evidence_rows, mut decode_rows, mut slots) = (0, 0, 0, self.slots());
        for wish in wishes {
            let Some(running) = self.running.get(&wish.sequence) else { continue };
            rows += wish.rows;
            evidence_rows += u32::from(wish.rows == running.rows_left());
            decode_rows += u32::from(!running.is_prefilling());
            // What it kept is given back as it goes on.
            slots -= running.slots() - 1;
        }
        // Whoever is let in needs one. Of many that wait most wait for blocks.
        let waiting = self.replays.len() + if self.admitting { self.queue.len() } else { 0 };
        slots = slots.saturating_add(waiting.min((self.limits.logits_slots / 4).max(1)));
        let limits = &self.limits;
        let left = |limit: u32, taken| limit.saturating_sub(taken);
        let left = left(limits.rows, rows)
            .min(left(limits.evidence_rows, evidence_rows))
            .min(left(limits.logits_slots, slots));
        Proposing { price: self.price(decode_rows), rows: left }
    }

    /// What one more row costs beside so many decode rows: what decode steps say, or what the slowest stage says of all
    /// its steps, if that is more. The first sees evidence and the way there, but tells little where all steps are of one
    /// size; then chance would make rows cheap.
    fn price(&self, decode_rows: u32) -> Price {
        let measured = self.costs.price(decode_rows);
        let Some(line) = self.times.line() else { return measured };
        let Some(per_row) = line.per_row else { return measured };
        let rows = per_row * f64::from(decode_rows.max(1));
        Price::new((rows / (line.fixed + rows)).max(measured.tokens()))
    }

    /// A proposal for a sequence whose next row is planned, with blocks for it.
    pub(super) fn propose(&mut self, sequence: SequenceId, proposing: &mut Proposing) -> Proposal {
        let none = Proposal { ids: Vec::new(), price: proposing.price };
        let Some(running) = self.running.get_mut(&sequence) else { return none };
        let price = match running.admitted.sequence.speculation {
            Speculation::Auto => proposing.price,
            Speculation::Always => Price::new(0.0),
            Speculation::Off => return none,
        };
        if running.is_prefilling() {
            running.read();
            return none;
        }
        let most = proposing.rows.min(running.most_proposed(self.pool.free())).min(MOST_PROPOSED);
        if most == 0 {
            return none;
        }
        let offer = Offer { price, most };
        let proposal = running.propose(offer);
        let rows = proposal.ids.len() as u32;
        if rows > 0 {
            running.take_blocks(1 + rows, &self.pool);
            proposing.rows -= rows;
            self.proposed.proposals += 1;
            self.proposed.tokens += u64::from(rows);
        }
        proposal
    }
}

impl Running {
    /// A proposed id was drawn, so its row is one of the text.
    pub(super) fn was_fed(&mut self, pool: &BlockPool, kinds: &RowKinds) {
        self.fed += 1;
        if !self.admitted.sequence.bypass_cache {
            self.share_blocks(pool, kinds);
        }
    }

    /// Takes in what is planned of a prompt, so that the first proposal need not read it all at once.
    fn read(&mut self) {
        let prompt = &self.admitted.sequence.prompt;
        let planned = prompt.get(..self.fed as usize).unwrap_or(prompt);
        self.admitted.speculator.read(History::new(planned, &[]));
    }

    fn propose(&mut self, offer: Offer) -> Proposal {
        let admitted = &mut self.admitted;
        admitted.speculator.propose(History::new(&admitted.sequence.prompt, &admitted.drawn), offer)
    }

    /// How much the answer and blocks have room for behind the row that is due, with `free` more blocks.
    fn most_proposed(&self, free: u32) -> u32 {
        // The step itself draws one more than it proposes.
        let tokens = self.admitted.sequence.max_tokens.saturating_sub(self.admitted.drawn.len() as u32 + 1);
        let rows = self.held().saturating_add(free).saturating_mul(BLOCK_ROWS);
        tokens.min(rows.saturating_sub(self.fed + 1))
    }
}
