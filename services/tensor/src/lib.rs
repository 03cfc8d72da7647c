//! Numbers on a device: about twenty operations, a scalar specification and the fast paths behind it.
//!
//! A [`Device`] runs operations on [`Tensor`]s (activations), [`Matrix`]es (packed weights) and a [`KvPool`]
//! (paged keys and values). [`ops`] is the list: it checks shapes, then hands over to the device. On the CPU
//! every kernel is written once over sixteen lanes; plain Rust lanes are the specification, and vector
//! instructions give the same bits. On an NVIDIA card they are kernels that are compiled for it at start; the
//! library opens CUDA only when a card is asked for.
//!
//! Invariant: a row's numbers depend on that row alone, never on the batch it sits in, on how its prompt was
//! chunked, or on the number of threads; on a card, within the row's kind (of the prompt, or drawn). Nothing here
//! knows of models, text or networks.

#[cfg(target_endian = "big")]
compile_error!("tensors exchange little-endian bytes with files and networks without conversion");

mod cpu;
mod cuda;
mod device;
mod dtype;
mod edge;
mod embedding;
mod error;
mod kv;
mod matrix;
pub mod ops;
mod rope;
mod rows;
mod storage;
mod synthetic;
mod tensor;
mod weights;

pub use cpu::isa::Isa;
pub use cpu::pack::{Columns, Layout};
pub use cpu::probe::{Limits, ReadProbe};
pub use cuda::{
    Counters, CudaLimits, CudaOptions, Graphs, KernelReport, MatmulPlans, Sender, sending_threads,
};
pub use device::{CpuOptions, Device};
pub use dtype::{Compute, Dtype, KvType};
pub use edge::{Edge, EdgeBuffer, EdgeBytes, EdgeRoom, Staged, StepTimes};
pub use embedding::Embedding;
pub use error::TensorError;
pub use kv::{BLOCK_ROWS, KvPlace, KvPool, KvSpec, MAX_HEAD_DIM};
pub use matrix::{Matrix, MatrixBuilder};
pub use ops::{Attention, AttnSpan, EvidenceMemory, EvidenceRequest, EvidenceRoom, Processors, RowEvidence};
pub use rope::{RopeTable, RopeTables};
pub use rows::{Indices, Rows, RowsRoom};
pub use synthetic::{SyntheticColumns, SyntheticKey, SyntheticMatrix};
pub use tensor::{Tensor, Vector};
pub use weights::{Elements, KeptColumns, PART, SUBTREE, SentPart};
