//! How one head's keys and values lie in a block (see [`crate::kv`]).

use half::bf16;

use super::element::Element;
use super::simd::{LANES, Simd};
use crate::KvSpec;
use crate::kv::{BLOCK_ROWS, LINE};

/// Elements j and j + h of sixteen keys.
pub type KeyPairs<E> = [E; 2 * BLOCK_ROWS];

/// Where elements lie within the pairs of sixteen keys, and within a line of 32 value elements.
pub trait Placed: Element {
    /// Puts elements j and j + h of the key in row `row`.
    fn put_key(pairs: &mut KeyPairs<Self>, row: usize, pair: [Self; 2]);

    /// Elements j and j + h of the key in row `row`.
    fn key(pairs: &KeyPairs<Self>, row: usize) -> [Self; 2];

    /// Puts a line's first and second sixteen elements.
    fn put_values<S: Simd>(simd: S, line: &mut [Self; LINE], values: [S::F32; 2]);

    /// Element `index` of a line.
    fn value(line: &[Self; LINE], index: usize) -> Self;
}

impl Placed for f32 {
    #[inline(always)]
    fn put_key(pairs: &mut KeyPairs<f32>, row: usize, pair: [f32; 2]) {
        pairs[row % BLOCK_ROWS] = pair[0];
        pairs[BLOCK_ROWS + row % BLOCK_ROWS] = pair[1];
    }

    fn key(pairs: &KeyPairs<f32>, row: usize) -> [f32; 2] {
        [pairs[row], pairs[BLOCK_ROWS + row]]
    }

    #[inline(always)]
    fn put_values<S: Simd>(simd: S, line: &mut [f32; LINE], values: [S::F32; 2]) {
        simd.store_f32(values[0], line, 0);
        simd.store_f32(values[1], line, LANES);
    }

    fn value(line: &[f32; LINE], index: usize) -> f32 {
        line[index]
    }
}

impl Placed for bf16 {
    #[inline(always)]
    fn put_key(pairs: &mut KeyPairs<bf16>, row: usize, pair: [bf16; 2]) {
        let words: &mut [[bf16; 2]; BLOCK_ROWS] = bytemuck::cast_mut(pairs);
        words[row % BLOCK_ROWS] = [pair[1], pair[0]];
    }

    fn key(pairs: &KeyPairs<bf16>, row: usize) -> [bf16; 2] {
        [pairs[2 * row + 1], pairs[2 * row]]
    }

    #[inline(always)]
    fn put_values<S: Simd>(simd: S, line: &mut [bf16; LINE], values: [S::F32; 2]) {
        simd.store_pairs(values[1], values[0], line);
    }

    fn value(line: &[bf16; LINE], index: usize) -> bf16 {
        line[2 * (index % LANES) + index / LANES]
    }
}

/// Writes the key (two halves) and value of position `row` into one head's part of a block.
#[inline(always)]
pub fn write<S: Simd, E: Placed>(
    simd: S,
    spec: &KvSpec,
    row: usize,
    key: [&[E]; 2],
    value: &[E],
    block: &mut [E],
) {
    let (keys, values) = block.split_at_mut(spec.key_elements());
    for ((pairs, &a), &b) in keys.as_chunks_mut().0.iter_mut().zip(key[0]).zip(key[1]) {
        E::put_key(pairs, row, [a, b]);
    }
    let cols = spec.value_cols();
    for (index, line) in values[row * cols..][..cols].as_chunks_mut().0.iter_mut().enumerate() {
        let at = index * LINE;
        // The last line may have fewer elements, down to none in its second half.
        let second = E::load(simd, value, value.len().min(at + LANES));
        E::put_values(simd, line, [E::load(simd, value, at), second]);
    }
}

/// The key and value of position `row` out of one head's part of a block.
pub fn read<E: Placed>(spec: &KvSpec, row: usize, block: &[E]) -> (Vec<f32>, Vec<f32>) {
    let (keys, values) = block.split_at(spec.key_elements());
    let (mut key, mut upper): (Vec<f32>, Vec<f32>) =
        keys.as_chunks().0.iter().map(|pairs| E::key(pairs, row).map(E::widen)).map(|[a, b]| (a, b)).unzip();
    key.append(&mut upper);
    let lines = values[row * spec.value_cols()..].as_chunks().0;
    let value = (0..spec.head_dim).map(|i| E::value(&lines[i / LINE], i % LINE).widen()).collect();
    (key, value)
}
