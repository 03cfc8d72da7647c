//! From accumulators to outputs: bias, scale, and the one rounding.
#![allow(unsafe_code, reason = "threads write disjoint columns of the same rows")]

use crate::cpu::element::Element;
use crate::cpu::matrix::PANEL;
use crate::cpu::simd::{Kernel, LANES, Simd};

/// Finished accumulators on their way to one panel's columns of the output.
pub struct Finish<'a, E> {
    accumulators: &'a [[f32; PANEL]],
    bias: Option<&'a [f32; PANEL]>,
    scale: f32,
    out: Block<E>,
}

/// Columns of successive output rows.
pub struct Block<E> {
    /// The first row's first output.
    pub start: *mut E,
    /// Outputs from one row to the next.
    pub stride: usize,
    /// Columns, from 1 to PANEL.
    pub columns: usize,
}

impl<'a, E> Finish<'a, E> {
    /// Adds `bias` to `accumulators`, a row each, multiplies with `scale` and writes to `out`.
    ///
    /// # Safety
    /// `out` has as many rows, and nothing else reads or writes its columns meanwhile.
    pub unsafe fn new(
        accumulators: &'a [[f32; PANEL]],
        bias: Option<&'a [f32; PANEL]>,
        scale: f32,
        out: Block<E>,
    ) -> Finish<'a, E> {
        Finish { accumulators, bias, scale, out }
    }
}

impl<E: Element> Kernel for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let scale = simd.splat(self.scale);
        let Block { start, stride, columns } = self.out;
        for (row, sums) in self.accumulators.iter().enumerate() {
            // SAFETY: promised to `new`.
            let out = unsafe { std::slice::from_raw_parts_mut(start.add(row * stride), columns) };
            for at in (0..columns).step_by(LANES) {
                let mut values = simd.load_f32(sums, at);
                if let Some(bias) = self.bias {
                    values = simd.add(values, simd.load_f32(bias, at));
                }
                E::store(simd, simd.mul(values, scale), out, at);
            }
        }
    }
}
