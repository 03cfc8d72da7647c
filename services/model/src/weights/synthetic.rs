//! Weights that are made up: a model's geometry without its files.

use std::path::Path;

use asterism_tensor::SyntheticKey;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{MOST_CONFIG_BYTES, read_text};
use crate::ModelError;
use crate::manifest::hex;

/// A model whose weights follow from a seed and their names alone: norms are ones, all else is uniform with a variance that
/// keeps activations in range. So it fills any geometry without files, and is as fast as a real model of the same sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthetic {
    config: String,
    seed: u64,
}

impl Synthetic {
    /// The model that the config.json in the folder `path`, or at `path`, describes.
    pub fn read(path: &Path, seed: u64) -> Result<Self, ModelError> {
        let beside = path.join("config.json");
        let file = if beside.is_file() { &beside } else { path };
        Ok(Self { config: read_text(file, MOST_CONFIG_BYTES)?, seed })
    }

    /// config.json.
    pub fn config(&self) -> Result<Value, ModelError> {
        serde_json::from_str(&self.config)
            .map_err(|e| ModelError::malformed(Path::new("config.json"), format!("not JSON: {e}")))
    }

    /// Which numbers the tensor of this name has.
    pub(crate) fn key(&self, name: &str) -> SyntheticKey {
        SyntheticKey::named(self.seed, name)
    }

    /// SHA-256 over config.json and the seed, in hexadecimal.
    pub fn checkpoint_id(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(Sha256::digest(self.config.as_bytes()));
        digest.update(format!("synthetic:{}", self.seed));
        hex(&digest.finalize())
    }
}
