//! A runtime of one thread, for messages that somebody waits for within microseconds.
//!
//! A runtime of several threads wakes another of them for nearly everything that becomes ready, and a wake costs who wakes
//! and who is woken some microseconds, on a virtual machine tens. The streams between a driver and its shards carry a few
//! small messages a step, each the answer to the one before, so one thread that does them all is both enough and quicker.

use std::io;
use std::panic::resume_unwind;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A runtime of one thread. Dropping it drops what runs on it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
    _stop: DropGuard,
}

impl Reactor {
    /// Starts the thread, under this name.
    ///
    /// # Errors
    /// There can be no more threads or sockets.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(stopped))?;
        Ok(Self { handle, _stop: stop.drop_guard() })
    }

    /// For tasks, and for what must be made within a runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs `work` here and goes with it; awaited or aborted from the caller's runtime. A panic goes on there.
    pub fn run<T: Send + 'static>(self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let task = self.handle.spawn(work);
        tokio::spawn(async move {
            // Lives as long as the task, and ends it where the caller's runtime ends first.
            let _reactor = self;
            match task.await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // Only a reactor that goes away cancels its tasks, and it is held here.
                    Err(_) => std::future::pending().await,
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_a_thread_of_its_own() {
        let name = || thread::current().name().map(str::to_owned);
        let reactor = Reactor::start("reactor-test").unwrap();
        let done = reactor.run(async move { name() }).await.unwrap();
        assert_eq!(done.as_deref(), Some("reactor-test"));
    }

    #[tokio::test]
    async fn what_runs_goes_with_its_reactor() {
        let reactor = Reactor::start("reactor-test").unwrap();
        let (held, dropped) = oneshot::channel::<()>();
        reactor.handle().spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(reactor);
        assert!(dropped.await.is_err(), "the task was dropped");
    }

    #[tokio::test]
    async fn aborting_the_wait_ends_the_work() {
        let reactor = Reactor::start("reactor-test").unwrap();
        let (held, dropped) = oneshot::channel::<()>();
        let task = reactor.run(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        task.abort();
        assert!(dropped.await.is_err(), "the work was dropped");
    }

    #[tokio::test]
    async fn a_panic_goes_on_where_it_is_awaited() {
        let reactor = Reactor::start("reactor-test").unwrap();
        let task = reactor.run(async { assert_eq!(1, 2, "for the test") });
        assert!(task.await.is_err_and(|error| error.is_panic()));
    }
}
