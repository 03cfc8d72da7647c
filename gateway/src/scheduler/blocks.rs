//! The pool of KV blocks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::prefix::{Before, Content, Link, PrefixIndex};

/// All blocks of the stages. One logical id stands for the same block on every stage.
///
/// A block is held by sequences, cached (nobody holds it, but a sequence that begins alike finds it by what its rows
/// hold) or free. Cached blocks are given away once no free ones are left.
#[derive(Debug)]
pub(super) struct BlockPool {
    shared: Arc<Mutex<Blocks>>,
}

/// A sequence's hold on a block, which ends by `Drop`.
#[derive(Debug)]
pub(super) struct Block {
    id: u32,
    shared: Arc<Mutex<Blocks>>,
}

#[derive(Debug)]
struct Blocks {
    free: Vec<u32>,
    index: PrefixIndex,
    /// Of each block, how many hold it.
    holders: Vec<u32>,
    /// Blocks that nobody holds, free ones and cached ones.
    unheld: u32,
}

impl BlockPool {
    /// Of blocks 0 .. `count`, all free.
    pub(super) fn new(count: u32) -> Self {
        let blocks = Blocks {
            // The lowest id is on top.
            free: (0..count).rev().collect(),
            index: PrefixIndex::default(),
            holders: vec![0; count as usize],
            unheld: count,
        };
        Self { shared: Arc::new(Mutex::new(blocks)) }
    }

    /// How many can be taken: those that are free or only cached.
    pub(super) fn free(&self) -> u32 {
        lock(&self.shared).unheld
    }

    /// How many of those are cached.
    pub(super) fn cached(&self) -> u32 {
        let blocks = lock(&self.shared);
        blocks.unheld - blocks.free.len() as u32
    }

    /// Takes a block to be written, if there is one that nobody holds.
    pub(super) fn take(&self) -> Option<Block> {
        lock(&self.shared).take().map(|id| self.guard(id))
    }

    /// Takes hold of the block with these rows, if it is in the index.
    pub(super) fn find(&self, before: Before, content: Content) -> Option<Block> {
        let mut blocks = lock(&self.shared);
        let id = blocks.index.find(&Link { before, content })?;
        blocks.hold(id);
        Some(self.guard(id))
    }

    /// The block with these rows, if it is in the index and somebody holds it.
    pub(super) fn find_held(&self, before: Before, content: Content) -> Option<u32> {
        let blocks = lock(&self.shared);
        let id = blocks.index.find(&Link { before, content })?;
        (*blocks.holders.get(id as usize)? > 0).then_some(id)
    }

    /// Lets others find a block whose rows are all planned, and will never be planned again. Its holder holds the block
    /// before it too, which was let in before. True: there was a block with the same rows; `block` is now that one, and the
    /// other is given back.
    pub(super) fn share(&self, before: Before, content: Content, block: &mut Block) -> bool {
        let id = {
            let mut blocks = lock(&self.shared);
            let id = blocks.index.insert(Link { before, content }, block.id);
            if id != block.id {
                blocks.hold(id);
            }
            id
        };
        let is_another = id != block.id;
        if is_another {
            *block = self.guard(id);
        }
        is_another
    }

    /// For a block that the caller was counted as a holder of.
    fn guard(&self, id: u32) -> Block {
        Block { id, shared: Arc::clone(&self.shared) }
    }
}

impl Blocks {
    /// A free block, else the one that has been of no use for the longest time.
    fn take(&mut self) -> Option<u32> {
        let id = self.free.pop().or_else(|| self.index.evict())?;
        self.hold(id);
        Some(id)
    }

    fn hold(&mut self, id: u32) {
        let Some(holders) = self.holders.get_mut(id as usize) else { return };
        *holders += 1;
        if *holders == 1 {
            self.unheld -= 1;
            self.index.hold(id);
        }
    }

    fn release(&mut self, id: u32) {
        let Some(holders) = self.holders.get_mut(id as usize) else { return };
        *holders -= 1;
        if *holders == 0 {
            self.unheld += 1;
            if !self.index.release(id) {
                self.free.push(id);
            }
        }
    }
}

impl Block {
    /// Its id in block tables.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.shared).release(self.id);
    }
}

fn lock(blocks: &Mutex<Blocks>) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}
