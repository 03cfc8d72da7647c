//! A folder of results that can be made again: compiled kernels, plans of multiplications.
//!
//! An entry's name is its kind and a hash of everything its content depends on; the file holds a hash of the content too,
//! so that a damaged file counts as none. Entries are written whole or not at all, and old ones of a kind go away.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// What a file of the cache begins with.
const MAGIC: &[u8; 16] = b"asterism cache 1";

/// The longest content that is read.
const MOST_BYTES: u64 = 64 << 20;

/// The most entries of a kind: of a few builds, and as many libraries.
const MOST_OF_A_KIND: usize = 4;

/// A folder, which is made when something is first kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// A hash of all that an entry's content depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of these parts, each told from the next.
    pub fn of(parts: &[&[u8]]) -> Key {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Key(digest.finalize().into())
    }

    fn name(&self) -> String {
        self.0[..12].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Cache {
    /// The cache in `folder`.
    pub fn new(folder: PathBuf) -> Cache {
        Cache { folder }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The content under `key`, if it is there and whole.
    pub fn get(&self, kind: &str, key: &Key) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.file(kind, key)).ok()?.take(MOST_BYTES).read_to_end(&mut content).ok()?;
        let head = content.get(..HEAD)?;
        (head == header(key, &content[HEAD..])).then(|| content.split_off(HEAD))
    }

    /// Keeps `content` under `key`.
    pub fn put(&self, kind: &str, key: &Key, content: &[u8]) -> io::Result<()> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.folder)?;
        let file = self.file(kind, key);
        let unique = format!("{}.{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let temporary = file.with_extension(unique);
        let mut bytes = header(key, content);
        bytes.extend_from_slice(content);
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &file));
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        self.prune(kind, &file)
    }

    fn file(&self, kind: &str, key: &Key) -> PathBuf {
        self.folder.join(format!("{kind}.{}.bin", key.name()))
    }

    /// Removes the oldest entries of a kind beyond the most there may be, but not `kept`.
    fn prune(&self, kind: &str, kept: &Path) -> io::Result<()> {
        let is_of_kind = |name: &str| {
            let rest = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
            rest.and_then(|rest| rest.strip_suffix(".bin")).is_some_and(|key| !key.contains('.'))
        };
        let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.folder)?
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_str().is_some_and(is_of_kind))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| path != kept)
            .collect();
        entries.sort();
        for (_, path) in entries.iter().rev().skip(MOST_OF_A_KIND - 1) {
            // Another process may have removed it already.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

/// Magic, key, hash of the content.
const HEAD: usize = MAGIC.len() + 32 + 32;

fn header(key: &Key, content: &[u8]) -> Vec<u8> {
    [MAGIC.as_slice(), &key.0, &Sha256::digest(content)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("deeper"));
        (folder, cache)
    }

    #[test]
    fn what_was_put_is_got_under_its_key_alone() {
        let (_folder, cache) = cache();
        let (one, other) = (Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_eq!(cache.get("kind", &one), None);
        cache.put("kind", &one, b"content").unwrap();
        assert_eq!(cache.get("kind", &one).unwrap(), b"content");
        assert_eq!(cache.get("kind", &other), None);
        assert_eq!(cache.get("another", &one), None);
    }

    #[test]
    fn a_damaged_or_cut_entry_is_none() {
        let (_folder, cache) = cache();
        let key = Key::of(&[b"key"]);
        cache.put("kind", &key, b"content").unwrap();
        let file = cache.file("kind", &key);
        let whole = fs::read(&file).unwrap();
        for at in [0, 20, 60, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged).unwrap();
            assert_eq!(cache.get("kind", &key), None, "byte {at}");
            fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(cache.get("kind", &key), None, "cut at {at}");
        }
        cache.put("kind", &key, b"content").unwrap();
        assert_eq!(cache.get("kind", &key).unwrap(), b"content");
    }

    #[test]
    fn the_entries_of_a_kind_are_bounded_and_no_temporary_file_stays() {
        let (_folder, cache) = cache();
        cache.put("kind.other", &Key::of(&[b"x"]), b"x").unwrap();
        let keys: Vec<Key> = (0..9_u8).map(|i| Key::of(&[&[i]])).collect();
        for key in &keys {
            cache.put("kind", key, b"content").unwrap();
        }
        assert!(cache.get("kind", &keys[8]).is_some());
        let files = fs::read_dir(&cache.folder).unwrap().count();
        assert_eq!(files, MOST_OF_A_KIND + 1);
        assert!(cache.get("kind.other", &Key::of(&[b"x"])).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::new(file.path().join("below"));
        assert!(cache.put("kind", &Key::of(&[]), b"").is_err());
        assert_eq!(cache.get("kind", &Key::of(&[])), None);
    }
}
