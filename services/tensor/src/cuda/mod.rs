//! One NVIDIA card: the same operations as the CPU's, as kernels that are compiled for it at start.
//!
//! Operations only enqueue work on the card's compute stream; memory, kernels and plans are made at creation, so a
//! sequence of operations can be recorded into a graph. Reading a tensor's rows waits for the stream.

pub mod attention;
pub mod cache;
pub mod card;
pub mod compile;
pub mod context;
pub mod edge;
pub mod elementwise;
pub mod evidence;
pub mod gemm;
pub mod graph;
pub mod kv;
pub mod launch;
pub mod library;
pub mod limits;
pub mod matrix;
pub mod memory;
pub mod on_demand;
pub mod rope;
pub mod rows;
pub mod staging;
pub mod stream;
pub mod synthetic;
pub mod upload;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cuda::card::Card;
use crate::cuda::on_demand::OnDemand;
use crate::{KvType, TensorError};

pub use card::Counters;
pub use compile::KernelReport;
pub use gemm::MatmulPlans;
pub use graph::Graphs;
pub use limits::CudaLimits;
pub use matrix::Sender;
pub use staging::threads as sending_threads;

/// How to use a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which card, as the driver counts them.
    pub ordinal: usize,
    /// Refuse whatever could make a row's bits depend on other rows.
    pub deterministic: bool,
    /// Where compiled kernels and plans are kept from start to start; `None`: nowhere.
    pub cache: Option<PathBuf>,
}

/// A card, its streams, and the kernels of all operations.
pub struct Cuda {
    card: Arc<Card>,
    options: CudaOptions,
    elementwise: elementwise::Kernels,
    rope: OnDemand<KvType, rope::Kernels>,
    gemm: gemm::Gemm,
    weights: matrix::Loader,
    evidence: evidence::Kernels,
    attention: attention::Kernels,
}

/// Bytes of a card's memory: free, and in all.
pub(crate) fn memory_of(ordinal: usize) -> Result<(u64, u64), TensorError> {
    Card::open(&CudaOptions { ordinal, deterministic: false, cache: None })?.memory()
}

impl Cuda {
    pub(crate) fn new(options: CudaOptions) -> Result<Cuda, TensorError> {
        let card = Arc::new(Card::open(&options)?);
        let weights = matrix::Loader::new(&card)?;
        Ok(Cuda {
            elementwise: elementwise::Kernels::new(&card)?,
            rope: OnDemand::default(),
            gemm: gemm::Gemm::new(&card, &options, weights.random())?,
            weights,
            evidence: evidence::Kernels::new(&card)?,
            attention: attention::Kernels::default(),
            card,
            options,
        })
    }

    pub(crate) fn describe(&self) -> String {
        format!("cuda:{} {}", self.options.ordinal, self.card.name())
    }

    /// What a row's bits depend on besides the model: the card's model and the build.
    pub(crate) fn path(&self) -> String {
        let (major, minor) = self.card.capability();
        let library::Libraries { nvrtc, cublaslt, .. } = self.card.libraries();
        format!("{} sm_{major}{minor} nvrtc {}.{} cublaslt {cublaslt}", self.card.name(), nvrtc.0, nvrtc.1)
    }

    pub(crate) fn card(&self) -> &Arc<Card> {
        &self.card
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
