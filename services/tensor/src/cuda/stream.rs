//! Streams, and events that order them.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::{Context, check};

/// Work in order.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: the driver lets any thread enqueue on a stream.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A mark in a stream's work.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Stream {
    /// A stream that does not wait for the default stream.
    pub fn new(context: &Arc<Context>) -> Result<Stream, TensorError> {
        context.bind()?;
        let stream =
            check("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        context.enlist(stream);
        Ok(Stream { context: Arc::clone(context), stream })
    }

    /// For calls of the driver and of libraries.
    pub fn raw(&self) -> sys::CUstream {
        self.stream
    }

    /// The card's context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) -> Result<(), TensorError> {
        self.context.count(|counters| &counters.synchronisations);
        self.context.bind()?;
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream) })
    }

    /// What is enqueued from now on waits for `event`.
    pub fn wait(&self, event: &Event) -> Result<(), TensorError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        self.context.bind()?;
        // SAFETY: stream and event live.
        check("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.stream, event.event, flags) })
    }

    /// Copies host memory to the card. With page-locked memory it returns at once.
    ///
    /// # Safety
    /// `to` has room for all of `from`, which stays as it is until the copy is done.
    pub unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), TensorError> {
        self.context.bind()?;
        self.context.count(|counters| &counters.launches);
        // SAFETY: the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(to, from, self.stream) })
    }

    /// Copies the card's memory to the host. With page-locked memory it returns at once.
    ///
    /// # Safety
    /// There are as many bytes at `from`; nobody looks at `to` until the copy is done.
    pub unsafe fn download(&self, to: &mut [u8], from: u64) -> Result<(), TensorError> {
        self.context.bind()?;
        self.context.count(|counters| &counters.launches);
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(to, from, self.stream) })
    }

    /// Copies within the card.
    ///
    /// # Safety
    /// Both areas have `bytes` bytes and do not overlap.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), TensorError> {
        self.context.bind()?;
        self.context.count(|counters| &counters.launches);
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.strike(self.stream);
        if self.context.bind().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

impl Event {
    /// An event without a clock.
    pub fn new(context: &Arc<Context>) -> Result<Event, TensorError> {
        Event::with(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that tells time.
    pub fn timed(context: &Arc<Context>) -> Result<Event, TensorError> {
        Event::with(context, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Event, TensorError> {
        context.bind()?;
        Ok(Event {
            context: Arc::clone(context),
            event: check("cuEventCreate", result::event::create(flags))?,
        })
    }

    /// Marks what was enqueued on `stream` so far.
    pub fn record(&self, stream: &Stream) -> Result<(), TensorError> {
        self.context.bind()?;
        // SAFETY: stream and event live.
        check("cuEventRecord", unsafe { result::event::record(self.event, stream.stream) })
    }

    /// Waits until what was marked is done.
    pub fn wait(&self) -> Result<(), TensorError> {
        self.context.count(|counters| &counters.waits);
        self.context.bind()?;
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { result::event::synchronize(self.event) })
    }

    /// Whether what was marked is done.
    pub fn is_done(&self) -> Result<bool, TensorError> {
        self.context.bind()?;
        // SAFETY: the event lives.
        match unsafe { result::event::query(self.event) } {
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            answer => check("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Milliseconds from this event to a later one; both are done and tell time.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32, TensorError> {
        self.context.bind()?;
        // SAFETY: both events live.
        check("cuEventElapsedTime", unsafe { result::event::elapsed(self.event, later.event) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
