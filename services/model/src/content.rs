//! The content hash of a tensor: BLAKE3 of its elements, row-major and little-endian.
//!
//! BLAKE3 hashes a tree, so parts of a tensor can be hashed in any order and by several threads, and the whole's hash is the one
//! that any other implementation gives.

use std::sync::{Mutex, PoisonError};

use asterism_tensor::{PART, SUBTREE, SentPart};
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

// Parts are whole subtrees, of subtrees that a card hashes.
const _: () = assert!(SUBTREE.is_power_of_two() && SUBTREE >= blake3::CHUNK_LEN);
const _: () = assert!(PART.is_power_of_two() && PART > SUBTREE);

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
        self.put(offset, || part.finalize_non_root(), || part.finalize())
    }

    /// Takes the part at `offset` as [`Parts::take`] does, with what a card has hashed of it.
    pub fn take_sent(&self, offset: usize, SentPart { bytes, subtrees }: SentPart<'_>) -> Option<String> {
        // Of a single subtree, which may be the root, the card does not know the hash.
        let is_hashed = bytes.len() > SUBTREE && subtrees.len() == bytes.len() / SUBTREE;
        let (subtrees, rest) =
            if is_hashed { (subtrees, &bytes[subtrees.len() * SUBTREE..]) } else { (&[][..], bytes) };
        let mut hasher = Self::hasher(offset + subtrees.len() * SUBTREE);
        hasher.update(rest);
        if !is_hashed {
            return self.take(offset, &hasher);
        }
        let mut values = subtrees.to_vec();
        if !rest.is_empty() {
            values.push(hasher.finalize_non_root());
        }
        self.put(offset, || merged(&values), || root(&values))
    }

    /// Notes a part's value; of the only one the root is asked for instead.
    fn put(
        &self,
        offset: usize,
        value: impl FnOnce() -> ChainingValue,
        only: impl FnOnce() -> Hash,
    ) -> Option<String> {
        let mut hashed = self.hashed.lock().unwrap_or_else(PoisonError::into_inner);
        let Hashed { values, left } = &mut *hashed;
        *left = left.checked_sub(1)?;
        if let [_only] = &values[..] {
            return Some(only().to_hex().to_string());
        }
        *values.get_mut(offset / PART)? = value();
        (*left == 0).then(|| root(values).to_hex().to_string())
    }
}

/// Of several subtrees, those on the left of what is above all: the largest power of two that leaves something.
fn left_of(subtrees: usize) -> usize {
    subtrees.next_power_of_two() / 2
}

/// The hash of the whole tree out of its subtrees, two or more: all of one size, a power of two, and the last one of as much or
/// less.
fn root(values: &[ChainingValue]) -> Hash {
    let (first, rest) = values.split_at(left_of(values.len()));
    merge_subtrees_root(&merged(first), &merged(rest), Mode::Hash)
}

/// The same for a subtree that is not the whole tree, or for one alone.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [] => ChainingValue::default(),
        [one] => *one,
        _ => {
            let (first, rest) = values.split_at(left_of(values.len()));
            merge_subtrees_non_root(&merged(first), &merged(rest), Mode::Hash)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a card finds of the part at `offset`.
    pub fn subtrees(offset: usize, part: &[u8]) -> Vec<ChainingValue> {
        let value = |(index, subtree): (usize, &[u8])| {
            let mut hasher = Parts::hasher(offset + index * SUBTREE);
            hasher.update(subtree);
            hasher.finalize_non_root()
        };
        part.chunks_exact(SUBTREE).enumerate().map(value).collect()
    }

    fn by_parts(
        bytes: &[u8],
        order: impl Iterator<Item = usize>,
        take: impl Fn(&Parts, usize, &[u8]) -> Option<String>,
    ) -> Vec<Option<String>> {
        let parts = Parts::new(bytes.len());
        let part = |offset: usize| &bytes[offset..(offset + PART).min(bytes.len())];
        order.map(|index| take(&parts, index * PART, part(index * PART))).collect()
    }

    fn take(parts: &Parts, offset: usize, bytes: &[u8]) -> Option<String> {
        let mut hasher = Parts::hasher(offset);
        hasher.update(bytes);
        parts.take(offset, &hasher)
    }

    fn take_sent(parts: &Parts, offset: usize, bytes: &[u8]) -> Option<String> {
        parts.take_sent(offset, SentPart { bytes, subtrees: &subtrees(offset, bytes) })
    }

    /// As from an address where the card could not hash: some parts only.
    fn take_some_sent(parts: &Parts, offset: usize, bytes: &[u8]) -> Option<String> {
        let subtrees = if offset == PART { Vec::new() } else { subtrees(offset, bytes) };
        parts.take_sent(offset, SentPart { bytes, subtrees: &subtrees })
    }

    #[test]
    fn parts_in_any_order_have_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..5 * PART + 3).map(|i| ((i * i) >> 7) as u8).collect();
        let around = |len: usize| [len - 1, len, len + 1];
        let lengths = [
            &[0, 1, 5000, 2 * PART, 3 * PART, 4 * PART - 1, 4 * PART, 5 * PART + 3][..],
            &around(1024),
            &around(SUBTREE),
            &around(2 * SUBTREE),
            &around(3 * SUBTREE),
            &around(PART),
            &around(PART + SUBTREE),
            &around(3 * PART + 5 * SUBTREE),
        ]
        .concat();
        for len in lengths {
            let whole = &bytes[..len];
            let count = len.div_ceil(PART).max(1);
            let expected = hash(whole);
            for take in [take, take_sent, take_some_sent] {
                for taken in [by_parts(whole, 0..count, take), by_parts(whole, (0..count).rev(), take)] {
                    let (last, before) = taken.split_last().unwrap();
                    assert_eq!(last.as_deref(), Some(&*expected), "{len} bytes");
                    assert!(before.iter().all(Option::is_none), "{len} bytes");
                }
            }
        }
    }
}
