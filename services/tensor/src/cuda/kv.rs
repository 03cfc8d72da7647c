//! How keys and values lie on a card.

use crate::cuda::Cuda;
use crate::cuda::memory::DeviceMemory;
use crate::{KvPool, KvSpec, TensorError};

impl Cuda {
    pub(crate) fn kv_pool(&self, _: KvSpec, _: usize) -> Result<KvPool, TensorError> {
        Err(TensorError::OtherDevice)
    }
}

/// Key and value of position `row` of the head whose part of a block begins at byte `start`.
pub fn read(_: &KvSpec, _: usize, _: &DeviceMemory, _: usize) -> Result<(Vec<f32>, Vec<f32>), TensorError> {
    Err(TensorError::OtherDevice)
}
