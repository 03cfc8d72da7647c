//! What is there is not what was written.

use super::super::format::{HEADER, Kind, Note, RecordWriter};
use super::*;

/// A segment, and what it says.
struct Written {
    name: String,
    bytes: Vec<u8>,
    /// Where each record ends, and what is read up to there.
    records: Vec<(usize, Turns)>,
}

impl Written {
    /// Two turns in one segment, on the disk after every record or after none.
    fn new(is_synced: bool) -> Self {
        let disk = MemoryDisk::default();
        let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
        let mut written = Self { name: String::new(), bytes: Vec::new(), records: Vec::new() };
        for first in 0..6 {
            opened.write(tokens(turn(1), first, &[10 + first])).unwrap();
            if is_synced {
                assert!(opened.sync());
            }
            written.look(&disk);
        }
        opened.write(Change::Stop(turn(1))).unwrap();
        written.look(&disk);
        opened.write(tokens(turn(2), 0, &[7, 8, 9])).unwrap();
        written.look(&disk);
        // The begin record, which was written with the first change.
        let begin = HEADER + u32::from_le_bytes(written.bytes[8..12].try_into().unwrap()) as usize;
        written.records.insert(0, (begin, Turns::new()));
        written
    }

    fn look(&mut self, disk: &MemoryDisk) {
        (self.name, self.bytes) = only_file(disk);
        self.records.push((self.bytes.len(), found(disk).unwrap()));
    }

    /// What is read if the segment has these bytes, which reading leaves as they are.
    fn found(&self, bytes: &[u8]) -> Result<Turns, JournalError> {
        let files = BTreeMap::from([(self.name.clone(), bytes.to_vec())]);
        let disk = MemoryDisk::of(&files);
        let result = found(&disk);
        assert_eq!(disk.files(), files);
        result
    }

    /// The index of the record that has a byte.
    fn record_of(&self, at: usize) -> usize {
        self.records.iter().position(|(end, _)| at < *end).unwrap()
    }

    /// Where a record begins, and what is read up to there.
    fn before(&self, record: usize) -> (usize, Turns) {
        record.checked_sub(1).map_or_else(Default::default, |before| self.records[before].clone())
    }
}

fn only_file(disk: &MemoryDisk) -> (String, Vec<u8>) {
    let files = disk.files();
    assert_eq!(files.len(), 1);
    files.into_iter().next().unwrap()
}

#[test]
fn any_flipped_bit_is_a_torn_end_in_the_last_record_and_stops_in_every_other() {
    for written in [Written::new(true), Written::new(false)] {
        let last = written.records.len() - 1;
        for at in 0..written.bytes.len() {
            for bit in 0..8 {
                let mut bytes = written.bytes.clone();
                bytes[at] ^= 1 << bit;
                let record = written.record_of(at);
                let (begin, before) = written.before(record);
                let expected = if record == last {
                    Ok(before)
                } else {
                    let followers = (last - record) as u64;
                    Err(JournalError::Damaged {
                        file: written.name.clone(),
                        offset: begin as u64,
                        damage: Damage::Record { followers },
                        whole: record as u64,
                    })
                };
                assert_eq!(written.found(&bytes), expected, "byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_segment_that_ends_too_early_is_read_up_to_its_last_whole_record() {
    let written = Written::new(false);
    for length in 0..written.bytes.len() {
        let (_, before) = written.before(written.record_of(length));
        assert_eq!(written.found(&written.bytes[..length]), Ok(before), "{length} bytes");
    }
}

#[test]
fn a_hole_in_what_was_surely_on_the_disk_is_damage_and_elsewhere_a_power_cut() {
    for is_synced in [true, false] {
        let disk = MemoryDisk::default();
        let (mut opened, _) = Opened::new(&disk, 1 << 20).unwrap();
        opened.write(tokens(turn(1), 0, &[1])).unwrap();
        let before = found(&disk).unwrap();
        opened.write(tokens(turn(1), 1, &[!0; 300])).unwrap();
        if is_synced {
            assert!(opened.sync());
        }
        opened.write(tokens(turn(1), 301, &[2])).unwrap();
        let (name, mut bytes) = only_file(&disk);
        bytes[500..1024].fill(0);
        match found(&MemoryDisk::of(&BTreeMap::from([(name, bytes)]))) {
            Ok(turns) => assert!(!is_synced && turns == before),
            Err(JournalError::Damaged { damage, whole, .. }) => {
                assert_eq!((is_synced, damage, whole), (true, Damage::Record { followers: 1 }, 2));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_no_journal_writes_is_damage() {
    let written = Written::new(true);
    let begin = &written.bytes[..written.records[0].0];
    let record = |write: &dyn Fn(&mut RecordWriter), kind| {
        let mut record = RecordWriter::default();
        write(&mut record);
        record.finish(kind, 0).to_vec()
    };
    let change = |first, note| {
        let entry = move |record: &mut RecordWriter| {
            record.clear();
            record.entry(turn(1), first, note, &[5]);
        };
        record(&entry, Kind::Change)
    };
    let mut later_version = begin.to_vec();
    later_version[HEADER] = 2;
    let later_version = {
        let payload = later_version[HEADER..].to_vec();
        later_version[16..20].copy_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        let crc = crc32fast::hash(&later_version[..20]);
        later_version[20..24].copy_from_slice(&crc.to_le_bytes());
        later_version
    };
    let no_meaning = record(&|record| record.begin(1), Kind::Change);
    let cases = [
        (later_version, Damage::Version(2)),
        (record(&|record| record.begin(2), Kind::Begin), Damage::Misplaced),
        (change(0, Note::None), Damage::Misplaced),
        ([begin, begin].concat(), Damage::Misplaced),
        ([begin, &no_meaning].concat(), Damage::Meaning),
        ([begin, &change(1, Note::None)].concat(), Damage::Gap { turn: turn(1), has: 0, first: 1 }),
        (
            [begin, &change(0, Note::None), &change(0, Note::Stop)].concat(),
            Damage::Gap { turn: turn(1), has: 1, first: 0 },
        ),
    ];
    for (bytes, expected) in cases {
        match written.found(&bytes) {
            Err(JournalError::Damaged { damage, .. }) => assert_eq!(damage, expected),
            other => panic!("{expected:?}: {other:?}"),
        }
    }
}

#[test]
fn a_segment_that_replaced_others_must_be_whole() {
    let written = Written::new(true);
    let begin = &written.bytes[..written.records[0].0 - 1];
    let name = super::super::segments::name(3);
    let alone = BTreeMap::from([(name.clone(), begin.to_vec())]);
    let damaged = JournalError::Damaged { file: name, offset: 0, damage: Damage::Begin, whole: 0 };
    assert_eq!(found(&MemoryDisk::of(&alone)), Err(damaged));

    let mut with_its_predecessor = alone;
    with_its_predecessor.insert(written.name.clone(), written.bytes.clone());
    let turns = found(&MemoryDisk::of(&with_its_predecessor));
    assert_eq!(turns.as_ref(), Ok(&written.records.last().unwrap().1));
}

#[test]
fn other_files_are_left_alone() {
    let files = BTreeMap::from([("1.journal".to_owned(), vec![1]), ("notes".to_owned(), vec![2])]);
    let disk = MemoryDisk::of(&files);
    let (mut opened, turns) = Opened::new(&disk, 1).unwrap();
    assert!(turns.is_empty());
    for first in 0..3 {
        opened.write(tokens(turn(1), first, &[first])).unwrap();
        assert!(opened.sync());
    }
    assert!(files.iter().all(|file| disk.files().get_key_value(file.0) == Some(file)));
}
