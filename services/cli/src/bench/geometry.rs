//! The model that is measured: a folder as it is, or the same geometry with fewer layers.

use std::error::Error;
use std::path::{Path, PathBuf};

use asterism_model::arch::with_layers;
use serde_json::Value;

/// Files that a gateway needs beside config.json.
const COMPANIONS: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// A model's folder; one that was made for the bench is removed with it.
#[derive(Debug)]
pub struct Geometry {
    folder: PathBuf,
    made: bool,
}

impl Geometry {
    /// The model in `folder`, with `layers` layers if they are given.
    ///
    /// # Errors
    /// config.json cannot be read, or the copy cannot be written.
    pub fn new(folder: &Path, layers: Option<usize>) -> Result<Self, Box<dyn Error>> {
        let Some(layers) = layers else { return Ok(Self { folder: folder.to_owned(), made: false }) };
        let config: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
        let config = with_layers(config, layers)?;
        let name = folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
        let copy = std::env::temp_dir().join(format!("asterism-bench-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&copy)?;
        let made = Self { folder: copy, made: true };
        std::fs::write(made.folder.join("config.json"), config.to_string())?;
        for file in COMPANIONS {
            if folder.join(file).is_file() {
                std::fs::copy(folder.join(file), made.folder.join(file))?;
            }
        }
        Ok(made)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Geometry {
    fn drop(&mut self) {
        if self.made {
            // It lies among temporary files; whoever clears those clears it too.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_layers_are_a_folder_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "telechat", "n_embd": 64, "n_layer": 64, "other": [1]}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        std::fs::write(folder.path().join("tokenizer.model"), "words").unwrap();
        let copy = Geometry::new(folder.path(), Some(3)).unwrap();
        let path = copy.folder().to_owned();
        let text = std::fs::read_to_string(path.join("config.json")).unwrap();
        assert_eq!(text, config.replace("64, \"other", "3, \"other").replace(": ", ":").replace(", ", ","));
        assert!(path.join("tokenizer.model").is_file());
        drop(copy);
        assert!(!path.exists());
        let same = Geometry::new(folder.path(), None).unwrap();
        assert_eq!(same.folder(), folder.path());
        drop(same);
        assert!(folder.path().exists());
    }
}
