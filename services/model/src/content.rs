//! The content hash of a tensor: BLAKE3 of its elements, row-major and little-endian.
//!
//! BLAKE3 hashes a tree, so parts of a tensor can be hashed in any order and by several threads, and the whole's hash is the one
//! that any other implementation gives.

use std::sync::{Mutex, PoisonError};

use asterism_tensor::PART;
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

// Parts are whole subtrees.
const _: () = assert!(PART.is_power_of_two() && PART >= blake3::CHUNK_LEN);

/// The hash of all `bytes`, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Hashes of a tensor's parts.
#[derive(Debug)]
pub(crate) struct Parts {
    hashed: Mutex<Hashed>,
}

#[derive(Debug)]
struct Hashed {
    values: Vec<ChainingValue>,
    left: usize,
}

impl Parts {
    /// None of a tensor of so many bytes has been hashed.
    pub fn new(bytes: usize) -> Self {
        let left = bytes.div_ceil(PART).max(1);
        Self { hashed: Mutex::new(Hashed { values: vec![ChainingValue::default(); left], left }) }
    }

    /// For the bytes of the part that begins at `offset`, a multiple of [`PART`].
    pub fn hasher(offset: usize) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset as u64);
        hasher
    }

    /// Takes a part's hasher, which has seen all of it. With the last part of all: the hash of the whole, in hexadecimal.
    pub fn take(&self, offset: usize, part: &Hasher) -> Option<String> {
        let mut hashed = self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        let Hashed { values, left } = &mut *hashed;
        *left = left.checked_sub(1)?;
        if let [_only] = &values[..] {
            return Some(part.finalize().to_hex().to_string());
        }
        *values.get_mut(offset / PART)? = part.finalize_non_root();
        if *left > 0 {
            return None;
        }
        let (first, rest) = values.split_at(left_parts(values.len()));
        Some(merge_subtrees_root(&merged(first), &merged(rest), Mode::Hash).to_hex().to_string())
    }
}

/// Of several parts, those of the left subtree: the largest power of two that leaves something.
fn left_parts(parts: usize) -> usize {
    parts.next_power_of_two() / 2
}

/// The value of a subtree that is not the whole tree.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => ChainingValue::default(),
        [one] => *one,
        _ => {
            let (first, rest) = values.split_at(left_parts(values.len()));
            merge_subtrees_non_root(&merged(first), &merged(rest), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_parts(bytes: &[u8], order: impl Iterator<Item = usize>) -> Vec<Option<String>> {
        let parts = Parts::new(bytes.len());
        let take = |index: usize| {
            let offset = index * PART;
            let mut hasher = Parts::hasher(offset);
            hasher.update(&bytes[offset..(offset + PART).min(bytes.len())]);
            parts.take(offset, &hasher)
        };
        order.map(take).collect()
    }

    #[test]
    fn parts_in_any_order_have_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..5 * PART + 3).map(|i| ((i * i) >> 7) as u8).collect();
        for len in
            [0, 1, 5000, PART - 1, PART, PART + 1, 2 * PART, 3 * PART, 4 * PART - 1, 4 * PART, 5 * PART + 3]
        {
            let whole = &bytes[..len];
            let count = len.div_ceil(PART).max(1);
            for taken in [by_parts(whole, 0..count), by_parts(whole, (0..count).rev())] {
                let (last, before) = taken.split_last().unwrap();
                assert_eq!(last.as_deref(), Some(&*hash(whole)), "{len} bytes");
                assert!(before.iter().all(Option::is_none), "{len} bytes");
            }
        }
    }
}
