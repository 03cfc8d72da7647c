//! The toy model's KV: a row's "key" is its token id, so a wrong block gives another answer.

use std::collections::{BTreeMap, BTreeSet};

use asterism_proto::shard::v1::StepPlan;

use crate::shard::{BLOCK_ROWS, Sequence};

const ROWS: usize = BLOCK_ROWS as usize;

/// What the rows of each block hold.
#[derive(Clone, Debug, Default)]
pub struct Kv(BTreeMap<u32, Vec<u32>>);

impl Kv {
    /// Writes a step's rows. False: one block for two sequences.
    pub fn write(&mut self, plan: &StepPlan, live: &BTreeMap<u64, Sequence>) -> bool {
        let mut written = BTreeSet::new();
        for span in &plan.spans {
            let blocks = &live[&span.sequence].blocks;
            for (position, id) in (span.first_position as usize..).zip(&span.token_ids) {
                let (block, row) = (blocks[position / ROWS], position % ROWS);
                written.insert((block, span.sequence));
                let rows = self.0.entry(block).or_default();
                rows.resize(row, u32::MAX);
                rows.push(*id);
            }
        }
        let blocks: BTreeSet<_> = written.iter().map(|(block, _)| block).collect();
        blocks.len() == written.len()
    }

    /// The ids of the first `count` positions of a block table, as far as they were written.
    pub fn read(&self, blocks: &[u32], count: usize) -> Vec<u32> {
        let row = |position: usize| self.0.get(blocks.get(position / ROWS)?)?.get(position % ROWS).copied();
        (0..count).map_while(row).collect()
    }
}
