//! Memory of slots: page-locked on the host, and their twins on the card. One area each, since the driver takes its time for
//! every one.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::TensorError;
use crate::cuda::context::Context;
use crate::cuda::memory::{DeviceMemory, PinnedMemory};
use crate::cuda::staging::hashes::{MOST, Value};
use crate::cuda::staging::{SLOTS_EACH, threads};
use crate::weights::PART;

/// A slot's memory on the host: a part, and from the next page on what the card finds of it.
const SLOT: usize = PART + PAGE;
const PAGE: usize = 4096;

const _: () = assert!(PART.is_multiple_of(PAGE) && MOST * size_of::<Value>() <= PAGE);

/// Slots for all threads of a load. They are made in a thread of their own, while kernels are compiled and files are opened.
#[derive(Debug)]
pub struct Room(Mutex<State>);

#[derive(Debug)]
enum State {
    Coming(JoinHandle<Vec<PinnedMemory>>),
    Here(Vec<PinnedMemory>),
}

impl Room {
    /// Begins to make them.
    pub fn begin(context: &Arc<Context>) -> Room {
        let context = Arc::clone(context);
        let slots = threads().get() * SLOTS_EACH;
        // What cannot be had here is asked for again, and its error told, by who needs it.
        let make = move || {
            PinnedMemory::unwritten(&context, slots * SLOT)
                .map_or_else(|_| Vec::new(), |memory| memory.split(SLOT).collect())
        };
        let made = thread::Builder::new().name("room".into()).spawn(make);
        Room(Mutex::new(made.map_or_else(|_| State::Here(Vec::new()), State::Coming)))
    }

    /// A slot's memory: one of those made before while there are any.
    pub fn slot(&self, context: &Arc<Context>) -> Result<PinnedMemory, TensorError> {
        let slot = self.with(Vec::pop);
        slot.map_or_else(|| PinnedMemory::unwritten(context, SLOT), Ok)
    }

    /// Gives back what no thread has taken.
    pub fn clear(&self) {
        drop(self.with(std::mem::take));
    }

    fn with<T>(&self, then: impl FnOnce(&mut Vec<PinnedMemory>) -> T) -> T {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut here = match std::mem::replace(&mut *state, State::Here(Vec::new())) {
            // After a panic there is nothing.
            State::Coming(made) => made.join().unwrap_or_default(),
            State::Here(here) => here,
        };
        let taken = then(&mut here);
        *state = State::Here(here);
        taken
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // No thread calls the driver any more when the card is let go.
        self.clear();
    }
}

/// Twins of the slots of one load, made when the first is needed.
#[derive(Debug)]
pub struct Twins {
    slots: usize,
    made: Mutex<Option<(DeviceMemory, usize)>>,
}

impl Twins {
    /// For so many slots.
    pub fn of(slots: usize) -> Twins {
        Twins { slots, made: Mutex::new(None) }
    }

    /// A twin of [`PART`] bytes: memory that it is in, and where it begins.
    pub fn take(&self, context: &Arc<Context>) -> Result<(DeviceMemory, u64), TensorError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, taken) = match &mut *made {
            Some(made) => made,
            none => none.insert((DeviceMemory::unwritten(context, self.slots * PART)?, 0)),
        };
        if *taken == self.slots {
            let (op, what) = ("weights", "a slot's twin");
            return Err(TensorError::OutOfRange { op, what, index: *taken, limit: self.slots });
        }
        let address = memory.address() + (*taken * PART) as u64;
        *taken += 1;
        Ok((memory.clone(), address))
    }
}
