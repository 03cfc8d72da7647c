//! What the host tells the card once a step: one copy out of page-locked memory.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::sync::Arc;

use bytemuck::Pod;

use crate::TensorError;
use crate::cuda::card::Context;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::{Event, Stream};

/// An area of the card's memory and two of the host's: while the card reads one, the host fills the other.
#[derive(Debug)]
pub struct Upload {
    memory: DeviceMemory,
    turns: [Turn; 2],
    next: usize,
}

#[derive(Debug)]
struct Turn {
    pinned: PinnedMemory,
    /// The last copy out of it.
    sent: Event,
}

// === impl Upload ===

impl Upload {
    /// Room for `bytes` bytes, all zero.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Upload, TensorError> {
        let turn = || -> Result<Turn, TensorError> {
            Ok(Turn { pinned: PinnedMemory::zeroed(context, bytes)?, sent: Event::new(context)? })
        };
        Ok(Upload { memory: DeviceMemory::zeroed(context, bytes)?, turns: [turn()?, turn()?], next: 0 })
    }

    /// Where the card finds what was sent last.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// The area to fill, which holds what was sent the time before last. It waits only if that copy has not been made.
    pub fn area<T: Pod>(&mut self) -> Result<&mut [T], TensorError> {
        let turn = &mut self.turns[self.next];
        if !turn.sent.is_done()? {
            turn.sent.wait()?;
        }
        Ok(turn.pinned.as_mut_slice())
    }

    /// Copies the area's first `bytes` bytes to the card, after what `stream` was given before.
    pub fn send(&mut self, stream: &Stream, bytes: usize) -> Result<(), TensorError> {
        let turn = &mut self.turns[self.next];
        let area = turn.pinned.as_slice::<u8>();
        let from = &area[..bytes.min(area.len())];
        if !from.is_empty() {
            // SAFETY: both areas have the same size, and this one is not filled again before `sent` is done.
            unsafe { stream.upload(self.memory.address(), from)? };
            turn.sent.record(stream)?;
        }
        self.next = 1 - self.next;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        for turn in &self.turns {
            // A failed card does not read any more.
            let _ = turn.sent.wait();
        }
    }
}
