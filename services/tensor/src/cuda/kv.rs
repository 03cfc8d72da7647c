//! How keys and values lie on a card.

use crate::cuda::Cuda;
use crate::cuda::memory::DeviceMemory;
use crate::kv::BLOCK_ROWS;
use crate::storage::Storage;
use crate::tensor::widen;
use crate::{Dtype, KvPool, KvSpec, TensorError};

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
        let tiled = spec.dtype() == Dtype::Bf16 && dim.is_multiple_of(16) && (64..=160).contains(&dim);
        let tile = [64, 32, 16].into_iter().find(|tile| tiled && dim.is_multiple_of(*tile)).unwrap_or(0);
        KvLayout {
            kv_heads: spec.kv_heads as i32,
            head_dim: dim as i32,
            tile: tile as i32,
            value_cols: if tiled { dim } else { spec.value_cols() } as i32,
            head_bytes: (spec.head_elements() * spec.dtype().bytes()) as u64,
        }
    }
}

impl KvLayout {
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
        Ok(pool.with_tiled(self.attention.pool(card, &spec, blocks)?))
    }
}

/// Key and value of position `row` of the head whose part of a block begins at byte `start`.
pub fn read(
    spec: &KvSpec,
    row: usize,
    memory: &DeviceMemory,
    start: usize,
) -> Result<(Vec<f32>, Vec<f32>), TensorError> {
    let (layout, bytes) = (KvLayout::of(spec), spec.dtype().bytes());
    let mut head = vec![0; spec.head_elements() * bytes];
    memory.read(start, &mut head)?;
    let element = |value: usize, dim: usize| {
        let at = layout.at(bytes, value, row, dim);
        head.get(at..at + bytes).map_or(f32::NAN, |element| widen(spec.dtype(), element))
    };
    let line = |value: usize| (0..spec.head_dim).map(|dim| element(value, dim)).collect();
    Ok((line(0), line(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compute;

    fn spec(head_dim: usize, compute: Compute) -> KvSpec {
        KvSpec { layers: 1, kv_heads: 1, head_dim, compute }
    }

    #[test]
    fn every_element_of_a_block_has_its_own_place() {
        for compute in [Compute::F32, Compute::Bf16] {
            for head_dim in [2, 18, 24, 64, 80, 96, 112, 128, 144, 160, 256] {
                let spec = spec(head_dim, compute);
                let (layout, bytes) = (KvLayout::of(&spec), spec.dtype().bytes());
                let mut taken = vec![false; spec.head_elements() * bytes];
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
            let layout = KvLayout::of(&spec(head_dim, Compute::Bf16));
            for (half, dim) in (0..2).flat_map(|half| (0..head_dim).step_by(8).map(move |dim| (half, dim))) {
                let mut banks: Vec<usize> =
                    (0..8).map(|r| layout.at(2, 0, half * 8 + r, dim) % 128 / 16).collect();
                banks.sort_unstable();
                assert_eq!(banks, [0, 1, 2, 3, 4, 5, 6, 7], "{head_dim} {dim}");
            }
        }
    }
}
