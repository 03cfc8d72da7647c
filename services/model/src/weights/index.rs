//! A checkpoint's index: which file holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::read_text;
use super::stored::Stored;
use crate::ModelError;

/// The longest index that is read; TeleChat-52B's is 35 KB.
const MOST_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads each file that the index at `path` names with `read`, and takes from it the tensors that the index places there.
/// Also returns the files, sorted.
pub(crate) fn read_sharded(
    path: &Path,
    read: fn(&Path) -> Result<Vec<Stored>, ModelError>,
) -> Result<(Vec<Stored>, Vec<PathBuf>), ModelError> {
    let index: Index = serde_json::from_str(&read_text(path, MOST_BYTES)?)
        .map_err(|e| ModelError::malformed(path, format!("not a checkpoint index: {e}")))?;
    let folder = path.parent().unwrap_or(Path::new("."));

    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        by_shard.entry(shard).or_default().push(tensor);
    }
    let mut tensors = Vec::with_capacity(index.weight_map.len());
    let mut files = Vec::with_capacity(by_shard.len());
    for (shard, names) in by_shard {
        let file = folder.join(plain_name(path, shard)?);
        if !file.is_file() {
            let (shard, tensor) = (shard.to_owned(), names[0].to_owned());
            return Err(ModelError::MissingShard { index: path.to_owned(), shard, tensor });
        }
        let mut held: BTreeMap<String, Stored> =
            read(&file)?.into_iter().map(|tensor| (tensor.info.name.clone(), tensor)).collect();
        for name in names {
            let tensor = held.remove(name).ok_or_else(|| ModelError::NotInShard {
                index: path.to_owned(),
                shard: shard.to_owned(),
                tensor: name.to_owned(),
            })?;
            tensors.push(tensor);
        }
        files.push(file);
    }
    Ok((tensors, files))
}

/// An index may name files beside it only.
fn plain_name<'a>(index: &Path, shard: &'a str) -> Result<&'a Path, ModelError> {
    let name = Path::new(shard);
    let mut parts = name.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(name),
        _ => Err(ModelError::malformed(index, format!("`{shard}` is not the name of a file beside it"))),
    }
}
