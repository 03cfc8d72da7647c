//! Files that are not what was written.

use proptest::prelude::*;

use super::database::Opened;
use super::tables::{ABOUT, FORMAT, FORMAT_KEY};
use super::*;
use crate::sessions::journal::Disk;
use crate::sessions::store::Appended;
use crate::sessions::store::suite::{everything, new_turn, talked, turn_id};

/// A store that was closed, and what can be read of it.
fn closed() -> (Disks, Vec<String>) {
    let disks = Disks::default();
    let kept = block_on(async {
        let store = disks.open();
        talked(&*store, 1, &[1, 2, 3]).await;
        talked(&*store, 2, &[4]).await;
        everything(&*store).await
    });
    (disks, kept)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_told_and_left_as_it_is(place in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (disks, kept) = closed();
        let mut bytes = disks.records.bytes();
        let written: Vec<usize> = (0..bytes.len()).filter(|place| bytes[*place] != 0).collect();
        bytes[*place.get(&written)] ^= 1 << bit;
        let damaged = Disks { records: OneFile::of(bytes.clone()), journal: disks.journal };
        match damaged.try_open() {
            // It is in no page that is used.
            Ok(store) => prop_assert_eq!(block_on(everything(&*store)), kept),
            Err(error) => {
                prop_assert!(matches!(error, OpenError::Damaged { .. }), "{:?}", error);
                prop_assert!(damaged.records.bytes() == bytes, "the file was changed");
            }
        }
    }
}

#[test]
fn a_file_of_another_kind_is_told_and_left_as_it_is() {
    for bytes in [b"not a store".to_vec(), vec![7; 10_000]] {
        let disks = Disks { records: OneFile::of(bytes.clone()), journal: Folder::default() };
        match disks.try_open() {
            Err(OpenError::Damaged { file, .. }) => assert_eq!(file, "memory"),
            other => panic!("{other:?}"),
        }
        assert_eq!(disks.records.bytes(), bytes);
    }
}

#[test]
fn a_later_format_is_told_and_left_as_it_is() {
    let (disks, _) = closed();
    {
        let opened = Opened::open(&(Arc::new(disks.records.clone()) as Arc<dyn StorageBackend>)).unwrap();
        opened.overlay.go_through(true);
        let transaction = opened.database.begin_write().unwrap();
        transaction.open_table(ABOUT).unwrap().insert(FORMAT_KEY, FORMAT + 1).unwrap();
        transaction.commit().unwrap();
    }
    let bytes = disks.records.bytes();
    match disks.try_open() {
        Err(OpenError::Newer { found, known, .. }) => assert_eq!((found, known), (FORMAT + 1, FORMAT)),
        other => panic!("{other:?}"),
    }
    assert_eq!(disks.records.bytes(), bytes);
}

#[test]
fn what_is_whole_beside_the_damage_is_told() {
    let disks = Disks::default();
    block_on(async {
        let store = disks.open();
        let id = talked(&*store, 1, &[1]).await;
        store.begin("t", id, new_turn(2)).await.unwrap();
        let tokens = Appended { turn: turn_id(2), first: 0, token_ids: vec![7, 8] };
        store.append(vec![tokens]).await.unwrap();
    });
    let told = |disks: Disks| disks.try_open().unwrap_err().to_string();

    let records = OneFile::of(b"not a store".to_vec());
    let error = told(Disks { records, journal: disks.journal.clone() });
    assert!(error.starts_with("memory is damaged and was left as it is"), "{error}");
    assert!(error.ends_with("the journal beside it is whole, with 1 running turns"), "{error}");

    let journal = Folder::default();
    for file in disks.journal.list().unwrap() {
        let mut bytes = disks.journal.read(&file).unwrap();
        // In the first record, which others follow.
        bytes[20] ^= 1;
        journal.create(&file).unwrap().append(&bytes).unwrap();
    }
    let error = told(Disks { records: disks.records.clone(), journal });
    assert!(error.contains("the journal is damaged"), "{error}");
    assert!(error.ends_with("memory beside it is whole, and nothing was changed"), "{error}");
}
