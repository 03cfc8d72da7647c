//! A disk that fails, and works again.

use super::*;

fn full() -> Faults {
    Faults { space: Some(30), ..Faults::default() }
}

#[test]
fn a_full_disk_refuses_one_change_after_another_until_there_is_space() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1])).unwrap();
    let before = disk.files();
    for truncate in [false, true] {
        disk.set_faults(Faults { truncate, ..full() });
        for _ in 0..3 {
            let refused = opened.write(tokens(turn(1), 1, &[2, 3]));
            assert!(matches!(refused, Err(JournalError::Write { .. })), "{refused:?}");
            assert_eq!(found(&disk).unwrap(), Turns::from([(turn(1), kept(&[1]))]));
        }
        assert_eq!(disk.files() == before, !truncate, "what was written is cut off if it can be");
    }
    disk.set_faults(Faults::default());
    opened.write(tokens(turn(1), 1, &[4])).unwrap();
    assert_eq!(found(&disk).unwrap(), Turns::from([(turn(1), kept(&[1, 4]))]));
}

#[test]
fn a_full_disk_can_be_opened() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1])).unwrap();
    let disk = disk.after_kill();
    disk.set_faults(full());
    let (mut opened, turns) = Opened::new(&disk, 1 << 20).unwrap();
    assert_eq!(turns, Turns::from([(turn(1), kept(&[1]))]));
    assert!(matches!(opened.write(tokens(turn(1), 1, &[2])), Err(JournalError::Write { .. })));
    assert_eq!(found(&disk).unwrap(), turns);
    disk.set_faults(Faults::default());
    opened.write(tokens(turn(1), 1, &[2])).unwrap();
    assert_eq!(found(&disk).unwrap(), Turns::from([(turn(1), kept(&[1, 2]))]));
}

#[test]
fn a_segment_that_has_no_successor_yet_goes_on_on_a_disk_that_is_nearly_full() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 200).unwrap();
    opened.write(tokens(turn(1), 0, &[0; 100])).unwrap();
    // Enough for a change, not for all that lives.
    disk.set_faults(Faults { space: Some(100), ..Faults::default() });
    opened.write(tokens(turn(1), 100, &[5])).unwrap();
    let empty = disk.files().values().filter(|bytes| bytes.is_empty()).count();
    assert_eq!(disk.files().len() - empty, 1);
    assert_eq!(found(&disk).unwrap()[&turn(1)].token_ids.len(), 101);
}

#[test]
fn a_failed_sync_is_told_once_and_all_that_lives_is_written_anew() {
    for faults in
        [Faults { sync: true, ..Faults::default() }, Faults { sync_folder: true, ..Faults::default() }]
    {
        let disk = MemoryDisk::default();
        let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
        opened.write(tokens(turn(1), 0, &[1])).unwrap();
        let before = disk.files();
        disk.set_faults(faults);
        assert!(!opened.sync());
        let refused = opened.write(tokens(turn(1), 1, &[2]));
        assert!(matches!(refused, Err(JournalError::Sync { .. })), "{refused:?}");
        opened.write(tokens(turn(1), 1, &[3])).unwrap();
        disk.set_faults(Faults::default());
        assert!(opened.sync());
        let after = disk.files();
        assert!(
            after.len() == 1 && after.keys().ne(before.keys()),
            "it is a new segment: {:?}",
            after.keys()
        );
        let survivors = found(&disk.after_power_cut(&mut |_| 0));
        assert_eq!(survivors, Ok(Turns::from([(turn(1), kept(&[1, 3]))])));
    }
}

#[test]
fn after_a_failed_sync_what_lives_is_written_anew_without_a_further_change() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1])).unwrap();
    disk.set_faults(Faults { sync: true, ..Faults::default() });
    assert!(!opened.sync());
    disk.set_faults(Faults::default());
    opened.log.repair();
    assert!(opened.sync());
    let survivors = found(&disk.after_power_cut(&mut |_| 0));
    assert_eq!(survivors, Ok(Turns::from([(turn(1), kept(&[1]))])));
    assert!(matches!(opened.write(tokens(turn(1), 1, &[2])), Err(JournalError::Sync { .. })));
    opened.write(tokens(turn(1), 1, &[2])).unwrap();
}

#[test]
fn segments_that_never_reached_the_disk_do_not_pile_up() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1])).unwrap();
    assert!(opened.sync());
    disk.set_faults(Faults { sync: true, ..Faults::default() });
    for first in 1..20 {
        // The second of them is refused, as the first did not reach the disk.
        let _ = opened.write(tokens(turn(2), first, &[1]));
        let _ = opened.write(Change::Stop(turn(u128::from(first) + 2)));
        opened.sync();
        assert!(disk.files().len() <= 3, "{:?}", disk.files().keys());
    }
    let survivors = found(&disk.after_power_cut(&mut |_| 0)).unwrap();
    assert_eq!(survivors[&turn(1)], kept(&[1]));
}

#[test]
fn a_change_that_does_not_join_is_refused_without_those_beside_it() {
    let disk = MemoryDisk::default();
    let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
    opened.write(tokens(turn(1), 0, &[1, 2])).unwrap();
    let gap = Change::Append(vec![
        Appended { turn: turn(2), first: 0, token_ids: vec![9] },
        Appended { turn: turn(1), first: 5, token_ids: vec![6] },
    ]);
    let most = 1 << 20;
    let changes = [
        tokens(turn(1), 1, &[2, 3]),
        tokens(turn(3), 0, &vec![0; most + 1]),
        gap,
        tokens(turn(1), 2, &[7]),
        tokens(turn(1), 3, &[4]),
    ];
    let expected = [
        Ok(()),
        Err(JournalError::TooMany { tokens: most + 1, most }),
        Err(JournalError::Gap { turn: turn(1), has: 3, first: 5 }),
        Err(JournalError::OtherToken { turn: turn(1), index: 2 }),
        Ok(()),
    ];
    assert_eq!(opened.log.write(&changes), expected);
    assert_eq!(found(&disk), Ok(Turns::from([(turn(1), kept(&[1, 2, 3, 4]))])));
}
