//! Plans that were found, kept from start to start: one text file for each model of card and version of cuBLASLt.
//!
//! A line is a plan. What cannot be read is left out, and found again; nothing depends on the file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io, process};

use super::plan::PlanKey;
use crate::{Compute, Dtype};

/// The first line of every file; another version is not read.
const HEADER: &str = "asterism multiplication plans 3";

/// An algorithm of cuBLASLt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithm {
    /// As the library describes it to itself.
    pub words: [u64; 8],
    /// How many of the card's multiprocessors it uses; 0: all.
    pub multiprocessors: u32,
}

/// What was found for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No plan of cuBLASLt has the bits of our own kernel.
    NoneEqual,
    /// This one has them, and is the fastest that does.
    Equal(Algorithm),
}

/// The file and what it holds.
#[derive(Debug, Default)]
pub struct Store {
    path: Option<PathBuf>,
    plans: HashMap<PlanKey, Found>,
    changed: bool,
}

impl Store {
    /// Reads the plans for this card and this version in folder `cache`.
    pub fn open(cache: Option<&Path>, card: &str, version: usize) -> Store {
        let path = cache.map(|folder| folder.join(file_name(card, version)));
        let plans = path.as_deref().map(read).unwrap_or_default();
        Store { path, plans, changed: false }
    }

    /// What was found for `key`.
    pub fn get(&self, key: &PlanKey) -> Option<Found> {
        self.plans.get(key).copied()
    }

    /// Keeps what was found for `key`.
    pub fn insert(&mut self, key: PlanKey, found: Found) {
        self.changed |= self.plans.insert(key, found) != Some(found);
    }

    /// Writes what is new, along with what other processes have written meanwhile.
    pub fn save(&mut self) -> io::Result<()> {
        let Some(path) = self.path.as_deref().filter(|_| self.changed) else {
            return Ok(());
        };
        let mut all = read(path);
        all.extend(self.plans.iter().map(|(key, found)| (*key, *found)));
        let mut lines: Vec<String> = all.iter().map(|(key, found)| line(key, found)).collect();
        lines.sort_unstable();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = path.with_extension(format!("{}.new", process::id()));
        fs::write(&beside, format!("{HEADER}\n{}\n", lines.join("\n")))?;
        fs::rename(&beside, path)?;
        self.changed = false;
        Ok(())
    }
}

fn file_name(card: &str, version: usize) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let card: String = card.chars().map(plain).collect();
    format!("gemm-{card}-cublaslt-{version}.plans")
}

fn read(path: &Path) -> HashMap<PlanKey, Found> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return HashMap::new();
    }
    lines.filter_map(parse).collect()
}

fn line(key: &PlanKey, found: &Found) -> String {
    let PlanKey { rows, outputs, inputs, compute, out, bias } = key;
    let bias = if *bias { "bias" } else { "plain" };
    let mut line = format!("{outputs} {inputs} {rows} {compute} {out} {bias} ");
    match found {
        Found::NoneEqual => line.push_str("none"),
        // Writing to a string cannot fail.
        Found::Equal(Algorithm { words, multiprocessors }) => {
            for word in words {
                let _ = write!(line, "{word:016x}");
            }
            let _ = write!(line, "/{multiprocessors}");
        }
    }
    line
}

