//! Weights made up by rule, for benches of geometries whose files are too large to have: the same numbers on every
//! device.
//!
//! Element i of a tensor is the (i + 1)-th number of a SplitMix64 stream that belongs to the seed and the tensor: its
//! upper 24 bits, made odd and centred, times a step. So it is uniform and never zero, and the f32 product is the only
//! rounding before that to the compute type. Elements count in `[outputs, inputs]` order.

use crate::cpu::bf16;
use crate::storage::Storage;
use crate::{Columns, Compute, Device, Embedding, Layout, Matrix, MatrixBuilder, TensorError, Vector};

/// Weights are uniform in ±GAIN·√(3 / K): K of them times values of variance 1 sum up to variance GAIN².
const GAIN: f64 = 0.5;

/// Half of the range that elements have steps for.
const STEPS: f64 = (1 << 24) as f64;

/// Which stream of numbers a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticKey {
    /// Of the whole checkpoint.
    pub seed: u64,
    /// Of the tensor.
    pub tensor: u64,
}

/// Output columns that are one tensor of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticColumns {
    /// Its numbers.
    pub key: SyntheticKey,
    /// How many.
    pub outputs: usize,
}

/// A matrix of synthetic tensors side by side.
#[derive(Clone, Copy, Debug)]
pub struct SyntheticMatrix<'a> {
    /// Input size K.
    pub inputs: usize,
    /// The type it is computed in.
    pub compute: Compute,
    /// Its tensors, in the order of their output columns.
    pub columns: &'a [SyntheticColumns],
    /// The bias of all columns together, of the weights' size.
    pub bias: Option<SyntheticKey>,
}

impl SyntheticKey {
    /// The key of the tensor of this name (its FNV-1a hash).
    pub fn named(seed: u64, name: &str) -> SyntheticKey {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        SyntheticKey { seed, tensor: name.bytes().fold(0xcbf2_9ce4_8422_2325, step) }
    }

    /// Where its numbers begin.
    pub(crate) fn stream(&self) -> u64 {
        mix(mix(self.seed) ^ self.tensor)
    }
}

impl SyntheticMatrix<'_> {
    /// Output size N.
    pub fn outputs(&self) -> usize {
        self.columns.iter().map(|group| group.outputs).sum()
    }

    /// The bias, if there is one.
    pub(crate) fn bias_values(&self) -> Option<Vec<f32>> {
        let (stream, step) = (self.bias?.stream(), weight_step(self.inputs));
        Some((0..self.outputs() as u64).map(|index| value(stream, index, step)).collect())
    }
}

/// The step of weights with K inputs.
pub(crate) fn weight_step(inputs: usize) -> f32 {
    (GAIN * (3.0 / inputs.max(1) as f64).sqrt() / STEPS) as f32
}

/// The step of an embedding's elements: nothing sums them up, so they have variance GAIN².
pub(crate) fn embedding_step() -> f32 {
    weight_step(1)
}

/// Element `index` of a stream.
pub(crate) fn value(stream: u64, index: u64, step: f32) -> f32 {
    let bits = mix(stream.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let odd = (bits >> 40) as i32 * 2 + 1 - (1 << 24);
    odd as f32 * step
}

/// The last part of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `count` elements of a stream as little-endian bytes in the compute type, made by so many threads.
fn bytes(threads: usize, count: usize, compute: Compute, (stream, step): (u64, f32)) -> Vec<u8> {
    let size = compute.dtype().bytes();
    let mut bytes = vec![0_u8; count * size];
    let share = count.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (part, first) in bytes.chunks_mut(share * size).zip((0..).step_by(share)) {
            scope.spawn(move || {
                for (to, index) in part.chunks_exact_mut(size).zip(first..) {
                    let value = value(stream, index, step);
                    match compute {
                        Compute::F32 => to.copy_from_slice(&value.to_le_bytes()),
                        Compute::Bf16 => to.copy_from_slice(&bf16::round(value).to_le_bytes()),
                    }
                }
            });
        }
    });
    bytes
}

impl Device {
    /// A matrix without a checkpoint.
    pub fn synthetic_matrix(&self, spec: &SyntheticMatrix<'_>) -> Result<Matrix, TensorError> {
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.synthetic_matrix(spec).map(Matrix::on_card),
        };
        let numbers = |group: &SyntheticColumns| (group.key.stream(), weight_step(spec.inputs));
        let tensor = |group: &SyntheticColumns| {
            bytes(cpu.pool().threads(), group.outputs * spec.inputs, spec.compute, numbers(group))
        };
        let tensors: Vec<_> = spec.columns.iter().map(tensor).collect();
        let mut builder = MatrixBuilder::new(spec.inputs, spec.compute);
        for (group, bytes) in spec.columns.iter().zip(&tensors) {
            let (dtype, layout, outputs) = (spec.compute.dtype(), Layout::OutputsFirst, group.outputs);
            builder = builder.columns(Columns { bytes, dtype, layout, outputs, select: None });
        }
        if let Some(bias) = spec.bias_values() {
            builder = builder.bias(bias);
        }
        self.matrix(builder)
    }

    /// An embedding table `[vocab, cols]` without a checkpoint, in the compute type.
    pub fn synthetic_embedding(
        &self,
        shape: [usize; 2],
        compute: Compute,
        key: SyntheticKey,
    ) -> Result<Embedding, TensorError> {
        let cpu = match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(cuda) => return cuda.synthetic_embedding(shape, compute, key),
        };
        let count = shape[0].saturating_mul(shape[1]);
        let bytes = bytes(cpu.pool().threads(), count, compute, (key.stream(), embedding_step()));
        let mut storage = Storage::host(bytes.len())?;
        storage.write(0, &bytes)?;
        Ok(Embedding::with(compute.dtype(), shape, storage))
    }

    /// Norm weights without a checkpoint: ones.
    pub fn synthetic_norm(&self, len: usize) -> Result<Vector, TensorError> {
        let ones = vec![1.0_f32; len];
        self.vector(crate::Dtype::F32, bytemuck::cast_slice(&ones), Compute::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The generator's published first outputs from state 0.
        let outputs = [0xe220_a839_7b1d_cdaf_u64, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        for (index, output) in (0..).zip(outputs) {
            let odd = (output >> 40) as i64 * 2 + 1 - (1 << 24);
            assert_eq!(value(0, index, 1.0), odd as f32);
        }
    }

    #[test]
    fn weights_are_uniform_and_never_zero() {
        let key = SyntheticKey::named(7, "h.0.self_attention.dense.weight");
        let (count, step) = (100_000, weight_step(768));
        let limit = 0.5 * (3.0 / 768.0_f64).sqrt();
        let values: Vec<_> = (0..count).map(|index| f64::from(value(key.stream(), index, step))).collect();
        assert!(values.iter().all(|value| *value != 0.0 && value.abs() <= limit));
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|value| value * value).sum::<f64>() / count as f64;
        assert!(mean.abs() < 0.01 * limit, "{mean}");
        assert!((variance * 768.0 / 0.25 - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn tensors_and_seeds_have_streams_of_their_own() {
        let mut streams = Vec::new();
        for seed in [0, 1, 2] {
            for name in ["a", "b", "ab"] {
                streams.push(SyntheticKey::named(seed, name).stream());
            }
        }
        streams.sort_unstable();
        streams.dedup();
        assert_eq!(streams.len(), 9);
    }
}
