//! What numbers are computed on.

use std::num::NonZeroUsize;

use crate::cpu::{Cpu, probe};
use crate::cuda::{Counters, Cuda, CudaLimits, CudaOptions, Graphs, KernelReport, MatmulPlans};
use crate::rows::check_spans;
use crate::{
    AttnSpan, Compute, Dtype, Embedding, Indices, Isa, KvPool, KvSpec, Limits, Matrix, MatrixBuilder,
    ReadProbe, RopeTable, RopeTables, Rows, RowsRoom, Tensor, TensorError, Vector,
};

/// A device, and the threads or streams that belong to it. Operations on it are in [`crate::ops`].
#[derive(Debug)]
pub enum Device {
    /// This processor.
    Cpu(Cpu),
    /// An NVIDIA card.
    Cuda(Box<Cuda>),
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

    /// A card, with its kernels compiled.
    pub fn cuda(options: CudaOptions) -> Result<Device, TensorError> {
        Ok(Device::Cuda(Box::new(Cuda::new(options)?)))
    }

    /// The device in words, for logs and `Describe`.
    pub fn describe(&self) -> String {
        match self {
            Device::Cpu(cpu) => cpu.describe(),
            Device::Cuda(cuda) => cuda.describe(),
        }
    }

    /// Bytes of the memory of card `ordinal`, free and in all, before anything is put there.
    pub fn card_memory(ordinal: usize) -> Result<(u64, u64), TensorError> {
        crate::cuda::memory_of(ordinal)
    }

    /// Rows of memory that a card's tensor of up to `rows` rows takes: multiplications compute whole tiles.
    pub fn padded_rows(rows: usize) -> usize {
        if rows <= 64 { 64 } else { rows.checked_next_multiple_of(128).unwrap_or(usize::MAX) }
    }

    /// Bytes of its own memory, free and in all; `None` where that is the host's.
    pub fn memory(&self) -> Result<Option<(u64, u64)>, TensorError> {
        match self {
            Device::Cpu(_) => Ok(None),
            Device::Cuda(cuda) => cuda.card().memory().map(Some),
        }
    }

