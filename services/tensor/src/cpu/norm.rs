//! Residual addition and RMSNorm.
//!
//! residual ← round(residual + delta); out ← round(round(residual · r) · weight) with
//! r = 1 / √(mean(residual²) + eps), each an IEEE operation. The sum of squares has sixteen lanes by column
//! mod 16, folded once at the row's end; one thread does a row.
#![allow(unsafe_code, reason = "threads write disjoint rows")]

use super::Cpu;
use super::disjoint::Disjoint;
use super::element::Element;
use super::simd::{Kernel, LANES, Simd};

/// Rows `[rows, cols]` of one operation. `delta` may be empty: nothing to add.
pub struct AddRmsNorm<'a, E> {
    /// Added to, and normed.
    pub residual: &'a mut [E],
    /// What to add, or nothing.
    pub delta: Option<&'a [E]>,
    /// One factor per column.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// The normed rows.
    pub out: &'a mut [E],
}

impl<E: Element> AddRmsNorm<'_, E> {
    /// Does all rows.
    pub fn run(self, cpu: &Cpu) {
        let cols = self.weight.len();
        if cols == 0 {
            return;
        }
        let rows = self.residual.len() / cols;
        let residual = Disjoint::new(self.residual);
        let out = Disjoint::new(self.out);
        cpu.split(rows, 2 * cols, &|rows| {
            let range = rows.start * cols..rows.end * cols;
            // SAFETY: shares of rows do not overlap.
            let (residual, out) = unsafe { (residual.part(range.clone()), out.part(range.clone())) };
            let delta = self.delta.map(|delta| &delta[range]);
            let (weight, eps) = (self.weight, self.eps);
            E::dispatch(cpu.isa(), Rows(AddRmsNorm { residual, delta, weight, eps, out }));
        });
    }
}

struct Rows<'a, E>(AddRmsNorm<'a, E>);

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let AddRmsNorm { residual, delta, weight, eps, out } = self.0;
        let cols = weight.len();
        for (index, x) in residual.chunks_exact_mut(cols).enumerate() {
            let out = &mut out[index * cols..][..cols];
            let mut squares = s.splat(0.0);
            for at in (0..cols).step_by(LANES) {
                let mut v = E::load(s, x, at);
                if let Some(delta) = delta {
                    v = E::round(s, s.add(v, E::load(s, &delta[index * cols..][..cols], at)));
                    E::store(s, v, x, at);
                }
                squares = s.fma(v, v, squares);
            }
            let mean = s.reduce_add(squares) / cols as f32;
            let r = s.splat(1.0 / (mean + eps).sqrt());
            for at in (0..cols).step_by(LANES) {
                let normed = E::round(s, s.mul(E::load(s, x, at), r));
                E::store(s, s.mul(normed, s.load_f32(weight, at)), out, at);
            }
        }
    }
}
