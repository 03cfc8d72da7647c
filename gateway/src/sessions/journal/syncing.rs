//! Bringing what was written to the disk, beside the thread that writes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::error::JournalError;
use super::segments::{self, Segment};

/// What writing and syncing tell each other. Neither waits for the other.
#[derive(Debug, Default)]
pub struct Syncing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What is not on the disk yet.
    work: Option<Work>,
    failure: Option<JournalError>,
    closing: bool,
    /// Whether the syncing thread waits for work.
    idle: bool,
}

/// What to bring to the disk.
#[derive(Clone, Debug)]
pub struct Work {
    segment: Arc<Segment>,
    /// So many of its bytes.
    written: u64,
}

/// Brings segments to the disk, and removes those that no longer count.
#[derive(Debug)]
pub struct Syncer {
    disk: Arc<dyn Disk>,
    /// The newest segment that counts if no later one reaches the disk; the first where none does.
    sure: u64,
    /// The segment that was worked on last.
    last: u64,
}

impl Syncing {
    /// So many bytes of a segment are written; earlier segments count no longer once these are on the disk.
    pub fn written(&self, segment: &Arc<Segment>, written: u64) {
        let mut state = self.lock();
        state.work = Some(Work { segment: Arc::clone(segment), written });
        if state.idle {
            self.changed.notify_all();
        }
    }

    /// Takes a failure that was not taken yet.
    pub fn take_failure(&self) -> Option<JournalError> {
        self.lock().failure.take()
    }

    /// Nothing more will be written.
    pub fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// What is to be done, if anything.
    pub fn take_work(&self) -> Option<Work> {
        self.lock().work.take()
    }

    /// Waits until there is something to do, or nothing will come.
    fn wait_for_work(&self) {
        let mut state = self.lock();
        state.idle = true;
        let waits = |state: &mut State| state.work.is_none() && !state.closing;
        state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.idle = false;
    }

    /// Waits so long, or until nothing more will be written.
    fn rest(&self, time: Duration) {
        let waits = |state: &mut State| !state.closing;
        drop(
            self.changed.wait_timeout_while(self.lock(), time, waits).unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Work failed. Whether the writing thread has to do something, as it has not gone on to another segment, which has all
    /// that lives.
    pub fn fail(&self, work: &Work, failure: JournalError) -> bool {
        let mut state = self.lock();
        let is_last = state.work.as_ref().is_none_or(|next| Arc::ptr_eq(&next.segment, &work.segment));
        if is_last {
            tracing::error!(%failure, "what lives must be written anew");
            state.work = None;
            state.failure = Some(failure);
        } else {
            tracing::warn!(%failure, "a newer segment of the journal has all that lives");
        }
        is_last
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Syncer {
    /// For a journal whose newest whole segment has this number; 0: there is none.
    pub fn new(disk: Arc<dyn Disk>, newest: u64) -> Self {
        Self { disk, sure: newest.max(segments::FIRST), last: 0 }
    }

    /// Works until [`Syncing::close`], `pace` from one beginning to the next; `on_failure` is called when the writing
    /// thread has to do something.
    pub fn run(mut self, syncing: &Syncing, pace: Duration, on_failure: impl Fn()) {
        loop {
            syncing.wait_for_work();
            let Some(work) = syncing.take_work() else { return };
            let start = Instant::now();
            if let Err(failure) = self.sync(&work)
                && syncing.fail(&work, failure)
            {
                on_failure();
            }
            syncing.rest(pace.saturating_sub(start.elapsed()));
        }
    }

    /// Brings one segment to the disk, and removes those that count no longer.
    ///
    /// # Errors
    /// [`JournalError::Sync`]: what is on the disk is not known.
    pub fn sync(&mut self, work: &Work) -> Result<(), JournalError> {
        let Work { segment, written } = work;
        let is_new = segment.number != self.last;
        if is_new {
            // Those between never reached the disk, and this one has all that lives.
            self.remove(|number| self.sure < number && number < segment.number);
            self.last = segment.number;
        }
        let synced = segment.file.sync().and_then(|()| if is_new { self.disk.sync() } else { Ok(()) });
        if let Err(error) = synced {
            self.last = 0;
            return Err(JournalError::Sync { file: segment.name(), why: error.to_string() });
        }
        segment.set_synced(*written);
        if is_new {
            self.sure = segment.number;
            self.remove(|number| number < segment.number);
        }
        Ok(())
    }

    /// Removes segments. One that stays does no harm; it goes with the next.
    fn remove(&self, goes: impl Fn(u64) -> bool) {
        let numbers = segments::list(&*self.disk).unwrap_or_else(|error| {
            tracing::warn!(%error, "old segments of the journal stay");
            Vec::new()
        });
        for file in numbers.into_iter().filter(|number| goes(*number)).map(segments::name) {
            if let Err(error) = self.disk.remove(&file) {
                tracing::warn!(file, %error, "an old segment of the journal stays");
            }
        }
    }
}
