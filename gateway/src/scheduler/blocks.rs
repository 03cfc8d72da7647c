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

    /// Takes a block, if there is one.
    pub(super) fn take(&self) -> Option<Arc<Block>> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Arc::new(Block { id, free: Arc::clone(&self.free) }))
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
