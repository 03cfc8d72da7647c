//! Keeps a runtime awake while an answer is expected within microseconds.
//!
//! A core that sleeps takes tens of microseconds to wake, and what comes over a socket wakes several in turn. Where a card
//! waits for each of them, that is longer than the work itself. So while a step is under way on a card, one thread of the
//! runtime goes on looking for work in place of sleeping. It costs one core, and only as long as there is work for the card.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Between two looks: some hundred nanoseconds. The runtime looks at sockets each 61st time.
const PAUSES: usize = 4;

/// Keeps the runtime that it was made in awake while there are guards.
#[derive(Debug)]
pub struct Wakefulness {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// As long as it lives, the runtime does not sleep.
#[derive(Debug)]
pub struct AwakeGuard {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    guards: AtomicUsize,
    first: Notify,
}

impl Wakefulness {
    /// For the runtime of `handle`; it may sleep until there is a guard.
    pub fn of(handle: &tokio::runtime::Handle) -> Self {
        let shared = Arc::<Shared>::default();
        let task = handle.spawn(stay_awake(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Keeps the runtime awake.
    pub fn guard(&self) -> AwakeGuard {
        if self.shared.guards.fetch_add(1, Ordering::AcqRel) == 0 {
            self.shared.first.notify_one();
        }
        AwakeGuard { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Wakefulness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for AwakeGuard {
    fn drop(&mut self) {
        self.shared.guards.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A task that always has something to do keeps its thread looking at sockets and at other tasks between.
async fn stay_awake(shared: Arc<Shared>) {
    loop {
        while shared.guards.load(Ordering::Acquire) > 0 {
            // Two hardware threads share a core, and whoever has the other half works on what is waited for.
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
        shared.first.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn guards_are_counted_and_the_task_rests_without_them() {
        let wakefulness = Wakefulness::of(&tokio::runtime::Handle::current());
        let guards = || wakefulness.shared.guards.load(Ordering::Acquire);
        let (first, second) = (wakefulness.guard(), wakefulness.guard());
        tokio::task::yield_now().await;
        assert_eq!(guards(), 2);
        drop(first);
        assert_eq!(guards(), 1);
        drop(second);
        assert_eq!(guards(), 0);
        // Other tasks run beside it, with a guard and without one.
        let guard = wakefulness.guard();
        assert_eq!(tokio::spawn(async { 7 }).await.ok(), Some(7));
        drop(guard);
        assert_eq!(tokio::spawn(async { 8 }).await.ok(), Some(8));
    }
}
