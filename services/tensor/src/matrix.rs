//! Weights for multiplication, and how they are collected.

use crate::cpu::matrix::PackedMatrix;
use crate::cpu::pack::Columns;
use crate::cuda::matrix::CardMatrix;
use crate::{Compute, Dtype, TensorError};

/// Weights in a device's own layout, with an optional bias.
#[derive(Debug)]
pub struct Matrix {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Cpu(PackedMatrix),
    Cuda(CardMatrix),
}

/// Collects the column groups of a [`Matrix`], in the order of its output columns.
#[derive(Debug)]
pub struct MatrixBuilder<'a> {
    pub(crate) inputs: usize,
    pub(crate) compute: Compute,
    pub(crate) groups: Vec<Columns<'a>>,
    pub(crate) bias: Option<Vec<f32>>,
}

// === impl Matrix ===

impl Matrix {
    pub(crate) fn packed(matrix: PackedMatrix) -> Matrix {
        Matrix { kind: Kind::Cpu(matrix) }
    }

    pub(crate) fn on_card(matrix: CardMatrix) -> Matrix {
        Matrix { kind: Kind::Cuda(matrix) }
    }

    /// Input size K: the length of an activation row.
    pub fn inputs(&self) -> usize {
        match &self.kind {
            Kind::Cpu(matrix) => matrix.inputs(),
            Kind::Cuda(matrix) => matrix.inputs(),
        }
    }

    /// Output size N.
    pub fn outputs(&self) -> usize {
        match &self.kind {
            Kind::Cpu(matrix) => matrix.outputs(),
            Kind::Cuda(matrix) => matrix.outputs(),
        }
    }

    /// The compute type it was made for.
    pub fn compute(&self) -> Compute {
        match &self.kind {
            Kind::Cpu(matrix) => matrix.compute(),
            Kind::Cuda(matrix) => matrix.compute(),
        }
    }

    /// The type its weights rest in.
    pub fn stored(&self) -> Dtype {
        match &self.kind {
            Kind::Cpu(matrix) => matrix.stored(),
            Kind::Cuda(matrix) => matrix.compute().dtype(),
        }
    }

    /// Memory of the weights in bytes: what one pass over them reads.
    pub fn bytes(&self) -> usize {
        match &self.kind {
            Kind::Cpu(matrix) => matrix.bytes(),
            Kind::Cuda(matrix) => matrix.bytes(),
        }
    }

    /// Memory that a matrix takes at most, in bytes.
    pub fn bytes_of(inputs: usize, outputs: usize, stored: Dtype) -> usize {
        PackedMatrix::bytes_of(inputs, outputs, stored)
    }

    /// Where the CPU computes.
    pub(crate) fn cpu(&self) -> Result<&PackedMatrix, TensorError> {
        match &self.kind {
            Kind::Cpu(matrix) => Ok(matrix),
            Kind::Cuda(_) => Err(TensorError::OtherDevice),
        }
    }

    /// Where a card computes.
    pub(crate) fn card(&self) -> Result<&CardMatrix, TensorError> {
        match &self.kind {
            Kind::Cpu(_) => Err(TensorError::OtherDevice),
            Kind::Cuda(matrix) => Ok(matrix),
        }
    }
}

// === impl MatrixBuilder ===

impl<'a> MatrixBuilder<'a> {
    /// A matrix of `inputs` rows and no columns yet.
    pub fn new(inputs: usize, compute: Compute) -> MatrixBuilder<'a> {
        MatrixBuilder { inputs, compute, groups: Vec::new(), bias: None }
    }

    /// Appends the columns of `group`.
    #[must_use]
    pub fn columns(mut self, group: Columns<'a>) -> MatrixBuilder<'a> {
        self.groups.push(group);
        self
    }

    /// Sets the bias, one value for each of all output columns. For [`Compute::Bf16`] it is rounded once.
    #[must_use]
    pub fn bias(mut self, bias: Vec<f32>) -> MatrixBuilder<'a> {
        self.bias = Some(bias);
        self
    }

    /// Checks all groups and returns their columns together, N.
    pub(crate) fn check(&self) -> Result<usize, TensorError> {
        let mut outputs = 0;
        for group in &self.groups {
            group.check(self.inputs)?;
            outputs += group.selected();
        }
        match &self.bias {
            Some(bias) if bias.len() != outputs => {
                Err(TensorError::Bias { columns: outputs, got: bias.len() })
            }
            _ => Ok(outputs),
        }
    }

    /// The type the weights rest in on the CPU: as they come, or f32 where groups differ; bf16 for
    /// [`Compute::Bf16`].
    pub(crate) fn stored(&self) -> Dtype {
        let mut dtypes = self.groups.iter().map(|group| group.dtype);
        match (self.compute, dtypes.next()) {
            (Compute::Bf16, _) => Dtype::Bf16,
            (Compute::F32, Some(first)) if dtypes.all(|dtype| dtype == first) => first,
            (Compute::F32, _) => Dtype::F32,
        }
    }
}
