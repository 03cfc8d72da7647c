//! Brings activations into the order that the kernels read.
#![allow(unsafe_code, reason = "threads write disjoint rows of one area")]

use half::bf16;

use crate::Compute;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::isa::Isa;
use crate::cpu::pool::Worker;
use crate::cpu::simd::{Kernel, LANES, Simd, dispatch};

use super::Activations;

/// How kernels read activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// f32 as they come.
    Plain,
    /// bf16 widened to f32.
    Widened,
    /// bf16 in pairs of K with the odd one first (in the low half of a word), as the weights are; an odd K
    /// is padded with zero.
    Swapped,
}

/// Prepared activations, as kernels see them.
#[derive(Clone, Copy)]
pub struct Prepared {
    start: *const u8,
    element: usize,
    stride: usize,
}

/// Prepares the activations of one multiplication.
pub struct Prepare<'a> {
    order: Order,
    isa: Isa,
    x: Activations<'a>,
    inputs: usize,
    scratch: Disjoint<'a, u8>,
}

// SAFETY: it only points to activations, which nobody writes while a multiplication reads them.
unsafe impl Send for Prepared {}

// SAFETY: as above.
unsafe impl Sync for Prepared {}

impl Order {
    /// The order for `compute` on `isa`.
    pub fn of(compute: Compute, isa: Isa) -> Order {
        match (compute, isa) {
            (Compute::F32, _) => Order::Plain,
            (Compute::Bf16, Isa::Avx512Bf16) => Order::Swapped,
            (Compute::Bf16, _) => Order::Widened,
        }
    }

    fn element(self) -> usize {
        match self {
            Order::Plain | Order::Widened => 4,
            Order::Swapped => 2,
        }
    }

    /// Bytes from one row to the next. In scratch it is an odd number of cache lines, so that the rows of a
    /// tile do not fall into the same set of the cache.
    fn stride(self, inputs: usize) -> usize {
        match self {
            Order::Plain => inputs * 4,
            Order::Widened | Order::Swapped => (inputs * self.element()).next_multiple_of(128) + 64,
        }
    }
}

/// Scratch memory in bytes.
pub fn bytes(order: Order, rows: usize, inputs: usize) -> usize {
    match order {
        Order::Plain => 0,
        Order::Widened | Order::Swapped => rows * order.stride(inputs),
    }
}

impl Prepared {
    /// The activation `k` of `row`; an even `k` where they are pairs.
    pub fn at(&self, row: usize, k: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride + k * self.element)
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

impl<'a> Prepare<'a> {
    /// Prepares `x` for `isa` in `scratch`, which has at least [`bytes`].
    pub fn new(isa: Isa, x: Activations<'a>, inputs: usize, scratch: &'a mut [u8]) -> Prepare<'a> {
        let compute = match x {
            Activations::F32(_) => Compute::F32,
            Activations::Bf16(_) => Compute::Bf16,
        };
        Prepare { order: Order::of(compute, isa), isa, x, inputs, scratch: Disjoint::new(scratch) }
    }

    /// Where the prepared activations are (once every thread has done its part).
    pub fn prepared(&self) -> Prepared {
        let start = match self.x {
            Activations::F32(x) => x.as_ptr().cast(),
            Activations::Bf16(_) => self.scratch.as_mut_ptr().cast_const(),
        };
        Prepared { start, element: self.order.element(), stride: self.order.stride(self.inputs) }
    }

    /// One thread's share of `rows`.
    pub fn run(&self, worker: Worker<'_>, rows: usize) {
        let Activations::Bf16(x) = self.x else { return };
        let stride = self.order.stride(self.inputs);
        for row in worker.share(rows) {
            let from = &x[row * self.inputs..][..self.inputs];
            // SAFETY: shares do not overlap, so this thread alone touches the row.
            let to = unsafe { self.scratch.part(row * stride..(row + 1) * stride) };
            match self.order {
                Order::Plain => {}
                Order::Widened => dispatch(self.isa, Widen { from, to: bytemuck::cast_slice_mut(to) }),
                Order::Swapped => swap(from, bytemuck::cast_slice_mut(to)),
            }
        }
    }
}

/// Widens one row.
struct Widen<'a> {
    from: &'a [bf16],
    to: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let to = &mut self.to[..self.from.len()];
        for at in (0..self.from.len()).step_by(LANES) {
            simd.store_f32(simd.load_bf16(self.from, at), to, at);
        }
    }
}

/// Swaps the pairs of one row.
fn swap(from: &[bf16], to: &mut [u32]) {
    let (pairs, last) = from.as_chunks();
    for (to, [even, odd]) in to.iter_mut().zip(pairs) {
        *to = u32::from(even.to_bits()) << 16 | u32::from(odd.to_bits());
    }
    if let [even] = last {
        to[pairs.len()] = u32::from(even.to_bits()) << 16;
    }
}
