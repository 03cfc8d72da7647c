//! GGUF files, as far as llama models in F32, F16, BF16, Q8_0, Q4_0 and Q4_1 go.

mod file;
mod kind;
mod llama;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::path::Path;

use serde_json::Value;

use self::file::GgufFile;
use self::llama::Llama;
pub(crate) use self::llama::LlamaTensor;
use super::stored::Stored;
use crate::ModelError;

/// A file re-expressed as a checkpoint of TeleChat-52B's architecture.
pub(crate) struct Expressed {
    /// `config.json`.
    pub config: String,
    /// The other files of the folder, by name.
    pub companions: Vec<(&'static str, String)>,
    /// The tensors, computed when they are read.
    pub tensors: Vec<Stored>,
}

/// Reads the header of the file at `path`.
pub(crate) fn read(path: &Path) -> Result<Expressed, ModelError> {
    let file = GgufFile::open(path)?;
    let llama = Llama::read(path, &file)?;
    let config = llama.config(&file);
    let companions = vec![
        ("generation_config.json", pretty(&tokenizer::generation_config(&config))),
        ("tokenizer.json", tokenizer::tokenizer(path, &file)?.to_string()),
        ("tokenizer_config.json", pretty(&tokenizer::tokenizer_config(&file, llama.positions))),
    ];
    Ok(Expressed { config: pretty(&config), companions, tensors: llama.tensors(path, &file)? })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}
