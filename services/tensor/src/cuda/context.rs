//! A card's context: what every call of the driver happens in, and the counts of what was called.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use crate::TensorError;

/// The primary context of a card, retained.
#[derive(Debug)]
pub struct Context {
    /// Told from every other that this process ever had; never 0.
    id: u64,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Clears and copies memory outside of steps. The streams of steps do not wait for it, nor it for them.
    setup: sys::CUstream,
    /// The streams of steps.
    streams: Mutex<Vec<sys::CUstream>>,
    counters: Counted,
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
    pub captures: AtomicU64,
    pub graph_launches: AtomicU64,
}

/// How often a device did what costs time on the host. Between two steps only launches, graph launches and one wait are
/// expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Memory taken, on the card or page-locked, and modules of kernels loaded.
    pub allocations: u64,
    /// Waits for whole streams; memory given back waits too.
    pub synchronisations: u64,
    /// Waits for one event.
    pub waits: u64,
    /// Kernels, multiplications and copies enqueued or recorded one by one.
    pub launches: u64,
    /// Sequences recorded into graphs.
    pub captures: u64,
    /// Whole graphs enqueued.
    pub graph_launches: u64,
}

/// Held while a graph is recorded, and by calls in which the driver waits for all of a card: one that came meanwhile from
/// another thread of the process, which may have a stage on the same card, would spoil the recording.
static RECORDING: Mutex<()> = Mutex::new(());

/// See [`RECORDING`].
pub fn undisturbed() -> MutexGuard<'static, ()> {
    RECORDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wraps a driver's answer.
pub fn check<T>(what: &'static str, answer: Result<T, result::DriverError>) -> Result<T, TensorError> {
    answer.map_err(|error| TensorError::Cuda { what, message: message(&error) })
}

/// A driver's answer in words.
pub fn message(error: &result::DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    }
}

thread_local! {
    /// Which context the driver has as this thread's; 0 at first.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

impl Context {
    /// Retains the context of a device and makes it this thread's.
    pub fn open(device: sys::CUdevice) -> Result<Arc<Context>, TensorError> {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        // SAFETY: the driver gave `device`.
        let context = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let mut context = Context {
            id: OPENED.fetch_add(1, Ordering::Relaxed) + 1,
            device,
            context,
            setup: std::ptr::null_mut(),
            streams: Mutex::default(),
            counters: Counted::default(),
        };
        context.bind()?;
        let setup = result::stream::create(result::stream::StreamKind::NonBlocking);
        context.setup = check("cuStreamCreate", setup)?;
        Ok(Arc::new(context))
    }

    /// Makes this the calling thread's context.
    pub fn bind(&self) -> Result<(), TensorError> {
        if BOUND.get() == self.id {
            return Ok(());
        }
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })?;
        BOUND.set(self.id);
        Ok(())
    }

    /// Puts zeros into the `bytes` bytes at `address`, and waits for it.
    ///
    /// # Safety
    /// The area is there, and no stream uses it.
    pub unsafe fn clear(&self, address: u64, bytes: usize) -> Result<(), TensorError> {
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { result::memset_d8_async(address, 0, bytes, self.setup) })?;
        self.settle()
    }

    /// Copies to memory that no stream uses, and waits for it.
    ///
    /// # Safety
    /// There is room for all of `from` at `to`, and no stream uses it.
    pub unsafe fn fill(&self, to: u64, from: &[u8]) -> Result<(), TensorError> {
        self.bind()?;
        // SAFETY: the caller's promise; `from` is borrowed until the copy is done.
        check("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, from, self.setup) })?;
        self.settle()
    }

    /// Copies to the card, after all work that its streams have been given, and waits for it.
    ///
    /// # Safety
    /// There is room for all of `from` at `to`.
    pub unsafe fn write(&self, to: u64, from: &[u8]) -> Result<(), TensorError> {
        self.synchronize()?;
        // SAFETY: the caller's promise; `from` is borrowed until the copy is done.
        check("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, from, self.setup) })?;
        self.settle()
    }

    /// Copies from the card, after all work that its streams have been given, and waits for it.
    ///
    /// # Safety
    /// There are as many bytes at `from` as in `to`.
    pub unsafe fn read(&self, to: &mut [u8], from: u64) -> Result<(), TensorError> {
        self.synchronize()?;
        // SAFETY: the caller's promise; `to` is borrowed until the copy is done.
        check("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(to, from, self.setup) })?;
        self.settle()
    }

    /// Waits for all streams of steps, one by one: to wait for a whole context is forbidden while anyone who shares the card
    /// records a graph.
    pub fn synchronize(&self) -> Result<(), TensorError> {
        self.bind()?;
        self.count(|counters| &counters.synchronisations);
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for &stream in streams.iter() {
            // SAFETY: a stream leaves the list before it is destroyed.
            check("cuStreamSynchronize", unsafe { result::stream::synchronize(stream) })?;
        }
        Ok(())
    }

    /// Takes a stream into those of steps.
    pub(super) fn enlist(&self, stream: sys::CUstream) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }

    /// Forgets a stream.
    pub(super) fn strike(&self, stream: sys::CUstream) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).retain(|&other| other != stream);
    }

    pub(super) fn count(&self, counter: impl Fn(&Counted) -> &AtomicU64) {
        counter(&self.counters).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counted = &self.counters;
        Counters {
            allocations: read(&counted.allocations),
            synchronisations: read(&counted.synchronisations),
            waits: read(&counted.waits),
            launches: read(&counted.launches),
            captures: read(&counted.captures),
            graph_launches: read(&counted.graph_launches),
        }
    }

    fn settle(&self) -> Result<(), TensorError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.setup) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.setup.is_null() && self.bind().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::stream::destroy(self.setup) };
        }
        // SAFETY: retained once, in `Context::open`. A failure leaves nothing to do.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
