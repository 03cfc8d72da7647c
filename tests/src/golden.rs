//! Where the golden data lies, and how it is read.
//!
//! The folder in `ASTERISM_GOLDEN`, else `../shared/golden` beside the workspace, else the project's own copy (which lacks
//! the official TeleChat files).

use std::path::{Path, PathBuf};

use asterism_model::DecoderSpec;
use serde::Deserialize;

/// Greedy ids must be equal while the best two are further apart than this.
pub const MARGIN: f32 = 2e-3;

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The golden folder of this run.
pub fn root() -> PathBuf {
    if let Some(named) = std::env::var_os("ASTERISM_GOLDEN") {
        return PathBuf::from(named);
    }
    let shared = workspace().join("../shared/golden");
    if shared.is_dir() { shared } else { workspace().join("tests/golden") }
}

/// The checkpoints of supported families that have goldens, sorted by name; the others are named aloud.
pub fn checkpoints() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root()).expect("the golden folder");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|folder| folder.join("config.json").is_file() && folder.join("goldens").is_dir());
    folders.retain(|folder| match DecoderSpec::read(folder) {
        Ok(_) => true,
        Err(error) => {
            println!("golden {}: skipped: {error}", name(folder));
            false
        }
    });
    folders.sort();
    assert!(!folders.is_empty(), "no checkpoint of a supported family in {}", root().display());
    folders
}

/// One checkpoint that every copy of the golden data has.
pub fn tiny_52b() -> PathBuf {
    root().join("tiny-52b")
}

/// A folder's own name.
pub fn name(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// One case of a `goldens/<set>.json`.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Also the prefix of its tensors.
    pub name: String,
    /// Greedy continuation, not stopped at an end id.
    #[serde(default)]
    pub greedy: Vec<GreedyStep>,
    /// The same under repetition penalty 1.02.
    #[serde(default, rename = "greedy_rp1.02")]
    pub greedy_penalised: Vec<GreedyStep>,
    /// The prompt's ids.
    #[serde(skip)]
    pub prompt: Vec<u32>,
}

/// One greedy step.
#[derive(Debug, Deserialize)]
pub struct GreedyStep {
    /// The id chosen.
    pub token: u32,
    /// Best minus second best.
    pub margin: f32,
}

/// The cases of a set; none where the checkpoint has no such set.
pub fn cases(checkpoint: &Path, set: &str) -> Vec<Case> {
    let folder = checkpoint.join("goldens");
    let Ok(text) = std::fs::read_to_string(folder.join(format!("{set}.json"))) else { return Vec::new() };
    let mut cases: Vec<Case> = serde_json::from_str(&text).expect("a golden set parses");
    let bytes = std::fs::read(folder.join(format!("{set}.safetensors"))).expect("a golden set's tensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("golden tensors parse");
    for case in &mut cases {
        let ids = tensors.tensor(&format!("{}.input_ids", case.name)).expect("input ids");
        let words = ids.data().chunks_exact(4);
        case.prompt = words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    }
    cases
}

/// Compares a greedy answer with the golden one, up to the first step whose margin leaves the choice open.
pub fn assert_greedy(what: &str, answer: &[u32], golden: &[GreedyStep], tolerance: f32) {
    for (index, step) in golden.iter().enumerate() {
        let drawn = answer.get(index).copied();
        if drawn != Some(step.token) {
            assert!(step.margin <= tolerance, "{what}: token {index} is {drawn:?}, the golden one {step:?}");
            return;
        }
    }
    assert_eq!(answer.len(), golden.len(), "{what}: the answer is as long as was asked for");
}
