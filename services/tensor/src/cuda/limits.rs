//! What a card can do at most: the limits that speeds are judged against.

use crate::TensorError;
use crate::cuda::Cuda;

/// Measured limits of a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CudaLimits {
    /// Copying within the card, in bytes read and written a second.
    pub copy: f64,
    /// Reading the card's memory, in bytes a second.
    pub read: f64,
    /// A large bf16 multiplication, in floating-point operations a second.
    pub gemm: f64,
    /// From page-locked memory of the host, in bytes a second.
    pub upload: f64,
    /// To page-locked memory of the host, in bytes a second.
    pub download: f64,
}

impl Cuda {
    /// Measures for about a second.
    pub(crate) fn limits(&self) -> Result<CudaLimits, TensorError> {
        Err(TensorError::OtherDevice)
    }
}
