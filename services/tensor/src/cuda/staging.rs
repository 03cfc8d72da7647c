//! The way of weights to the card: page-locked slots that several threads fill while the card empties others.
//!
//! The threads live as long as a whole load and take parts of whatever tensor is next, so layers are under way side by side.
//! Each has two slots of its own: while one is on its way it fills the other. A slot is filled anew only when the card is
//! done with it, so as much is under way as there are slots, and no more. Copies run on the copy stream; parts that change on
//! arrival land in the slot's twin on the card, from where a kernel on the compute stream takes them.
#![allow(unsafe_code, reason = "copies to addresses of the card")]

pub mod parts;
pub mod queue;

use std::num::NonZeroUsize;
use std::thread;

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::stream::Event;
use crate::weights::{Elements, PART};

use queue::{Close, Queue};

/// Threads that fill slots: one hashes what it has read at about a tenth of what the bus takes.
const MOST_THREADS: usize = 24;

/// Slots of a thread.
const SLOTS_EACH: usize = 2;

/// Threads that read weights on this machine, each into [`SLOTS_EACH`] slots of [`PART`] bytes.
pub fn threads() -> NonZeroUsize {
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    cores.min(NonZeroUsize::MIN.saturating_add(MOST_THREADS - 1))
}

/// A tensor to be sent.
pub struct Job<'a, T> {
    /// What is sent.
    pub elements: Box<dyn Elements + 'a>,
    /// Where to.
    pub target: T,
}

/// Memory that is filled by the host and emptied by the card.
pub trait Slot<T> {
    /// The memory, at least [`PART`] bytes, once the card is done with what was sent from it last.
    fn area(&mut self) -> Result<&mut [u8], TensorError>;

    /// Sends the first `bytes` bytes, which are those of the target's tensor from `offset` on.
    fn send(&mut self, target: &T, offset: usize, bytes: usize) -> Result<(), TensorError>;
}

/// Has `threads` threads send what `work` puts into the queue. Returns when all of it is sent; after an error nothing more is.
pub fn send<T: Send + Sync, S: Slot<T>, R, E: From<TensorError>>(
    queue: &Queue<Job<'_, T>>,
    threads: NonZeroUsize,
    slot: &(dyn Fn() -> Result<S, TensorError> + Sync),
    work: impl FnOnce() -> Result<R, E>,
) -> Result<R, E> {
    let fill = || fill(queue, slot).unwrap_or_else(|error| queue.fail(error));
    let done = thread::scope(|scope| {
        // However this ends, the threads do too.
        let closing = Close(queue);
        for _ in 0..threads.get() {
            if let Err(source) = thread::Builder::new().name("weights".into()).spawn_scoped(scope, fill) {
                queue.fail(TensorError::Threads { threads: threads.get(), source });
                break;
            }
        }
        let done = work();
        if done.is_err() {
            queue.clear();
        }
        drop(closing);
        done
    });
    // What failed first is why `work` could not go on.
    queue.failure().map_or(done, |error| Err(error.into()))
}

/// Fills slots of its own and sends them until the queue ends.
fn fill<T, S: Slot<T>>(
    queue: &Queue<Job<'_, T>>,
    new: &(dyn Fn() -> Result<S, TensorError> + Sync),
) -> Result<(), TensorError> {
    let mut slots = Vec::with_capacity(SLOTS_EACH);
    let mut turn = 0;
    while let Some((job, part)) = queue.next() {
        if slots.len() == turn {
            slots.push(new()?);
        }
        let slot = &mut slots[turn];
        turn = (turn + 1) % SLOTS_EACH;
        let offset = part * PART;
        let bytes = PART.min(job.elements.bytes() - offset);
        let area = slot.area()?;
        job.elements.read(offset, &mut area[..bytes]).map_err(|source| TensorError::Elements { source })?;
        slot.send(&job.target, offset, bytes)?;
    }
    Ok(())
}

/// Where the parts of a tensor go on a card.
pub trait Unpack {
    /// Where a part goes.
    fn route(&self, offset: usize, bytes: usize) -> Route;

    /// Enqueues on the compute stream what takes a part from `slot`, an address of the card.
    fn unpack(&self, offset: usize, bytes: usize, slot: u64) -> Result<(), TensorError>;
}

/// Where a part goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To this address, as it is.
    To(u64),
    /// Through the slot's twin.
    Through,
}

/// A slot of page-locked memory.
#[derive(Debug)]
pub struct Pinned<'a> {
    card: &'a Card,
    host: PinnedMemory,
    /// Made for the first part that goes through it.
    twin: Option<DeviceMemory>,
    /// The part has landed in the twin.
    landed: Event,
    /// The card is done with the part.
    free: Event,
}

impl<'a> Pinned<'a> {
    /// Room for a part.
    pub fn new(card: &'a Card) -> Result<Pinned<'a>, TensorError> {
        let context = card.context();
        Ok(Pinned {
            card,
            host: PinnedMemory::zeroed(context, PART)?,
            twin: None,
            landed: Event::new(context)?,
            free: Event::new(context)?,
        })
    }
}

impl<T: Unpack> Slot<T> for Pinned<'_> {
    fn area(&mut self) -> Result<&mut [u8], TensorError> {
        self.free.wait()?;
        Ok(self.host.as_mut_slice())
    }

    fn send(&mut self, target: &T, offset: usize, bytes: usize) -> Result<(), TensorError> {
        let card = self.card;
        let from = &self.host.as_slice()[..bytes];
        match target.route(offset, bytes) {
            Route::To(address) => {
                // SAFETY: `route` names a place in memory that holds the part; the slot stays as it is until `free`, which
                // whoever writes to it or gives it back waits for.
                unsafe { card.copies.upload(address, from) }?;
                self.free.record(&card.copies)
            }
            Route::Through => {
                let twin = match &mut self.twin {
                    Some(twin) => twin,
                    none => none.insert(DeviceMemory::unwritten(card.context(), PART)?),
                };
                // SAFETY: the twin is as large as the slot, which stays as it is until `free`.
                unsafe { card.copies.upload(twin.address(), from) }?;
                self.landed.record(&card.copies)?;
                card.compute.wait(&self.landed)?;
                target.unpack(offset, bytes, twin.address())?;
                self.free.record(&card.compute)
            }
        }
    }
}

#[cfg(test)]
mod tests;
