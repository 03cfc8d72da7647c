//! The way of weights to the card: page-locked slots that several threads fill while the card empties others.
//!
//! The threads live as long as a whole load and take parts of whatever tensor is next, so layers are under way side by side.
//! Each has two slots of its own: while one is on its way it fills the other. A slot is filled anew only when the card is
//! done with it, so as much is under way as there are slots, and no more. Copies run on the copy stream; parts that change on
//! arrival land in the slot's twin on the card, from where a kernel on the compute stream takes them. The card also hashes what
//! has come, and the thread that filled a slot tells its tensor of that when the slot is free again, or at the end.

pub mod hashes;
pub mod parts;
pub mod pinned;
pub mod queue;
pub mod room;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use crate::TensorError;
use crate::weights::{Elements, PART, SentPart};

use queue::{Close, Queue};

/// Threads that fill slots: one reads from the page cache at about a tenth of what the bus takes.
const MOST_THREADS: usize = 24;

/// Slots of a thread.
pub const SLOTS_EACH: usize = 2;

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
    /// The memory, at least [`PART`] bytes. It is free before the first part is sent from it, and after each wait.
    fn area(&mut self) -> &mut [u8];

    /// Sends its first bytes, which are so many of the target's tensor from an offset on. A part that is checked is also hashed,
    /// as far as the card can.
    fn send(&mut self, target: &T, part: (usize, usize), is_checked: bool) -> Result<(), TensorError>;

    /// Waits until the card is done with what was sent last, and tells what that was.
    fn wait(&mut self) -> Result<SentPart<'_>, TensorError>;
}

/// A slot of a thread.
struct Turn<'a, T, S> {
    slot: S,
    /// The part on its way from it: of which job, and where it begins.
    sent: Option<(Arc<Job<'a, T>>, usize)>,
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
    let mut turns = Vec::with_capacity(SLOTS_EACH);
    let mut next = 0;
    while let Some((job, part)) = queue.next() {
        if turns.len() == next {
            turns.push(Turn { slot: new()?, sent: None });
        }
        let turn = &mut turns[next];
        next = (next + 1) % SLOTS_EACH;
        turn.settle()?;
        let offset = part * PART;
        let bytes = PART.min(job.elements.bytes() - offset);
        let area = &mut turn.slot.area()[..bytes];
        job.elements.read(offset, area).map_err(|source| TensorError::Elements { source })?;
        turn.slot.send(&job.target, (offset, bytes), job.elements.is_checked())?;
        turn.sent = Some((job, offset));
    }
    turns.iter_mut().try_for_each(Turn::settle)
}

impl<T, S: Slot<T>> Turn<'_, T, S> {
    /// Waits for the part on its way, if there is one, and has it checked.
    fn settle(&mut self) -> Result<(), TensorError> {
        let Some((job, offset)) = self.sent.take() else { return Ok(()) };
        let part = self.slot.wait()?;
        if !job.elements.is_checked() {
            return Ok(());
        }
        job.elements.check(offset, part).map_err(|source| TensorError::Elements { source })
    }
}

#[cfg(test)]
mod tests;
