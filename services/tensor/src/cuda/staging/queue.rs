//! Jobs in parts: one thread puts jobs in, others take their parts, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::TensorError;

/// See the module. It holds descriptions, one for each tensor of a stage, and no elements, so it needs no bound of its own.
#[derive(Debug)]
pub struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<J> {
    /// With the next part of each, and one past its last. The first is the one that parts are taken of.
    waiting: VecDeque<(Arc<J>, usize, usize)>,
    closed: bool,
    failed: bool,
    failure: Option<TensorError>,
}

/// Closes a queue when it goes.
pub struct Close<'a, J>(pub &'a Queue<J>);

impl<J> Queue<J> {
    /// Nothing yet.
    pub fn new() -> Queue<J> {
        let state = State { waiting: VecDeque::new(), closed: false, failed: false, failure: None };
        Queue { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in a job of so many parts. Refused once any has failed: there is no use in going on.
    pub fn push(&self, job: J, parts: usize) -> Result<(), TensorError> {
        let mut state = self.lock();
        if state.failed {
            return Err(TensorError::SendingEnded);
        }
        if parts > 0 {
            state.waiting.push_back((Arc::new(job), 0, parts));
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes the next part; waits for one until the queue is closed. `None`: there will be none.
    pub fn next(&self) -> Option<(Arc<J>, usize)> {
        let mut state = self.lock();
        loop {
            if let Some((job, next, end)) = state.waiting.front_mut() {
                let part = *next;
                *next += 1;
                let is_last = *next == *end;
                let job = Arc::clone(job);
                if is_last {
                    state.waiting.pop_front();
                }
                return Some((job, part));
            }
            if state.closed || state.failed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends everything. The first error is kept.
    pub fn fail(&self, error: TensorError) {
        let mut state = self.lock();
        if !state.failed {
            state.failure = Some(error);
        }
        state.failed = true;
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        // Jobs may own memory of the card, which takes its time to be given back.
        drop(dropped);
    }

    /// Forgets what nobody has taken yet.
    pub fn clear(&self) {
        let dropped = std::mem::take(&mut self.lock().waiting);
        drop(dropped);
    }

    /// Nothing more is put in.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The first error, once.
    pub fn failure(&self) -> Option<TensorError> {
        self.lock().failure.take()
    }
}

impl<J> Drop for Close<'_, J> {
    fn drop(&mut self) {
        self.0.close();
    }
}
