//! What a checkpoint is made of: name, type, shape and content hash of every tensor; and the checkpoint's id.
//!
//! `convert` writes the manifest beside the weights. For any other checkpoint it is made by one full read and kept in the cache
//! directory under the files' paths, sizes and times; a server never writes into a checkpoint's folder.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ModelError;
use crate::content;
use crate::stage::{Watch, advance};
use crate::weights::{Checkpoint, TensorInfo, each_part, read_text};

/// The manifest's file name beside a checkpoint.
pub const FILE_NAME: &str = "asterism-manifest.json";

/// The longest manifest that is read; TeleChat-52B's has 60 KB.
const MOST_BYTES: u64 = 64 << 20;

/// The most threads that hash; past a few the disk is the limit.
const MOST_THREADS: usize = 16;

/// Name, type, shape and hash of every tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// SHA-256 over config.json and all entries, in hexadecimal.
    pub checkpoint_id: String,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, Entry>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Element type, as in a safetensors header.
    pub dtype: String,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// BLAKE3 of the elements, row-major and little-endian, in hexadecimal.
    pub blake3: String,
}

impl Manifest {
    /// A manifest of these tensors beside this config.json. Its id does not depend on the files that hold the tensors.
    pub fn new(config: &str, tensors: BTreeMap<String, Entry>) -> Self {
        let checkpoint_id = checkpoint_id(config, &tensors);
        Self { checkpoint_id, tensors }
    }

    /// The checkpoint's manifest: the one beside it, or the cached one, or one made by reading everything, which is then
    /// cached.
    pub fn of(checkpoint: &Checkpoint, watch: &Watch<'_>) -> Result<Self, ModelError> {
        if let Some(beside) =
            checkpoint.folder().map(|folder| folder.join(FILE_NAME)).filter(|file| file.is_file())
        {
            return Self::read(&beside, checkpoint);
        }
        let cached = cache_file(checkpoint)?;
        if let Some(file) = cached.as_ref().filter(|file| file.is_file()) {
            match Self::read(file, checkpoint) {
                Ok(manifest) => return Ok(manifest),
                Err(error) => tracing::warn!(%error, "the cached manifest is made anew"),
            }
        }
        let manifest = Self::make(checkpoint, watch)?;
        if let Some(file) = cached
            && let Err(error) = manifest.write(&file)
        {
            tracing::warn!(%error, "the manifest could not be cached: the next start reads everything again");
        }
        Ok(manifest)
    }

