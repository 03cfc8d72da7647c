//! Activations, and the small vectors of a model (norm weights, biases).

use std::sync::Arc;

use bytemuck::Pod;

use crate::cpu::bf16;
use crate::cuda::card::Context;
use crate::cuda::memory::DeviceMemory;
use crate::error::{TensorError, check_below, check_eq};
use crate::storage::Storage;
use crate::{Compute, Dtype};

/// Activations: `[rows, cols]`, row-major, f32 or bf16. Memory for `capacity` rows is allocated once; the
/// number of rows in use varies, and operations set it on the tensors they write.
#[derive(Debug)]
pub struct Tensor {
    dtype: Dtype,
    capacity: usize,
    rows: usize,
    cols: usize,
    storage: Storage,
}

/// A short f32 vector that belongs to a model, such as norm weights `[cols]`.
#[derive(Debug)]
pub struct Vector {
    values: Box<[f32]>,
    /// The same on a card, where one computes.
    card: Option<DeviceMemory>,
}

// === impl Tensor ===

impl Tensor {
    /// Zeros of the host's memory, with no row in use.
    pub(crate) fn new(dtype: Dtype, capacity: usize, cols: usize) -> Result<Tensor, TensorError> {
        let bytes = Tensor::bytes(dtype, capacity, cols)?;
        Ok(Tensor::with(dtype, [capacity, cols], Storage::host(bytes)?))
    }

    /// Bytes of so many rows.
    pub(crate) fn bytes(dtype: Dtype, rows: usize, cols: usize) -> Result<usize, TensorError> {
        if dtype == Dtype::F16 {
            let (op, what) = ("tensor", "the activations' type");
            return Err(TensorError::Setting { op, what, rule: "f32 or bf16" });
        }
        Ok(rows.saturating_mul(cols).saturating_mul(dtype.bytes()))
    }

    /// A tensor in `storage`, which has room for `capacity` rows at least.
    pub(crate) fn with(dtype: Dtype, [capacity, cols]: [usize; 2], storage: Storage) -> Tensor {
        Tensor { dtype, capacity, rows: 0, cols, storage }
    }

    /// The element type: f32 or bf16.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows there is memory for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the number of rows in use; rows that come into use hold what was last written to them.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), TensorError> {
        if rows > self.capacity {
            return Err(TensorError::Capacity { rows, capacity: self.capacity });
        }
        self.rows = rows;
        Ok(())
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols * self.dtype.bytes()
    }

    /// Takes `bytes` (whole rows, little-endian, in the tensor's own type) as its rows. Waits for the device.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), TensorError> {
        let row = self.row_bytes().max(1);
        check_eq("write", "bytes beyond whole rows", bytes.len() % row, 0)?;
        self.set_rows(bytes.len() / row)?;
        self.storage.write(0, bytes)
    }

    /// Appends all rows in use to `out`, little-endian, in the tensor's own type. Waits for the device.
    pub fn read_bytes(&self, out: &mut Vec<u8>) -> Result<(), TensorError> {
        self.storage.read(0, self.rows * self.row_bytes(), out)
    }

    /// Writes `values` as row `row`, rounded to the tensor's type. Waits for the device.
    pub fn write_row(&mut self, row: usize, values: &[f32]) -> Result<(), TensorError> {
        check_below("write", "row", row, self.rows)?;
        check_eq("write", "the row's length", values.len(), self.cols)?;
        let bytes: Vec<u8> = match self.dtype {
            Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&value| bf16::round(value).to_le_bytes()).collect(),
        };
        self.storage.write(row * self.row_bytes(), &bytes)
    }

    /// The values of row `row`. Waits for the device.
    pub fn read_row(&self, row: usize) -> Result<Vec<f32>, TensorError> {
        check_below("read", "row", row, self.rows)?;
        let mut bytes = Vec::new();
        self.storage.read(row * self.row_bytes(), self.row_bytes(), &mut bytes)?;
        Ok(bytes.chunks_exact(self.dtype.bytes()).map(|element| widen(self.dtype, element)).collect())
    }

    /// The rows in use, as elements of the tensor's own type, where the CPU computes.
    pub(crate) fn elements<E: Pod>(&self) -> Result<&[E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.dtype.bytes());
        Ok(&self.storage.elements::<E>()?[..self.rows * self.cols])
    }

    /// The rows in use, as elements of the tensor's own type, where the CPU computes.
    pub(crate) fn elements_mut<E: Pod>(&mut self) -> Result<&mut [E], TensorError> {
        debug_assert_eq!(size_of::<E>(), self.dtype.bytes());
        let used = self.rows * self.cols;
        Ok(&mut self.storage.elements_mut::<E>()?[..used])
    }

    /// The address of its first row, where a card computes.
    pub(crate) fn address(&self) -> Result<u64, TensorError> {
        Ok(self.storage.card()?.address())
    }

    /// Its memory.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }
}

// === impl Vector ===

impl Vector {
    /// The little-endian elements in `bytes`, widened exactly; under [`Compute::Bf16`] rounded to bf16 first.
    pub fn from_bytes(dtype: Dtype, bytes: &[u8], compute: Compute) -> Result<Vector, TensorError> {
        check_eq("vector", "bytes beyond whole elements", bytes.len() % dtype.bytes(), 0)?;
        let values = bytes.chunks_exact(dtype.bytes()).map(|element| {
            let value = widen(dtype, element);
            match compute {
                Compute::F32 => value,
                Compute::Bf16 => bf16::widen(bf16::round(value)),
            }
        });
        Ok(Vector { values: values.collect(), card: None })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Its elements.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same vector, on a card too.
    pub(crate) fn on_card(self, context: &Arc<Context>) -> Result<Vector, TensorError> {
        let memory = DeviceMemory::holding(context, bytemuck::cast_slice(&self.values))?;
        Ok(Vector { values: self.values, card: Some(memory) })
    }

    /// Where it is on the card.
    pub(crate) fn address(&self) -> Result<u64, TensorError> {
        self.card.as_ref().map(DeviceMemory::address).ok_or(TensorError::OtherDevice)
    }
}

/// The value of one little-endian element.
pub(crate) fn widen(dtype: Dtype, element: &[u8]) -> f32 {
    match (dtype, element) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::Bf16, &[a, b]) => bf16::widen(u16::from_le_bytes([a, b])),
        (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    }
}
