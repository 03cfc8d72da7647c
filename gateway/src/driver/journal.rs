//! Answers whose tokens are in a journal before their readers get them.
//!
//! The driver hands over what a step drew for such answers at once, and never waits: a task of its own has it written, all that
//! came meanwhile in one write, and tells the readers then. What waits here is bounded by the answers themselves. An answer
//! whose tokens could not be written is broken off, and no later token of it is written or told; whoever runs its turn goes on
//! from what was told. So is one whose turn runs under another gateway now: its tokens are that one's to tell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use asterism_proto::v1::generate_response::Event;
use asterism_proto::{Failure, Reason};
use tokio::sync::Notify;

use super::answer::AnswerSender;
use super::cancel::Cancelled;
use crate::scheduler::SequenceId;
use crate::sessions::TurnId;
use crate::sessions::store::{Appended, Store, StoreError};

/// Why a turn does not go on here.
pub const TAKEN: &str = "another gateway goes on with this turn";

/// What a step led to for the journaled answers.
pub type Batch = Vec<Entry>;

/// What is to be told of one answer, and the tokens that must be written before.
#[derive(Debug)]
pub struct Entry {
    /// Whose answer it is.
    pub sequence: SequenceId,
    /// To its reader.
    pub answer: AnswerSender,
    /// Which turn's answer it is.
    pub turn: TurnId,
    /// The ids among the events; none: nothing need be written.
    pub tokens: Option<Appended>,
    /// In order.
    pub events: Vec<Result<Event, Failure>>,
}

/// An answer's place in the journal.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose answer it is.
    pub turn: TurnId,
    /// How many tokens it has.
    pub tokens: u32,
}

impl Place {
    /// Adds a token's events to what a step led to: to this answer's entry, if that is the last, as a step's tokens of one
    /// answer come one after the other.
    pub fn add(
        &mut self,
        batch: &mut Batch,
        (sequence, answer): (SequenceId, &AnswerSender),
        id: u32,
        events: impl Iterator<Item = Event>,
    ) {
        let first = self.tokens;
        self.tokens += 1;
        let events = events.map(Ok);
        if let Some(last) = batch.last_mut()
            && last.sequence == sequence
            && let Some(tokens) = &mut last.tokens
        {
            tokens.token_ids.push(id);
            last.events.extend(events);
            return;
        }
        let tokens = Some(Appended { turn: self.turn, first, token_ids: vec![id] });
        let events = events.collect();
        batch.push(Entry { sequence, answer: answer.clone(), turn: self.turn, tokens, events });
    }
}

/// The driver's end of what waits to be written.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Arc<Waiting>,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub struct Waiting {
    entries: Mutex<Batch>,
    news: Notify,
    closed: AtomicBool,
}

impl Outbox {
    /// For the task that writes.
    pub fn waiting(&self) -> Arc<Waiting> {
        Arc::clone(&self.waiting)
    }

    /// Hands over what a step led to.
    pub fn put(&self, batch: &mut Batch) {
        self.waiting.entries.lock().unwrap_or_else(PoisonError::into_inner).append(batch);
        self.waiting.news.notify_one();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.waiting.closed.store(true, Ordering::Release);
        self.waiting.news.notify_one();
    }
}

impl Waiting {
    /// All that waits, once anything does; nothing where the driver is gone.
    async fn take(&self) -> Batch {
        loop {
            // Seen before the entries are, so that none is left.
            let closed = self.closed.load(Ordering::Acquire);
            let entries = std::mem::take(&mut *self.entries.lock().unwrap_or_else(PoisonError::into_inner));
            if closed || !entries.is_empty() {
                return entries;
            }
            self.news.notified().await;
        }
    }
}

/// Writes and tells until the driver is gone.
pub async fn run(store: Arc<dyn Store>, waiting: Arc<Waiting>, cancelled: Cancelled) {
    loop {
        let mut entries = waiting.take().await;
        if entries.is_empty() {
            return;
        }
        entries.retain(|entry| !entry.answer.is_broken());
        let (mut tokens, mut needed) = (Vec::new(), Vec::with_capacity(entries.len()));
        for entry in &mut entries {
            needed.push(entry.tokens.is_some());
            tokens.extend(entry.tokens.take());
        }
        let turns = tokens.len();
        let written = if turns == 0 { Ok(Vec::new()) } else { store.append(tokens).await };
        if let Err(error) = &written {
            tracing::error!(%error, turns, "tokens could not be journaled: their answers are broken off");
        }
        for (Entry { sequence, answer, turn, events, .. }, needed) in entries.into_iter().zip(needed) {
            // An end whose tokens were all written before stands.
            let failed = written.is_ok() || needed || answer.is_broken();
            let told = match failed.then(|| broken(&written, turn)).flatten() {
                None => tell(&answer, events),
                Some(failure) => {
                    answer.break_off(failure);
                    false
                }
            };
            if !told {
                drop(cancelled.guard(sequence));
            }
        }
    }
}

/// Why a turn's events cannot be told: [`Reason::Conflict`] where another gateway has it, [`Reason::Unavailable`] where its
/// tokens can be kept later.
fn broken(written: &Result<Vec<TurnId>, StoreError>, turn: TurnId) -> Option<Failure> {
    match written {
        Ok(left_out) if left_out.contains(&turn) => Some(Failure::new(Reason::Conflict, TAKEN)),
        Ok(_) => None,
        Err(error) => {
            let reason = Failure::from(error.clone()).reason;
            Some(Failure::new(reason, format!("the answer's tokens cannot be kept now: {error}")))
        }
    }
}

/// Tells events in order. False: nobody will read on.
pub fn tell(answer: &AnswerSender, events: Vec<Result<Event, Failure>>) -> bool {
    events.into_iter().all(|event| match event {
        Ok(event) => answer.send(event).is_ok(),
        Err(failure) => {
            answer.fail(failure);
            true
        }
    })
}
