//! Multiplication by weights.

use std::sync::Arc;

use crate::cuda::card::Card;
use crate::cuda::matrix::CardMatrix;
use crate::cuda::{Cuda, CudaOptions};
use crate::{Dtype, Matrix, Tensor, TensorError};

/// cuBLASLt, its plans, and our own kernels.
#[derive(Debug)]
pub struct Gemm {}

impl Gemm {
    pub fn new(_: &Arc<Card>, _: &CudaOptions) -> Result<Gemm, TensorError> {
        Ok(Gemm {})
    }
}

impl Cuda {
    /// out ← (x · matrix + bias) · scale.
    pub(crate) fn multiply(&self, _: &Tensor, _: &CardMatrix, _: f32, _: &mut Tensor) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn prepare_matmul(&self, _: &[&Matrix], _: usize, _: Dtype) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }
}
