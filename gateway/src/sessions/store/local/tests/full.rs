//! Disks that take nothing more.

use super::disks::Faults;
use super::*;
use crate::sessions::store::suite::{
    ANY, answer, everything, new_session, new_turn, session_id, talked, turn_id,
};

#[track_caller]
fn assert_unwritable<T: std::fmt::Debug>(answer: Result<T, StoreError>) {
    assert!(matches!(answer, Err(StoreError::Unwritable(_))), "{answer:?}");
}

/// Steps are refused, reads go on, and once the disk takes writes again steps do too.
async fn goes_on_after(disks: &Disks, store: &dyn Store, faults: Faults) {
    let id = session_id(1);
    let before = everything(store).await;
    disks.records.set(faults);
    for turn in 101..104 {
        assert_unwritable(store.begin("t", id, new_turn(turn)).await);
        assert_unwritable(store.create("t", new_session(turn)).await);
        assert_unwritable(store.delete("t", id, ANY).await);
        assert_eq!(store.session("t", id).await.unwrap().running, None);
        assert_eq!(store.turns("t", id, 0, 10).await.unwrap().len(), 2);
        assert_eq!(store.sessions("t", None, 10).await.unwrap().len(), 1);
    }
    disks.records.set(Faults::default());
    assert_eq!(everything(store).await, before);
    store.begin("t", id, new_turn(101)).await.unwrap();
    store.finish(turn_id(101), answer("", 0)).await.unwrap();
    assert_eq!(store.turns("t", id, 0, 10).await.unwrap().len(), 3);
    store.truncate("t", id, ANY, 2).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_steps_wherever_it_fills() {
    let disks = Disks::default();
    let store = disks.open();
    talked(&*store, 1, &[1, 2]).await;
    for writes in 0..40 {
        // Of the first step, so many writes are done.
        let faults = Faults { writes_left: Some(writes), ..Faults::default() };
        disks.records.set(faults);
        let begun = store.begin("t", session_id(1), new_turn(50)).await;
        if begun.is_ok() {
            assert!(writes > 1, "a commit is more than a write");
            break;
        }
        assert_unwritable(begun);
        // Killed now, the store is as it was.
        let killed = Disks { records: OneFile::of(disks.records.bytes()), journal: Folder::default() };
        let killed = killed.open();
        assert_eq!(killed.turns("t", session_id(1), 0, 10).await.unwrap().len(), 2);
        disks.records.set(Faults::default());
        goes_on_after(&disks, &*store, Faults { writes_left: Some(0), ..Faults::default() }).await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_sync_refuses_steps() {
    let disks = Disks::default();
    let store = disks.open();
    talked(&*store, 1, &[1, 2]).await;
    goes_on_after(&disks, &*store, Faults { syncs_fail: true, ..Faults::default() }).await;
    goes_on_after(&disks, &*store, Faults { writes_left: Some(0), ..Faults::default() }).await;
    drop(store);
    assert_eq!(disks.open().turns("t", session_id(1), 0, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_store_on_a_full_disk_can_be_closed() {
    let disks = Disks::default();
    let store = disks.open();
    talked(&*store, 1, &[1, 2]).await;
    let before = everything(&*store).await;
    disks.records.set(Faults { writes_left: Some(0), ..Faults::default() });
    assert_unwritable(store.begin("t", session_id(1), new_turn(3)).await);
    drop(store);
    disks.records.set(Faults::default());
    assert_eq!(everything(&*disks.open()).await, before);
}

#[tokio::test]
async fn a_disk_may_fill_again_while_the_store_mends_itself() {
    let disks = Disks::default();
    let store = disks.open();
    talked(&*store, 1, &[1, 2]).await;
    let before = everything(&*store).await;
    for writes in 2..200 {
        disks.records.set(Faults { writes_left: Some(2), ..Faults::default() });
        assert_unwritable(store.begin("t", session_id(1), new_turn(50)).await);
        disks.records.set(Faults { writes_left: Some(writes), ..Faults::default() });
        let begun = store.begin("t", session_id(1), new_turn(50)).await;
        let killed = Disks { records: OneFile::of(disks.records.bytes()), journal: Folder::default() };
        let killed = killed.open();
        if begun.is_ok() {
            assert_eq!(killed.session("t", session_id(1)).await.unwrap().running, Some(turn_id(50)));
            return;
        }
        assert_unwritable(begun);
        assert_eq!(everything(&*killed).await, before);
        assert_eq!(store.turns("t", session_id(1), 0, 10).await.unwrap().len(), 2);
    }
    panic!("it never mended itself");
}
