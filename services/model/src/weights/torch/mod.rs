//! The official format: `torch.save` of a dictionary of tensors, a zip archive of one pickle and one file a storage.
//!
//! Storages are used where they lie in the mapped file. Nothing here can execute anything: the pickle reader knows tensors,
//! and refuses every other name by name.

mod pickle;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use self::pickle::{PickleError, TensorRef};
use super::dtype::{TensorInfo, elements};
use super::map::Mapped;
use super::stored::{Place, Stored};
use crate::ModelError;

/// The longest pickle that is read; it holds names and shapes only.
const MOST_PICKLE_BYTES: usize = 16 << 20;

/// The tensors of the file at `path`.
pub(crate) fn read(path: &Path) -> Result<Vec<Stored>, ModelError> {
    let map = Mapped::open(path)?;
    let entries = entries(path, &map)?;
    let pickle_name =
        entries.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).ok_or_else(|| {
            ModelError::malformed(path, "a zip archive without data.pkl: not a file of torch.save")
        })?;
    let folder = pickle_name.trim_end_matches("data.pkl");

    if let Some(&(offset, len)) = entries.get(&format!("{folder}byteorder"))
        && map.slice(offset, len) != Some(b"little")
    {
        return Err(ModelError::malformed(path, "saved on a machine that is not little-endian"));
    }
    let (offset, len) = entries[pickle_name];
    if len > MOST_PICKLE_BYTES {
        return Err(ModelError::malformed(
            path,
            format!("data.pkl has {len} bytes, too many to be tensors only"),
        ));
    }
    let pickle = map.slice(offset, len).unwrap_or_default();
    let tensors = pickle::read(pickle).map_err(|error| match error {
        PickleError::ForbiddenGlobal(global) => ModelError::ForbiddenGlobal { path: path.to_owned(), global },
        other => ModelError::malformed(path, format!("data.pkl: {other}")),
    })?;

    tensors
        .into_iter()
        .map(|tensor| {
            let name = tensor.name;
            let &(offset, len) =
                entries.get(&format!("{folder}data/{}", tensor.storage)).ok_or_else(|| {
                    ModelError::malformed(
                        path,
                        format!("tensor `{name}`: storage {} is missing", tensor.storage),
                    )
                })?;
            place(&map, &tensor, offset, len).ok_or_else(|| {
                ModelError::malformed(path, format!("tensor `{name}` lies outside its storage"))
            })
        })
        .collect()
}

/// Name, start and length of each file in the archive.
fn entries(path: &Path, map: &Mapped) -> Result<HashMap<String, (usize, usize)>, ModelError> {
    let broken = |what: String| ModelError::malformed(path, what);
    let mut archive = ZipArchive::new(Cursor::new(map.bytes()))
        .map_err(|e| broken(format!("not a whole zip archive, as torch.save writes since 1.6: {e}")))?;
    let mut entries = HashMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        let entry =
            archive.by_index_raw(index).map_err(|e| broken(format!("entry {index} of the archive: {e}")))?;
        let name =
            entry.name().map_err(|e| broken(format!("entry {index} of the archive: {e}")))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(broken(format!("`{name}` is compressed or encrypted; torch.save stores plainly")));
        }
        let whole = entry
            .data_start()
            .and_then(|start| Some((usize::try_from(start).ok()?, usize::try_from(entry.size()).ok()?)))
            .filter(|&(start, len)| map.slice(start, len).is_some())
            .ok_or_else(|| broken(format!("`{name}` lies outside the file")))?;
        if entries.insert(name.clone(), whole).is_some() {
            return Err(broken(format!("the archive holds `{name}` twice")));
        }
    }
    Ok(entries)
}

/// Checks that every element lies within the `len` bytes from `start` on; `None` where not.
fn place(map: &Mapped, tensor: &TensorRef<'_>, start: usize, len: usize) -> Option<Stored> {
    let size = tensor.dtype.size();
    let count = elements(&tensor.shape)?;
    // A view that repeats elements (stride 0) could claim any number of them.
    if count.checked_mul(size)? > len {
        return None;
    }
    let mut contiguous = 1usize;
    let mut is_contiguous = true;
    let mut last = tensor.offset;
    for (&extent, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
        is_contiguous &= extent == 1 || stride == contiguous;
        contiguous = contiguous.checked_mul(extent)?;
        last = last.checked_add(extent.saturating_sub(1).checked_mul(stride)?)?;
    }
    if count > 0 && last.checked_add(1)?.checked_mul(size)? > len {
        return None;
    }
    let offset = start.checked_add(if count == 0 { 0 } else { tensor.offset.checked_mul(size)? })?;
    let info = TensorInfo { name: tensor.name.to_owned(), dtype: tensor.dtype, shape: tensor.shape.clone() };
    let map = map.clone();
    let place = if is_contiguous || count == 0 {
        Place::Mapped { map, offset, len: count * size }
    } else {
        Place::Strided { map, offset, strides: tensor.strides.clone() }
    };
    Some(Stored { info, place })
}
