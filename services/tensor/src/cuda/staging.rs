//! The way of weights to the card: page-locked slots that several threads fill while the card empties others.
//!
//! Each thread has two slots of its own: while one is on its way it fills the other. A slot is filled anew only when
//! the card is done with it, so as much is under way as there are slots, and no more. Copies run on the copy stream;
//! pieces that change on arrival land in the slot's twin on the card, from where a kernel on the compute stream takes
//! them.
#![allow(unsafe_code, reason = "copies to addresses of the card")]

pub mod pieces;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::Event;

use pieces::Piece;

/// Bytes of a slot: long enough that a copy runs at full speed, short enough that the first one is soon full.
pub const SLOT: usize = 8 << 20;

/// Threads that fill slots: enough to read the page cache faster than the bus takes it.
const MOST_THREADS: usize = 12;

/// Slots of a thread.
const SLOTS_EACH: usize = 2;

/// The slots.
#[derive(Debug)]
pub struct Staging {
    card: Arc<Card>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    host: PinnedMemory,
    card: DeviceMemory,
    /// The piece has landed in `card`.
    landed: Event,
    /// The card is done with the piece.
    free: Event,
}

/// Where a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this address, as it is.
    To(u64),
    /// Through the slot's twin.
    Through,
}

/// How pieces are routed, and taken from the slots of the card.
pub trait Unpack: Sync {
    /// Where a piece goes.
    fn route(&self, piece: &Piece<'_>) -> Route;

    /// Enqueues on the compute stream what takes a piece from `slot`, an address of the card.
    fn unpack(&self, piece: &Piece<'_>, slot: u64) -> Result<(), TensorError>;
}

impl Staging {
    /// No slots yet.
    pub fn new(card: &Arc<Card>) -> Staging {
        Staging { card: Arc::clone(card), slots: Vec::new() }
    }

    /// Brings all pieces on their way. When it returns, the host's bytes are no longer needed, and whatever is enqueued
    /// on the compute stream from then on finds the pieces where they belong.
    pub fn send(&mut self, pieces: &[Piece<'_>], unpack: &dyn Unpack) -> Result<(), TensorError> {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS);
        let threads = threads.min(pieces.len());
        if threads == 0 {
            return Ok(());
        }
        while self.slots.len() < (threads * SLOTS_EACH).min(pieces.len()) {
            self.slots.push(Slot::new(&self.card)?);
        }
        let next = AtomicUsize::new(0);
        let card = &*self.card;
        let work = |slots: &mut [Slot]| {
            card.context().bind()?;
            let mut turn = 0;
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let count = slots.len().max(1);
                let Some(slot) = slots.get_mut(turn % count) else { break };
                turn += 1;
                let sent = slot.send(card, piece, unpack);
                if sent.is_err() {
                    // The others find nothing more to do.
                    next.store(pieces.len(), Ordering::Relaxed);
                }
                sent?;
            }
            Ok(())
        };
        let each = self.slots.len().div_ceil(threads).max(1);
        let mut parts = self.slots.chunks_mut(each);
        let first = parts.next().unwrap_or_default();
        let done = thread::scope(|scope| {
            let workers: Vec<_> = parts.map(|slots| scope.spawn(|| work(slots))).collect();
            let mut done = work(first);
            for worker in workers {
                // A panic of a thread is raised again here, by joining it.
                done = done.and(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            done
        });
        let landed = Event::new(card.context())?;
        landed.record(&card.copies)?;
        card.compute.wait(&landed)?;
        done
    }
}

impl Drop for Staging {
    /// Waits until the card has taken everything.
    fn drop(&mut self) {
        // If the card has failed, there is nothing to wait for.
        let _ = self.card.copies.synchronize();
        let _ = self.card.compute.synchronize();
    }
}

impl Slot {
    fn new(card: &Card) -> Result<Slot, TensorError> {
        let context = card.context();
        Ok(Slot {
            host: PinnedMemory::zeroed(context, SLOT)?,
            card: DeviceMemory::unwritten(context, SLOT)?,
            landed: Event::new(context)?,
            free: Event::new(context)?,
        })
    }

    fn send(&mut self, card: &Card, piece: &Piece<'_>, unpack: &dyn Unpack) -> Result<(), TensorError> {
        self.free.wait()?;
        let host = self.host.as_mut_slice::<u8>();
        piece.from.copy_to(host);
        let bytes = &host[..piece.from.bytes()];
        match unpack.route(piece) {
            Route::To(address) => {
                // SAFETY: `route` names a place in memory that holds the piece; the slot stays as it is until `free`.
                unsafe { card.copies.upload(address, bytes) }?;
                self.free.record(&card.copies)
            }
            Route::Through => {
                // SAFETY: the twin is as large as the slot, which stays as it is until `free`.
                unsafe { card.copies.upload(self.card.address(), bytes) }?;
                self.landed.record(&card.copies)?;
                card.compute.wait(&self.landed)?;
                unpack.unpack(piece, self.card.address())?;
                self.free.record(&card.compute)
            }
        }
    }
}