    /// What it did so far; `None` on the CPU.
    pub fn counters(&self) -> Option<Counters> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda.card().counters()),
        }
    }

    /// What it took to get its kernels so far; `None` on the CPU.
    pub fn kernel_report(&self) -> Option<KernelReport> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda.card().kernel_report()),
        }
    }

    /// Waits until all work is done, and tells what failed since the last wait.
    pub fn synchronize(&self) -> Result<(), TensorError> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.card().compute.synchronize(),
        }
    }

    /// Which of several instruction paths with slightly different numbers computes: `dp` or `fma` for bf16,
    /// nothing for f32,
    /// which has one on every processor; the card's model and build on CUDA.
    pub fn path(&self, compute: Compute) -> String {
        match (self, compute) {
            (Device::Cuda(cuda), _) => cuda.path(),
            (Device::Cpu(_), Compute::F32) => String::new(),
            (Device::Cpu(cpu), Compute::Bf16) => cpu.bf16_path().to_owned(),
        }
    }

    /// Activations of up to `rows` rows, f32 or bf16; none is in use yet.
    pub fn tensor(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Tensor, TensorError> {
        match self {
            Device::Cpu(_) => Tensor::new(dtype, rows, cols),
            Device::Cuda(cuda) => cuda.tensor(dtype, rows, cols),
        }
    }

    /// A model's vector out of little-endian `bytes`, rounded to bf16 under [`Compute::Bf16`].
    pub fn vector(&self, dtype: Dtype, bytes: &[u8], compute: Compute) -> Result<Vector, TensorError> {
        match self {
            Device::Cpu(_) => Vector::from_bytes(dtype, bytes, compute),
            Device::Cuda(cuda) => Vector::from_bytes(dtype, bytes, compute)?.on_card(cuda.card().context()),
        }
    }

    /// Packs the weights that `builder` has collected, on all threads.
    pub fn matrix(&self, builder: MatrixBuilder<'_>) -> Result<Matrix, TensorError> {
        match self {
            Device::Cpu(cpu) => builder.build(cpu.pool()).map(Matrix::packed),
            Device::Cuda(cuda) => cuda.matrix(builder).map(Matrix::on_card),
        }
    }

    /// Measures what the device can do at most: reading memory (an area of `bytes`) and multiplying.
    pub fn limits(&self, bytes: usize) -> Result<Limits, TensorError> {
        match self {
            Device::Cpu(cpu) => probe::limits(cpu.pool(), cpu.isa(), bytes),
            Device::Cuda(_) => Err(TensorError::OtherDevice),
        }
    }

    /// Memory of `bytes` for [`Device::read`].
    pub fn read_probe(&self, bytes: usize) -> Result<ReadProbe, TensorError> {
        match self {
            Device::Cpu(cpu) => ReadProbe::new(cpu.pool(), cpu.isa(), bytes),
            Device::Cuda(_) => Err(TensorError::OtherDevice),
        }
    }

    /// Reads a probe's memory once, on all threads: bytes a second. For what is measured between two passes, as other work on
    /// the machine changes all rates from moment to moment.
    pub fn read(&self, probe: &ReadProbe) -> Result<f64, TensorError> {
        match self {
            Device::Cpu(cpu) => Ok(probe.pass(cpu.pool())),
            Device::Cuda(_) => Err(TensorError::OtherDevice),
        }
    }

    /// Measures what a card can do at most: copying, reading, multiplying.
    pub fn card_limits(&self) -> Result<CudaLimits, TensorError> {
        match self {
            Device::Cpu(_) => Err(TensorError::OtherDevice),
            Device::Cuda(cuda) => cuda.limits(),
        }
    }

    /// Sees to it that multiplying `rows` rows of up to `inputs` columns allocates nothing later.
    pub fn reserve(&self, rows: usize, inputs: usize) -> Result<(), TensorError> {
        match self {
            Device::Cpu(cpu) => cpu.gemm().reserve(rows, inputs),
            Device::Cuda(_) => Ok(()),
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
            Device::Cuda(_) => {
                self.send_weights(|sender| sender.embedding(dtype, shape, Box::new(bytes), compute))
            }
        }
    }

    /// Memory for `blocks` blocks of keys and values.
    pub fn kv_pool(&self, spec: KvSpec, blocks: usize) -> Result<KvPool, TensorError> {
        match self {
            Device::Cpu(_) => KvPool::new(spec, blocks),
            Device::Cuda(cuda) => cuda.kv_pool(spec, blocks),
        }
    }

    /// Rotary tables; their order gives them the numbers that spans use.
    pub fn rope_tables(&self, tables: Vec<RopeTable>) -> Result<RopeTables, TensorError> {
        match self {
            Device::Cpu(_) => RopeTables::new(tables),
            Device::Cuda(cuda) => RopeTables::new(tables)?.on_card(cuda.card().context()),
        }
    }

    /// Memory for the places of a step's rows.
    pub fn rows(&self, room: RowsRoom) -> Result<Rows, TensorError> {
        match self {
            Device::Cpu(_) => Ok(Rows::new(room, None)),
            Device::Cuda(cuda) => Ok(Rows::new(room, Some(Box::new(cuda.rows(room)?)))),
        }
    }

    /// Says where the rows of a step are. Rows that no span names are padding: operations leave them out.
    pub fn place(
        &self,
        spans: &[AttnSpan<'_>],
        kv: &KvPool,
        tables: &RopeTables,
        rows: &mut Rows,
    ) -> Result<(), TensorError> {
        check_spans(spans, rows.room, kv, tables)?;
        rows.keep(spans);
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.place(rows, kv),
        }
    }

    /// Memory for up to `capacity` ids or row numbers.
    pub fn indices(&self, capacity: usize) -> Result<Indices, TensorError> {
        match self {
            Device::Cpu(_) => Ok(Indices { capacity, host: Vec::with_capacity(capacity), card: None }),
            Device::Cuda(cuda) => cuda.indices(capacity),
        }
    }

    /// Takes `values`, and zeros after them up to `count`.
    pub fn write_indices(
        &self,
        values: &[u32],
        count: usize,
        indices: &mut Indices,
    ) -> Result<(), TensorError> {
        let count = count.max(values.len());
        if count > indices.capacity {
            return Err(TensorError::Capacity { rows: count, capacity: indices.capacity });
        }
        indices.host.clear();
        indices.host.extend_from_slice(values);
        indices.host.resize(count, 0);
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.write_indices(indices),
        }
    }

    /// Finds and keeps the fastest way to multiply by each of `matrices` for every number of rows up to `rows`, so that
    /// nothing has to be found out later. `out` is the type of the products.
    pub fn prepare_matmul(&self, matrices: &[&Matrix], rows: usize, out: Dtype) -> Result<(), TensorError> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.prepare_matmul(matrices, rows, out),
        }
    }

    /// How a card multiplies, and what that promises; `None` on the CPU, where a row's products always depend on that
    /// row alone.
    pub fn matmul_plans(&self) -> Option<MatmulPlans> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda.matmul_plans()),
        }
    }

    /// Runs `work`, which does the same operations on the same values whenever it is called with this `key`: a card
    /// records them the first time, and from then on does them as one.
    pub fn replay<E: From<TensorError>>(
        &self,
        graphs: &mut Graphs,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Device::Cpu(_) => work(),
            Device::Cuda(cuda) => graphs.replay(cuda.card(), key, work),
        }
    }
}
