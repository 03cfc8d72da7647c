//! Sessions and turns in a database, without the tokens of running turns.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use futures::FutureExt;
use redb::StorageBackend;
use tokio::sync::{mpsc, oneshot};

use super::error::{Failure, OpenError};
use super::tables::{ReadTables, Tables};
use super::writer::{Asked, MOST_STEPS, Published, Step, Watch, Writer};
use crate::sessions::record::TurnId;
use crate::sessions::store::{StoreError, Stored};

/// An open database, one thread of which writes. Dropping it waits until all that was asked is on the disk.
pub struct Records {
    steps: Option<mpsc::Sender<Box<dyn Step>>>,
    published: Arc<Published>,
    thread: Option<JoinHandle<()>>,
}

impl Records {
    /// Opens what lies on a disk that is called `file` and was [checked](super::database::check), or makes it; and tells which turns
    /// run.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        file: &str,
        disk: Arc<dyn StorageBackend>,
        watch: Box<dyn Watch>,
    ) -> Result<(Self, Vec<TurnId>), OpenError> {
        let unusable = |why: String| OpenError::Unusable { file: file.to_owned(), why };
        let published = Arc::<Published>::default();
        let writer = Writer::new(disk, Arc::clone(&published), watch);
        let writer = writer.map_err(|failure| unusable(StoreError::from(failure).to_string()))?;
        let running = read_with(&published, ReadTables::running);
        let running = running.map_err(|error| unusable(error.to_string()))?;
        let (steps, waiting) = mpsc::channel(MOST_STEPS);
        let thread = thread::Builder::new().name("sessions".to_owned()).spawn(move || writer.run(waiting));
        let thread = thread.map_err(|error| unusable(error.to_string()))?;
        Ok((Self { steps: Some(steps), published, thread: Some(thread) }, running))
    }

    /// Does a step: all of it, durably, or nothing.
    pub fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Tables<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Stored<'static, T> {
        let steps = self.steps.clone();
        async move {
            let stopped = || StoreError::Unreachable("its thread has stopped".to_owned());
            let (reply, done) = oneshot::channel();
            let step = Box::new(Asked { work, done: None, reply });
            steps.ok_or_else(stopped)?.send(step).await.map_err(|_| stopped())?;
            done.await.unwrap_or_else(|_| Err(stopped()))
        }
        .boxed()
    }

    /// Reads what was durable at one moment.
    pub fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadTables) -> Result<T, Failure> + Send + 'static,
    ) -> Stored<'static, T> {
        let published = Arc::clone(&self.published);
        let reading = tokio::task::spawn_blocking(move || read_with(&published, work));
        reading
            .map(|read| read.unwrap_or_else(|error| Err(StoreError::Unreachable(error.to_string()))))
            .boxed()
    }
}

fn read_with<T>(
    published: &Published,
    work: impl FnOnce(&ReadTables) -> Result<T, Failure>,
) -> Result<T, StoreError> {
    let snapshot = published.newest().ok_or_else(|| StoreError::Unreachable("it is closed".to_owned()))?;
    Ok(snapshot.tables().and_then(|tables| work(&tables))?)
}

impl std::fmt::Debug for Records {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            // It has said why in its panic.
            let _ = thread.join();
        }
    }
}
