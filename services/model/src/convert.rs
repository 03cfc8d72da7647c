//! Any checkpoint becomes a clean one: safetensors in one weight type, the manifest, and the files beside them.
//!
//! Only tensors that the model uses are kept. The folder appears whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::manifest::{self, Entry, Manifest};
use crate::spec::DecoderSpec;
use crate::weights::{Checkpoint, Companion, StoredDtype, TensorInfo, convert_weights};
use crate::{ModelError, arch::Source};

/// How a checkpoint is converted.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// The weights' type; `None` keeps each as it is. Narrowing rounds to nearest even.
    pub dtype: Option<WeightDtype>,
    /// The most bytes of tensors in one file; more become several files and an index.
    pub shard_bytes: u64,
}

/// The types that weights can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum WeightDtype {
    Bf16,
    F16,
    F32,
}

/// What a conversion wrote.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The manifest that lies in the folder.
    pub manifest: Manifest,
    /// Bytes of all tensors.
    pub bytes: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self { dtype: None, shard_bytes: 5_000_000_000 }
    }
}

/// Writes `checkpoint` to the folder `out`, which must not exist or be empty. `progress` is told the bytes written so far and in
/// all.
pub fn convert(
    checkpoint: &Checkpoint,
    out: &Path,
    options: ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Converted, ModelError> {
    let spec = DecoderSpec::from_config(&checkpoint.config()?)?;
    let tensors = planned(checkpoint, &spec, options.dtype)?;
    let total: u64 = tensors.iter().filter_map(TensorInfo::byte_len).map(|len| len as u64).sum();
    let shards = sharded(tensors, options.shard_bytes);

    let mut folder = PartialFolder::create(out)?;
    let mut entries = BTreeMap::new();
    let mut weight_map = serde_json::Map::new();
    let mut done = 0;
    for (index, tensors) in shards.iter().enumerate() {
        let name = if shards.len() == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len())
        };
        let mut file = folder.file(&name)?;
        let path = folder.path.join(&name);
        let error = |e| ModelError::io(&path, e);
        file.write_all(&header(tensors)).map_err(error)?;
        for info in tensors {
            let bytes = converted(checkpoint, info);
            file.write_all(&bytes).map_err(error)?;
            entries.insert(info.name.clone(), Entry::new(info, &bytes));
            weight_map.insert(info.name.clone(), json!(name));
            done += bytes.len() as u64;
            progress(done, total);
        }
        let file = file.into_inner().map_err(|e| error(e.into_error()))?;
        file.sync_all().map_err(error)?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        folder.write("model.safetensors.index.json", format!("{index:#}").as_bytes())?;
    }
    for (name, companion) in checkpoint.companions() {
        match companion {
            Companion::Text(text) => folder.write(name, text.as_bytes())?,
            Companion::File(path) => {
                folder.write(name, &fs::read(path).map_err(|e| ModelError::io(path, e))?)?
            }
        }
    }
    let config = config(checkpoint, options.dtype)?;
    folder.write("config.json", config.as_bytes())?;
    let manifest = Manifest::new(&config, entries);
    manifest.write(&folder.path.join(manifest::FILE_NAME))?;
    folder.finish(out)?;
    Ok(Converted { manifest, bytes: total })
}

/// The tensors to write, in the order of the model, each checked.
fn planned(
    checkpoint: &Checkpoint,
    spec: &DecoderSpec,
    dtype: Option<WeightDtype>,
) -> Result<Vec<TensorInfo>, ModelError> {
    let sources = spec.sources();
    for source in &sources {
        source.check(checkpoint)?;
    }
    let used: BTreeSet<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    for info in checkpoint.tensors().filter(|info| !used.contains(info.name.as_str())) {
        tracing::debug!(name = info.name, "left out: no layer reads it");
    }
    let info = |source: Source| {
        let stored = checkpoint.tensor(&source.name).map_or(StoredDtype::F32, |info| info.dtype);
        let dtype = dtype.map_or(stored, WeightDtype::stored);
        TensorInfo { name: source.name, dtype, shape: source.shape }
    };
    Ok(sources.into_iter().map(info).collect())
}

