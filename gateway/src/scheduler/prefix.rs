//! Which blocks of KV hold which tokens, so that sequences that begin alike share them.
//!
//! The numbers of a block's rows depend on all ids up to them, on whose they are, on each row's rope and, where kernels have
//! classes, on each row's class. A [`Link`] says so much of one block, and names the block before it, whose own link says
//! the rest. Links are compared whole, so there is no hash that could collide; and as a block leaves the index only after
//! all that follow it, its number names its chain as long as anything does.
//!
//! Whoever holds a block of the index holds all blocks before it too. So whatever nobody holds can leave: the one first
//! that nothing follows and that was given back longest ago.

use std::collections::{BTreeMap, HashMap};

use super::limits::BLOCK_ROWS;
use super::{RowKinds, TenantId};

/// A block's place in the index: what it holds, and what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) before: Before,
    pub(super) content: Content,
}

/// What comes before a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Before {
    /// It is the first of a tenant's sequence: tenants share nothing.
    Nothing(TenantId),
    /// This block of the index.
    Block(u32),
}

/// What a block's rows depend on, beside all that comes before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    ids: [u32; BLOCK_ROWS as usize],
    /// Of all its rows: the rope changes only where a block does.
    rope: u32,
    /// Rows of the class of prompts, which come first.
    prompt_rows: u32,
}

/// The blocks that can be found again.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    by_link: BTreeMap<Link, u32>,
    entries: HashMap<u32, Entry>,
    /// Those that may leave next, by when they were given back.
    unused: BTreeMap<u64, u32>,
    /// Counts what is given back.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    link: Link,
    /// Blocks of the index that come right after it.
    followers: u32,
    /// When its last holder gave it back; `None` while somebody holds it.
    unused_since: Option<u64>,
}

impl Content {
    /// Of block `index` of a sequence with a prompt of `prompt_len` tokens.
    pub(super) fn new(
        ids: [u32; BLOCK_ROWS as usize],
        index: u32,
        prompt_len: u32,
        kinds: &RowKinds,
    ) -> Self {
        let first = index * BLOCK_ROWS;
        Self { ids, rope: kinds.rope(first, prompt_len), prompt_rows: kinds.prompt_rows(first, prompt_len) }
    }
}

impl RowKinds {
    /// The rope of the row at `position`, as the number of times that its rope length has outgrown a doubled base length.
    fn rope(&self, position: u32, prompt_len: u32) -> u32 {
        if self.rope_base_length == 0 {
            return 0;
        }
        let length = u64::from(prompt_len.max(position.saturating_add(1)));
        let times = length.div_ceil(u64::from(self.rope_base_length));
        times.next_power_of_two().trailing_zeros()
    }

    /// How many of a block's rows, the first at `first`, are of the class of prompts.
    fn prompt_rows(&self, first: u32, prompt_len: u32) -> u32 {
        if self.have_classes { prompt_len.saturating_sub(first).min(BLOCK_ROWS) } else { 0 }
    }
}

impl PrefixIndex {
    /// The block that a link describes.
    pub(super) fn find(&self, link: &Link) -> Option<u32> {
        self.by_link.get(link).copied()
    }

    /// Takes in a block that somebody holds, together with what comes before it, and returns the block that has its link
    /// from now on: another one if there was one already.
    pub(super) fn insert(&mut self, link: Link, block: u32) -> u32 {
        if let Some(known) = self.find(&link) {
            return known;
        }
        if let Before::Block(before) = link.before
            && let Some(entry) = self.entries.get_mut(&before)
        {
            entry.followers += 1;
        }
        self.by_link.insert(link, block);
        self.entries.insert(block, Entry { link, followers: 0, unused_since: None });
        block
    }

    /// Somebody holds a block that nobody held.
    pub(super) fn hold(&mut self, block: u32) {
        if let Some(entry) = self.entries.get_mut(&block)
            && let Some(since) = entry.unused_since.take()
        {
            self.unused.remove(&since);
        }
    }

    /// Nobody holds a block any more. False: it is not in the index.
    pub(super) fn release(&mut self, block: u32) -> bool {
        let Some(entry) = self.entries.get_mut(&block) else { return false };
        self.clock += 1;
        entry.unused_since = Some(self.clock);
        if entry.followers == 0 {
            self.unused.insert(self.clock, block);
        }
        true
    }

    /// Takes out the block that is to go first; `None` if every block is held.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.unused.pop_first()?;
        let link = self.entries.remove(&block)?.link;
        self.by_link.remove(&link);
        if let Before::Block(before) = link.before
            && let Some(entry) = self.entries.get_mut(&before)
        {
            entry.followers -= 1;
            if let (0, Some(since)) = (entry.followers, entry.unused_since) {
                self.unused.insert(since, before);
            }
        }
        Some(block)
    }
}
