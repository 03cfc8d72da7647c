//! How keys and values lie on a card.

use crate::cuda::Cuda;
use crate::cuda::memory::DeviceMemory;
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

impl Cuda {
    pub(crate) fn kv_pool(&self, _: KvSpec, _: usize) -> Result<KvPool, TensorError> {
        Err(TensorError::OtherDevice)
    }
}

/// Key and value of position `row` of the head whose part of a block begins at byte `start`.
pub fn read(_: &KvSpec, _: usize, _: &DeviceMemory, _: usize) -> Result<(Vec<f32>, Vec<f32>), TensorError> {
    Err(TensorError::OtherDevice)
}
