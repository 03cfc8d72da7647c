//! Page-aligned memory from the operating system, zero until written, on huge pages where it gives them.
//!
//! Reading through small pages costs a quarter of the bandwidth on some machines, so large areas are aligned
//! to and asked for in huge pages, and smaller ones, as most matrices of a small model are, share mappings of
//! [`SHARED`] bytes. (Huge pages are advice: it works without.) Pages get their physical memory when first
//! touched, by the thread that touches them.
#![allow(unsafe_code, reason = "maps anonymous memory")]

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;

const PAGE: usize = 4 << 10;

/// Size of a huge page on x86-64 and, with 4 KiB pages, on AArch64.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a mapping that small areas share.
const SHARED: usize = 32 << 20;

/// The mapping that small areas are presently taken from, and how much of it is taken. It lives as long as an
/// area in it; no byte of it is given out twice.
static CURRENT: Mutex<(Weak<Map>, usize)> = Mutex::new((Weak::new(), 0));

/// An area of memory that starts at a page.
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    map: Arc<Map>,
}

/// A mapping, aligned to huge pages.
struct Map {
    start: NonNull<u8>,
    bytes: usize,
    mapped: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: the area is owned by this value alone, and plain memory belongs to no thread.
unsafe impl Send for Memory {}

// SAFETY: through a shared reference it is only read.
unsafe impl Sync for Memory {}

// SAFETY: only `Memory` reaches into it, each in an area of its own.
unsafe impl Send for Map {}

// SAFETY: as above.
unsafe impl Sync for Map {}

// === impl Memory ===

impl Memory {
    /// An area of `bytes` zeros.
    pub fn zeroed(bytes: usize) -> io::Result<Memory> {
        if bytes > SHARED / 2 {
            let map = Arc::new(Map::new(bytes)?);
            return Ok(Memory { start: map.start, bytes, map });
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, taken) = match current.0.upgrade() {
            Some(map) if current.1 + bytes <= map.bytes => (map, current.1),
            _ => (Arc::new(Map::new(SHARED)?), 0),
        };
        *current = (Arc::downgrade(&map), (taken + bytes).next_multiple_of(PAGE));
        // SAFETY: `taken + bytes` lies within the mapping.
        let start = unsafe { map.start.add(taken) };
        Ok(Memory { start, bytes, map })
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
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= PAGE) };
        self.bytes / size_of::<T>()
    }
}

impl Drop for Memory {
    /// Gives the pages back at once, though others may still use the mapping.
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if Arc::strong_count(&self.map) > 1 {
            // SAFETY: the area's whole pages: nobody else has them, and nobody will read them again.
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_DONTNEED) };
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

// === impl Map ===

impl Map {
    /// Maps `bytes` and what it takes to align them to huge pages.
    fn new(bytes: usize) -> io::Result<Map> {
        let rounded = bytes.checked_next_multiple_of(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped_bytes = rounded.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address of the system's choice touches nothing that exists.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        #[cfg(target_os = "linux")]
        // SAFETY: the range is the mapping just made. Advice may be refused; then small pages serve.
        unsafe {
            libc::madvise(mapped.as_ptr().cast(), mapped_bytes, libc::MADV_HUGEPAGE);
        }
        let offset = mapped.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: the offset is below HUGE_PAGE, which the mapping holds beyond `rounded`.
        let start = unsafe { mapped.add(offset) };
        Ok(Map { start, bytes: rounded, mapped, mapped_bytes })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no area in it is left.
        unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_writable() {
        for bytes in [1, 63, PAGE, 100_000, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, SHARED / 2, SHARED + 5] {
            let mut memory = Memory::zeroed(bytes).unwrap();
            let page = if bytes > SHARED / 2 { HUGE_PAGE } else { PAGE };
            assert_eq!(memory.as_slice::<u8>().as_ptr() as usize % page, 0);
            assert_eq!(memory.bytes(), bytes);
            assert!(memory.as_slice::<u8>().iter().all(|&byte| byte == 0));
            memory.as_mut_slice::<u8>().fill(7);
            assert!(memory.as_slice::<u8>().iter().all(|&byte| byte == 7));
            assert_eq!(memory.as_slice::<u32>().len(), bytes / 4);
        }
    }

    #[test]
    fn areas_are_apart_and_outlive_their_neighbours() {
        let sizes = (1..60_usize).map(|i| i * i * 977);
        let mut areas: Vec<Memory> = sizes.map(|bytes| Memory::zeroed(bytes).unwrap()).collect();
        for (i, area) in areas.iter_mut().enumerate() {
            area.as_mut_slice::<u8>().fill(i as u8 + 1);
        }
        let kept: Vec<(usize, Memory)> = areas.into_iter().enumerate().filter(|(i, _)| i % 3 == 0).collect();
        let fresh = Memory::zeroed(3_000_000).unwrap();
        assert!(fresh.as_slice::<u8>().iter().all(|&byte| byte == 0));
        for (i, area) in kept {
            assert!(area.as_slice::<u8>().iter().all(|&byte| byte == i as u8 + 1));
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