/// Cuts the tensors into files of at most `most` bytes (a larger tensor has a file of its own).
fn sharded(tensors: Vec<TensorInfo>, most: u64) -> Vec<Vec<TensorInfo>> {
    let mut shards: Vec<Vec<TensorInfo>> = vec![Vec::new()];
    let mut filled = 0u64;
    for info in tensors {
        let len = info.byte_len().unwrap_or_default() as u64;
        if filled > 0 && filled + len > most {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += len;
        if let Some(shard) = shards.last_mut() {
            shard.push(info);
        }
    }
    shards
}

/// A safetensors header, its length first, padded so that the tensors start at a multiple of 8.
fn header(tensors: &[TensorInfo]) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for info in tensors {
        let end = offset + info.byte_len().unwrap_or_default();
        let entry = json!({ "dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [offset, end] });
        entries.insert(info.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The tensor's elements in the type of `info`.
fn converted<'a>(checkpoint: &'a Checkpoint, info: &TensorInfo) -> Cow<'a, [u8]> {
    let bytes = checkpoint.bytes(&info.name).unwrap_or_default();
    let stored = checkpoint.tensor(&info.name).map_or(info.dtype, |stored| stored.dtype);
    if stored == info.dtype {
        return bytes;
    }
    convert_weights(&bytes, stored, info.dtype).into()
}

/// config.json, its `torch_dtype` brought in line.
fn config(checkpoint: &Checkpoint, dtype: Option<WeightDtype>) -> Result<String, ModelError> {
    let mut config = checkpoint.config()?;
    match (dtype, config.get_mut("torch_dtype")) {
        (Some(dtype), Some(named)) => {
            *named = json!(dtype.torch_name());
            Ok(format!("{config:#}\n"))
        }
        _ => Ok(checkpoint.config_text().to_owned()),
    }
}

impl WeightDtype {
    fn stored(self) -> StoredDtype {
        match self {
            Self::Bf16 => StoredDtype::Bf16,
            Self::F16 => StoredDtype::F16,
            Self::F32 => StoredDtype::F32,
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }
}

/// A folder beside `out` that becomes it at the end. One conversion at a time holds it; what an interrupted one left is cleared.
struct PartialFolder {
    path: PathBuf,
    lock: PathBuf,
    /// Locked for as long as it is open.
    _locked: File,
    finished: bool,
}

impl PartialFolder {
    fn create(out: &Path) -> Result<Self, ModelError> {
        let occupied = || ModelError::Occupied { path: out.to_owned() };
        let is_empty = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
        if out.exists() && !is_empty {
            return Err(occupied());
        }
        let name = out.file_name().ok_or_else(occupied)?.to_string_lossy().into_owned();
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = parent.join(format!(".{name}.partial"));
        let lock = parent.join(format!(".{name}.lock"));
        fs::create_dir_all(parent).map_err(|e| ModelError::io(parent, e))?;
        let locked = File::create(&lock).map_err(|e| ModelError::io(&lock, e))?;
        match locked.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(ModelError::Busy { path: out.to_owned() }),
            Err(fs::TryLockError::Error(e)) => return Err(ModelError::io(&lock, e)),
        }
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| ModelError::io(&path, e))?;
        }
        fs::create_dir(&path).map_err(|e| ModelError::io(&path, e))?;
        Ok(Self { path, lock, _locked: locked, finished: false })
    }

    fn file(&self, name: &str) -> Result<BufWriter<File>, ModelError> {
        let path = self.path.join(name);
        File::create_new(&path).map(BufWriter::new).map_err(|e| ModelError::io(&path, e))
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(|e| ModelError::io(&path, e))
    }

    fn finish(&mut self, out: &Path) -> Result<(), ModelError> {
        fs::rename(&self.path, out).map_err(|e| ModelError::io(out, e))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if !self.finished {
            drop(fs::remove_dir_all(&self.path));
        }
        drop(fs::remove_file(&self.lock));
    }
}

#[cfg(test)]
mod tests;
