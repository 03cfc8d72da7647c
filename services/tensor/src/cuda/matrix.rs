//! Weights on a card: `[N, K]`, row-major, in the compute type. Denormals stay as they are: tensor cores take them.

mod load;
mod send;

use std::sync::Arc;

use crate::cpu::bf16;
use crate::cuda::context::Context;
use crate::cuda::memory::DeviceMemory;
use crate::{Compute, Dtype, TensorError};

pub use load::Loader;
pub use send::Sender;

/// See the module.
#[derive(Debug)]
pub struct CardMatrix {
    inputs: usize,
    outputs: usize,
    compute: Compute,
    memory: DeviceMemory,
    bias: Option<CardBias>,
}

/// A bias in f32, and where that loses nothing in bf16 too.
#[derive(Debug)]
pub struct CardBias {
    memory: DeviceMemory,
    /// Where the bf16 values begin.
    bf16: u64,
}

// === impl CardMatrix ===

impl CardMatrix {
    /// `[outputs, inputs]` weights that are in `memory`, or will be when the compute stream comes to it.
    pub fn new(
        compute: Compute,
        [outputs, inputs]: [usize; 2],
        memory: DeviceMemory,
        bias: Option<&[f32]>,
    ) -> Result<CardMatrix, TensorError> {
        let bias = bias.map(|bias| CardBias::new(memory.context(), bias, compute)).transpose()?;
        Ok(CardMatrix { inputs, outputs, compute, memory, bias })
    }

    /// Input size K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output size N.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The compute type it was made for.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// The bias, if there is one.
    pub fn bias(&self) -> Option<&CardBias> {
        self.bias.as_ref()
    }
}

impl CardBias {
    fn new(context: &Arc<Context>, values: &[f32], compute: Compute) -> Result<CardBias, TensorError> {
        let rounded: Vec<u16> = values.iter().map(|value| bf16::round(*value)).collect();
        let widened: Vec<f32> = rounded.iter().map(|bits| bf16::widen(*bits)).collect();
        let values = if compute == Compute::Bf16 { &widened } else { values };
        // The second half begins where any load is aligned.
        let half = size_of_val(values).next_multiple_of(256);
        let mut bytes = vec![0; half + size_of_val(&rounded[..])];
        bytes[..size_of_val(values)].copy_from_slice(bytemuck::cast_slice(values));
        bytes[half..].copy_from_slice(bytemuck::cast_slice(&rounded));
        let memory = DeviceMemory::holding(context, &bytes)?;
        Ok(CardBias { bf16: memory.address() + half as u64, memory })
    }

    /// Where its values of a type begin.
    pub fn address(&self, dtype: Dtype) -> u64 {
        if dtype == Dtype::F32 { self.memory.address() } else { self.bf16 }
    }
}
