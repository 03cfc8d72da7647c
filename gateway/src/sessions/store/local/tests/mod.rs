mod crashes;
mod damage;
mod disks;
mod full;

use futures::future::BoxFuture;
use proptest::prelude::*;
use tempfile::TempDir;

use self::disks::{Folder, OneFile};
use super::*;
use crate::sessions::store::suite::{self, Bed, store_suite};

impl Bed for TempDir {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::open(self.path()).unwrap());
        futures::future::ready(store).boxed()
    }
}

/// Disks in memory.
#[derive(Clone, Debug, Default)]
struct Disks {
    records: OneFile,
    journal: Folder,
}

impl Disks {
    /// With an empty store.
    fn made() -> Self {
        let disks = Self::default();
        drop(disks.open());
        Self { records: OneFile::of(disks.records.bytes()), ..disks }
    }

    fn try_open(&self) -> Result<Arc<dyn Store>, OpenError> {
        let store =
            LocalStore::open_on("memory", Arc::new(self.records.clone()), Arc::new(self.journal.clone()));
        Ok(Arc::new(store?))
    }

    fn open(&self) -> Arc<dyn Store> {
        self.try_open().unwrap()
    }
}

impl Bed for Disks {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        futures::future::ready(self.try_open().unwrap()).boxed()
    }
}

mod in_a_folder {
    use super::*;

    store_suite!(tempfile::tempdir().unwrap());
}

mod in_memory {
    use super::*;

    store_suite!(Disks::default());
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_give_what_the_model_gives(ops in suite::ops()) {
        block_on(suite::agrees_with_the_model(&Disks::default(), &ops))?;
    }
}

#[test]
fn a_folder_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    match LocalStore::open(folder.path()) {
        Err(OpenError::InUse(named)) => assert_eq!(named, folder.path().display().to_string()),
        other => panic!("{other:?}"),
    }
    drop(store);
    LocalStore::open(folder.path()).unwrap();
}

#[test]
fn what_a_process_left_that_was_killed_while_it_made_a_store_is_no_hindrance() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sessions.redb.new"), [0; 10_000]).unwrap();
    LocalStore::open(folder.path()).unwrap();
}

#[tokio::test]
async fn steps_that_wait_share_a_sync() {
    let disks = Disks::default();
    let store = disks.open();
    let sessions =
        futures::future::join_all((1..=100).map(|n| store.create("t", suite::new_session(n)))).await;
    assert!(sessions.iter().all(Result::is_ok));
    let before = disks.records.syncs();
    // All wait before the thread can have taken more than a few, whose sync takes as long as asking for all.
    let begun = (1..=100).map(|n| store.begin("t", suite::session_id(n), suite::new_turn(n)));
    let begun = futures::future::join_all(begun).await;
    assert!(begun.iter().all(Result::is_ok));
    assert!(disks.records.syncs() - before < 100, "{} syncs", disks.records.syncs() - before);
}
