//! The one thread that writes: all steps that wait become one transaction, and are answered once it is on the disk.

use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;
use tokio::sync::{mpsc, oneshot};

use super::database::{Opened, Snapshot};
use super::error::Failure;
use super::tables::{Changes, Tables};
use crate::sessions::store::StoreError;

/// The most steps of one transaction, and the most that wait.
pub const MOST_STEPS: usize = 256;

/// A step that waits for its answer.
pub trait Step: Send {
    /// Does it, and keeps its answer. It may be done again, in another transaction.
    ///
    /// # Errors
    /// The transaction cannot be gone on with. A refusal is an answer.
    fn apply(&mut self, tables: &mut Tables<'_>) -> Result<(), Failure>;

    /// Gives its answer or, in the place of it, an error.
    fn answer(self: Box<Self>, failed: Option<StoreError>);
}

/// A step of a function.
pub struct Asked<F, T> {
    /// What it does.
    pub work: F,
    /// What came of it.
    pub done: Option<Result<T, StoreError>>,
    /// Who waits.
    pub reply: oneshot::Sender<Result<T, StoreError>>,
}

/// What is read, while the writer writes on.
#[derive(Default)]
pub struct Published(Mutex<Option<Arc<Snapshot>>>);

/// Told of the turns that begin and end, once that is on the disk and before anyone else is told.
pub trait Watch: Send {
    /// This was done.
    fn changed(&self, changes: &Changes);
}

/// The thread's state.
pub struct Writer {
    disk: Arc<dyn StorageBackend>,
    opened: Opened,
    published: Arc<Published>,
    watch: Box<dyn Watch>,
    /// The last transaction failed: what is open is ahead of the disk, and serves only those who read what was before.
    is_behind: bool,
}

impl<F, T> Step for Asked<F, T>
where
    F: Fn(&mut Tables<'_>) -> Result<T, Failure> + Send,
    T: Send,
{
    fn apply(&mut self, tables: &mut Tables<'_>) -> Result<(), Failure> {
        self.done = Some(match (self.work)(tables) {
            Ok(done) => Ok(done),
            Err(Failure::Refused(error)) => Err(error),
            Err(failure) => return Err(failure),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, failed: Option<StoreError>) {
        let done = match failed {
            Some(error) => Err(error),
            None => self.done.unwrap_or_else(|| Err(StoreError::Unreachable("it was not done".to_owned()))),
        };
        // Fails only where nobody waits any more.
        let _ = self.reply.send(done);
    }
}

impl Published {
    /// The newest that is on the disk.
    pub fn newest(&self) -> Option<Arc<Snapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, snapshot: Option<Snapshot>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.map(Arc::new);
    }
}

impl Writer {
    /// Opens what is on a disk, and publishes it.
    ///
    /// # Errors
    /// [`Failure::Lost`], [`Failure::Damaged`].
    pub fn new(
        disk: Arc<dyn StorageBackend>,
        published: Arc<Published>,
        watch: Box<dyn Watch>,
    ) -> Result<Self, Failure> {
        let opened = Opened::open(&disk)?;
        published.publish(Some(opened.snapshot()?));
        Ok(Self { disk, opened, published, watch, is_behind: false })
    }

    /// Does steps until nobody can ask for any.
    pub fn run(mut self, mut steps: mpsc::Receiver<Box<dyn Step>>) {
        let mut waiting = Vec::with_capacity(MOST_STEPS);
        while steps.blocking_recv_many(&mut waiting, MOST_STEPS) > 0 {
            self.commit(&mut waiting);
        }
        self.close();
    }

    /// Commits all steps, and answers them.
    fn commit(&mut self, steps: &mut Vec<Box<dyn Step>>) {
        let failed = self.mend().and_then(|()| self.write(steps)).err();
        for step in steps.drain(..) {
            step.answer(failed.clone());
        }
    }

    fn write(&mut self, steps: &mut Vec<Box<dyn Step>>) -> Result<(), StoreError> {
        while !steps.is_empty() {
            match self.write_once(steps) {
                Ok(()) => break,
                // The rest is done without it.
                Err(Failed { step: Some(step), failure: Failure::Damaged(why) }) => {
                    steps.remove(step).answer(Some(StoreError::Damaged(why)));
                }
                Err(Failed { failure, .. }) => {
                    self.is_behind = true;
                    return Err(unwritable(failure));
                }
            }
        }
        Ok(())
    }

    fn write_once(&mut self, steps: &mut [Box<dyn Step>]) -> Result<(), Failed> {
        let transaction = self.opened.database.begin_write().map_err(Failure::from)?;
        let mut tables = Tables::open(&transaction).map_err(Failure::from)?;
        for (index, step) in steps.iter_mut().enumerate() {
            step.apply(&mut tables).map_err(|failure| Failed { step: Some(index), failure })?;
        }
        let changes = std::mem::take(&mut tables.changes);
        drop(tables);
        if !changes.any {
            return Ok(());
        }
        transaction.commit().map_err(Failure::from)?;
        self.opened.overlay.bring().map_err(|error| Failure::Lost(error.to_string()))?;
        self.watch.changed(&changes);
        match self.opened.snapshot() {
            Ok(snapshot) => self.published.publish(Some(snapshot)),
            // The steps are done; what is open is not of use any more.
            Err(_) => self.is_behind = true,
        }
        Ok(())
    }

    /// After a failure: once the disk takes again what it did not take, goes back to what is on it.
    fn mend(&mut self) -> Result<(), StoreError> {
        if !self.is_behind {
            return Ok(());
        }
        self.opened.overlay.probe().map_err(|error| StoreError::Unwritable(error.to_string()))?;
        // The pages that it wrote are another's from now on, even if opening fails.
        self.opened.overlay.go_through(false);
        let mended = Opened::open(&self.disk).and_then(|opened| Ok((opened.snapshot()?, opened)));
        let (snapshot, opened) = mended.map_err(unwritable)?;
        self.published.publish(Some(snapshot));
        self.opened = opened;
        self.is_behind = false;
        Ok(())
    }

    /// Leaves the file so that it opens without repair, unless someone still reads.
    fn close(self) {
        self.published.publish(None);
        let is_alone = Arc::strong_count(&self.opened.database) == 1;
        // What could not be brought is not needed.
        if is_alone && !self.is_behind && self.opened.overlay.bring().is_ok() {
            self.opened.overlay.go_through(true);
        }
    }
}

fn unwritable(failure: Failure) -> StoreError {
    match failure {
        Failure::Refused(error) => error,
        Failure::Damaged(why) | Failure::Lost(why) => StoreError::Unwritable(why),
    }
}

/// Why a transaction was given up.
struct Failed {
    /// The step in which it failed.
    step: Option<usize>,
    failure: Failure,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { step: None, failure }
    }
}
