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

/// The type of activations; accumulation, statistics, softmax and logits are f32 in both.
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

/// The type that keys and values rest in, whatever the activations are: they are rounded to it once when they are written,
/// and widened when they are read.
///
/// A type with scales is a variant here: [`crate::KvSpec`] counts their bytes, and on a card the prelude of the kernels,
/// which says what a `kv_t` is, converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 2] = [KvType::F32, KvType::Bf16];

    /// That of activations, which no value is rounded to once more.
    pub fn of(compute: Compute) -> KvType {
        match compute {
            Compute::F32 => KvType::F32,
            Compute::Bf16 => KvType::Bf16,
        }
    }

    /// Its elements.
    pub fn dtype(self) -> Dtype {
        match self {
            KvType::F32 => Dtype::F32,
            KvType::Bf16 => Dtype::Bf16,
        }
    }

    /// Its short name.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
