//! Where a step's rows are, on the card: one upload a step.

use crate::cuda::Cuda;
use crate::{KvPool, Rows, RowsRoom, TensorError};

/// Addresses of what kernels read of a step's rows.
#[derive(Debug)]
pub struct CudaRows {}

impl CudaRows {
    /// i32 by row: its position, −1 where the row is padding.
    pub fn position(&self) -> u64 {
        0
    }

    /// i32 by row: the KV block that it goes to.
    pub fn block(&self) -> u64 {
        0
    }

    /// i32 by row: the rope table of its query.
    pub fn row_table(&self) -> u64 {
        0
    }

    /// i32 by row: the rope table of its block's keys.
    pub fn key_table(&self) -> u64 {
        0
    }
}

impl Cuda {
    pub(crate) fn rows(&self, _: RowsRoom) -> Result<CudaRows, TensorError> {
        Err(TensorError::OtherDevice)
    }

    pub(crate) fn place(&self, _: &mut Rows, _: &KvPool) -> Result<(), TensorError> {
        Err(TensorError::OtherDevice)
    }
}
