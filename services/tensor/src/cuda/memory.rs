//! Memory on the card, and page-locked memory of the host. Both are taken once and given back by drop.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::io;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::context::{Context, message};

/// An area of the card's memory. Whoever has a clone shares the area; it is given back with the last.
#[derive(Clone, Debug)]
pub struct DeviceMemory(Arc<Area>);

#[derive(Debug)]
struct Area {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

/// An area of the host's memory that the card reads and writes directly, or a piece of one. The area is given back with its
/// last piece.
#[derive(Debug)]
pub struct PinnedMemory {
    area: Arc<HostArea>,
    start: *mut u8,
    bytes: usize,
}

#[derive(Debug)]
struct HostArea {
    context: Arc<Context>,
    start: *mut u8,
}

// SAFETY: plain memory; `&mut` guards writes, and pieces of one area do not overlap.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}
// SAFETY: it only gives the memory back, which any thread may do.
unsafe impl Send for HostArea {}
// SAFETY: as above.
unsafe impl Sync for HostArea {}

impl DeviceMemory {
    /// `bytes` bytes, all zero.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory, TensorError> {
        let memory = DeviceMemory::unwritten(context, bytes)?;
        // SAFETY: the area was just given, and is of one byte at least.
        unsafe { context.clear(memory.address(), bytes.max(1))? };
        Ok(memory)
    }

    /// A copy of these bytes.
    pub fn holding(context: &Arc<Context>, bytes: &[u8]) -> Result<DeviceMemory, TensorError> {
        let memory = DeviceMemory::unwritten(context, bytes.len())?;
        // SAFETY: the area was just given, so no stream uses it, and has room for all.
        unsafe { context.fill(memory.address(), bytes)? };
        Ok(memory)
    }

    /// `bytes` bytes with anything in them.
    pub fn unwritten(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory, TensorError> {
        context.bind()?;
        context.count(|counters| &counters.allocations);
        // SAFETY: the context is current.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| refused(bytes, &error))?;
        Ok(DeviceMemory(Arc::new(Area { context: Arc::clone(context), address, bytes })))
    }

    /// Its first byte's address on the card.
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Copies `from` to `offset`, after all work that the card has been given.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), TensorError> {
        let to = self.part(offset, from.len())?;
        // SAFETY: within the area, by the check above.
        unsafe { self.context().write(to, from) }
    }

    /// Copies what is at `offset` to `to`, after all work that the card has been given.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), TensorError> {
        let from = self.part(offset, to.len())?;
        // SAFETY: within the area, by the check above.
        unsafe { self.context().read(to, from) }
    }

    /// The address of a part, which must lie within.
    fn part(&self, offset: usize, bytes: usize) -> Result<u64, TensorError> {
        let end = offset.saturating_add(bytes);
        if end > self.bytes() {
            let (op, what) = ("device memory", "the end of an area");
            return Err(TensorError::OutOfRange { op, what, index: end, limit: self.bytes() + 1 });
        }
        Ok(self.address() + offset as u64)
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.0.context
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            self.context.count(|counters| &counters.synchronisations);
            // SAFETY: taken once, freed once; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl PinnedMemory {
    /// `bytes` bytes, all zero.
    pub fn zeroed(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory, TensorError> {
        let mut memory = PinnedMemory::unwritten(context, bytes)?;
        memory.as_mut_slice::<u8>().fill(0);
        Ok(memory)
    }

    /// `bytes` bytes with anything in them: the system gives pages that it, or this process, has written before.
    pub fn unwritten(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory, TensorError> {
        context.bind()?;
        context.count(|counters| &counters.allocations);
        // SAFETY: the context is current.
        let start = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(|error| refused(bytes, &error))?
            .cast::<u8>();
        Ok(PinnedMemory { area: Arc::new(HostArea { context: Arc::clone(context), start }), start, bytes })
    }

    /// Its pieces of `bytes` bytes each, a multiple of the size and alignment of whatever is kept in them.
    pub fn split(self, bytes: usize) -> impl Iterator<Item = PinnedMemory> {
        (0..self.bytes / bytes.max(1)).map(move |piece| PinnedMemory {
            area: Arc::clone(&self.area),
            start: self.start.wrapping_add(piece * bytes),
            bytes,
        })
    }

    /// Where the card finds it: under one address space, where the host does.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Its elements; a part beyond whole elements is left out.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        // SAFETY: initialised, of this size, aligned for any element (an area begins at a page, pieces by the word of who cut).
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes / size_of::<T>().max(1)) }
    }

    /// Its elements; a part beyond whole elements is left out.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes / size_of::<T>().max(1)) }
    }
}

impl Drop for HostArea {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: taken once, freed once; no stream uses it any more.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}

fn refused(bytes: usize, error: &result::DriverError) -> TensorError {
    TensorError::Memory { bytes, source: io::Error::other(message(error)) }
}
