//! Rows: looked up, normed, added, multiplied, gathered.

use std::sync::Arc;

use crate::cuda::Cuda;
use crate::cuda::card::Card;
use crate::{Embedding, Indices, Tensor, TensorError};

/// Kernels of this theme.
#[derive(Debug)]
pub struct Kernels {}

impl Kernels {
    pub fn new(_: &Arc<Card>) -> Result<Kernels, TensorError> {
        Ok(Kernels {})
    }
}

impl Cuda {
    pub(crate) fn tensor(&self, _: crate::Dtype, _: usize, _: usize) -> Result<Tensor, TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn indices(&self, _: usize) -> Result<Indices, TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn write_indices(&self, _: &mut Indices) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn embed(&self, _: &Indices, _: &Embedding, _: f32, _: &mut Tensor) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    /// `weight`: the address of the norm's weights, f32; and ε.
    pub(crate) fn add_rms_norm(
        &self,
        _: &mut Tensor,
        _: Option<&Tensor>,
        _: (u64, f32),
        _: &mut Tensor,
    ) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn add(&self, _: &mut Tensor, _: &Tensor) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn silu_mul(&self, _: &Tensor, _: &mut Tensor) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn gather_rows(&self, _: &Tensor, _: &Indices, _: &mut Tensor) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }
}
