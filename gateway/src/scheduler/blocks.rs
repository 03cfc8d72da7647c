//! The pool of KV blocks.

use std::sync::{Arc, Mutex, PoisonError};

/// All blocks of the stages. One logical id stands for the same block on every stage.
#[derive(Debug)]
pub(super) struct BlockPool {
    free: Arc<Mutex<Vec<u32>>>,
}

/// Somebody's hold on a block, which goes back to its pool with the last clone of its `Arc`.
#[derive(Debug)]
pub(super) struct Block {
    id: u32,
    free: Arc<Mutex<Vec<u32>>>,
}

impl BlockPool {
    /// Of blocks 0 .. `count`, all free.
    pub(super) fn new(count: u32) -> Self {
        // The lowest id is on top.
        Self { free: Arc::new(Mutex::new((0..count).rev().collect())) }
    }

    /// How many are free.
    pub(super) fn free(&self) -> u32 {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() as u32
    }

    /// Takes `count` blocks, or none if there are fewer.
    pub(super) fn take(&self, count: u32) -> Option<Vec<Arc<Block>>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let from = free.len().checked_sub(count as usize)?;
        let hold = |id| Arc::new(Block { id, free: Arc::clone(&self.free) });
        Some(free.drain(from..).rev().map(hold).collect())
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
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}
