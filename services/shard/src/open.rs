//! Opens what a configuration names: a device, and a model's weights.

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

use asterism_model::{Checkpoint, ModelError, Synthetic, WeightSource, manifest};
use asterism_tensor::{CpuOptions, CudaOptions, Device, TensorError};

use crate::config::{DeviceName, Weights};

/// How to use a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Threads that compute on the CPU; one for each core unless given.
    pub threads: Option<NonZeroUsize>,
    /// Refuse on a card what could make a row's numbers depend on other rows.
    pub deterministic: bool,
}

/// A model's weights, opened: nothing is read before it is asked for.
#[derive(Debug)]
pub enum OpenedWeights {
    /// A checkpoint's files.
    Checkpoint(Checkpoint),
    /// A rule.
    Synthetic(Synthetic),
}

impl DeviceName {
    /// Opens the device. A card compiles its kernels, or finds them in the cache directory.
    ///
    /// # Errors
    /// There is no such device, or a library that it needs is missing.
    pub fn open(self, options: DeviceOptions) -> Result<Device, TensorError> {
        match self {
            Self::Cpu => {
                let threads = options.threads.or_else(|| thread::available_parallelism().ok());
                Device::cpu(CpuOptions::new(threads.unwrap_or(NonZeroUsize::MIN)))
            }
            Self::Cuda(ordinal) => {
                let cache = manifest::cache_dir().map(|folder| folder.join("cuda"));
                Device::cuda(CudaOptions { ordinal, deterministic: options.deterministic, cache })
            }
        }
    }
}

impl Weights {
    /// Opens the weights of the model at `path`.
    ///
    /// # Errors
    /// It is not usable.
    pub fn open(self, path: &Path) -> Result<OpenedWeights, ModelError> {
        match self {
            Self::Checkpoint => Checkpoint::open(path).map(OpenedWeights::Checkpoint),
            Self::Synthetic(seed) => Synthetic::read(path, seed).map(OpenedWeights::Synthetic),
        }
    }
}

impl OpenedWeights {
    /// For a stage to load.
    pub fn source(&self) -> WeightSource<'_> {
        match self {
            Self::Checkpoint(checkpoint) => WeightSource::Checkpoint(checkpoint),
            Self::Synthetic(synthetic) => WeightSource::Synthetic(synthetic),
        }
    }
}
