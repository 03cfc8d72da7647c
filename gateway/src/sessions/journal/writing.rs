//! The thread that writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use futures::executor::block_on;
use tokio::sync::{Notify, mpsc, oneshot};

use super::error::JournalError;
use super::log::{Change, Log};
use crate::sessions::TurnId;

/// How many changes may wait.
pub const QUEUED: usize = 64;

/// What the thread is to write.
#[derive(Debug)]
pub struct Command {
    /// What it is.
    pub change: Change,
    /// Is told whether it went well.
    pub done: oneshot::Sender<Result<(), JournalError>>,
}

/// What is said to the thread without waiting for room in its queue.
#[derive(Debug, Default)]
pub struct Outside {
    forgotten: Mutex<Vec<TurnId>>,
    closing: AtomicBool,
    wake: Notify,
}

impl Outside {
    /// Forgets a turn.
    pub fn forget(&self, turn: TurnId) {
        self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).push(turn);
        self.wake();
    }

    /// Ends the thread after what is in its queue.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }

    /// Makes the thread look whether there is something to do.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn take_forgotten(&self) -> Vec<TurnId> {
        std::mem::take(&mut *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes until it is closed.
pub fn run(mut log: Log, mut commands: mpsc::Receiver<Command>, outside: &Outside) {
    let (mut changes, mut answers) = (Vec::new(), Vec::new());
    loop {
        let first = block_on(next(&mut commands, outside));
        let closing = outside.closing.load(Ordering::Acquire);
        if closing {
            commands.close();
        }
        // What was sent before one of these is in the queue, which is emptied before they are forgotten.
        let forgotten = outside.take_forgotten();
        let rest = std::iter::from_fn(|| commands.try_recv().ok()).take(QUEUED);
        for Command { change, done } in first.into_iter().chain(rest) {
            changes.push(change);
            answers.push(done);
        }
        if changes.is_empty() {
            log.repair();
        } else {
            for (result, done) in log.write(&changes).into_iter().zip(answers.drain(..)) {
                // Who asked may be gone.
                let _ = done.send(result);
            }
            changes.clear();
        }
        forgotten.into_iter().for_each(|turn| log.forget(turn));
        if closing {
            // The queue is empty; those that wait for room in it are refused.
            return;
        }
    }
}

/// Waits for a command, or until there is something else to do.
async fn next(commands: &mut mpsc::Receiver<Command>, outside: &Outside) -> Option<Command> {
    tokio::select! {
        command = commands.recv() => command,
        () = outside.wake.notified() => None,
    }
}
