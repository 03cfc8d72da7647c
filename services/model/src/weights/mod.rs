//! Checkpoints: tensors by name from any of the formats that are read, and the files beside them.
//!
//! Opening maps files and checks headers; no weight is read before it is asked for. A tensor that lies contiguously in its
//! file is borrowed from the map.

mod dtype;
mod gguf;
mod index;
mod map;
mod reader;
mod safetensors;
mod stored;
mod synthetic;
#[cfg(test)]
mod tests;
mod torch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(crate) use self::dtype::convert_weights;
pub use self::dtype::{StoredDtype, TensorInfo};
pub(crate) use self::reader::{TensorReader, each_part};
use self::stored::Stored;
pub use self::synthetic::Synthetic;
use crate::ModelError;
use crate::spec::DecoderSpec;

/// The longest config.json that is read.
const MOST_CONFIG_BYTES: u64 = 4 << 20;

/// Files that belong to a checkpoint besides config.json and weights, where they exist.
const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
];

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: String,
    tensors: BTreeMap<String, Stored>,
    weight_files: Vec<PathBuf>,
    companions: Vec<(String, Companion)>,
}

/// Where a model's weights come from.
#[derive(Clone, Copy, Debug)]
pub enum WeightSource<'a> {
    /// A checkpoint's files.
    Checkpoint(&'a Checkpoint),
    /// Nowhere: they are made up.
    Synthetic(&'a Synthetic),
}

/// A file of a checkpoint besides its weights: text (tokenizers, templates, defaults) that servers and clients need.
#[derive(Clone, Debug)]
pub enum Companion {
    /// It lies there.
    File(PathBuf),
    /// It was made from a GGUF file's metadata.
    Text(String),
}

impl Checkpoint {
    /// Opens the folder or `.gguf` file at `path`. A folder holds config.json and, in this order of preference,
    /// `model.safetensors`, its index, `pytorch_model.bin` or its index; or else one `.gguf` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if path.extension().is_some_and(|extension| extension == "gguf") && path.is_file() {
            return Self::open_gguf(path);
        }
        if !path.is_dir() {
            return Err(ModelError::NoCheckpoint { path: path.to_owned() });
        }
        let has = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
        let (tensors, weight_files) = if let Some(file) = has("model.safetensors") {
            (safetensors::read(&file)?, vec![file])
        } else if let Some(index) = has("model.safetensors.index.json") {
            index::read_sharded(&index, safetensors::read)?
        } else if let Some(file) = has("pytorch_model.bin") {
            (torch::read(&file)?, vec![file])
        } else if let Some(index) = has("pytorch_model.bin.index.json") {
            index::read_sharded(&index, torch::read)?
        } else {
            let file = only_gguf(path)?.ok_or_else(|| ModelError::NoCheckpoint { path: path.to_owned() })?;
            return Self::open_gguf(&file);
        };
        let companions = COMPANIONS
            .iter()
            .filter_map(|&name| Some((name.to_owned(), Companion::File(has(name)?))))
            .collect();
        let config = read_text(&path.join("config.json"), MOST_CONFIG_BYTES)?;
        Self::assemble(path, config, tensors, (weight_files, companions))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf::Expressed { config, companions, tensors } = gguf::read(path)?;
        let companions =
            companions.into_iter().map(|(name, text)| (name.to_owned(), Companion::Text(text))).collect();
        Self::assemble(path, config, tensors, (vec![path.to_owned()], companions))
    }

    fn assemble(
        path: &Path,
        config: String,
        stored: Vec<Stored>,
        (weight_files, companions): (Vec<PathBuf>, Vec<(String, Companion)>),
    ) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        for tensor in stored {
            if let Some(other) = tensors.insert(tensor.info.name.clone(), tensor) {
                return Err(ModelError::malformed(path, format!("holds tensor `{}` twice", other.info.name)));
            }
        }
        Ok(Self { path: path.to_owned(), config, tensors, weight_files, companions })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text of config.json.
    pub fn config_text(&self) -> &str {
        &self.config
    }

    /// config.json.
    pub fn config(&self) -> Result<Value, ModelError> {
        serde_json::from_str(&self.config)
            .map_err(|e| ModelError::malformed(&self.path.join("config.json"), format!("not JSON: {e}")))
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values().map(|tensor| &tensor.info)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    /// A tensor's elements, row-major and little-endian; `None` where there is no such tensor.
    pub fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.tensors.get(name).map(Stored::bytes)
    }

    /// The files besides config.json and the weights, by name.
    pub fn companions(&self) -> &[(String, Companion)] {
        &self.companions
    }

    /// The files that hold the weights.
    pub(crate) fn weight_files(&self) -> &[PathBuf] {
        &self.weight_files
    }

    /// The folder whose files these are; `None` for a GGUF file.
    pub(crate) fn folder(&self) -> Option<&Path> {
        Some(self.path.as_path()).filter(|path| path.is_dir() && path.join("config.json").is_file())
    }
}

impl WeightSource<'_> {
    /// config.json.
    pub fn config(&self) -> Result<Value, ModelError> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Synthetic(synthetic) => synthetic.config(),
        }
    }
}

impl DecoderSpec {
    /// The spec of the config.json at `path` or in the folder `path` (no weights are needed), or of a checkpoint of any kind.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let beside = path.join("config.json");
        let file = if path.extension().is_some_and(|extension| extension == "json") { path } else { &beside };
        if !file.is_file() {
            return Self::from_config(&Checkpoint::open(path)?.config()?);
        }
        let config = serde_json::from_str(&read_text(file, MOST_CONFIG_BYTES)?)
            .map_err(|e| ModelError::malformed(file, format!("not JSON: {e}")))?;
        Self::from_config(&config)
    }
}

/// The `.gguf` file of a folder, if there is exactly one.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>, ModelError> {
    let mut found = None;
    for entry in std::fs::read_dir(folder).map_err(|e| ModelError::io(folder, e))? {
        let file = entry.map_err(|e| ModelError::io(folder, e))?.path();
        if file.extension().is_some_and(|extension| extension == "gguf") && found.replace(file).is_some() {
            return Err(ModelError::malformed(folder, "holds several .gguf files; name one of them"));
        }
    }
    Ok(found)
}

/// Reads a text file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text).map_err(|e| ModelError::io(path, e))?;
    if read as u64 > most {
        return Err(ModelError::malformed(path, format!("longer than {most} bytes")));
    }
    Ok(text)
}
