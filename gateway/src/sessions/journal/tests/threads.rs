//! The journal with its threads.

use futures::FutureExt;
use futures::future::join_all;

use super::super::{FolderDisk, Journal, Recovered};
use super::*;

fn open(disk: &MemoryDisk) -> (Journal, Vec<Recovered>) {
    Journal::open(Arc::new(disk.clone()), Settings::default()).unwrap()
}

fn appended(number: u128, first: u32, token_ids: &[u32]) -> Vec<Appended> {
    vec![Appended { turn: turn(number), first, token_ids: token_ids.to_vec() }]
}

#[tokio::test]
async fn what_was_answered_is_found_again_after_a_kill() {
    let disk = MemoryDisk::default();
    let (journal, recovered) = open(&disk);
    assert!(recovered.is_empty());
    journal.append(appended(1, 0, &[1, 2])).await.unwrap();
    journal.stop(turn(1)).await.unwrap();
    let killed = disk.after_kill();
    let expected = Recovered { turn: turn(1), token_ids: vec![1, 2], stop: true };
    assert_eq!(open(&killed).1, [expected]);
    journal.forget(turn(1));
    journal.append(appended(2, 0, &[3])).await.unwrap();
    journal.append(appended(2, 1, &[4])).await.unwrap();
    let expected = Recovered { turn: turn(2), token_ids: vec![3, 4], stop: false };
    assert_eq!(open(&disk.after_kill()).1, [expected]);
}

#[tokio::test]
async fn a_dropped_journal_is_on_the_disk_and_closed() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk);
    let turns = 0..200;
    let mut changes: Vec<_> =
        turns.clone().map(|number| journal.append(appended(number, 0, &[number as u32])).boxed()).collect();
    // More than may wait: some are in the queue, some are not yet.
    let answered = changes.iter_mut().filter_map(FutureExt::now_or_never).filter(Result::is_ok).count();
    drop(journal);
    let results = join_all(changes.into_iter().skip(answered)).await;
    let survivors = found(&disk.after_power_cut(&mut |_| 0)).unwrap();
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(JournalError::Closed))));
    let written = answered + results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(survivors.len(), written);
    assert!(written > 0);
}

#[tokio::test]
async fn more_than_may_wait_is_written_all_the_same() {
    let disk = MemoryDisk::default();
    let (journal, _) = open(&disk);
    let results = join_all((0..500).map(|number| journal.append(appended(number, 0, &[7])))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(found(&disk).unwrap().len(), 500);
}

#[tokio::test]
async fn a_sync_that_fails_while_nobody_writes_is_made_up_for() {
    let disk = MemoryDisk::default();
    disk.set_faults(Faults { sync: true, ..Faults::default() });
    let (journal, _) = open(&disk);
    journal.append(appended(1, 0, &[1])).await.unwrap();
    let mut refused = journal.append(appended(1, 1, &[2])).await;
    let mut first = 1;
    while refused.is_ok() {
        first += 1;
        refused = journal.append(appended(1, first, &[2])).await;
    }
    assert!(matches!(refused, Err(JournalError::Sync { .. })), "{refused:?}");
    disk.set_faults(Faults::default());
    drop(journal);
    let survivors = found(&disk.after_power_cut(&mut |_| 0)).unwrap();
    assert_eq!(survivors[&turn(1)].token_ids.len(), first as usize);
}

#[tokio::test]
async fn a_folder_is_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let disk = Arc::new(FolderDisk::open(folder.path().join("journal")).unwrap());
        Journal::open(disk, Settings { segment_bytes: 300, ..Settings::default() }).unwrap()
    };
    let mut expected = Vec::new();
    for round in 0..4 {
        let (journal, recovered) = open();
        assert_eq!(recovered.first().map(|turn| &turn.token_ids), (round > 0).then_some(&expected));
        for _ in 0..20 {
            journal.append(appended(1, expected.len() as u32, &[expected.len() as u32])).await.unwrap();
            expected.push(expected.len() as u32);
        }
    }
    assert_eq!(std::fs::read_dir(folder.path().join("journal")).unwrap().count(), 1);
}
