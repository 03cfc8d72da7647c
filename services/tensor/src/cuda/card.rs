//! The card itself: its context, what it is, its streams, its compiler.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::CudaOptions;
use crate::cuda::compile::{Compiler, Theme};
use crate::cuda::launch::Module;
use crate::cuda::stream::Stream;

/// The primary context of a card, retained.
#[derive(Debug)]
pub struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) counters: Counted,
}

// SAFETY: a context may be made current in any thread; the driver locks what it must.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What was done since the start; see [`Counters`].
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub allocations: AtomicU64,
    pub synchronisations: AtomicU64,
    pub waits: AtomicU64,
    pub launches: AtomicU64,
    pub graph_launches: AtomicU64,
}

/// How often a device did what costs time on the host. Between two steps only launches, graph launches and one wait are
/// expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Memory taken, on the card or page-locked.
    pub allocations: u64,
    /// Waits for a whole stream.
    pub synchronisations: u64,
    /// Waits for one event.
    pub waits: u64,
    /// Kernels, multiplications and copies enqueued one by one.
    pub launches: u64,
    /// Whole graphs enqueued.
    pub graph_launches: u64,
}

/// A card and what belongs to it.
#[derive(Debug)]
pub struct Card {
    context: Arc<Context>,
    name: String,
    capability: (u32, u32),
    multiprocessors: u32,
    /// Operations.
    pub compute: Stream,
    /// Activations from and to other stages.
    pub link: Stream,
    /// Weights and other bulk copies from the host.
    pub copies: Stream,
    compiler: Compiler,
}

/// Wraps a driver's answer.
pub fn check<T>(what: &'static str, answer: Result<T, result::DriverError>) -> Result<T, TensorError> {
    answer.map_err(|error| {
        let text = error.error_string().map_or_else(|_| String::from("?"), |text| text.to_string_lossy().into_owned());
        TensorError::Cuda { what, message: text }
    })
}

impl Context {
    /// Makes this the calling thread's context.
    pub fn bind(&self) -> Result<(), TensorError> {
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    pub(super) fn count(&self, counter: impl Fn(&Counted) -> &AtomicU64) {
        counter(&self.counters).fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `Card::open`. A failure leaves nothing to do.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Card {
    /// Retains the card's context in this thread and makes its streams.
    pub fn open(options: &CudaOptions) -> Result<Card, TensorError> {
        check("cuInit", result::init())?;
        let count = check("cuDeviceGetCount", result::device::get_count())?.max(0) as usize;
        if options.ordinal >= count {
            return Err(TensorError::NoCard { ordinal: options.ordinal, count });
        }
        let device = check("cuDeviceGet", result::device::get(options.ordinal as i32))?;
        let name = check("cuDeviceGetName", result::device::get_name(device))?;
        // SAFETY: `device` was just given by the driver.
        let retained = unsafe { result::primary_ctx::retain(device) };
        let context = check("cuDevicePrimaryCtxRetain", retained)?;
        let context = Arc::new(Context { device, context, counters: Counted::default() });
        context.bind()?;
        let attribute = |attribute| {
            // SAFETY: as above.
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
        Ok(Card {
            compute: Stream::new(&context)?,
            link: Stream::new(&context)?,
            copies: Stream::new(&context)?,
            compiler: Compiler::new(capability, options.cache.clone())?,
            context,
            name,
            capability,
            multiprocessors,
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

    /// Bytes of its memory: free, and in all.
    pub fn memory(&self) -> Result<(u64, u64), TensorError> {
        self.context.bind()?;
        let (free, all) = check("cuMemGetInfo", result::mem_get_info())?;
        Ok((free as u64, all as u64))
    }

    /// The kernels of a theme with these definitions, compiled or out of the cache. At creation time only.
    pub fn kernels(&self, theme: Theme, defines: &[(&str, u32)]) -> Result<Module, TensorError> {
        self.context.bind()?;
        Module::load(&self.context, &self.compiler.cubin(theme, defines)?)
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        let Counted { allocations, synchronisations, waits, launches, graph_launches } = &self.context.counters;
        let [allocations, synchronisations, waits, launches, graph_launches] =
            [allocations, synchronisations, waits, launches, graph_launches].map(|count| count.load(Ordering::Relaxed));
        Counters { allocations, synchronisations, waits, launches, graph_launches }
    }
}
