//! Where golden data lies.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The golden folder of this run.
pub fn root() -> PathBuf {
    if let Some(named) = std::env::var_os("ASTERISM_GOLDEN") {
        return PathBuf::from(named);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shared = workspace.join("../shared/golden");
    if shared.is_dir() { shared } else { workspace.join("tests/golden") }
}

/// The folders of a name like `tokenizer-*`, sorted.
pub fn folders(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root()).into_iter().flatten().flatten();
    let name_fits = |path: &PathBuf| name(path).starts_with(prefix);
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).filter(name_fits).collect();
    found.sort();
    if found.is_empty() {
        println!("golden {prefix}*: SKIPPED (no such folder in {})", root().display());
    }
    found
}

/// The last part of a path.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A JSON file, or `None` and a line that says so where it is missing.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    match std::fs::read(path) {
        Ok(bytes) => {
            Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        }
        Err(error) => {
            println!("golden {}: SKIPPED ({error})", path.display());
            None
        }
    }
}

/// The lines of a JSONL file; the file must be there.
pub fn lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let parse =
        |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split('\n').filter(|line| !line.is_empty()).map(parse).collect()
}
