//! How one head's keys and values lie in a block (see [`crate::kv`]).

use half::bf16;

use super::element::Element;
use crate::KvSpec;
use crate::kv::{BLOCK_ROWS, LINE};

/// Where elements lie within a row of 16 key pairs and a line of 32 values.
pub trait Placed: Element {
    /// Place of key element j (`upper` unset: j + h) of the position `row` among the 32 of pair j.
    fn key_place(row: usize, upper: bool) -> usize;
    /// Place of value element `index` of a line.
    fn value_place(index: usize) -> usize;
}

impl Placed for f32 {
    #[inline(always)]
    fn key_place(row: usize, upper: bool) -> usize {
        if upper { row } else { BLOCK_ROWS + row }
    }

    #[inline(always)]
    fn value_place(index: usize) -> usize {
        index
    }
}

impl Placed for bf16 {
    #[inline(always)]
    fn key_place(row: usize, upper: bool) -> usize {
        2 * row + usize::from(upper)
    }

    #[inline(always)]
    fn value_place(index: usize) -> usize {
        index % 16 * 2 + index / 16
    }
}

/// Writes the key (two halves) and value of position `row` into one head's part of a block.
#[inline(always)]
pub fn write<E: Placed>(spec: &KvSpec, row: usize, key: [&[E]; 2], value: &[E], block: &mut [E]) {
    let (keys, values) = block.split_at_mut(spec.key_elements());
    let pairs = keys.chunks_exact_mut(2 * BLOCK_ROWS);
    for ((pair, &upper), &lower) in pairs.zip(key[0]).zip(key[1]) {
        pair[E::key_place(row, true)] = upper;
        pair[E::key_place(row, false)] = lower;
    }
    let lines = values[row * spec.value_cols()..].chunks_exact_mut(LINE);
    for (line, value) in lines.zip(value.chunks(LINE)) {
        for (index, &element) in value.iter().enumerate() {
            line[E::value_place(index)] = element;
        }
    }
}

/// The key and value of position `row` out of one head's part of a block.
pub fn read<E: Placed>(spec: &KvSpec, row: usize, block: &[E]) -> (Vec<f32>, Vec<f32>) {
    let (keys, values) = block.split_at(spec.key_elements());
    let half = spec.head_dim / 2;
    let key = (0..spec.head_dim).map(|i| {
        let pair = &keys[i % half * 2 * BLOCK_ROWS..];
        pair[E::key_place(row, i < half)].widen()
    });
    let value = (0..spec.head_dim).map(|i| {
        let line = &values[row * spec.value_cols() + i / LINE * LINE..];
        line[E::value_place(i % LINE)].widen()
    });
    (key.collect(), value.collect())
}
