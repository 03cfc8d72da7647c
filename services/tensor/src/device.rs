//! What numbers are computed on.

use std::num::NonZeroUsize;

use crate::cpu::{Cpu, probe};
use crate::{
    Compute, Dtype, Embedding, Isa, KvPool, KvSpec, Limits, Matrix, MatrixBuilder, RopeTable, RopeTables,
    Tensor, TensorError, Vector,
};

/// A device, and the threads or streams that belong to it. Operations on it are in [`crate::ops`].
#[derive(Debug)]
pub enum Device {
    /// This processor.
    Cpu(Cpu),
}

/// How to use this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that compute, the caller's included.
    pub threads: NonZeroUsize,
    /// The instruction set; the best there is, if none is given.
    pub isa: Option<Isa>,
}

impl CpuOptions {
    /// `threads` threads with the best instructions there are.
    pub fn new(threads: NonZeroUsize) -> CpuOptions {
        CpuOptions { threads, isa: None }
    }
}

impl Device {
    /// This processor, with threads of its own.
    pub fn cpu(options: CpuOptions) -> Result<Device, TensorError> {
        Cpu::new(options).map(Device::Cpu)
    }

    /// The device in words, for logs and `Describe`.
    pub fn describe(&self) -> String {
        match self {
            Device::Cpu(cpu) => cpu.describe(),
        }
    }

    /// Which of several instruction paths with slightly different numbers computes: `dp` or `fma` for bf16,
    /// and nothing for f32, which has one on every processor.
    pub fn path(&self, compute: Compute) -> &'static str {
        match (self, compute) {
            (_, Compute::F32) => "",
            (Device::Cpu(cpu), Compute::Bf16) => cpu.bf16_path(),
        }
    }

    /// Activations of up to `rows` rows, f32 or bf16; none is in use yet.
    pub fn tensor(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Tensor, TensorError> {
        match self {
            Device::Cpu(_) => Tensor::new(dtype, rows, cols),
        }
    }

    /// A model's vector out of little-endian `bytes`, rounded to bf16 under [`Compute::Bf16`].
    pub fn vector(&self, dtype: Dtype, bytes: &[u8], compute: Compute) -> Result<Vector, TensorError> {
        match self {
            Device::Cpu(_) => Vector::from_bytes(dtype, bytes, compute),
        }
    }

    /// Packs the weights that `builder` has collected, on all threads.
    pub fn matrix(&self, builder: MatrixBuilder<'_>) -> Result<Matrix, TensorError> {
        match self {
            Device::Cpu(cpu) => builder.build(cpu.pool()),
        }
    }

    /// Measures what the device can do at most: reading memory (an area of `bytes`) and multiplying.
    pub fn limits(&self, bytes: usize) -> Result<Limits, TensorError> {
        match self {
            Device::Cpu(cpu) => probe::limits(cpu.pool(), cpu.isa(), bytes),
        }
    }

    /// Sees to it that multiplying `rows` rows of up to `inputs` columns allocates nothing later.
    pub fn reserve(&self, rows: usize, inputs: usize) -> Result<(), TensorError> {
        match self {
            Device::Cpu(cpu) => cpu.gemm().reserve(rows, inputs),
        }
    }

    /// An embedding table `[vocab, cols]` out of little-endian `bytes`.
    pub fn embedding(
        &self,
        dtype: Dtype,
        shape: [usize; 2],
        bytes: &[u8],
        compute: Compute,
    ) -> Result<Embedding, TensorError> {
        match self {
            Device::Cpu(_) => Embedding::from_bytes(dtype, shape, bytes, compute),
        }
    }

    /// Memory for `blocks` blocks of keys and values.
    pub fn kv_pool(&self, spec: KvSpec, blocks: usize) -> Result<KvPool, TensorError> {
        match self {
            Device::Cpu(_) => KvPool::new(spec, blocks),
        }
    }

    /// Rotary tables; their order gives them the numbers that spans use.
    pub fn rope_tables(&self, tables: Vec<RopeTable>) -> Result<RopeTables, TensorError> {
        match self {
            Device::Cpu(_) => RopeTables::new(tables),
        }
    }
}
