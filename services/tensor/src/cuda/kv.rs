//! How keys and values lie on a card.

use std::sync::Arc;

use crate::cuda::compile::Define;
use crate::cuda::memory::DeviceMemory;
use crate::cuda::{Cuda, attention, rope};
use crate::kv::BLOCK_ROWS;
use crate::storage::Storage;
use crate::tensor::widen;
use crate::{Compute, KvPool, KvSpec, KvType, TensorError};

/// A pool's kernels, which are those of its types, and what they need.
#[derive(Debug)]
pub struct CardPool {
    pub rope: Arc<rope::Kernels>,
    pub attention: attention::Pool,
}

/// Heads whose blocks are tiled, so that kernels copy and multiply them as they rest. What those kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TiledHead {
    pub dim: usize,
    pub kv_type: KvType,
}

/// The macro by which kernels know the type that keys and values rest in, as their prelude numbers it.
pub fn define(kv_type: KvType) -> Define {
    let number = match kv_type {
        KvType::F32 => 0,
        KvType::Bf16 => 1,
    };
    ("KV_TYPE", number)
}

impl TiledHead {
    /// The heads of a pool, if its blocks are tiled: bf16 under bf16 activations, of sizes that the kernels have. All
    /// others are converted element by element, and attended by the kernels for any kind of row.
    pub fn of(spec: &KvSpec) -> Option<TiledHead> {
        let &KvSpec { head_dim: dim, compute, kv_type, .. } = spec;
        let types = (compute, kv_type) == (Compute::Bf16, KvType::Bf16);
        (types && dim.is_multiple_of(16) && (64..=160).contains(&dim)).then_some(TiledHead { dim, kv_type })
    }

    /// Bytes of a key, or value.
    pub fn row_bytes(self) -> usize {
        self.dim * self.kv_type.dtype().bytes()
    }

    /// What its kernels are compiled with.
    pub fn defines(self) -> [Define; 2] {
        [("HEAD_DIM", self.dim as u32), define(self.kv_type)]
    }
}

/// `KvLayout` of the kernels: how a layer lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KvLayout {
    pub kv_heads: i32,
    pub head_dim: i32,
    /// Elements of a tiled line: 64, 32 or 16; 0: plain rows.
    pub tile: i32,
    /// Elements of a value's line.
    pub value_cols: i32,
    /// Keys and values of a head in a block.
    pub head_bytes: u64,
}

impl KvLayout {
    /// The layout that follows from a pool's sizes.
    pub fn of(spec: &KvSpec) -> KvLayout {
        let dim = spec.head_dim;
        let tiled = TiledHead::of(spec).is_some();
        let tile = [64, 32, 16].into_iter().find(|tile| tiled && dim.is_multiple_of(*tile)).unwrap_or(0);
        KvLayout {
            kv_heads: spec.kv_heads as i32,
            head_dim: dim as i32,
            tile: tile as i32,
            value_cols: if tiled { dim } else { spec.value_cols() } as i32,
            head_bytes: spec.head_bytes() as u64,
        }
    }

    /// Byte offset of element `dim` of the key (`value` = 0) or value (1) of position `row` within its head's part of a
    /// block, as the kernels' `kv_at`.
    fn at(&self, element_bytes: usize, value: usize, row: usize, dim: usize) -> usize {
        let (head_dim, tile) = (self.head_dim as usize, self.tile as usize);
        if tile == 0 {
            let line = if value == 1 { self.value_cols as usize } else { head_dim };
            return (value * BLOCK_ROWS * head_dim + row * line + dim) * element_bytes;
        }
        let (r, chunk) = (row % 8, dim % tile / 8);
        let turn = match tile {
            64 => r,
            32 => r / 2 % 4,
            _ => r / 4 % 2,
        };
        let line = row / 8 * 16 * head_dim + dim / tile * 16 * tile + r * 2 * tile;
        value * 32 * head_dim + line + (chunk ^ turn) * 16 + dim % 8 * 2
    }
}