fn parse(line: &str) -> Option<(PlanKey, Found)> {
    let [outputs, inputs, rows, compute, out, bias, found] =
        line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let compute = [Compute::F32, Compute::Bf16].into_iter().find(|kind| kind.name() == compute)?;
    let out = [Dtype::F32, Dtype::Bf16].into_iter().find(|kind| kind.name() == out)?;
    let bias = match bias {
        "bias" => true,
        "plain" => false,
        _ => return None,
    };
    let (outputs, inputs, rows) = (outputs.parse().ok()?, inputs.parse().ok()?, rows.parse().ok()?);
    let key = PlanKey { rows, outputs, inputs, compute, out, bias };
    if found == "none" {
        return Some((key, Found::NoneEqual));
    }
    let (found, multiprocessors) = found.split_once('/')?;
    let mut words = [0; 8];
    if found.len() != 16 * words.len() {
        return None;
    }
    for (index, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(found.get(16 * index..16 * (index + 1))?, 16).ok()?;
    }
    Some((key, Found::Equal(Algorithm { words, multiprocessors: multiprocessors.parse().ok()? })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("asterism-plans-{name}-{}", process::id()));
            let _ = fs::remove_dir_all(&path);
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(rows: usize, bias: bool) -> PlanKey {
        PlanKey { rows, outputs: 24_576, inputs: 8_192, compute: Compute::Bf16, out: Dtype::F32, bias }
    }

    const ALGORITHM: Algorithm =
        Algorithm { words: [0, 1, u64::MAX, 0x0123_4567_89ab_cdef, 4, 5, 6, 1 << 63], multiprocessors: 114 };

    #[test]
    fn what_is_saved_is_read_again() {
        let folder = Folder::new("again");
        let mut store = Store::open(Some(&folder.0), "NVIDIA H100 80GB HBM3", 130_002);
        store.insert(key(8, false), Found::Equal(ALGORITHM));
        store.insert(key(8, true), Found::NoneEqual);
        store.save().unwrap();
        let again = Store::open(Some(&folder.0), "NVIDIA H100 80GB HBM3", 130_002);
        assert_eq!(again.get(&key(8, false)), Some(Found::Equal(ALGORITHM)));
        assert_eq!(again.get(&key(8, true)), Some(Found::NoneEqual));
        assert_eq!(again.get(&key(16, true)), None);
        for (card, version) in [("NVIDIA H200", 130_002), ("NVIDIA H100 80GB HBM3", 130_003)] {
            assert_eq!(Store::open(Some(&folder.0), card, version).get(&key(8, true)), None);
        }
    }

    #[test]
    fn two_that_save_keep_both_their_plans() {
        let folder = Folder::new("both");
        let open = || Store::open(Some(&folder.0), "card", 1);
        let (mut first, mut second) = (open(), open());
        first.insert(key(1, false), Found::NoneEqual);
        second.insert(key(2, false), Found::Equal(ALGORITHM));
        first.save().unwrap();
        second.save().unwrap();
        assert_eq!(open().get(&key(1, false)), Some(Found::NoneEqual));
        assert_eq!(open().get(&key(2, false)), Some(Found::Equal(ALGORITHM)));
    }

    #[test]
    fn broken_lines_are_left_out() {
        let good = line(&key(4, true), &Found::Equal(ALGORITHM));
        assert_eq!(parse(&good), Some((key(4, true), Found::Equal(ALGORITHM))));
        for broken in [
            "",
            "1 2 3",
            &good[..good.len() - 3],
            &good.replace("bf16", "f17"),
            &good.replace("bias", "?"),
            &good.replace('f', "é"),
            &good.replace('/', ""),
            &format!("{good} more"),
        ] {
            assert_eq!(parse(broken), None, "{broken}");
        }
        let folder = Folder::new("broken");
        fs::create_dir_all(&folder.0).unwrap();
        let path = folder.0.join(file_name("card", 1));
        fs::write(&path, format!("{HEADER}\nnonsense\n{good}\n")).unwrap();
        assert_eq!(Store::open(Some(&folder.0), "card", 1).get(&key(4, true)), Some(Found::Equal(ALGORITHM)));
        fs::write(&path, format!("another header\n{good}\n")).unwrap();
        assert_eq!(Store::open(Some(&folder.0), "card", 1).get(&key(4, true)), None);
    }

    #[test]
    fn without_a_folder_nothing_is_written() {
        let mut store = Store::open(None, "card", 1);
        store.insert(key(1, false), Found::NoneEqual);
        store.save().unwrap();
        assert_eq!(store.get(&key(1, false)), Some(Found::NoneEqual));
    }
}
