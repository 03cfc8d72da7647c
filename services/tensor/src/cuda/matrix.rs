//! Weights on a card: `[N, K]`, row-major, in the compute type.

use crate::cuda::Cuda;
use crate::cuda::memory::DeviceMemory;
use crate::{Compute, Dtype, Embedding, MatrixBuilder, TensorError};

/// See the module.
#[derive(Debug)]
pub struct CardMatrix {
    inputs: usize,
    outputs: usize,
    compute: Compute,
    memory: DeviceMemory,
}

impl CardMatrix {
    /// Input size K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output size N.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The compute type it was made for.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

impl Cuda {
    pub(crate) fn matrix(&self, _: MatrixBuilder<'_>) -> Result<CardMatrix, TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn embedding(
        &self,
        _: Dtype,
        _: [usize; 2],
        _: &[u8],
        _: Compute,
    ) -> Result<Embedding, TensorError> {
        Err(TensorError::OtherDevice)
    }
}
