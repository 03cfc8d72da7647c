//! The two types that activations, keys and values rest in.
#![allow(unsafe_code, reason = "reads keys and values through pointers")]

use bytemuck::Pod;
use half::bf16;

use super::isa::Isa;
use super::simd::{Kernel, Pair, Simd, dispatch, dispatch_f32};

/// An activation's element: f32, or bf16 that every store rounds to.
pub trait Element: Pod + Send + Sync {
    /// Sixteen keys' elements j and j + h.
    type Keys<S: Simd>: Copy;

    /// Runs `kernel`, which knows of bf16 only if this is it.
    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output;

    /// Elements `at..at + 16` of `x`, zero beyond its end.
    fn load<S: Simd>(simd: S, x: &[Self], at: usize) -> S::F32;

    /// Stores sixteen lanes, nothing beyond the end of `x`.
    fn store<S: Simd>(simd: S, v: S::F32, x: &mut [Self], at: usize);

    /// Lanes as they would be read after a store.
    fn round<S: Simd>(simd: S, v: S::F32) -> S::F32;

    /// One element's value.
    fn widen(self) -> f32;

    /// Sixteen keys' pair of elements.
    ///
    /// # Safety
    /// `from` must be readable for 32 elements.
    unsafe fn load_keys<S: Simd>(simd: S, from: *const Self) -> Self::Keys<S>;

    /// A query's elements j and j + h as factors.
    fn pair<S: Simd>(simd: S, x: f32, y: f32) -> Pair;

    /// acc + x·key\[j\] + y·key\[j + h\], both products added with one rounding each, in this order.
    fn dot<S: Simd>(simd: S, acc: S::F32, x: &Pair, keys: Self::Keys<S>) -> S::F32;

    /// Both elements of sixteen keys.
    fn split_keys<S: Simd>(simd: S, keys: Self::Keys<S>) -> [S::F32; 2];

    /// A line of 32 value elements.
    ///
    /// # Safety
    /// `from` must be readable for 32 elements.
    unsafe fn load_values<S: Simd>(simd: S, from: *const Self) -> [S::F32; 2];
}

impl Element for f32 {
    type Keys<S: Simd> = [S::F32; 2];

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch_f32(isa, kernel)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[f32], at: usize) -> S::F32 {
        simd.load_f32(x, at)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::F32, x: &mut [f32], at: usize) {
        simd.store_f32(v, x, at);
    }

    #[inline(always)]
    fn round<S: Simd>(_simd: S, v: S::F32) -> S::F32 {
        v
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load_keys<S: Simd>(simd: S, from: *const f32) -> [S::F32; 2] {
        // SAFETY: 32 elements by the caller's promise.
        unsafe { [simd.load_ptr(from), simd.load_ptr(from.add(16))] }
    }

    #[inline(always)]
    fn pair<S: Simd>(_simd: S, x: f32, y: f32) -> Pair {
        [x, y]
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, acc: S::F32, x: &Pair, keys: [S::F32; 2]) -> S::F32 {
        let acc = simd.fma(simd.splat(x[0]), keys[0], acc);
        simd.fma(simd.splat(x[1]), keys[1], acc)
    }

    #[inline(always)]
    fn split_keys<S: Simd>(_simd: S, keys: [S::F32; 2]) -> [S::F32; 2] {
        keys
    }

    #[inline(always)]
    unsafe fn load_values<S: Simd>(simd: S, from: *const f32) -> [S::F32; 2] {
        // SAFETY: 32 elements by the caller's promise.
        unsafe { [simd.load_ptr(from), simd.load_ptr(from.add(16))] }
    }
}

impl Element for bf16 {
    type Keys<S: Simd> = S::Pairs;

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        dispatch(isa, kernel)
    }

    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[bf16], at: usize) -> S::F32 {
        simd.load_bf16(x, at)
    }

    #[inline(always)]
    fn store<S: Simd>(simd: S, v: S::F32, x: &mut [bf16], at: usize) {
        simd.store_bf16(v, x, at);
    }

    #[inline(always)]
    fn round<S: Simd>(simd: S, v: S::F32) -> S::F32 {
        simd.round_bf16(v)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        super::bf16::widen(self.to_bits())
    }

    #[inline(always)]
    unsafe fn load_keys<S: Simd>(simd: S, from: *const bf16) -> S::Pairs {
        // SAFETY: 32 elements, so 64 bytes, by the caller's promise.
        unsafe { simd.load_pairs(from) }
    }

    #[inline(always)]
    fn pair<S: Simd>(simd: S, x: f32, y: f32) -> Pair {
        simd.pair(x, y)
    }

    #[inline(always)]
    fn dot<S: Simd>(simd: S, acc: S::F32, x: &Pair, keys: S::Pairs) -> S::F32 {
        simd.dot(acc, x, keys)
    }

    #[inline(always)]
    fn split_keys<S: Simd>(simd: S, keys: S::Pairs) -> [S::F32; 2] {
        [simd.upper(keys), simd.lower(keys)]
    }

    #[inline(always)]
    unsafe fn load_values<S: Simd>(simd: S, from: *const bf16) -> [S::F32; 2] {
        // SAFETY: 32 elements, so 64 bytes, by the caller's promise.
        let pairs = unsafe { simd.load_pairs(from) };
        [simd.lower(pairs), simd.upper(pairs)]
    }
}
