//! How tensors are stored.

use half::{bf16, f16};

/// The type of a stored tensor's elements. Weights are `F32`, `Bf16` or `F16`; the others occur in tensors that no
/// layer reads, such as masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum StoredDtype {
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

impl StoredDtype {
    const ALL: [(Self, &'static str, usize); 10] = [
        (Self::Bool, "BOOL", 1),
        (Self::U8, "U8", 1),
        (Self::I8, "I8", 1),
        (Self::I16, "I16", 2),
        (Self::I32, "I32", 4),
        (Self::I64, "I64", 8),
        (Self::F16, "F16", 2),
        (Self::Bf16, "BF16", 2),
        (Self::F32, "F32", 4),
        (Self::F64, "F64", 8),
    ];

    /// The name, as in a safetensors header.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// Whether weights can have this type.
    pub fn is_weight(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// The type of this name in a safetensors header.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|row| row.1 == name).map(|row| row.0)
    }
}

/// A tensor's name, element type and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The full name in the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: StoredDtype,
    /// Sizes, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of all elements, or `None` where that number is no size.
    pub fn byte_len(&self) -> Option<usize> {
        elements(&self.shape)?.checked_mul(self.dtype.size())
    }
}

/// The product of the sizes, if it is a number.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

/// Little-endian weights of one type as another, rounded to nearest even where it is narrower. Both are weight types.
pub(crate) fn convert_weights(bytes: &[u8], from: StoredDtype, to: StoredDtype) -> Vec<u8> {
    match from {
        StoredDtype::F16 => encode(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()), to),
        StoredDtype::Bf16 => encode(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()), to),
        _ => encode(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)), to),
    }
}

/// Weights as little-endian elements of a weight type, rounded to nearest even.
pub(crate) fn encode(weights: impl Iterator<Item = f32>, to: StoredDtype) -> Vec<u8> {
    match to {
        StoredDtype::F16 => weights.flat_map(|weight| f16::from_f32(weight).to_le_bytes()).collect(),
        StoredDtype::Bf16 => weights.flat_map(|weight| bf16::from_f32(weight).to_le_bytes()).collect(),
        _ => weights.flat_map(f32::to_le_bytes).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_stands_at_its_own_row() {
        for (index, (dtype, name, _)) in StoredDtype::ALL.into_iter().enumerate() {
            assert_eq!(dtype as usize, index);
            assert_eq!(StoredDtype::from_name(name), Some(dtype));
        }
        assert_eq!(StoredDtype::from_name("F8_E4M3"), None);
    }

    #[test]
    fn weights_are_rounded_to_nearest_even() {
        use StoredDtype::{Bf16, F16, F32};
        let exact = [0.0f32, -1.5, 0.15625, f32::INFINITY];
        let wide = encode(exact.into_iter(), F32);
        for to in [Bf16, F16, F32] {
            let narrow = convert_weights(&wide, F32, to);
            assert_eq!(narrow.len(), exact.len() * to.size());
            assert_eq!(convert_weights(&narrow, to, F32), wide);
        }
        // One and a half of the last place: up to even; a half: down to even.
        let ties = encode([1.0 + 3.0 / 256.0, 1.0 + 1.0 / 256.0].into_iter(), Bf16);
        assert_eq!(convert_weights(&ties, Bf16, F32), encode([1.0 + 4.0 / 256.0, 1.0].into_iter(), F32));
    }
}
