//! Page-aligned memory from the operating system, zero until written.
//!
//! Large areas are aligned to and asked for in 2 MiB pages (advice only: it works without, a little slower).
//! Pages get their physical memory when first touched, by the thread that touches them.
#![allow(unsafe_code, reason = "maps anonymous memory")]

use std::fmt;
use std::io;
use std::ptr::NonNull;

use bytemuck::Pod;

/// Size of a huge page on x86-64 and, with 4 KiB pages, on AArch64.
const HUGE_PAGE: usize = 2 << 20;

/// An area of memory that starts at a page, or at a huge page if it is as large as one.
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    map: NonNull<u8>,
    map_bytes: usize,
}

// SAFETY: the area is owned by this value alone, and plain memory belongs to no thread.
unsafe impl Send for Memory {}

// SAFETY: through a shared reference it is only read, or written by `unsafe` code that answers for itself.
unsafe impl Sync for Memory {}

impl Memory {
    /// An area of `bytes` zeros.
    pub fn zeroed(bytes: usize) -> io::Result<Memory> {
        let huge = bytes >= HUGE_PAGE;
        let slack = if huge { HUGE_PAGE } else { 0 };
        let map_bytes = bytes
            .max(1)
            .checked_next_multiple_of(if huge { HUGE_PAGE } else { 1 })
            .and_then(|bytes| bytes.checked_add(slack))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address of the system's choice touches nothing that exists.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), map_bytes, protection, flags, -1, 0) };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = if huge { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // SAFETY: the range is the mapping just made. Advice may be refused; then small pages serve.
            unsafe { libc::madvise(map.as_ptr().cast(), map_bytes, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: `offset` is below HUGE_PAGE, which the mapping holds beyond `bytes`.
        let start = unsafe { map.add(offset) };
        Ok(Memory { start, bytes, map, map_bytes })
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All whole elements of the area.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        // SAFETY: the area is initialized (zero or written), aligned to a page, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.elements::<T>()) }
    }

    /// All whole elements of the area, for writing.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; the exclusive reference to self makes it the only view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.elements::<T>()) }
    }

    fn elements<T: Pod>(&self) -> usize {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096) };
        self.bytes / size_of::<T>()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `zeroed`; no reference to it outlives self.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_writable() {
        for bytes in [1, 63, 4096, 100_000, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE + 5] {
            let mut memory = Memory::zeroed(bytes).unwrap();
            let page = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 4096 };
            assert_eq!(memory.as_slice::<u8>().as_ptr() as usize % page, 0);
            assert_eq!(memory.bytes(), bytes);
            assert!(memory.as_slice::<u8>().iter().all(|&byte| byte == 0));
            memory.as_mut_slice::<u8>().fill(7);
            assert_eq!(memory.as_slice::<u8>(), vec![7; bytes]);
            assert_eq!(memory.as_slice::<u32>().len(), bytes / 4);
        }
    }

    #[test]
    fn an_empty_area_is_fine() {
        let memory = Memory::zeroed(0).unwrap();
        assert!(memory.as_slice::<f32>().is_empty());
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Memory::zeroed(usize::MAX).is_err());
        assert!(Memory::zeroed(usize::MAX - 3 * HUGE_PAGE).is_err());
    }
}
