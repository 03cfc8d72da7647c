//! A slice whose parts are written by several threads at once.
#![allow(unsafe_code, reason = "hands out parts of a slice whose disjointness only the caller can know")]

use std::marker::PhantomData;
use std::ops::Range;

/// An exclusively borrowed slice that a region's threads share; each writes parts of its own.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`, and only through `part`, whose callers answer for disjointness.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Shares `slice` until the value is dropped.
    pub fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first element, for kernels that write scattered places.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// The elements of `range`. Panics where it leaves the slice.
    ///
    /// # Safety
    /// While the part lives, no other thread may read or write any of its elements, and no other part that
    /// overlaps it may exist.
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
