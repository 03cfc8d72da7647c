//! Attention over paged keys and values.

pub mod prefill;

use crate::cuda::Cuda;
use crate::{Attention, Tensor, TensorError};

impl Cuda {
    pub(crate) fn attention(
        &self,
        _: &Tensor,
        _: &Attention<'_>,
        _: usize,
        _: &mut Tensor,
    ) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }
}
