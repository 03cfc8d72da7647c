//! Element types, and the types that a model may be computed in.

use std::fmt;

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE 754 half precision.
    F16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
        }
    }

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of activations and of keys and values; accumulation, statistics, softmax and logits are f32 in
/// both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Activations are f32; stored weights are widened exactly.
    F32,
    /// Activations are rounded to bf16 after every operation; weights of other types once at load.
    Bf16,
}

impl Compute {
    /// The element type of activations.
    pub fn dtype(self) -> Dtype {
        match self {
            Compute::F32 => Dtype::F32,
            Compute::Bf16 => Dtype::Bf16,
        }
    }

    /// Its short name.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
