//! The card itself: its context, what it is, its streams, its compiler.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::CudaOptions;
use crate::cuda::compile::{Compiler, Define, KernelReport, Theme};
use crate::cuda::launch::Module;
use crate::cuda::library::Libraries;
use crate::cuda::stream::Stream;

pub use crate::cuda::context::{Context, Counters, check};

/// A card and what belongs to it.
#[derive(Debug)]
pub struct Card {
    context: Arc<Context>,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
    l2_bytes: u32,
    libraries: Libraries,
    /// Operations.
    pub compute: Stream,
    /// Activations from and to other stages.
    pub link: Stream,
    /// Weights and other bulk copies from the host.
    pub copies: Stream,
    compiler: Compiler,
}

impl Card {
    /// Opens the libraries, retains the card's context in this thread and makes its streams.
    pub fn open(options: &CudaOptions) -> Result<Card, TensorError> {
        let libraries = Libraries::open()?;
        let count = match result::init() {
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            answer => {
                check("cuInit", answer)?;
                check("cuDeviceGetCount", result::device::get_count())?.max(0) as usize
            }
        };
        if options.ordinal >= count {
            return Err(TensorError::NoCard { ordinal: options.ordinal, count });
        }
        let device = check("cuDeviceGet", result::device::get(options.ordinal as i32))?;
        let name = check("cuDeviceGetName", result::device::get_name(device))?;
        let attribute = |attribute| {
            // SAFETY: `device` was just given by the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            check("cuDeviceGetAttribute", value).map(|value| value.max(0) as u32)
        };
        use sys::CUdevice_attribute as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability.0 < 8 {
            return Err(TensorError::OldCard { name, capability });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        let context = Context::open(device)?;
        Ok(Card {
            compute: Stream::new(&context)?,
            link: Stream::new(&context)?,
            copies: Stream::new(&context)?,
            compiler: Compiler::new(capability, libraries.nvrtc, options.cache.clone())?,
            context,
            name,
            capability,
            multiprocessors,
            l2_bytes,
            libraries,
        })
    }

    /// Its context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// What the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Major and minor compute capability.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Whether Hopper's own instructions exist.
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Bytes of its L2 cache, which all multiprocessors share.
    pub fn l2_bytes(&self) -> usize {
        self.l2_bytes as usize
    }

    /// Bytes of its memory: free, and in all.
    pub fn memory(&self) -> Result<(u64, u64), TensorError> {
        self.context.bind()?;
        let (free, all) = check("cuMemGetInfo", result::mem_get_info())?;
        Ok((free as u64, all as u64))
    }

    /// Versions of the libraries.
    pub fn libraries(&self) -> Libraries {
        self.libraries
    }

    /// The kernels of a theme with these definitions, compiled or out of the cache. At creation time only.
    pub fn kernels(&self, theme: Theme, defines: &[Define]) -> Result<Module, TensorError> {
        Module::load(&self.context, theme, &self.compiler.image(theme, defines)?)
    }

    /// What it took to get the kernels so far.
    pub fn kernel_report(&self) -> KernelReport {
        self.compiler.report()
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.context.counters()
    }
}
