//! Weights made up by rule, on the card: see [`crate::synthetic`].
#![allow(unsafe_code, reason = "starts kernels")]

use std::sync::Arc;

use crate::cuda::Cuda;
use crate::cuda::card::Card;
use crate::cuda::launch::{Arg, Grid, Kernel, Module};
use crate::cuda::matrix::CardMatrix;
use crate::cuda::memory::DeviceMemory;
use crate::storage::Storage;
use crate::synthetic::{SyntheticKey, SyntheticMatrix, embedding_step, weight_step};
use crate::{Compute, Embedding, TensorError};

/// Fills memory of the card with numbers.
#[derive(Clone, Debug)]
pub struct Random {
    card: Arc<Card>,
    bf16: Kernel,
    f32: Kernel,
}

impl Random {
    /// Out of the theme of packing.
    pub fn new(card: &Arc<Card>, module: &Module) -> Result<Random, TensorError> {
        let (bf16, f32) = (module.kernel("pack_synthetic_bf16")?, module.kernel("pack_synthetic_f32")?);
        Ok(Random { card: Arc::clone(card), bf16, f32 })
    }

    /// Enqueues `count` elements of a stream of numbers, in steps of the given size.
    ///
    /// # Safety
    /// There is memory for them at `address`.
    pub unsafe fn fill(
        &self,
        address: u64,
        count: usize,
        compute: Compute,
        (stream, step): (u64, f32),
    ) -> Result<(), TensorError> {
        let kernel = match compute {
            Compute::Bf16 => &self.bf16,
            Compute::F32 => &self.f32,
        };
        let most = self.card.multiprocessors() as usize * 8;
        let grid = Grid::line(count.div_ceil(256).min(most) as u32, 256);
        let count = count as u64;
        let arguments = [Arg::of(&address), Arg::of(&count), Arg::of(&stream), Arg::of(&step)];
        // SAFETY: the kernel's arguments in order; memory by the caller's promise.
        unsafe { self.card.launch(kernel, grid, &arguments) }
    }
}

impl Cuda {
    pub(crate) fn synthetic_matrix(&self, spec: &SyntheticMatrix<'_>) -> Result<CardMatrix, TensorError> {
        // No others will come.
        self.weights.clear_room();
        let context = self.card().context();
        let element = spec.compute.dtype().bytes();
        let elements = spec.outputs().saturating_mul(spec.inputs);
        let memory = DeviceMemory::unwritten(context, elements.saturating_mul(element))?;
        let mut at = memory.address();
        for group in spec.columns {
            let count = group.outputs * spec.inputs;
            let numbers = (group.key.stream(), weight_step(spec.inputs));
            // SAFETY: the groups' elements lie one after the other in memory for all of them.
            unsafe { self.weights.random().fill(at, count, spec.compute, numbers) }?;
            at += (count * element) as u64;
        }
        CardMatrix::new(spec.compute, [spec.outputs(), spec.inputs], memory, spec.bias_values().as_deref())
    }

    pub(crate) fn synthetic_embedding(
        &self,
        [vocab, cols]: [usize; 2],
        compute: Compute,
        key: SyntheticKey,
    ) -> Result<Embedding, TensorError> {
        let elements = vocab.saturating_mul(cols);
        let bytes = elements.saturating_mul(compute.dtype().bytes());
        let memory = DeviceMemory::unwritten(self.card().context(), bytes)?;
        let numbers = (key.stream(), embedding_step());
        // SAFETY: memory for all elements was just taken.
        unsafe { self.weights.random().fill(memory.address(), elements, compute, numbers) }?;
        Ok(Embedding::with(compute.dtype(), [vocab, cols], Storage::Card(memory)))
    }
}
