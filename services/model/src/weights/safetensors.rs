//! One safetensors file.

use std::path::Path;

use safetensors::SafeTensors;

use super::dtype::{StoredDtype, TensorInfo};
use super::map::Mapped;
use super::stored::{Place, Stored};
use crate::ModelError;

/// The tensors of the file at `path`. The header is checked against the file's length.
pub(crate) fn read(path: &Path) -> Result<Vec<Stored>, ModelError> {
    let map = Mapped::open(path)?;
    let (header, metadata) = SafeTensors::read_metadata(map.bytes())
        .map_err(|e| ModelError::malformed(path, format!("not a whole safetensors file: {e}")))?;
    let data = header + size_of::<u64>();
    let mut tensors = Vec::new();
    for (name, entry) in metadata.tensors() {
        let known = format!("{:?}", entry.dtype);
        let dtype = StoredDtype::from_name(&known)
            .ok_or_else(|| ModelError::malformed(path, format!("tensor `{name}` has the type {known}")))?;
        let info = TensorInfo { name, dtype, shape: entry.shape.clone() };
        let (start, end) = entry.data_offsets;
        if info.byte_len() != end.checked_sub(start) || map.slice(data + start, end - start).is_none() {
            return Err(ModelError::malformed(path, format!("tensor `{}` lies outside the file", info.name)));
        }
        let place = Place::Mapped { map: map.clone(), offset: data + start, len: end - start };
        tensors.push(Stored { info, place });
    }
    Ok(tensors)
}
