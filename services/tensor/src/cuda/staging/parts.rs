//! What becomes of the parts of a weight tensor on the card: a part is a run of its elements, cut anywhere.

use crate::{Dtype, Layout};

/// Where a tensor goes, and how it comes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Inputs of the matrix.
    pub inputs: usize,
    /// Outputs of the matrix before the tensor's first.
    pub first_output: usize,
    /// The order of the tensor's dimensions.
    pub layout: Layout,
    /// Its element type.
    pub from: Dtype,
    /// The matrix' element type.
    pub to: Dtype,
}

/// What becomes of a part. Places are elements of the whole matrix `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Its elements rest from `at` on as they are.
    Keep {
        /// The first element.
        at: usize,
    },
    /// They rest there in another type.
    Convert {
        /// The first element.
        at: usize,
        /// How many.
        count: usize,
    },
    /// They belong to rows of a tensor with inputs first, which become columns.
    Transpose {
        /// Where the tensor's first output rests.
        at: usize,
        /// The first element, of the tensor's.
        first: usize,
        /// How many.
        count: usize,
    },
}

impl Place {
    /// What becomes of the `bytes` bytes from `offset` on; both are whole elements.
    pub fn of(&self, offset: usize, bytes: usize) -> Then {
        let (first, count) = (offset / self.from.bytes(), bytes / self.from.bytes());
        let at = self.first_output * self.inputs;
        match self.layout {
            Layout::InputsFirst => Then::Transpose { at, first, count },
            Layout::OutputsFirst if self.from == self.to => Then::Keep { at: at + first },
            Layout::OutputsFirst => Then::Convert { at: at + first, count },
        }
    }
}

#[cfg(test)]
mod tests;
