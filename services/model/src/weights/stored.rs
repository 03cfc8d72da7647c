//! A tensor of a checkpoint and where its bytes come from.

use std::borrow::Cow;
use std::sync::Arc;

use super::dtype::{TensorInfo, elements};
use super::gguf::LlamaTensor;
use super::map::Mapped;

/// A tensor and its place.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub info: TensorInfo,
    pub place: Place,
}

/// Where a tensor's elements are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// One after another in a mapped file.
    Mapped { map: Mapped, offset: usize, len: usize },
    /// Scattered over a storage of a mapped file: element `i0, i1, …` lies `Σ i·stride` elements after `offset` (bytes).
    /// Whoever makes this has checked that all elements lie within the file.
    Strided { map: Mapped, offset: usize, strides: Vec<usize> },
    /// Computed from tensors of a GGUF file.
    Llama(Arc<LlamaTensor>),
}

impl Stored {
    /// The elements, row-major and little-endian: borrowed from the mapped file where they lie there like that.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.place {
            Place::Mapped { map, offset, len } => Cow::Borrowed(map.slice(*offset, *len).unwrap_or_default()),
            Place::Strided { map, offset, strides } => Cow::Owned(self.gather(map, *offset, strides)),
            Place::Llama(tensor) => Cow::Owned(tensor.bytes(&self.info)),
        }
    }

    fn gather(&self, map: &Mapped, offset: usize, strides: &[usize]) -> Vec<u8> {
        let shape = &self.info.shape;
        let size = self.info.dtype.size();
        let count = elements(shape).unwrap_or_default();
        let mut out = Vec::with_capacity(count * size);
        let mut index = vec![0usize; shape.len()];
        for _ in 0..count {
            let element: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
            out.extend_from_slice(map.slice(offset + element * size, size).unwrap_or_default());
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        out
    }
}