    /// Reads everything.
    pub fn make(checkpoint: &Checkpoint, watch: &Watch<'_>) -> Result<Self, ModelError> {
        let total: u64 = checkpoint.readers().map(|tensor| tensor.bytes() as u64).sum();
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let threads = threads.min(NonZeroUsize::MIN.saturating_add(MOST_THREADS - 1));
        let read = AtomicU64::new(0);
        let entries = Mutex::new(BTreeMap::new());
        each_part(checkpoint.readers(), threads, |tensor, offset, memory| {
            if let Some(hash) = tensor.read(offset, memory)? {
                let (name, entry) = (tensor.info().name.clone(), Entry::hashed(tensor.info(), hash));
                entries.lock().unwrap_or_else(PoisonError::into_inner).insert(name, entry);
            }
            advance(watch, &read, memory.len() as u64, total)
        })?;
        let entries = entries.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Self::new(checkpoint.config_text(), entries))
    }

    /// Reads a manifest and checks that it is this checkpoint's, as far as can be told without reading weights.
    fn read(path: &Path, checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let refuse = |what: String| ModelError::Manifest { path: path.to_owned(), what };
        let text = read_text(path, MOST_BYTES)?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| {
            refuse(if text.contains("\"sha256\":") {
                "its hashes are SHA-256, and BLAKE3 is read: convert again, or delete it to have it made anew"
                    .into()
            } else {
                format!("not a manifest: {e}")
            })
        })?;
        for info in checkpoint.tensors() {
            match manifest.tensors.get(&info.name) {
                None => return Err(refuse(format!("tensor `{}` is not in it", info.name))),
                Some(entry) if entry.dtype != info.dtype.name() || entry.shape != info.shape => {
                    return Err(refuse(format!("tensor `{}` has another type or shape in it", info.name)));
                }
                Some(_) => {}
            }
        }
        if manifest.tensors.len() != checkpoint.tensors().len() {
            return Err(refuse("it names tensors that are not in the checkpoint".into()));
        }
        if manifest.checkpoint_id != checkpoint_id(checkpoint.config_text(), &manifest.tensors) {
            return Err(refuse("its checkpoint id is not that of config.json and these tensors".into()));
        }
        Ok(manifest)
    }

    /// Writes it to `path` as a whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let error = |e| ModelError::io(path, e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(error)?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|e| error(e.into()))?;
        let unique = format!("{}.{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let temporary = path.with_extension(unique);
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
        written.inspect_err(|_| drop(fs::remove_file(&temporary))).map_err(error)
    }

    /// Checks that a tensor's elements are those the manifest was made from.
    pub fn verify(&self, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
        self.verify_hash(name, content::hash(bytes))
    }

    /// Checks that the hash of a tensor's elements is the manifest's.
    pub(crate) fn verify_hash(&self, name: &str, found: String) -> Result<(), ModelError> {
        let expected = self.tensors.get(name).map(|entry| entry.blake3.as_str()).unwrap_or_default();
        if found == expected {
            return Ok(());
        }
        Err(ModelError::WrongContent { name: name.to_owned(), expected: expected.to_owned(), found })
    }
}

impl Entry {
    /// The entry of a tensor with these elements.
    pub fn new(info: &TensorInfo, bytes: &[u8]) -> Self {
        Self::hashed(info, content::hash(bytes))
    }

    /// The entry of a tensor whose content has this hash.
    fn hashed(info: &TensorInfo, blake3: String) -> Self {
        Self { dtype: info.dtype.name().to_owned(), shape: info.shape.clone(), blake3 }
    }
}

/// The directory for what can be made again: `ASTERISM_CACHE`, else `asterism` in the user's cache directory.
pub fn cache_dir() -> Option<PathBuf> {
    match std::env::var_os("ASTERISM_CACHE") {
        Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
        _ => dirs::cache_dir().map(|path| path.join("asterism")),
    }
}

/// Where the demo model is kept once it has been pulled.
pub fn demo_folder() -> Option<PathBuf> {
    cache_dir().map(|cache| cache.join("models").join("smollm2-135m-instruct"))
}

/// SHA-256 over config.json and one line a tensor, by name.
fn checkpoint_id(config: &str, tensors: &BTreeMap<String, Entry>) -> String {
    let mut digest = Sha256::new();
    digest.update(Sha256::digest(config.as_bytes()));
    for (name, Entry { dtype, shape, blake3 }) in tensors {
        digest.update(format!("{}:{name} {dtype} {shape:?} {blake3}\n", name.len()));
    }
    hex(&digest.finalize())
}

/// Where the manifest of a checkpoint without one is cached: a name made of its files' paths, sizes and times.
fn cache_file(checkpoint: &Checkpoint) -> Result<Option<PathBuf>, ModelError> {
    let Some(folder) = cache_dir() else { return Ok(None) };
    let mut digest = Sha256::new();
    digest.update(Sha256::digest(checkpoint.config_text()));
    for file in checkpoint.weight_files() {
        let error = |e| ModelError::io(file, e);
        let path = fs::canonicalize(file).map_err(error)?;
        let metadata = fs::metadata(&path).map_err(error)?;
        let modified = metadata.modified().map_err(error)?.duration_since(UNIX_EPOCH).unwrap_or_default();
        digest.update(Sha256::digest(path.as_os_str().as_encoded_bytes()));
        digest.update(metadata.len().to_le_bytes());
        digest.update(modified.as_nanos().to_le_bytes());
    }
    Ok(Some(folder.join("manifests").join(format!("{}.json", hex(&digest.finalize())))))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