impl Cuda {
    pub(crate) fn kv_pool(&self, spec: KvSpec, blocks: usize) -> Result<KvPool, TensorError> {
        let card = self.card();
        let memory = |bytes| DeviceMemory::zeroed(card.context(), bytes).map(Storage::Card);
        let pool = KvPool::with(spec, blocks, memory)?;
        Ok(pool.with_card(CardPool {
            rope: self.rope.get(spec.kv_type, || rope::Kernels::new(card, spec.kv_type))?,
            attention: self.attention.pool(card, &spec, blocks)?,
        }))
    }
}

/// Key and value of position `row` of the head whose part of a block begins at byte `start`.
pub fn read(
    spec: &KvSpec,
    row: usize,
    memory: &DeviceMemory,
    start: usize,
) -> Result<(Vec<f32>, Vec<f32>), TensorError> {
    let (layout, dtype) = (KvLayout::of(spec), spec.kv_type.dtype());
    let bytes = dtype.bytes();
    let mut head = vec![0; spec.head_bytes()];
    memory.read(start, &mut head)?;
    let element = |value: usize, dim: usize| {
        let at = layout.at(bytes, value, row, dim);
        head.get(at..at + bytes).map_or(f32::NAN, |element| widen(dtype, element))
    };
    let line = |value: usize| (0..spec.head_dim).map(|dim| element(value, dim)).collect();
    Ok((line(0), line(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(head_dim: usize, compute: Compute, kv_type: KvType) -> KvSpec {
        KvSpec { layers: 1, kv_heads: 1, head_dim, compute, kv_type }
    }

    /// Types of activations, each with each of keys and values.
    fn types() -> impl Iterator<Item = (Compute, KvType)> {
        let both = |compute| KvType::ALL.map(|kv_type| (compute, kv_type));
        [Compute::F32, Compute::Bf16].into_iter().flat_map(both)
    }

    #[test]
    fn blocks_are_tiled_where_both_types_are_bf16() {
        for (compute, kv_type) in types() {
            let tiled = (compute, kv_type) == (Compute::Bf16, KvType::Bf16);
            assert_eq!(KvLayout::of(&spec(128, compute, kv_type)).tile, if tiled { 64 } else { 0 });
        }
    }

    #[test]
    fn every_element_of_a_block_has_its_own_place() {
        for (compute, kv_type) in types() {
            for head_dim in [2, 18, 24, 64, 80, 96, 112, 128, 144, 160, 256] {
                let spec = spec(head_dim, compute, kv_type);
                let (layout, bytes) = (KvLayout::of(&spec), kv_type.dtype().bytes());
                let mut taken = vec![false; spec.head_bytes()];
                for (value, row, dim) in (0..2 * BLOCK_ROWS * head_dim)
                    .map(|i| (i / head_dim / BLOCK_ROWS, i / head_dim % BLOCK_ROWS, i % head_dim))
                {
                    let at = layout.at(bytes, value, row, dim);
                    assert!(at.is_multiple_of(bytes) && !taken[at], "{spec:?} {value} {row} {dim}");
                    taken[at] = true;
                }
            }
        }
    }

    #[test]
    fn eight_positions_of_a_chunk_meet_no_bank_twice() {
        for head_dim in [64, 80, 96, 112, 128, 144, 160] {
            let layout = KvLayout::of(&spec(head_dim, Compute::Bf16, KvType::Bf16));
            for (half, dim) in (0..2).flat_map(|half| (0..head_dim).step_by(8).map(move |dim| (half, dim))) {
                let mut banks: Vec<usize> =
                    (0..8).map(|r| layout.at(2, 0, half * 8 + r, dim) % 128 / 16).collect();
                banks.sort_unstable();
                assert_eq!(banks, [0, 1, 2, 3, 4, 5, 6, 7], "{head_dim} {dim}");
            }
        }
    }
}
