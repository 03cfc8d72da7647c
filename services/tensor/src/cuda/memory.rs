//! Memory on the card, and page-locked memory of the host. Both are taken once and given back by drop.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::io;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::{Context, check};

/// An area of the card's memory.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

/// An area of the host's memory that the card reads and writes directly.
#[derive(Debug)]
pub struct PinnedMemory {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory; `&mut` guards writes.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl DeviceMemory {
    /// `bytes` bytes, all zero.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory, TensorError> {
        let memory = DeviceMemory::unwritten(context, bytes)?;
        // SAFETY: the area was just given.
        check("cuMemsetD8", unsafe { result::memset_d8_sync(memory.address, 0, bytes.max(1)) })?;
        // SAFETY: the null stream always lives. It zeroes while the host goes on, and no other stream waits for it.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(std::ptr::null_mut()) })?;
        Ok(memory)
    }

    /// `bytes` bytes with anything in them.
    pub fn unwritten(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory, TensorError> {
        context.bind()?;
        context.count(|counters| &counters.allocations);
        // SAFETY: the context is current.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| refused(bytes, &error))?;
        Ok(DeviceMemory { context: Arc::clone(context), address, bytes })
    }

    /// Its first byte's address on the card.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `from` to `offset`, after all work that the card has been given.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), TensorError> {
        self.synchronize(offset, from.len())?;
        // SAFETY: within the area, by the check above.
        check("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(self.address + offset as u64, from) })
    }

    /// Copies what is at `offset` to `to`, after all work that the card has been given.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), TensorError> {
        self.synchronize(offset, to.len())?;
        // SAFETY: within the area, by the check above.
        check("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(to, self.address + offset as u64) })
    }

    /// Checks that an area lies within, and waits for the card.
    fn synchronize(&self, offset: usize, bytes: usize) -> Result<(), TensorError> {
        if offset.saturating_add(bytes) > self.bytes {
            let (op, what) = ("device memory", "the end of an area");
            return Err(TensorError::OutOfRange { op, what, index: offset.saturating_add(bytes), limit: self.bytes + 1 });
        }
        self.context.bind()?;
        self.context.count(|counters| &counters.synchronisations);
        check("cuCtxSynchronize", result::ctx::synchronize())
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: taken once, freed once; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl PinnedMemory {
    /// `bytes` bytes, all zero.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory, TensorError> {
        context.bind()?;
        context.count(|counters| &counters.allocations);
        // SAFETY: the context is current.
        let start = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(|error| refused(bytes, &error))?
            .cast::<u8>();
        // SAFETY: the area was just given and has so many bytes.
        unsafe { start.write_bytes(0, bytes) };
        Ok(PinnedMemory { context: Arc::clone(context), start, bytes })
    }

    /// Its elements; a part beyond whole elements is left out.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        // SAFETY: initialised, of this size, aligned for any element (page-locked memory begins at a page).
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes / size_of::<T>().max(1)) }
    }

    /// Its elements; a part beyond whole elements is left out.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes / size_of::<T>().max(1)) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: taken once, freed once.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}

fn refused(bytes: usize, error: &result::DriverError) -> TensorError {
    let text = error.error_string().map_or_else(|_| String::from("?"), |text| text.to_string_lossy().into_owned());
    TensorError::Memory { bytes, source: io::Error::other(text) }
}
