//! Sequences that begin alike share the blocks of their prefix.
//!
//! A block can be shared once all its rows are planned: steps run in their order, so later ones find the rows there. A run
//! takes what it finds before its first row is planned, up to the block of the last known token, whose row is always computed.
//! Two that compute the same at the same time hold the same block from then on.

use super::plan::Plan;
use super::prefix::{Before, Content};
use super::running::Running;
use super::{BLOCK_ROWS, BlockPool, NewSequence, RowKinds, Scheduler};

impl Scheduler {
    /// Gives those that were admitted and have not begun what can be found by now.
    pub(super) fn find_prefixes(&mut self) {
        for running in self.running.values_mut().filter(|running| !running.has_begun()) {
            running.find_prefix(&self.pool, &self.limits.row_kinds);
        }
    }

    /// Lets later steps find what a plan computes, and counts what its own runs found.
    pub(super) fn share(&mut self, plan: &Plan) {
        for span in &plan.spans {
            let Some(running) = self.running.get_mut(&span.sequence) else { continue };
            if running.admitted.sequence.bypass_cache {
                continue;
            }
            if span.start.is_some() {
                self.prefix_queries += u64::from(running.admitted.len());
                self.prefix_hits += u64::from(span.first_position);
            }
            running.share_blocks(&self.pool, &self.limits.row_kinds);
        }
    }

    /// How many blocks of a sequence, with the tokens drawn for it, others hold already.
    pub(super) fn held_prefix(&self, sequence: &NewSequence, drawn: &[u32]) -> u32 {
        let mut before = Before::Nothing(sequence.tenant);
        let mut held = 0;
        for index in 0..sequence.blocks_to_find(drawn) {
            let Some(content) = sequence.content(drawn, index, &self.limits.row_kinds) else { break };
            let Some(block) = self.pool.find_held(before, content) else { break };
            before = Before::Block(block);
            held += 1;
        }
        held
    }
}

impl Running {
    /// Takes hold of what can be found before its first row is planned.
    pub(super) fn find_prefix(&mut self, pool: &BlockPool, kinds: &RowKinds) {
        let most = self.admitted.sequence.blocks_to_find(&self.admitted.drawn);
        while self.shared < most {
            let Some(content) = self.content(kinds) else { return };
            let Some(block) = pool.find(self.before(), content) else { return };
            self.blocks.push(block);
            self.shared += 1;
            self.fed += BLOCK_ROWS;
        }
    }

    /// Lets others find its blocks whose rows are all planned.
    pub(super) fn share_blocks(&mut self, pool: &BlockPool, kinds: &RowKinds) {
        while (self.shared + 1) * BLOCK_ROWS <= self.fed {
            let Some(content) = self.content(kinds) else { return };
            let before = self.before();
            let Some(block) = self.blocks.get_mut(self.shared as usize) else { return };
            if pool.share(before, content, block) {
                self.told = self.told.min(self.shared);
            }
            self.shared += 1;
        }
    }

    /// What comes before the first block that is not in the index.
    fn before(&self) -> Before {
        let last = self.shared.checked_sub(1).and_then(|last| self.blocks.get(last as usize));
        last.map_or(Before::Nothing(self.admitted.sequence.tenant), |block| Before::Block(block.id()))
    }

    /// What that block holds.
    fn content(&self, kinds: &RowKinds) -> Option<Content> {
        self.admitted.sequence.content(&self.admitted.drawn, self.shared, kinds)
    }
}

impl NewSequence {
    /// Blocks that may be found for it and the tokens drawn for it: all but that of the last row.
    fn blocks_to_find(&self, drawn: &[u32]) -> u32 {
        let rows = (self.prompt.len() + drawn.len()).saturating_sub(1) as u32;
        if self.bypass_cache { 0 } else { rows / BLOCK_ROWS }
    }

    /// What a block of it holds; `None` if not all tokens of that are known.
    fn content(&self, drawn: &[u32], index: u32, kinds: &RowKinds) -> Option<Content> {
        let mut ids = [0; BLOCK_ROWS as usize];
        let mut known = self.prompt.iter().chain(drawn).skip((index * BLOCK_ROWS) as usize);
        for id in &mut ids {
            *id = *known.next()?;
        }
        Some(Content::new(ids, index, self.prompt.len() as u32, kinds))
    }
}
