//! What can be wrong with the text files of a model folder.

use std::path::{Path, PathBuf};

/// Why a model's tokenizer, template or generation defaults could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The folder holds neither `tokenizer.model` nor `tokenizer.json`.
    #[error("no tokenizer.model or tokenizer.json in {}", dir.display())]
    NoTokenizer {
        /// The model folder.
        dir: PathBuf,
    },
    /// A file exists (or was asked for) and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is truncated, or is not what its name says.
    #[error("{} is corrupt: {message}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was wrong, with the place where it is known.
        message: String,
    },
    /// A file is sound but asks for a kind of tokenizer or template that this gateway cannot reproduce exactly, so it is refused.
    #[error("{} is not supported: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        message: String,
    },
    /// A value in a file is outside its range.
    #[error("{}: {field} is {value}, not {expected}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key in the file.
        field: &'static str,
        /// The value found.
        value: String,
        /// The values that would do.
        expected: &'static str,
    },
}

impl TextError {
    pub(super) fn corrupt(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Corrupt { path: path.to_owned(), message: message.to_string() }
    }

    pub(super) fn unsupported(path: &Path, message: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), message: message.into() }
    }
}

/// The bytes of a file, or `None` where there is no such file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { path: path.to_owned(), source }),
    }
}

/// A JSON file, or `None` where there is no such file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| TextError::corrupt(path, error))
}
