//! Activations, and the small vectors of a model (norm weights, biases).

use bytemuck::Pod;

use crate::cpu::bf16;
use crate::cpu::memory::Memory;
use crate::error::{TensorError, check_below, check_eq};
use crate::{Compute, Dtype};

/// Activations: `[rows, cols]`, row-major, f32 or bf16. Memory for `capacity` rows is allocated once; the
/// number of rows in use varies, and operations set it on the tensors they write.
#[derive(Debug)]
pub struct Tensor {
    dtype: Dtype,
    capacity: usize,
    rows: usize,
    cols: usize,
    memory: Memory,
}

/// A short f32 vector that belongs to a model, such as norm weights `[cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    values: Box<[f32]>,
}

// === impl Tensor ===

impl Tensor {
    /// Zeros, with no row in use.
    pub(crate) fn new(dtype: Dtype, capacity: usize, cols: usize) -> Result<Tensor, TensorError> {
        if dtype == Dtype::F16 {
            let (op, what) = ("tensor", "the activations' type");
            return Err(TensorError::Setting { op, what, rule: "f32 or bf16" });
        }
        let bytes = capacity.saturating_mul(cols).saturating_mul(dtype.bytes());
        let memory = Memory::zeroed(bytes).map_err(|source| TensorError::Memory { bytes, source })?;
        Ok(Tensor { dtype, capacity, rows: 0, cols, memory })
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

    /// Takes `bytes` (whole rows, little-endian, in the tensor's own type) as its rows.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), TensorError> {
        let row = self.row_bytes().max(1);
        check_eq("write", "bytes beyond whole rows", bytes.len() % row, 0)?;
        self.set_rows(bytes.len() / row)?;
        self.memory.as_mut_slice::<u8>()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Appends all rows in use to `out`, little-endian, in the tensor's own type.
    pub fn read_bytes(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.memory.as_slice::<u8>()[..self.rows * self.row_bytes()]);
    }

    /// Writes `values` as row `row`, rounded to the tensor's type.
    pub fn write_row(&mut self, row: usize, values: &[f32]) -> Result<(), TensorError> {
        check_below("write", "row", row, self.rows)?;
        check_eq("write", "the row's length", values.len(), self.cols)?;
        let range = row * self.cols..(row + 1) * self.cols;
        match self.dtype {
            Dtype::F32 => self.elements_mut::<f32>()[range].copy_from_slice(values),
            _ => {
                for (to, &value) in self.elements_mut::<half::bf16>()[range].iter_mut().zip(values) {
                    *to = half::bf16::from_bits(bf16::round(value));
                }
            }
        }
        Ok(())
    }

    /// The values of row `row`.
    pub fn read_row(&self, row: usize) -> Result<Vec<f32>, TensorError> {
        check_below("read", "row", row, self.rows)?;
        let range = row * self.cols..(row + 1) * self.cols;
        Ok(match self.dtype {
            Dtype::F32 => self.elements::<f32>()[range].to_vec(),
            _ => self.elements::<half::bf16>()[range].iter().map(|x| x.to_f32()).collect(),
        })
    }

    /// The rows in use, as elements of the tensor's own type.
    pub(crate) fn elements<E: Pod>(&self) -> &[E] {
        debug_assert_eq!(size_of::<E>(), self.dtype.bytes());
        &self.memory.as_slice::<E>()[..self.rows * self.cols]
    }

    /// The rows in use, as elements of the tensor's own type.
    pub(crate) fn elements_mut<E: Pod>(&mut self) -> &mut [E] {
        debug_assert_eq!(size_of::<E>(), self.dtype.bytes());
        &mut self.memory.as_mut_slice::<E>()[..self.rows * self.cols]
    }
}

// === impl Vector ===

impl Vector {
    /// The little-endian elements in `bytes`, widened exactly; under [`Compute::Bf16`] rounded to bf16 first.
    pub(crate) fn from_bytes(dtype: Dtype, bytes: &[u8], compute: Compute) -> Result<Vector, TensorError> {
        check_eq("vector", "bytes beyond whole elements", bytes.len() % dtype.bytes(), 0)?;
        let values = bytes.chunks_exact(dtype.bytes()).map(|element| {
            let value = widen(dtype, element);
            match compute {
                Compute::F32 => value,
                Compute::Bf16 => bf16::widen(bf16::round(value)),
            }
        });
        Ok(Vector { values: values.collect() })
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
